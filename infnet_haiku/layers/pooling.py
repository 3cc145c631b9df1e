"""Sums and means over positions. What they compute stands in `infnet.functional`."""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from infnet import functional


class AvgPool(hk.Module):
    """Means over windows: `(n, *positions, channels)` to `(n, *positions of the outputs, channels)`.

    Args:
        window_shape: an integer, or one for each axis of positions.
        strides: as the window; None is 1.
        padding: "SAME", "VALID", "CIRCULAR", an integer or pairs.
        normalize_edges: whether padding is left out of the means.

    Raises:
        infnet.errors.InputError: when called, if an argument is malformed or a window does not fit.
    """

    def __init__(
        self,
        window_shape: functional.Sizes,
        strides: functional.Sizes | None = None,
        padding: functional.Padding = "VALID",
        normalize_edges: bool = False,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.window_shape = window_shape
        self.strides = strides
        self.padding = padding
        self.normalize_edges = normalize_edges

    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """See `infnet.functional.avg_pool`."""
        x = jnp.asarray(x)
        return functional.avg_pool(x, self.window_shape, self.strides, self.padding, self.normalize_edges, mask=mask)


class SumPool(hk.Module):
    """Sums over windows: `(n, *positions, channels)` to `(n, *positions of the outputs, channels)`.

    Args:
        window_shape, strides, padding: as for `AvgPool`.

    Raises:
        infnet.errors.InputError: when called, if an argument is malformed or a window does not fit.
    """

    def __init__(
        self,
        window_shape: functional.Sizes,
        strides: functional.Sizes | None = None,
        padding: functional.Padding = "VALID",
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.window_shape = window_shape
        self.strides = strides
        self.padding = padding

    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """See `infnet.functional.sum_pool`."""
        return functional.sum_pool(jnp.asarray(x), self.window_shape, self.strides, self.padding, mask=mask)


class GlobalAvgPool(hk.Module):
    """The mean over all positions: `(n, *positions, channels)` to `(n, channels)`."""

    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """See `infnet.functional.global_avg_pool`."""
        return functional.global_avg_pool(jnp.asarray(x), mask=mask)


class GlobalSumPool(hk.Module):
    """The sum over all positions: `(n, *positions, channels)` to `(n, channels)`."""

    def __call__(self, x: Any, mask: Any = None) -> jax.Array:
        """See `infnet.functional.global_sum_pool`."""
        return functional.global_sum_pool(jnp.asarray(x), mask=mask)
