"""Kernel matrices that are only multiplied with: arrays in memory, on disk or on several devices, or never stored.

Products are computed in the precision of the vectors, whatever the matrix is stored in: float64, since at a condition
number of 1e8 those in float32 have few digits left, or float32 where these are enough. Matrices are symmetric: only the
part above the diagonal is multiplied with, once as it is and once transposed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import combinations_with_replacement
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from infnet.errors import InputError, NumericalError
from infnet.solvers.products import TILE_ROWS, Blocks, Matrix, both_products, symmetric_product

STRIP_BYTES = 2**26
NOT_FINITE = (
    "An input that is not finite, or that overflows in the network, makes its whole row and column of a kernel so: "
    "leave it out, or compute the kernel in float64."
)


class Operator(Protocol):
    """A symmetric positive semidefinite matrix, by what is done with it; results are float64 on the host.

    `diagonal` is called first, and is where matrices that are stored are checked. One that is `in_memory` is read in no
    time, so that products in float32 are worth it.
    """

    shape: tuple[int, int]
    dtype: np.dtype[Any]

    def diagonal(self) -> Matrix:
        """(n,)."""

    def columns(self, indices: Matrix) -> Matrix:
        """(n, k): some of the columns."""

    def matmul(self, v: Matrix) -> Matrix:
        """(n, m) of (n, m), float64 or float32: at least in the precision of `v`."""


def operator(kernel: Any, strip: int | None = None) -> Operator:
    """The operator of a kernel.

    Args:
      kernel: an operator, which is returned; a `jax.Array`, also one in parts on several devices; or anything with
        `shape`, `dtype` and rows `kernel[i:j]`: NumPy arrays and memory maps, arrays of TensorStore, Zarr, HDF5.
        It is (n, n). (`MatrixFree` makes one of a kernel function.)
      strip: the number of rows that are read at a time, by default as many as are in 64 MiB, in whole chunks.

    Raises:
      InputError: it is not a real square matrix.
    """
    if all(hasattr(kernel, name) for name in ("matmul", "columns", "diagonal")) and not hasattr(kernel, "__array__"):
        return kernel
    if isinstance(kernel, jax.Array):
        on_host = len(kernel.devices()) == 1 and next(iter(kernel.devices())).platform == "cpu"
        return Stored(np.asarray(kernel), strip) if on_host else Sharded(kernel)
    return Stored(kernel, strip)


class Stored:
    """A matrix that is read by rows, `array[i:j]`: from memory or from a file.

    Where the `diagonal` is given, only what is above it is read, and nothing is checked.
    """

    def __init__(self, array: Any, strip: int | None = None, diagonal: Matrix | None = None):
        self.array, self.in_memory = array, type(array) is np.ndarray  # a memory map is another type
        if diagonal is not None:
            self._diagonal = diagonal
        self.shape, self.dtype = square(array)
        self.strip = rows_at_a_time(strip, self.shape[0], self.dtype.itemsize, chunk_rows(array))

    def blocks(self) -> Blocks:
        """The rows `(i, 0, array[i:j])`, a strip at a time."""
        for i in range(0, self.shape[0], self.strip):
            yield i, 0, np.asarray(self.array[i : min(i + self.strip, self.shape[0])])

    @cached_property
    def _diagonal(self) -> Matrix:
        """The diagonal, by a pass through the matrix which finds numbers that are not finite, and asymmetry."""
        n = self.shape[0]
        diagonal, probe = np.empty(n), np.random.default_rng(0).standard_normal((n, 1))

        def noting() -> Blocks:
            for i, _, rows in self.blocks():
                own = np.arange(len(rows))
                diagonal[i + own] = rows[own, i + own]
                yield i, 0, rows

        by_rows, by_columns = both_products(noting(), probe)
        if not (np.isfinite(by_rows).all() and np.isfinite(by_columns).all()):
            for i, _, rows in self.blocks():
                require_finite_rows(rows, i)
        require_same_products(by_rows, by_columns, diagonal, self.dtype, self._entries)
        return diagonal

    def diagonal(self) -> Matrix:
        """(n,); the first call reads the whole matrix, and checks it."""
        return self._diagonal

    def columns(self, indices: Matrix) -> Matrix:
        """(n, k), read as rows: from the strips that contain them."""
        indices = np.asarray(indices)
        found = np.empty((len(indices), self.shape[0]))
        for number in np.unique(indices // self.strip):
            wanted = np.flatnonzero(indices // self.strip == number)
            first, last = indices[wanted].min(), indices[wanted].max()
            found[wanted] = np.asarray(self.array[int(first) : int(last) + 1])[indices[wanted] - first]
        return found.T

    def matmul(self, v: Matrix) -> Matrix:
        """(n, m) of (n, m)."""
        return symmetric_product(self.blocks(), self.diagonal(), v)

    def _entries(self, row: int) -> tuple[Matrix, Matrix]:
        column = [rows[:, row] for _, _, rows in self.blocks()]
        return np.asarray(self.array[row : row + 1])[0], np.concatenate(column)


class Sharded:
    """A `jax.Array` on one or several devices; each multiplies its own part of it.

    Where the `diagonal` is given, only what is above it is read, and nothing is checked.
    """

    in_memory = True

    def __init__(self, array: jax.Array, diagonal: Matrix | None = None):
        if not array.is_fully_addressable:
            raise InputError(
                "a matrix on the devices of several processes cannot be multiplied with from one of them: place it on "
                "the devices of one, or give every process the rows that it holds as an array of its own"
            )
        if diagonal is not None:
            self._diagonal = diagonal
        self.array = array
        self.shape, self.dtype = square(array)
        self._parts = [_Part.of(shard) for shard in array.addressable_shards if shard.replica_id == 0]

    @cached_property
    def _diagonal(self) -> Matrix:
        n = self.shape[0]
        probe = np.random.default_rng(0).standard_normal((n, 1))
        by_rows, by_columns = self._products(probe, only_above=False)
        if not (np.isfinite(by_rows).all() and np.isfinite(by_columns).all()):
            for part in self._parts:
                require_finite_rows(np.asarray(part.data), part.row, part.column)
        diagonal = np.empty(n)
        for part in self._parts:
            i, j = part.on_diagonal()
            diagonal[i:j] = part.picked(np.arange(i, j), np.arange(i, j))
        require_same_products(by_rows, by_columns, diagonal, self.dtype, self._entries)
        return diagonal

    def diagonal(self) -> Matrix:
        """(n,); the first call checks the matrix."""
        return self._diagonal

    def columns(self, indices: Matrix) -> Matrix:
        """(n, k)."""
        found = np.empty((self.shape[0], len(indices)))
        for part in self._parts:
            height, width = part.data.shape
            mine = np.flatnonzero((indices >= part.column) & (indices < part.column + width))
            if len(mine):
                rows = np.arange(part.row, part.row + height)
                found[np.ix_(rows, mine)] = part.picked(rows[:, None], indices[mine])
        return found

    def matmul(self, v: Matrix) -> Matrix:
        """(n, m) of (n, m)."""
        by_rows, by_columns = self._products(v, only_above=True)
        return by_rows + by_columns + self.diagonal()[:, None] * v

    def _products(self, v: Matrix, only_above: bool) -> tuple[Matrix, Matrix]:
        """With the matrix and with its transpose, or with what is above the diagonal."""
        by_rows, by_columns = np.zeros(v.shape), np.zeros(v.shape)
        with jax.enable_x64(True):
            pending = [job for part in self._parts for job in part.products(v, only_above)]  # all devices at work
        for rows, columns, along, across in pending:
            by_rows[rows] += np.asarray(along)
            by_columns[columns] += np.asarray(across)
        return by_rows, by_columns

    def _entries(self, row: int) -> tuple[Matrix, Matrix]:
        with jax.enable_x64(True):
            return np.asarray(self.array[row]), np.asarray(self.array[:, row])


class _Part:
    """What one device holds of a matrix, and where it begins."""

    def __init__(self, data: jax.Array, row: int, column: int):
        self.data, self.row, self.column = data, row, column
        self.strip = rows_at_a_time(None, data.shape[1], 8)

    @classmethod
    def of(cls, shard: Any) -> _Part:
        row, column = (index.start or 0 for index in shard.index)
        return cls(shard.data, row, column)

    def on_diagonal(self) -> tuple[int, int]:
        height, width = self.data.shape
        first = max(self.row, self.column)
        return first, max(first, min(self.row + height, self.column + width))

    def picked(self, rows: Matrix, columns: Matrix) -> Matrix:
        """Entries, by their indices in the whole matrix."""
        with jax.enable_x64(True):
            return np.asarray(self.data[rows - self.row, columns - self.column])

    def products(self, v: Matrix, only_above: bool) -> Iterator[tuple[slice, slice, jax.Array, jax.Array]]:
        height, width = self.data.shape
        device = next(iter(self.data.devices()))
        columns = slice(self.column, self.column + width)
        across = jax.device_put(v[columns], device)
        for i in range(0, height, self.strip):
            few = self.data[i : i + self.strip]
            rows = slice(self.row + i, self.row + i + len(few))
            offset = rows.start - self.column
            if only_above and offset >= width - 1:
                return  # this strip and those after it are below the diagonal
            along = jax.device_put(v[rows], device)
            yield rows, columns, *_with_transpose(few, along, across, offset if only_above else -self.strip - width)


@jax.jit
def _with_transpose(rows: jax.Array, along: jax.Array, across: jax.Array, offset: Any) -> tuple[jax.Array, jax.Array]:
    """`rows @ across` and `rows.T @ along`, of the entries above the diagonal; row 0 meets it in column `offset`."""
    height, width = rows.shape
    above = jnp.arange(width) > jnp.arange(height)[:, None] + offset
    converted = jnp.where(above, rows, 0).astype(along.dtype)
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    return product(converted, across), product(converted.T, along)


class MatrixFree:
    """The kernel matrix of a function and its inputs, computed whenever it is needed, what is above its diagonal only.

    Args:
      kernel_fn: called as `kernel_fn(x1, x2, get)`, it returns the (n1, n2) kernel; any `infnet` kernel function does.
      x: (n, …) inputs, or a pytree of them.
      get: what is passed on, "nngp" or "ntk".
      strip: rows that are computed at a time, of all columns or of as many in tiles; by default what is in 64 MiB.
    """

    def __init__(self, kernel_fn: Callable[..., Any], x: Any, get: str = "ntk", strip: int | None = None):
        sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(x)}
        if len(sizes) != 1 or not min(sizes) or not min(sizes)[0]:
            raise InputError(
                f"inputs must be arrays with the same number n >= 1 of examples first; got {sorted(sizes)}"
            )
        if not isinstance(get, str):
            raise InputError(f'get must be the name of one kernel, "nngp" or "ntk"; got {get!r}')
        ((n,),) = sizes
        self.kernel_fn, self.x, self.get = kernel_fn, jax.tree.map(jnp.asarray, x), get
        self.strip = rows_at_a_time(strip, n, 4)
        side = max(1, (self.strip * n) ** 0.5 / 2)  # a quarter of a strip's entries
        self.tile = math.ceil(n / math.ceil(n / side))
        first = self._examples(np.arange(1))
        self.shape, self.dtype = (n, n), self._kernel(first, first).dtype

    def blocks(self) -> Blocks:
        """Tiles `(i, j, K[i:, j:])` that cover what is above the diagonal, all of one shape, which is compiled once."""
        n = self.shape[0]
        for i, j in combinations_with_replacement(range(0, n, self.tile), 2):
            row, column = min(i, n - self.tile), min(j, n - self.tile)
            here, there = (np.arange(first, first + self.tile) for first in (row, column))
            tile = self._kernel(self._examples(here), self._examples(there))
            require_finite_rows(tile, row, column)
            yield i, j, tile[i - row :, j - column :]

    def diagonal(self) -> Matrix:
        """(n,)."""
        return self._diagonal

    @cached_property
    def _diagonal(self) -> Matrix:
        n, own = self.shape[0], getattr(self.kernel_fn, "diag", None)
        if own is not None:
            diagonal = np.asarray(own(self.x, get=self.get), np.float64)
        else:
            diagonal, size = np.empty(n), min(n, TILE_ROWS)
            for i in range(0, n, size):
                here = np.arange(size) + min(i, n - size)
                diagonal[here] = np.diagonal(self._kernel(self._examples(here), self._examples(here)))
        require_finite_rows(diagonal[:, None], 0)
        return diagonal

    def columns(self, indices: Matrix) -> Matrix:
        """(n, k), computed as rows; their number is a power of two, so that few shapes are compiled."""
        indices = np.asarray(indices)
        size = min(self.strip, 2 ** math.ceil(math.log2(max(1, len(indices)))))
        padded = np.resize(indices, -(-len(indices) // size) * size)
        parts = [self._rows(padded[i : i + size]) for i in range(0, len(padded), size)]
        return np.concatenate(parts)[: len(indices)].astype(np.float64).T

    def matmul(self, v: Matrix) -> Matrix:
        """(n, m) of (n, m); the part of the kernel above its diagonal is computed once."""
        return symmetric_product(self.blocks(), self.diagonal(), v)

    def _rows(self, indices: Matrix) -> Matrix:
        """Of each example with itself, what `diag` says: a function of pairs does not know which of them are one."""
        rows = np.array(self._kernel(self._examples(indices), self.x))
        require_finite_rows(rows, indices)
        rows[np.arange(len(indices)), indices] = self.diagonal()[indices]
        return rows

    def _examples(self, indices: Matrix) -> Any:
        return jax.tree.map(lambda leaf: leaf[indices], self.x)

    def _kernel(self, x1: Any, x2: Any) -> Matrix:
        found = np.asarray(self.kernel_fn(x1, x2, self.get))
        wanted = tuple(len(jax.tree.leaves(x)[0]) for x in (x1, x2))
        if found.shape != wanted:
            raise InputError(
                f"kernel_fn must return a kernel of shape {wanted} here, one number a pair; got {found.shape}"
            )
        return found


def load(kernel: Operator) -> Matrix:
    """The matrix as an array in memory, float64 if it is and otherwise float32."""
    array = np.empty(kernel.shape, np.float64 if kernel.dtype == np.float64 else np.float32)
    if isinstance(kernel, Stored):
        for i, _, rows in kernel.blocks():
            array[i : i + len(rows)] = rows
    elif isinstance(kernel, MatrixFree):
        for i, j, tile in kernel.blocks():
            here, there = slice(i, i + tile.shape[0]), slice(j, j + tile.shape[1])
            array[here, there] = tile
            array[there, here] = tile.T
        array[np.diag_indices_from(array)] = kernel.diagonal()
    else:
        for i in range(0, len(array), TILE_ROWS):
            array[i : i + TILE_ROWS] = kernel.columns(np.arange(i, min(i + TILE_ROWS, len(array)))).T
    return array


def square(array: Any) -> tuple[tuple[int, int], np.dtype[Any]]:
    """The shape and dtype of a matrix, checked."""
    shape = tuple(int(size) for size in array.shape)
    dtype = np.dtype(getattr(array.dtype, "numpy_dtype", array.dtype))
    if len(shape) != 2 or shape[0] != shape[1] or not shape[0]:
        raise InputError(f"the kernel must be square, (n, n) with n >= 1; got shape {shape}")
    if not jnp.issubdtype(dtype, jnp.floating):
        raise InputError(f"the kernel must be of real floating-point numbers; got dtype {dtype}")
    return (shape[0], shape[1]), dtype


def rows_at_a_time(strip: int | None, n: int, itemsize: int, chunk: int = 1) -> int:
    """The number of rows of length n in a strip."""
    if strip is not None:
        if not isinstance(strip, int) or strip < 1:
            raise InputError(f"strip must be a number of rows, at least 1; got {strip!r}")
        return min(strip, n)
    rows = max(1, STRIP_BYTES // (n * itemsize))
    return min(n, max(1, rows // chunk) * chunk)


def chunk_rows(array: Any) -> int:
    """The number of rows that a stored array is read in: those of TensorStore's, Zarr's or HDF5's chunks, else 1."""
    layout = getattr(array, "chunk_layout", None)
    chunks = layout.read_chunk.shape if layout is not None else getattr(array, "chunks", None)
    return int(chunks[0]) if chunks else 1


def require_finite_rows(rows: Matrix, first: Any, first_column: int = 0) -> None:
    """Raise `NumericalError` with the first indices that are not finite; `first`: the number of row 0, or of all."""
    finite = np.isfinite(rows)
    if finite.all():
        return
    bad = np.argwhere(~finite)
    names = [(int(first[i] if np.ndim(first) else first + i), int(j) + first_column) for i, j in bad[:3]]
    raise NumericalError(
        f"the kernel contains numbers that are not finite, the first at {', '.join(map(str, names))}. {NOT_FINITE}"
    )


def require_same_products(
    by_rows: Matrix,
    by_columns: Matrix,
    diagonal: Matrix,
    dtype: np.dtype[Any],
    entries: Callable[[int], tuple[Matrix, Matrix]],
) -> None:
    """Raise `InputError` where a matrix differs from its transpose beyond rounding, by their products with a probe.

    An entry that differs from its mirror image changes two rows of the product by as much, times a normal number.
    """
    difference = np.abs(by_rows - by_columns)[:, 0]
    if difference.max() <= float(jnp.finfo(dtype).eps) ** 0.5 * np.abs(diagonal).max():
        return
    i = int(difference.argmax())
    row, column = entries(i)
    j = int(np.abs(row.astype(np.float64) - column).argmax())
    raise InputError(
        f"the kernel must be symmetric, that of the training points with themselves; its entries ({i}, {j}) and "
        f"({j}, {i}) are {row[j]} and {column[j]}."
    )
