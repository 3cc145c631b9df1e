"""Norms and dropout. What they compute stands in `infnet.functional`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from infnet import functional
from infnet_flax.annotate import annotate


@annotate
class LayerNorm(nn.Module):
    """Mean 0 and variance 1 over `reduction_axes`, as `nn.LayerNorm`, but without scale and bias unless asked for.

    Attributes:
        epsilon: added to the variance.
        dtype: of the computation; None is that of inputs and parameters.
        param_dtype: of the parameters.
        use_bias, use_scale: whether there are a trained bias, 0 at first, and a trained scale, 1 at first, for every
            channel.
        reduction_axes: axes of one example.

    Raises:
        infnet.errors.InputError: when called, if an argument is out of its range or the mask does not fit.
    """

    epsilon: float = 1e-6
    dtype: Any = None
    param_dtype: Any = jnp.float32
    use_bias: bool = False
    use_scale: bool = False
    reduction_axes: int | Sequence[int] = -1

    @nn.compact
    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """See `infnet.functional.layer_norm`."""
        shape, dtype = jnp.shape(x)[-1:], self.param_dtype
        scale = self.param("scale", nn.initializers.ones, shape, dtype) if self.use_scale else None
        bias = self.param("bias", nn.initializers.zeros, shape, dtype) if self.use_bias else None
        x, scale, bias = nn.dtypes.promote_dtype(x, scale, bias, dtype=self.dtype)
        return functional.layer_norm(x, scale, bias, axes=self.reduction_axes, epsilon=self.epsilon, mask=mask)


@annotate
class Dropout(nn.Module):
    """Each number becomes zero with probability `rate`, as in `nn.Dropout`.

    Attributes:
        rate: of what is dropped, in [0, 1).
        broadcast_dims: axes along which all numbers share their fate.
        deterministic: whether nothing is dropped; given here or in the call.
        rng_collection: of the random key.

    Raises:
        infnet.errors.InputError: when called, if the rate is out of its range.
    """

    rate: float
    broadcast_dims: Sequence[int] = ()
    deterministic: bool | None = None
    rng_collection: str = "dropout"

    @nn.compact
    def __call__(self, x: Any, deterministic: bool | None = None) -> jax.Array:
        """See `infnet.functional.dropout`."""
        x = jnp.asarray(x)
        functional.check_rate(self.rate)
        if nn.merge_param("deterministic", self.deterministic, deterministic) or self.rate == 0:
            return x
        return functional.dropout(x, self.make_rng(self.rng_collection), self.rate, broadcast_dims=self.broadcast_dims)
