"""Put the tiles of a kernel together, in the memory of a device or of the host."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import multihost_utils

from infnet.batching.blocks import Blocks
from infnet.batching.grid import Grid, Tile
from infnet.batching.tiles import Tiles, cut

PyTree = Any
# Tiles that are computed while the results of earlier ones are put in their places.
IN_FLIGHT = 2


class Result(Protocol):
    """Matrices of which tiles are put in their places."""

    matrices: PyTree

    def put(self, tile: Tile, matrices: PyTree) -> None:
        """Write a tile."""


class OnHost:
    """Matrices as NumPy arrays."""

    def __init__(self, shapes: PyTree):
        self.matrices = jax.tree.map(lambda s: np.empty(s.shape, s.dtype), shapes)

    def put(self, tile: Tile, matrices: PyTree) -> None:
        """Write a tile."""

        def write(whole: np.ndarray, part: Any) -> None:
            whole[tile.rows, tile.columns] = part

        jax.tree.map(write, self.matrices, matrices)


class OnDevice:
    """Matrices as arrays of one device, which are changed in place."""

    def __init__(self, shapes: PyTree, device: jax.Device):
        self._device = device
        self.matrices = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=device), shapes)

    def put(self, tile: Tile, matrices: PyTree) -> None:
        """Write a tile."""
        matrices = jax.device_put(matrices, self._device)
        self.matrices = _written(self.matrices, matrices, tile.rows.start, tile.columns.start)


@partial(jax.jit, donate_argnums=0)
def _written(whole: PyTree, part: PyTree, row: Any, column: Any) -> PyTree:
    return jax.tree.map(lambda w, p: lax.dynamic_update_slice(w, p, (row, column, *(0,) * (w.ndim - 2))), whole, part)


def assemble(tiles: Tiles, result: Result, notes: PyTree) -> PyTree:
    """Compute all tiles and put them together.

    Args:
        tiles: the kernel's.
        result: where to.
        notes: shapes of the notes of a block.

    Returns:
        what `Blocks.finish` makes of the matrices and of the largest notes.
    """
    blocks, grid = tiles.blocks, tiles.grid
    largest = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), notes)
    for tile, matrices, noted in _computed(tiles):
        found = jax.tree.map(np.asarray, noted)
        blocks.check(found, tile.rows, tile.columns)
        largest = jax.tree.map(np.maximum, largest, found)
        result.put(tile, matrices)
        if grid.mirrored and not tile.own:
            assert blocks.mirror is not None
            result.put(tile.mirrored, blocks.mirror(matrices))
    return blocks.finish(result.matrices, jax.tree.map(jnp.asarray, largest))


def _computed(tiles: Tiles) -> Iterator[tuple[Tile, PyTree, PyTree]]:
    """All tiles with their matrices and notes; later ones are already under way while one is used."""
    if jax.process_count() > 1:
        yield from _computed_by_processes(tiles)
        return
    waiting: deque[tuple[Tile, PyTree, PyTree]] = deque()
    for tile in tiles.grid:
        waiting.append((tile, *tiles(tile)))
        if len(waiting) > IN_FLIGHT:
            yield waiting.popleft()
    yield from waiting


def _computed_by_processes(tiles: Tiles) -> Iterator[tuple[Tile, PyTree, PyTree]]:
    """The same for several processes (`jax.distributed`): each computes its share, and all get all."""
    count, number = jax.process_count(), jax.process_index()
    waiting = list(tiles.grid)
    for start in range(0, len(waiting), count):
        together = waiting[start : start + count]
        mine = together[min(number, len(together) - 1)]  # in the last round some compute what another one does
        everything = multihost_utils.process_allgather(tiles.whole(mine))
        for k, tile in enumerate(together):
            matrices, notes = jax.tree.map(lambda a, k=k: a[k], everything)
            yield tile, cut(tile, matrices), notes


def grid_of(blocks: Blocks, rows: int, columns: int) -> Grid:
    """Tiles of this size; if x2 is x1, square ones, of which those below the diagonal may follow from those above."""
    return Grid(*blocks.sizes, rows, columns, mirrored=blocks.mirror is not None and rows == columns)
