"""Products of the rows of a matrix with float64 vectors, tile by tile, on all processors.

A few rows at a time are converted to float64, and stay in cache for their products. A product that small is not worth
being divided among BLAS's threads, which wait for each other after each, for milliseconds where processors are shared.
So every thread has tiles of its own here, and BLAS one thread, for which threadpoolctl is needed; without it there is
one thread here, and BLAS's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[Any]]
Strips = Iterator[tuple[int, Matrix]]

TILE_ROWS = 64
SMALL = 1000


def rows_times(strips: Strips, v: Matrix) -> Matrix:
    """(n, m): the product of the matrix with v."""
    result = np.empty((len(v), v.shape[1]))

    def tile(first: int, rows: Matrix, _: int) -> None:
        result[first : first + len(rows)] = rows.astype(np.float64) @ v

    _in_tiles(len(v), strips, tile)
    return result


def both_products(strips: Strips, v: Matrix) -> tuple[Matrix, Matrix]:
    """The products with the matrix and with its transpose."""
    by_rows, by_columns = np.empty_like(v), _one_for_each_thread(v)

    def tile(first: int, rows: Matrix, thread: int) -> None:
        here, wide = slice(first, first + len(rows)), rows.astype(np.float64)
        by_rows[here] = wide @ v
        by_columns[thread] += wide.T @ v[here]

    _in_tiles(len(v), strips, tile)
    return by_rows, by_columns.sum(0)


def symmetric_product(strips: Strips, diagonal: Matrix, v: Matrix) -> Matrix:
    """The product with the symmetric matrix of which `strips` give what is above the `diagonal`."""
    results = _one_for_each_thread(v)

    def tile(first: int, rows: Matrix, thread: int) -> None:
        last, result = first + len(rows), results[thread]
        corner = np.triu(rows[:, first:last].astype(np.float64), 1)
        result[first:last] += corner @ v[first:last] + corner.T @ v[first:last]
        behind = rows[:, last:].astype(np.float64, copy=False)
        result[first:last] += behind @ v[last:]
        result[last:] += behind.T @ v[first:last]

    _in_tiles(len(v), strips, tile)
    return results.sum(0) + diagonal[:, None] * v


def _in_tiles(n: int, strips: Strips, tile: Callable[[int, Matrix, int], None]) -> None:
    """Call `tile` with the number of the first row, the rows, and that of the thread."""
    count = _threads(n)

    def own(thread: int, first: int, rows: Matrix) -> None:
        for k in range(thread * TILE_ROWS, len(rows), count * TILE_ROWS):
            tile(first + k, rows[k : k + TILE_ROWS], thread)

    if count == 1:
        for first, rows in strips:
            own(0, first, rows)
        return
    with _controller().limit(limits=1, user_api="blas"), ThreadPoolExecutor(count) as pool:
        for first, rows in strips:
            for done in [pool.submit(own, thread, first, rows) for thread in range(count)]:
                done.result()


def _one_for_each_thread(v: Matrix) -> Matrix:
    return np.zeros((_threads(len(v)), *v.shape))


def _threads(n: int) -> int:
    """As many as BLAS has; one for a matrix that is multiplied with in less time than it takes to start them."""
    if n <= SMALL or _controller() is None:
        return 1
    return max([library["num_threads"] for library in _controller().select(user_api="blas").info()], default=1)


@cache
def _controller() -> Any:
    """What sets the number of BLAS's threads; None where threadpoolctl is not installed."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return None
    return ThreadpoolController()
