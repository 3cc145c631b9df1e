"""Compute tiles of a kernel, on one device or on the devices of a mesh."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding

from infnet.batching.blocks import Blocks
from infnet.batching.grid import Grid, Tile
from infnet.cost import Program

PyTree = Any


class Tiles:
    """Computes tiles of a kernel.

    Every tile is computed as if it were whole: where it ends beyond the last example, this one is repeated. So one
    program is compiled for all, and one for those on the diagonal.
    """

    def __init__(self, blocks: Blocks, grid: Grid, mesh: Mesh):
        """Tiles of `blocks`, each spread over the devices of a mesh with axes (rows, columns)."""
        self.blocks, self.grid, self._mesh = blocks, grid, mesh
        self.device = mesh.devices.flat[0]
        everywhere, *self._shardings = (self._sharding(names) for names in ((), *((name,) for name in mesh.axis_names)))
        self._shared = jax.device_put(blocks.shared, everywhere)

    def __call__(self, tile: Tile) -> tuple[PyTree, PyTree]:
        """The matrices of a tile, without what was repeated, and its notes."""
        matrices, notes = self.whole(tile)
        return cut(tile, matrices), notes

    def whole(self, tile: Tile) -> tuple[PyTree, PyTree]:
        """The matrices of a tile as if it were whole, `(rows, columns, ...)`, and its notes."""
        if self._is_own(tile):
            return _own_program(self.blocks.own_block)(*self._own_arguments(tile))
        matrices, notes = _program(self.blocks.block, self._mesh)(*self._arguments(tile))
        return matrices, jax.tree.map(jnp.max, notes)

    def programs(self) -> list[Program]:
        """What is compiled for these tiles; for the analysis of XLA."""
        blocks, (of_rows, of_columns) = self.blocks, self._shardings
        rows, columns = _shapes(blocks.one, self.grid.rows, of_rows), _shapes(blocks.two, self.grid.columns, of_columns)
        found = [Program(_program(blocks.block, self._mesh), (self._shared, rows, columns))]
        if blocks.own_block is not None:
            one = SingleDeviceSharding(self.device)
            found.append(
                Program(_own_program(blocks.own_block), (blocks.shared, _shapes(blocks.one, self.grid.rows, one)))
            )
        return found

    def _sharding(self, names: tuple[str, ...]) -> Sharding:
        if self._mesh.size == 1:
            return SingleDeviceSharding(self.device)
        return NamedSharding(self._mesh, PartitionSpec(*names))

    def _is_own(self, tile: Tile) -> bool:
        return self.blocks.own_block is not None and tile.own

    def _arguments(self, tile: Tile) -> tuple[PyTree, PyTree, PyTree]:
        sides = (self.blocks.one, tile.rows, self.grid.rows), (self.blocks.two, tile.columns, self.grid.columns)
        rows, columns = (_examples(*side) for side in sides)
        return self._shared, *(jax.device_put(x, s) for x, s in zip((rows, columns), self._shardings, strict=True))

    def _own_arguments(self, tile: Tile) -> tuple[PyTree, PyTree]:
        # By one device: examples with themselves are not a block of each device.
        rows = _examples(self.blocks.one, tile.rows, self.grid.rows)
        return jax.device_put((self.blocks.shared, rows), self.device)


def cut(tile: Tile, matrices: PyTree) -> PyTree:
    """Matrices without what goes beyond the tile."""
    rows, columns = (part.stop - part.start for part in tile)
    return jax.tree.map(lambda a: a if a.shape[:2] == (rows, columns) else a[:rows, :columns], matrices)


def _examples(x: PyTree, part: slice, size: int) -> PyTree:
    """As many examples, from the first one of a part on; if there are not so many, the last one is repeated."""
    if all(isinstance(a, jax.Array) for a in jax.tree.leaves(x)):
        return _taken(x, part.start, size)
    return jax.tree.map(lambda a: a[np.minimum(part.start + np.arange(size), a.shape[0] - 1)], x)


def _shapes(x: PyTree, size: int, sharding: Any) -> PyTree:
    """As many examples, without their values."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype, sharding=sharding), x)


@partial(jax.jit, static_argnums=2)
def _taken(x: PyTree, start: Any, size: int) -> PyTree:
    return jax.tree.map(lambda a: a[jnp.minimum(start + jnp.arange(size), a.shape[0] - 1)], x)


@lru_cache
def _own_program(own_block: Callable[..., Any]) -> Any:
    return jax.jit(own_block)


@lru_cache
def _program(block: Callable[..., Any], mesh: Mesh) -> Any:
    """The block of a tile, each device computing its part; the notes of all of them."""
    if mesh.size == 1:
        return jax.jit(block)
    rows, columns = mesh.axis_names

    def of_device(*arguments: PyTree) -> tuple[PyTree, PyTree]:
        matrices, notes = block(*arguments)
        return matrices, jax.tree.map(lambda note: jnp.reshape(note, (1, 1)), notes)

    specs = PartitionSpec(), PartitionSpec(rows), PartitionSpec(columns)
    # Kernel primitives do not say along which axes of a mesh they vary.
    spread = jax.shard_map(
        of_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(rows, columns), check_vma=False
    )
    return jax.jit(spread)
