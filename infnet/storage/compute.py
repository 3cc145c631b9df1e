"""`compute`: a kernel of any size, tile by tile, into Zarr arrays on disk."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from typing import Any
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np

from infnet.arguments import NAMES, split_arguments
from infnet.batching.batched import BatchedKernelFn, BatchSize
from infnet.batching.blocks import Blocks, blocks_of
from infnet.errors import InputError
from infnet.storage import files
from infnet.storage.arrays import StoredArray
from infnet.storage.claims import Claims, Owner
from infnet.storage.fingerprint import data_hash, program_hash
from infnet.storage.manifest import ArrayKind, Manifest, versions
from infnet.storage.progress import Progress
from infnet.storage.store import Store, folder_of
from infnet.storage.work import Work

PyTree = Any


def compute(
    kernel_fn: Callable[..., PyTree],
    x1: PyTree,
    x2: PyTree = None,
    *args: Any,
    store: str | PathLike[str],
    get: Any = NAMES,
    batch_size: BatchSize = "auto",
    device_count: int = -1,
    progress: bool | str = True,
    verify: bool = True,
    **kwargs: Any,
) -> PyTree:
    """What a kernel function returns, computed tile by tile into a folder, with arrays that stay on the disk.

    A call that was interrupted, in whatever way, is taken up again by the same call: at most the tiles that were being
    computed are lost. Any number of processes, on any machines that see the folder, may make the call at once. They
    share the tiles without knowing of each other, and each returns when all tiles are complete. A call for a store that
    is complete computes no tile.

    Args:
        kernel_fn: a `KernelFn`, what `empirical_kernel_fn` or `monte_carlo_kernel_fn` return, or any function
            `(x1, x2, *args, **kwargs)` that `infnet.batch` takes.
        x1: the examples, `(n1, ...)` or a pytree.
        x2: likewise `(n2, ...)`; None is x1.
        *args: what `kernel_fn` takes after x1 and x2, but for `get`: `compute(ntk_fn, x1, x2, params, store=path)`.
        store: a folder, which is made unless it exists. In it, every array is a Zarr array (version 3), whose chunks
            are the tiles: `ntk`, `nngp`.
        get: is passed on, if `kernel_fn` has an argument of this name.
        batch_size, device_count: as in `infnet.batch`. A store that exists keeps its tiles.
        progress: whether to show a progress bar, where the standard error is a terminal; "always" for elsewhere too.
        verify: whether the tiles that are there are read and compared with their checksums, so that those which are
            torn or were changed are computed again. Without it, reading one of them is an error.
        **kwargs: of `kernel_fn`.

    Returns:
        what `kernel_fn` returns, with a `StoredArray` for every array `(n1, n2, ...)`: `np.asarray` reads it whole, an
        index reads a part.

    Raises:
        InputError: the folder holds the kernel of another model or of other data, or something else; the error says
            what. Or an argument is of the wrong kind.
        StorageError: the disk is full, or the operating system refuses to write.
        NumericalError: as from `kernel_fn`, for the examples of a tile; what was complete before stays so.
        ImportError: TensorStore or tqdm is missing: `pip install "infnet[large]"`.
    """
    folder = folder_of(store)
    if isinstance(kernel_fn, BatchedKernelFn):
        kernel_fn = kernel_fn.kernel_fn
    if hasattr(kernel_fn, "anew"):  # what was computed before has no influence on a kernel that others complete
        kernel_fn = kernel_fn.anew()
    given, named, asked = _with_get(kernel_fn, args, kwargs, get)
    batched = BatchedKernelFn(kernel_fn, batch_size, device_count)
    blocks = blocks_of(kernel_fn, x1, x2, *given, **named)
    shapes, notes = blocks.shapes()

    stored = Manifest.of(folder)
    tiles = None if stored or 0 in blocks.sizes else batched.tiles(blocks, shapes)
    manifest = Manifest(
        function=program_hash(kernel_fn, x1, x2, given, named),
        get=asked,
        examples=blocks.sizes,
        x1=data_hash(x1),
        x2=None if x2 is None else data_hash(x2),
        arguments=data_hash(split_arguments((given, named))[0]),
        arrays=_arrays(shapes),
        rows=tiles.grid.rows if tiles else 1,
        columns=tiles.grid.columns if tiles else 1,
        mirrored=tiles.grid.mirrored if tiles else False,
        versions=versions(),
    )
    found = Store.opened_or_made(folder, manifest)
    _complete(found, blocks, batched, progress, verify)
    matrices = [StoredArray(folder / array.name) for array in found.manifest.arrays]
    return blocks.finish(jax.tree.unflatten(jax.tree.structure(shapes), matrices), _largest(found, notes))


def _complete(store: Store, blocks: Blocks, batched: BatchedKernelFn, progress: bool | str, verify: bool) -> None:
    """Compute what is missing."""
    done = store.marked()
    if verify:
        done = {name for name in done if store.is_intact(name)}
    missing = store.tiles.keys() - done
    if store.tiles and not missing:
        return
    store.prepare()
    if not missing:
        return
    store.check_space(missing)
    owner = Owner.here()
    tiles = batched.tiles_of(blocks, store.manifest.grid)
    with (
        files.failures_on(store.folder),
        Progress(store, done, progress) as bar,
        Claims(store.claims, owner) as claims,
    ):
        Work(store, tiles, done, claims, owner, bar).run()


def _largest(store: Store, notes: PyTree) -> PyTree:
    """The largest notes of all tiles."""
    leaves, tree = jax.tree.flatten(notes)
    largest = [np.zeros(note.shape, note.dtype) for note in leaves]
    marks = [store.mark_of(name) for name in store.tiles] if leaves else []
    for mark in marks:
        if mark is not None:
            largest = [np.maximum(a, np.asarray(b, a.dtype)) for a, b in zip(largest, mark.notes, strict=True)]
    return jax.tree.unflatten(tree, [jnp.asarray(note) for note in largest])


def _with_get(
    kernel_fn: Callable[..., PyTree], args: Sequence[Any], kwargs: Mapping[str, Any], get: Any
) -> tuple[Sequence[Any], Mapping[str, Any], str]:
    """The arguments after x1 and x2 with `get` in its place, wherever that is, and `get` for the manifest."""
    after = list(inspect.signature(getattr(kernel_fn, "blocks", kernel_fn)).parameters.values())[2:]
    names = [p.name for p in after if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "get"]
    if all(p.name != "get" for p in after):
        if get != NAMES:
            raise InputError(f"get={get!r} was given, but {kernel_fn!r} has no argument of this name")
        return args, kwargs, ""
    if len(args) > len(names) or set(names[: len(args)]) & set(kwargs):
        raise InputError(f"{kernel_fn!r} takes x1, x2, get and {names}; pass these once, and get by its name")
    get = tuple(get) if isinstance(get, list) else get
    return (), {**kwargs, **dict(zip(names, args, strict=False)), "get": get}, repr(get)


def _arrays(shapes: PyTree) -> tuple[ArrayKind, ...]:
    """The arrays of a kernel, with the names of their folders."""
    found = jax.tree.leaves_with_path(shapes)
    parts = [[quote(jax.tree_util.keystr((key,), simple=True), safe="") for key in path] for path, _ in found]
    if all(len(part) == 2 and part[1] == "0" for part in parts):
        parts = [part[:-1] for part in parts]  # of a model with one output
    names = ["/".join(part) or "kernel" for part in parts]
    return tuple(ArrayKind(n, x.shape, jnp.dtype(x.dtype).name) for n, (_, x) in zip(names, found, strict=True))
