"""Sums over windows of positions, for a block in any layout. Shared by the convolution and pooling primitives.

All functions work on the trailing axes `(r_0, p_0, r_1, p_1, ...)` of a block and ignore leading (example) axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from infnet.layout import Offsets, diagonals


@dataclass(frozen=True)
class Window:
    """Output position i reads the input positions `stride * i - low + dilation * k`, k = 0 ... size - 1."""

    size: int = 1
    stride: int = 1
    dilation: int = 1
    low: int = 0
    high: int = 0

    @property
    def is_identity(self) -> bool:
        """Whether output position i is input position i."""
        return (self.size, self.stride, self.low, self.high) == (1, 1, 0, 0)

    def output_size(self, n: int) -> int:
        """The number of output positions over n input positions."""
        return (n + self.low + self.high - self.dilation * (self.size - 1) - 1) // self.stride + 1


def conv_offsets(window: Window, wanted: Offsets) -> Offsets:
    """The input offsets that a weight-shared window needs: both features read the same tap, so d -> stride * d."""
    return None if wanted is None else tuple(window.stride * d for d in wanted)


def pool_offsets(window: Window, wanted: Offsets, n: int) -> Offsets:
    """The input offsets that pooling needs: the two features read every pair of taps."""
    if wanted is None:
        return None
    taps = [window.dilation * k for k in range(1 - window.size, window.size)]
    needed = sorted({window.stride * d + k for d in wanted for k in taps})
    needed = [d for d in needed if abs(d) < n]
    return tuple(needed) if len(needed) < n else None


def conv_sum(block: jax.Array, r: int, offsets: Offsets, window: Window) -> jax.Array:
    """Sum over taps k of `M[s i - low + dil k, s j - low + dil k]`, zero outside, along one pair of index axes."""
    if window.is_identity:
        return block
    if offsets is None:
        summed = _diagonal_sum(block, r, window)
        for axis in (r, r + 1):
            summed = lax.slice_in_dim(summed, 0, None, window.stride, axis)
        return summed
    return _window_sum(block, (r + 1,), window)


def _window_sum(block: jax.Array, axes: Sequence[int], window: Window) -> jax.Array:
    def per_axis(inside_axes, outside):
        return [inside_axes if axis in axes else outside for axis in range(block.ndim)]

    return lax.reduce_window(
        block,
        np.zeros((), block.dtype),
        lax.add,
        per_axis(window.size, 1),
        per_axis(window.stride, 1),
        per_axis((window.low, window.high), (0, 0)),
        window_dilation=per_axis(window.dilation, 1),
    )


def _diagonal_sum(block: jax.Array, r: int, window: Window) -> jax.Array:
    """Stride-1 window sums along the diagonals of the axes (r, r + 1).

    In a row-major matrix with rows of length P, one step down the diagonal is P + 1 elements. Read with rows of
    length P + 1, diagonals are columns, and a window along them is contiguous: one pass that XLA cannot recompute.
    """
    padding = [(0, 0, 0)] * block.ndim
    padding[r] = padding[r + 1] = (window.low, window.high, 0)
    block = lax.pad(block, np.zeros((), block.dtype), padding)
    rows, columns = block.shape[r : r + 2]
    reach = window.dilation * (window.size - 1)
    skewed = _reread(block, r, -(-rows * columns // (columns + 1)), columns + 1)
    summed = _window_sum(skewed, (r,), Window(window.size, 1, window.dilation))
    straight = _reread(summed, r, rows - reach, columns)
    return lax.slice_in_dim(straight, 0, columns - reach, axis=r + 1)


def _reread(block: jax.Array, r: int, rows: int, columns: int) -> jax.Array:
    """The row-major elements of the axes (r, r + 1) read as a matrix of another shape, cut or filled with zeros."""
    before, after = block.shape[:r], block.shape[r + 2 :]
    flat = block.reshape((*before, block.shape[r] * block.shape[r + 1], *after))
    padding = [(0, 0, 0)] * flat.ndim
    padding[r] = (0, rows * columns - flat.shape[r], 0)
    return lax.pad(flat, np.zeros((), flat.dtype), padding).reshape((*before, rows, columns, *after))


def conv_tap(block: jax.Array, r: int, offsets: Offsets, window: Window, tap: int) -> jax.Array:
    """The term k = tap of `conv_sum`."""
    shifted = Window(1, window.stride, 1, window.low - window.dilation * tap, 0)
    n_out = window.output_size(block.shape[r + 1])
    for axis in (r, r + 1) if offsets is None else (r + 1,):
        block = _shift(block, axis, shifted, n_out)
    return block


def _shift(block: jax.Array, axis: int, window: Window, n_out: int) -> jax.Array:
    """Positions `stride * i - low` for i < n_out, zero outside."""
    last = window.stride * (n_out - 1) - window.low
    padding = [(0, 0, 0)] * block.ndim
    padding[axis] = (window.low, last + 1 - block.shape[axis], 0)
    block = lax.pad(block, np.zeros((), block.dtype), padding)
    return lax.slice_in_dim(block, 0, None, window.stride, axis)


def pool_sum(block: jax.Array, r: int, offsets: Offsets, wanted: Offsets, window: Window) -> jax.Array:
    """Sum over taps k, l of `M[s i - low + dil k, s j - low + dil l]`, zero outside, along one pair of index axes."""
    if offsets is None or wanted is None:  # a wide band costs as much as all pairs: pool these, then cut the band out
        pooled = _window_sum(_window_sum(block, (r,), window), (r + 1,), window)
        return pooled if wanted is None else diagonals(pooled, r, pooled.shape[r + 1], wanted)
    n_out = window.output_size(block.shape[r + 1])
    padding = [(0, 0, 0)] * block.ndim
    padding[r] = (0, 1, 0)  # one row of zeros, for offsets that no two positions have
    block = lax.pad(block, np.zeros((), block.dtype), padding)
    row = {d: index for index, d in enumerate(offsets)}
    total = jnp.zeros((), block.dtype)
    for k in range(window.size):
        needed = [[window.stride * d + window.dilation * (m - k) for d in wanted] for m in range(window.size)]
        rows = np.array([[row.get(d, len(offsets)) for d in ds] for ds in needed])
        band = jnp.stack([jnp.take(block, jnp.asarray(index), axis=r) for index in rows]).sum(0)
        shift = Window(1, window.stride, 1, window.low - window.dilation * k)
        total = total + _shift(band, r + 1, shift, n_out)
    return total
