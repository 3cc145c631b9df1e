"""Products of a symmetric matrix, block by block, with float64 or float32 vectors, on all processors.

A few rows at a time are converted to the precision of the vectors, into memory that every thread keeps, and stay in
cache for their products. In float32 that is no work, and few terms are added up before float64 takes over: sums of n
entries of one sign would be rounded by a third of what noise of 1e-4 of the diagonal adds, for n = 20,000; sums of
PIECE by a tenth. A product that small is not worth being divided among BLAS's
threads, which wait for each other after each, for milliseconds where processors are shared. So every thread has tiles
of its own here, and BLAS one thread, for which threadpoolctl is needed; without it there is one thread here, and BLAS's
own. The next block is read, or computed, while tiles of the one before are multiplied with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

Matrix = np.ndarray[Any, np.dtype[Any]]
Blocks = Iterator[tuple[int, int, Matrix]]  # the first row, the first column, and the entries from there

TILE_ROWS = 64
PIECE = 128  # columns that are added up in float32
SMALL = 1000


class _Workspace:
    """What one thread at a time has: a sum in float64, and memory for rows in the precision of `v`."""

    def __init__(self, v: Matrix):
        self.sum = np.zeros(v.shape)
        self._memory = np.empty(0, v.dtype)

    def converted(self, part: Matrix) -> Matrix:
        """`part` in the precision of `v`."""
        if part.dtype == self._memory.dtype:
            return part
        if self._memory.size < part.size:
            self._memory = np.empty(part.size, self._memory.dtype)
        converted = self._memory[: part.size].reshape(part.shape)
        converted[...] = part
        return converted


def both_products(blocks: Blocks, v: Matrix) -> tuple[Matrix, Matrix]:
    """The products with the matrix and with its transpose; each row in one block."""
    by_rows = np.empty_like(v)

    def tile(row: int, column: int, part: Matrix, own: _Workspace) -> None:
        here, there = slice(row, row + len(part)), slice(column, column + part.shape[1])
        rows = own.converted(part)
        by_rows[here] = rows @ v[there]
        own.sum[there] += rows.T @ v[here]

    return by_rows, _in_tiles(blocks, v, tile)


def symmetric_product(blocks: Blocks, diagonal: Matrix, v: Matrix) -> Matrix:
    """The product with the symmetric matrix of which `blocks` give, once each, the entries above the `diagonal`."""

    def tile(row: int, column: int, part: Matrix, own: _Workspace) -> None:
        below = max(0, row - column)
        column, part = column + below, part[:, below:]
        last = row + len(part)
        corner = np.triu(part[:, : max(0, last - column)].astype(v.dtype), row - column + 1)
        for first, rows in ((column, corner), (column + corner.shape[1], own.converted(part[:, corner.shape[1] :]))):
            there = slice(first, first + rows.shape[1])
            own.sum[row:last] += _in_pieces(rows, v[there])
            own.sum[there] += rows.T @ v[row:last]

    return _in_tiles(blocks, v, tile) + diagonal[:, None] * v


def _in_pieces(a: Matrix, v: Matrix) -> Matrix:
    """a @ v; of float32, the sum in float64 of products with a few columns."""
    if a.dtype == np.float64:
        return a @ v
    whole = a.shape[1] // PIECE * PIECE
    pieces = a[:, :whole].reshape(len(a), -1, PIECE).swapaxes(0, 1) @ v[:whole].reshape(-1, PIECE, v.shape[1])
    return pieces.sum(0, dtype=np.float64) + a[:, whole:] @ v[whole:]


def _in_tiles(blocks: Blocks, v: Matrix, tile: Callable[[int, int, Matrix, _Workspace], None]) -> Matrix:
    """Call `tile` with the first row and column, a few rows, and a workspace; returns the sum of all workspaces."""
    count = _threads(len(v))
    workspaces = [_Workspace(v) for _ in range(count)]
    unused = workspaces.copy()

    def work(row: int, column: int, block: Matrix, starts: Iterator[int]) -> None:
        own = unused.pop()
        for k in starts:
            tile(row + k, column, block[k : k + TILE_ROWS], own)
        unused.append(own)

    if count == 1:
        for row, column, block in blocks:
            work(row, column, block, _starts(block))
        return workspaces[0].sum
    before: list[Future[None]] = []
    with _controller().limit(limits=1, user_api="blas"), ThreadPoolExecutor(count) as pool:
        for row, column, block in blocks:  # in this thread, on whose settings kernel functions may depend
            starts = _starts(block)  # of which each thread takes the next when it is done with one
            jobs = [pool.submit(work, row, column, block, starts) for _ in range(count)]
            _wait(before)
            before = jobs
        _wait(before)
    return np.sum([own.sum for own in workspaces], axis=0)


def _starts(block: Matrix) -> Iterator[int]:
    return iter(range(0, len(block), TILE_ROWS))


def _wait(jobs: list[Future[None]]) -> None:
    for job in jobs:
        job.result()


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
