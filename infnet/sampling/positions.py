"""Positions as flat indices: which ones others are read from, and how they are looked up."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from infnet.layout import Layout
from infnet.nodes import GroupedConvolution, IndexLinear, Sum, Term, WindowMax
from infnet.primitives.windows import Window


def positions_of(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """The flat left and right position of each entry of a block, in row-major order."""
    grid = np.indices(layout.shape).reshape(2 * len(layout.offsets), -1) if layout.shape else np.zeros((0, 1), int)
    left, right = np.zeros(grid.shape[1], int), np.zeros(grid.shape[1], int)
    for axis, (n, m, offsets) in enumerate(layout.axes):
        r, i = grid[2 * axis], grid[2 * axis + 1]
        j = r if offsets is None else np.clip(np.array(offsets)[r] + i, 0, n - 1)
        left, right = left * n + i, right * m + j
    return left, right


def distinct(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What stands in each row, once and in ascending order, and in which column everything is found now.

    Args:
        positions: `[groups, k]`.

    Returns:
        once: `[groups, d]`; rows with fewer than d different elements repeat the last.
        columns: `[groups, k]`, so that `take_along_axis(once, columns, 1)` is `positions`.
    """
    order = np.argsort(positions, axis=1, kind="stable")
    ascending = np.take_along_axis(positions, order, 1)
    rank = np.cumsum(np.diff(ascending, axis=1, prepend=ascending[:, :1]) != 0, axis=1)
    once = np.repeat(ascending[:, -1:], rank.max(initial=0) + 1, 1)
    columns = np.empty_like(rank)
    np.put_along_axis(once, rank, ascending, 1)
    np.put_along_axis(columns, order, rank, 1)
    return once, columns


def taken(values: jax.Array, columns: np.ndarray) -> jax.Array:
    """The elements `[..., groups, columns]` of values `[..., groups, k]`."""
    first, k = columns[0], columns.shape[1]
    if (columns != first).any():
        return jnp.take_along_axis(values, jnp.asarray(columns).reshape((1,) * (values.ndim - 2) + columns.shape), -1)
    if (first == np.arange(first[0], first[0] + k)).all():
        return values[..., first[0] : first[0] + k]
    return values[..., first]


def of_taps(found: jax.Array, taps: np.ndarray) -> jax.Array:
    """Values at `taps.reshape(groups, -1)` on the axes of the taps."""
    return found.reshape((*found.shape[:-1], *taps.shape[1:]))


def coordinates(positions: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Flat indices as one array for each axis."""
    return list(np.unravel_index(positions, sizes)) if sizes else []


def of_term(node: Sum, term: Term, positions: np.ndarray) -> np.ndarray:
    """The positions of a term at positions of the sum."""
    own = coordinates(positions, node.sizes)
    found = np.zeros_like(positions)
    for axis, size in zip(term.axes, term.node.sizes, strict=True):
        found = found * size + (own[axis] if size > 1 else 0)
    return found


def taps_of_map(node: IndexLinear, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the operand that a map reads, and their weights: `[groups, k, taps]`, some of weight 0."""
    wanted, place = np.unique(positions, return_inverse=True)
    n = int(np.prod(node.operand.sizes))
    with jax.ensure_compile_time_eval():
        every = node.map.side(jnp.eye(n).reshape((*node.operand.sizes, n)))
    rows = np.asarray(every).reshape(-1, n)[wanted]
    taps = max(int((rows != 0).sum(-1).max(initial=0)), 1)
    found = np.argsort(rows == 0, axis=-1, kind="stable")[:, :taps]
    weights = np.take_along_axis(rows, found, -1)
    place = place.reshape(positions.shape)
    return found[place], weights[place]


def taps_of_windows(
    node: WindowMax | GroupedConvolution, windows: Sequence[Window], positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The positions of each window, and which of them exist: `[groups, k, taps]`."""
    sizes = node.operand.sizes
    found, inside = np.zeros((*positions.shape, 1), int), np.ones((*positions.shape, 1), bool)
    for window, size, place in zip(windows, sizes, coordinates(positions, node.sizes), strict=True):
        taps = window.stride * place[..., None] - window.low + window.dilation * np.arange(window.size)
        exists = (taps >= 0) & (taps < size)
        taps = np.clip(taps, 0, size - 1)
        found = (found[..., :, None] * size + taps[..., None, :]).reshape((*positions.shape, -1))
        inside = (inside[..., :, None] & exists[..., None, :]).reshape((*positions.shape, -1))
    return found, inside
