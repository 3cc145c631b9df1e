"""Norms and dropout. What they compute stands in `infnet.functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from infnet import functional


class LayerNorm(hk.Module):
    """Mean 0 and variance 1 over `axis`, as `hk.LayerNorm`.

    Args:
        axis: axes of one example.
        create_scale, create_offset: whether there are a trained scale, 1 at first, and a trained offset, 0 at first,
            for every channel.
        eps: added to the variance.
        name: of the module.

    Raises:
        infnet.errors.InputError: when called, if an argument is out of its range or the mask does not fit.
    """

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        create_scale: bool = False,
        create_offset: bool = False,
        eps: float = 1e-6,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.axis = axis
        self.create_scale = create_scale
        self.create_offset = create_offset
        self.eps = eps

    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """See `infnet.functional.layer_norm`."""
        x = jnp.asarray(x)
        shape, dtype = x.shape[-1:], x.dtype
        scale = hk.get_parameter("scale", shape, dtype, jnp.ones) if self.create_scale else None
        offset = hk.get_parameter("offset", shape, dtype, jnp.zeros) if self.create_offset else None
        return functional.layer_norm(x, scale, offset, axes=self.axis, epsilon=self.eps, mask=mask)


class Dropout(hk.Module):
    """Each number becomes zero with probability `rate`, as in `hk.dropout`.

    Args:
        rate: of what is dropped, in [0, 1).
        broadcast_dims: axes along which all numbers share their fate.
        name: of the module.

    Raises:
        infnet.errors.InputError: when called, if the rate is out of its range.
    """

    def __init__(self, rate: float, broadcast_dims: Sequence[int] = (), name: str | None = None):
        super().__init__(name=name)
        self.rate = rate
        self.broadcast_dims = broadcast_dims

    def __call__(self, x: Any, is_training: bool) -> jax.Array:
        """See `infnet.functional.dropout`; without `is_training` nothing is dropped."""
        x = jnp.asarray(x)
        functional.check_rate(self.rate)
        if not is_training or self.rate == 0:
            return x
        return functional.dropout(x, hk.next_rng_key(), self.rate, broadcast_dims=self.broadcast_dims)
