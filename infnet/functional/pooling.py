"""Sums and means over windows and over all positions."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from infnet.errors import InputError
from infnet.functional.masks import checked, where_present
from infnet.functional.windows import Padding, Sizes, Windows


def sum_pool(
    x: jax.Array, window: Sizes, strides: Sizes | None = None, padding: Padding = "VALID", *, mask: Any = None
) -> jax.Array:
    """Sums over windows of positions.

    Args:
        x: `(n, *positions, channels)`.
        window: an integer, or one for each axis of positions.
        strides: as window; None is 1.
        padding: as for `conv`.
        mask: where there are inputs, see `where_present`; `window_mask` is where there are outputs then.

    Returns:
        `(n, *positions of the outputs, channels)`.

    Raises:
        InputError: an argument is malformed, or a window does not fit.
    """
    windows = _windows(x, window, strides, padding)
    x, pads = windows.padded(where_present(x, mask))
    return _sums(x, windows, pads)


def avg_pool(
    x: jax.Array,
    window: Sizes,
    strides: Sizes | None = None,
    padding: Padding = "VALID",
    normalize_edges: bool = False,
    *,
    mask: Any = None,
) -> jax.Array:
    """Means over windows of positions: sums (see `sum_pool`), divided by the size of the window.

    With `normalize_edges` they are divided by the number of positions in the window that are no padding. What a mask
    leaves out counts as zero.
    """
    windows = _windows(x, window, strides, padding)
    y = sum_pool(x, window, strides, padding, mask=mask)
    if not normalize_edges or windows.circular:
        return y / math.prod(windows.window)
    ones = np.ones((1, *x.shape[1:-1], 1), x.dtype)
    return y / _sums(jnp.asarray(ones), windows, windows.pads)


def global_sum_pool(x: jax.Array, *, mask: Any = None) -> jax.Array:
    """The sum over all positions, of those there are: `(n, *positions, channels)` to `(n, channels)`."""
    return where_present(x, mask).sum(_positions(x))


def global_avg_pool(x: jax.Array, *, mask: Any = None) -> jax.Array:
    """The mean over all positions, of those there are: `(n, *positions, channels)` to `(n, channels)`."""
    if mask is None:
        return x.mean(_positions(x))
    counts = jnp.broadcast_to(checked(mask, x.shape)[..., None], (*x.shape[:-1], 1)).sum(_positions(x))
    return global_sum_pool(x, mask=mask) / jnp.maximum(counts, 1)


def _windows(x: jax.Array, window: Sizes, strides: Sizes | None, padding: Padding) -> Windows:
    if x.ndim < 3:
        raise InputError(f"a pool needs inputs of shape (n, *positions, channels), not {x.shape}")
    return Windows.of(x.shape[1:-1], window, strides, padding)


def _sums(x: jax.Array, windows: Windows, pads: Any) -> jax.Array:
    zero = np.zeros((), x.dtype)
    shape, strides = (1, *windows.window, 1), (1, *windows.strides, 1)
    return lax.reduce_window(x, zero, lax.add, shape, strides, ((0, 0), *pads, (0, 0)))


def _positions(x: jax.Array) -> tuple[int, ...]:
    return tuple(range(1, x.ndim - 1))
