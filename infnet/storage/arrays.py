"""Arrays on disk in the Zarr format, read and written by TensorStore.

It is version 3 of the format because there every chunk ends with its CRC-32C: whoever reads a chunk that is torn or was
changed gets an error, not numbers. Chunks are not compressed: the last digits of a kernel are noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infnet.errors import StorageError

FLAWS = {"b": False, "i": 0, "u": 0, "c": ["NaN", "NaN"]}  # what has not been written yet reads as NaN, if that exists


def tensorstore() -> Any:
    """The package TensorStore, which only stores need."""
    try:
        import tensorstore
    except ImportError as error:
        raise ImportError('stores on disk need the package tensorstore: pip install "infnet[large]"') from error
    return tensorstore


def opened(folder: Path) -> Any:
    """A TensorStore handle of an array that exists."""
    return _open({**_where(folder), "open": True}, folder)


def created(folder: Path, shape: Sequence[int], chunk: Sequence[int], dtype: np.dtype[Any]) -> Any:
    """A handle of an array that is made unless it exists, with chunks of this shape."""
    metadata = {
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(1, size) for size in chunk]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        "fill_value": FLAWS.get(dtype.kind, "NaN"),
    }
    spec = {**_where(folder), "metadata": metadata, "store_data_equal_to_fill_value": True}
    return _open({**spec, "open": True, "create": True}, folder)


def discard_chunk(folder: Path, position: tuple[int, int], ndim: int) -> None:
    """Remove a chunk, so that it is not read when it is written: at the edges TensorStore keeps what lies beyond."""
    folder.joinpath("c", *map(str, position), *["0"] * (ndim - 2)).unlink(missing_ok=True)


def _where(folder: Path) -> dict[str, Any]:
    return {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(folder)}}


def _open(spec: dict[str, Any], folder: Path) -> Any:
    try:
        return tensorstore().open(spec).result()
    except (ValueError, OSError) as error:
        raise StorageError(f"the array in {folder} cannot be opened: {error}") from error


class StoredArray:
    """An array on disk, of which only what is asked for is read: `k[:100, 5]`; `np.asarray(k)` reads everything.

    It is indexed as a NumPy array, and pickled as the name of its folder.
    """

    def __init__(self, folder: str | Path):
        """The array in this folder."""
        self.folder = Path(folder).absolute()
        self._handle = opened(self.folder)
        self.shape: tuple[int, ...] = tuple(self._handle.shape)
        self.dtype: np.dtype[Any] = np.dtype(self._handle.dtype.numpy_dtype)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """The number of entries."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Any:
        """What `np.asarray(self)[key]` is; slices with a negative step are not supported."""
        try:
            return self._handle[self._indices(key)].read().result()
        except (ValueError, OSError) as error:
            raise StorageError(f"{self.folder} cannot be read: {error}") from error

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("an array on disk cannot be had without a copy in memory")
        everything: np.ndarray = np.asarray(self[...])
        return everything if dtype is None else everything.astype(dtype, copy=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredArray, (str(self.folder),)

    def __repr__(self) -> str:
        return f"StoredArray({str(self.folder)!r}, shape={self.shape}, dtype={self.dtype})"

    def _indices(self, key: Any) -> tuple[Any, ...]:
        """An index without negative numbers and without what goes beyond the end, as TensorStore needs it."""
        parts = list(key) if isinstance(key, tuple) else [key]
        parts = [np.asarray(part) if isinstance(part, list | np.ndarray) else part for part in parts]
        parts = [part for whole in parts for part in (_positions_of(whole) if _is_mask(whole) else [whole])]
        used = sum(part is not None and part is not Ellipsis for part in parts)
        if used > self.ndim or sum(part is Ellipsis for part in parts) > 1:
            raise IndexError(f"too many indices for an array with {self.ndim} axes: {key!r}")
        indices, axis = [], 0
        for part in parts:
            if part is None or part is Ellipsis:
                indices.append(part)
                axis += 0 if part is None else self.ndim - used
            else:
                indices.append(_natural(part, self.shape[axis]))
                axis += 1
        return tuple(indices)


def _is_mask(part: Any) -> bool:
    return isinstance(part, np.ndarray) and part.dtype == bool


def _positions_of(mask: np.ndarray) -> tuple[np.ndarray, ...]:
    return np.nonzero(mask)


def _natural(part: Any, size: int) -> Any:
    """An index into an axis of this size, counted from its start."""
    if isinstance(part, slice):
        start, stop, step = part.indices(size)
        if step < 0:
            raise IndexError("slices with a negative step are not supported for arrays on disk: read them, then flip")
        return slice(start, max(start, stop), step)
    index = np.asarray(part)
    if index.size == 0:
        index = index.astype(np.int64)
    if not np.issubdtype(index.dtype, np.integer):
        raise IndexError(f"arrays are indexed by integers, slices, and arrays of integers or booleans, not {part!r}")
    if np.any((index < -size) | (index >= size)):
        raise IndexError(f"index {part!r} is out of bounds for an axis of size {size}")
    index = np.where(index < 0, index + size, index)
    return int(index) if index.ndim == 0 else index
