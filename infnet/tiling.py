"""From one pair of examples to a kernel matrix, tile by tile.

A tile is small enough that all steps of the plan work in cache. With x2 = x1, every unordered pair of tiles is computed
once and the other half is its transpose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.plan import Ask, Plan, Step

PyTree = Any
# Entries of the largest block of a tile: with two moments in float32, 2 MiB. See benchmarks/tiles.py.
TILE_ENTRIES = 2**18


def tile_sizes(plan: Plan, n1: int, n2: int, symmetric: bool, devices: int = 1) -> tuple[int, int]:
    """The numbers of examples (rows, columns) of a tile; its rows are shared between `devices`."""
    largest = _numbers(s for s in plan.steps if isinstance(s.request, Ask) and s.request.side == (1, 2))
    pairs = max(1, TILE_ENTRIES // largest)  # of each device
    shares = math.gcd(n1, devices)
    if n1 * n2 <= pairs * shares:
        return n1, n2
    side = max(1, math.isqrt(pairs))
    if symmetric:
        return even(n1, side), even(n1, side)
    columns = even(n2, min(n2, pairs))
    return _rows(n1, shares * max(1, pairs // columns), shares), columns


def examples_at_once(plan: Plan) -> int:
    """How many examples make the largest block of a plan for single examples as large as a tile."""
    return max(1, TILE_ENTRIES // _numbers(plan.steps))


def _numbers(steps: Iterable[Step]) -> int:
    """How many numbers a step holds of one pair of examples, at most."""
    blocks = [max(math.prod(s.request.layout.shape), s.numbers) for s in steps if isinstance(s.request, Ask)]
    return max(blocks, default=1)


def _rows(n: int, most: int, shares: int) -> int:
    """As `even`; but if it can be, and at most twice as small, so that every share has equally many rows of a tile."""
    parts = -(-n // most)
    fitting = [p for p in range(parts, 2 * parts + 1) if n % (p * shares) == 0]
    return n // fitting[0] if fitting else even(n, most)


def even(n: int, most: int) -> int:
    """The size of the parts when n is cut into the fewest parts of at most `most`, as evenly as possible."""
    return -(-n // -(-n // min(n, most)))


def matrix(block: Callable[[PyTree, PyTree], PyTree], x1: PyTree, x2: PyTree, tile: tuple[int, int]) -> PyTree:
    """`block(rows, columns) -> (n1, n2, ...)` computed in tiles.

    With p tiles one below the other, each has every p-th row. So if x1 is spread over devices, all of them work on
    every tile, and none needs the rows of another.

    Args:
        block: computes all pairs of a set of rows and a set of columns.
        x1, x2: pytrees with leading axes n1 and n2.
        tile: its number of rows and of columns.
    """
    (n1, n2), (rows, columns) = (_length(x1), _length(x2)), tile
    if (rows, columns) == (n1, n2):
        return block(x1, x2)
    p, q = -(-n1 // rows), -(-n2 // columns)
    parts1 = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), _cut(x1, rows, p))
    parts2 = _cut(x2, q, columns)

    def strip(part: PyTree) -> PyTree:
        return jax.lax.map(lambda other: block(part, other), parts2)

    tiles = jax.lax.map(strip, parts1)
    return jax.tree.map(lambda t: _joined(jnp.transpose(t, (2, 0, 1, *range(3, t.ndim))), n1, n2), tiles)


def symmetric_matrix(block: Callable[[PyTree, PyTree], PyTree], x: PyTree, tile: int) -> PyTree:
    """`matrix(block, x, x)`, every unordered pair of tiles computed once.

    The result's axes after the first two are pairs of positions `(h, h', w, w', ...)`, transposed together with them.
    """
    n = _length(x)
    if tile == n:
        return block(x, x)
    p = -(-n // tile)
    parts = _cut(x, p, tile)
    upper = np.array([(i, j) for i in range(p) for j in range(i, p)])

    def one(pair: jax.Array) -> PyTree:
        rows, columns = (jax.tree.map(itemgetter(k), parts) for k in pair)
        return block(rows, columns)

    tiles = jax.lax.map(one, jnp.asarray(upper))
    number = np.zeros((p, p), int)
    number[upper[:, 0], upper[:, 1]] = np.arange(len(upper))
    number = np.maximum(number, number.T)
    below = np.arange(p)[:, None] > np.arange(p)

    def mirror(t: jax.Array) -> jax.Array:
        both = jnp.where(below.reshape((p, p, *(1,) * (t.ndim - 1))), transposed(t)[number], t[number])
        return _joined(jnp.swapaxes(both, 1, 2), n, n)

    return jax.tree.map(mirror, tiles)


def mirrored(matrices: PyTree) -> PyTree:
    """Arrays `(n1, n2, h, h', ...)` with x1 and x2 exchanged."""
    return jax.tree.map(lambda k: transposed(k[None])[0], matrices)


def transposed(tiles: jax.Array) -> jax.Array:
    """Tiles `(count, a, b, h, h', ...)` with x1 and x2 exchanged."""
    order = [0, *(axis + 1 if axis % 2 else axis - 1 for axis in range(1, tiles.ndim))]
    return jnp.transpose(tiles, order)


def _length(x: PyTree) -> int:
    return jax.tree.leaves(x)[0].shape[0]


def _cut(x: PyTree, parts: int, size: int) -> PyTree:
    """Leading axis n as (parts, size); the last part is filled up with copies of the last example."""

    def cut(a: jax.Array) -> jax.Array:
        missing = parts * size - len(a)
        whole = jnp.concatenate([a, jnp.broadcast_to(a[-1:], (missing, *a.shape[1:]))]) if missing else a
        return whole.reshape((parts, size, *a.shape[1:]))

    return jax.tree.map(cut, x)


def _joined(tiles: jax.Array, n1: int, n2: int) -> jax.Array:
    """Tiles on axes (p, rows, q, columns, ...), or (rows, p, q, columns, ...), as one array `(n1, n2, ...)`."""
    a, b, c, d, *rest = tiles.shape
    return tiles.reshape((a * b, c * d, *rest))[:n1, :n2]
