"""`batch`: kernels of any size, in tiles, on any number of devices and processes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from infnet.arguments import one_of
from infnet.batching.assemble import OnDevice, OnHost, assemble, grid_of
from infnet.batching.blocks import Blocks, blocks_of
from infnet.batching.grid import Grid
from infnet.batching.memory import Footprint, available_bytes, bytes_of
from infnet.batching.tiles import Tiles
from infnet.cost import memory_of
from infnet.errors import InputError
from infnet.tiling import even

PyTree = Any
BatchSize = int | tuple[int, int] | str
TILE_OPTIONS = ("batch_size", "device_count", "store_on_device", "mesh")
# Bytes of a tile on one device: the fastest that `benchmarks/large.py` was run with, and small beside any memory.
TILE_BYTES = 2**24
# The shares of the free memory of a device that a result may take, and what is needed to compute a tile.
RESULT_SHARE, TILE_SHARE = 0.5, 0.25


def batch(
    kernel_fn: Callable[..., PyTree],
    batch_size: BatchSize = "auto",
    device_count: int = -1,
    store_on_device: bool = True,
    *,
    mesh: Mesh | None = None,
) -> BatchedKernelFn:
    """A kernel function that computes in tiles what another one computes at once.

    Any numbers of examples, sizes of tiles and numbers of devices go together: tiles at the edges are filled up, and
    cut. With x2=None every unordered pair of tiles is computed once, where the kernel says that the other follows. What
    depends on one example alone is computed once per call, not once per tile, for a `KernelFn` (but with
    precision="highest" and for "ntk_by_param", it is once per tile).

    Under `jax.distributed` all processes call it with the same arguments; each computes its share of the tiles with its
    own devices, and all return the whole kernel, in the memory of the host.

    Args:
        kernel_fn: a `KernelFn`, what `empirical_kernel_fn` or `monte_carlo_kernel_fn` return, or any function
            `(x1, x2, *args, **kwargs)` that returns a pytree of arrays `(n1, n2, ...)`, in which an entry depends on no
            other examples than its own two.
        batch_size: the number of examples on either side of a device's share of a tile, or a pair of numbers (rows,
            columns), of which the smaller one counts for x2=None. "auto" chooses tiles such that what is needed besides
            the result is a small part of the memory of a device.
        device_count: how many of the devices of this process share the rows of a tile; -1 for all.
        store_on_device: whether the kernel is put together in the memory of a device, if it takes at most half of what
            is free there. Otherwise its arrays are NumPy's, in the memory of the host.
        mesh: in place of `device_count`: the devices that share the rows (first axis) and the columns (second axis, if
            there is one) of a tile. They are devices of this process.

    Returns:
        a function with the arguments of `kernel_fn`, and its attributes; see `BatchedKernelFn`.

    Raises:
        InputError: an argument is of the wrong kind.
    """
    return BatchedKernelFn(kernel_fn, batch_size, device_count, store_on_device, mesh)


class BatchedKernelFn:
    """A kernel function that computes in tiles; it has all attributes of the one that it was made from."""

    def __init__(
        self,
        kernel_fn: Callable[..., PyTree],
        batch_size: BatchSize = "auto",
        device_count: int = -1,
        store_on_device: bool = True,
        mesh: Mesh | None = None,
    ):
        """See `infnet.batch`."""
        if not callable(kernel_fn):
            raise InputError(f"kernel_fn must be a function, not {kernel_fn!r}")
        if not isinstance(store_on_device, bool):
            raise InputError(f"store_on_device must be True or False, not {store_on_device!r}")
        self.kernel_fn = kernel_fn
        self._sizes = _sizes(batch_size)
        self._mesh = local_mesh(device_count) if mesh is None else _checked(mesh, device_count)
        self._store_on_device = store_on_device

    def __call__(self, x1: PyTree, x2: PyTree = None, *args: Any, **kwargs: Any) -> PyTree:
        """What the kernel function returns for these arguments.

        While it is traced, by `jax.jit` or `jax.grad`, it is that function itself: tiles belong to a loop outside.
        """
        hyperparameters = getattr(self.kernel_fn, "weights", ())
        if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((hyperparameters, x1, x2, args, kwargs))):
            return self.kernel_fn(x1, x2, *args, **kwargs)
        blocks = blocks_of(self.kernel_fn, x1, x2, *args, **kwargs)
        shapes, notes = blocks.shapes()
        if 0 in blocks.sizes:
            return blocks.finish(OnHost(shapes).matrices, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), notes))
        tiles = self.tiles(blocks, shapes)
        result = OnHost(shapes) if self._on_host(shapes) else OnDevice(shapes, tiles.device)
        return assemble(tiles, result, notes)

    def estimate(self, x1: PyTree, x2: PyTree = None, *args: Any, **kwargs: Any) -> Footprint:
        """What a call with these arguments will take; what is known of single examples is computed, but no tile."""
        blocks = blocks_of(self.kernel_fn, x1, x2, *args, **kwargs)
        shapes, _ = blocks.shapes()
        output, on_host = bytes_of(shapes), self._on_host(shapes)
        tiles = self.tiles(blocks, shapes)
        programs, grid = tiles.programs(), tiles.grid
        temporary = max(memory_of(program.compiled) for program in programs)
        resident = bytes_of((blocks.shared, blocks.one)) + (0 if blocks.two is blocks.one else bytes_of(blocks.two))
        peak = resident + temporary + (0 if on_host else output)
        flops = programs[0].compiled_cost.flops * self._mesh.size * len(grid)
        return Footprint(output, peak, flops, (grid.rows, grid.columns), len(grid), on_host)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "kernel_fn":
            raise AttributeError(name)
        return getattr(self.kernel_fn, name)

    def _on_host(self, shapes: PyTree) -> bool:
        fits = bytes_of(shapes) <= RESULT_SHARE * available_bytes(self._mesh.devices.flat[0])
        return jax.process_count() > 1 or not self._store_on_device or not fits

    def tiles(self, blocks: Blocks, shapes: PyTree) -> Tiles:
        """Tiles of the size that was asked for, or that is chosen."""
        if self._sizes is not None:
            return Tiles(blocks, self._grid(blocks, *self._sizes), self._mesh)
        n1, n2 = blocks.sizes
        each = max(1, bytes_of(shapes) // (n1 * n2))
        side = max(1, math.isqrt(TILE_BYTES // each))
        budget = TILE_SHARE * available_bytes(self._mesh.devices.flat[0])
        while True:
            tiles = Tiles(blocks, self._grid(blocks, even(n1, side), even(n2, side)), self._mesh)
            needed = max(memory_of(program.compiled) for program in tiles.programs())
            if needed <= budget or side == 1:
                return tiles
            side = max(1, min(side // 2, int(side * math.sqrt(budget / needed))))

    def tiles_of(self, blocks: Blocks, grid: Grid) -> Tiles:
        """Tiles of a grid that was chosen elsewhere, on as many of the devices as can share them."""
        by_rows, by_columns = self._mesh.devices.shape
        devices = self._mesh.devices[: math.gcd(grid.rows, by_rows), : math.gcd(grid.columns, by_columns)]
        return Tiles(blocks, grid, Mesh(devices, self._mesh.axis_names))

    def _grid(self, blocks: Blocks, rows: int, columns: int) -> Grid:
        n1, n2 = blocks.sizes
        by_rows, by_columns = self._mesh.devices.shape
        if blocks.own_block is None:
            return grid_of(blocks, _multiple(min(rows, n1), by_rows), _multiple(min(columns, n2), by_columns))
        # Square, with as many pairs for each device.
        side = min(rows, columns) * math.isqrt(by_rows * by_columns)
        side = _multiple(min(side, n1), math.lcm(by_rows, by_columns))
        return grid_of(blocks, side, side)


def _multiple(size: int, shares: int) -> int:
    """The smallest number of examples that is at least `size` and can be shared."""
    return -(-size // shares) * shares


def _sizes(batch_size: BatchSize) -> tuple[int, int] | None:
    """Rows and columns of a tile; None to choose them."""
    if isinstance(batch_size, str):
        one_of("batch_size", batch_size, ("auto",))
        return None
    pair: tuple[Any, ...] = tuple(batch_size) if isinstance(batch_size, Sequence) else (batch_size, batch_size)
    whole = all(isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0 for n in pair)
    if len(pair) != 2 or not whole:
        raise InputError(f'batch_size must be "auto", a positive integer or a pair of them, not {batch_size!r}')
    return int(pair[0]), int(pair[1])


def local_mesh(device_count: int) -> Mesh:
    """The first devices of this process, which share rows.

    Raises:
        InputError: there are not so many, or this is no number.
    """
    devices = jax.local_devices()
    if isinstance(device_count, bool) or not isinstance(device_count, int | np.integer) or device_count < -1:
        raise InputError(f"device_count must be -1 for all devices, or a number of them, not {device_count!r}")
    if device_count > len(devices):
        raise InputError(f"device_count={device_count}, but this process has {len(devices)} device(s)")
    # 0 is Neural Tangents' word for no parallelism.
    count = len(devices) if device_count == -1 else max(1, int(device_count))
    return Mesh(np.array(devices[:count]).reshape(count, 1), ("rows", "columns"))


def _checked(mesh: Mesh, device_count: int) -> Mesh:
    if not isinstance(mesh, Mesh) or len(mesh.axis_names) not in (1, 2):
        raise InputError(f"mesh must be a jax.sharding.Mesh with one axis (rows) or two (rows, columns), not {mesh!r}")
    if device_count != -1:
        raise InputError("pass device_count or mesh, not both")
    foreign = [d for d in mesh.devices.flat if d.process_index != jax.process_index()]
    if foreign:
        raise InputError(
            f"mesh holds devices of other processes ({foreign[0]}, ...): each process has tiles of its own"
        )
    if len(mesh.axis_names) == 1:
        return Mesh(mesh.devices.reshape(-1, 1), (mesh.axis_names[0], f"{mesh.axis_names[0]} columns"))
    return mesh
