"""Linear maps of positions, applied to one side of a block or to both.

Every map can act on the positions of one feature (`side`): that alone makes the one generic rule, which applies it to
the left positions, then to the right ones, of a block that holds all pairs. Maps that keep offsets apart also say
which offsets they need (`needs`), and act on both sides of such a block at once (`both`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from infnet.layout import Layout, Offsets, diagonals, from_sides, masked, restrict, to_sides
from infnet.primitives.pooling import pooling
from infnet.primitives.windows import Window, pool_offsets

Moments = tuple[jax.Array, ...]


@dataclass(frozen=True)
class IndexMap:
    """A linear map from arrays of shape `sizes` to arrays of shape `shape`."""

    sizes: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        raise NotImplementedError

    def side(self, array: jax.Array) -> jax.Array:
        """Map an array `[*sizes, ...]` to `[*shape, ...]`."""
        raise NotImplementedError

    def needs(self, wanted: Layout) -> Layout:
        """The layout of the operand's block, where both features go through this map."""
        return Layout.full(self.sizes, self.sizes)

    def both(self, moments: Moments, have: Layout, wanted: Layout) -> Moments:
        """The blocks in `wanted`, from those of the operands in `have = needs(wanted)`."""
        full = Layout.full(self.shape, self.shape)
        pairs = (self.right(self.left(m, have), self.left_layout(have)) for m in moments)
        return tuple(restrict(m, full, wanted) for m in pairs)

    def left_layout(self, have: Layout) -> Layout:
        """The layout after mapping the left positions of a full block."""
        return Layout.full(self.shape, have.right)

    def right_layout(self, have: Layout) -> Layout:
        """The layout after mapping the right positions of a full block."""
        return Layout.full(have.left, self.shape)

    def left(self, block: jax.Array, have: Layout) -> jax.Array:
        """Map the left positions of a full block."""
        return from_sides(self.left_layout(have), self.side(to_sides(have, block)))

    def right(self, block: jax.Array, have: Layout) -> jax.Array:
        """Map the right positions of a full block."""
        array, k = to_sides(have, block), len(have.left)
        array = jnp.moveaxis(array, range(k), range(-k, 0)) if k else array
        array = self.side(array)
        array = jnp.moveaxis(array, range(-k, 0), range(k)) if k else array
        return from_sides(self.right_layout(have), array)


@dataclass(frozen=True)
class Rearrange(IndexMap):
    """Keep the axes `order` (all others have size 1), in this order, and reshape to `new_shape`."""

    order: tuple[int, ...]
    new_shape: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return self.new_shape

    @property
    def _only_permutes(self) -> bool:
        return tuple(self.sizes[k] for k in self.order) == self.new_shape

    def side(self, array: jax.Array) -> jax.Array:
        """Transpose and reshape the leading axes."""
        k = len(self.sizes)
        dropped = [axis for axis in range(k) if axis not in self.order]
        array = jnp.transpose(array, [*self.order, *dropped, *range(k, array.ndim)])
        return array.reshape((*self.new_shape, *array.shape[k:]))

    def needs(self, wanted: Layout) -> Layout:
        """A permutation keeps offsets; a reshape keeps only the diagonal."""
        if self._only_permutes:
            offsets: list[Offsets] = [(0,)] * len(self.sizes)
            for axis, k in enumerate(self.order):
                offsets[k] = wanted.offsets[axis]
            return Layout(self.sizes, self.sizes, tuple(offsets))
        if wanted.is_diagonal:
            return Layout.diagonal(self.sizes)
        return Layout.full(self.sizes, self.sizes)

    def both(self, moments: Moments, have: Layout, wanted: Layout) -> Moments:
        """Permute pairs of axes, or reshape the diagonal."""
        if self._only_permutes:
            dropped = [axis for axis in range(len(self.sizes)) if axis not in self.order]
            order = [k for axis in (*self.order, *dropped) for k in (2 * axis, 2 * axis + 1)]
            return tuple(jnp.transpose(m, order).reshape(wanted.shape) for m in moments)
        if wanted.is_diagonal:
            diagonals = (m.reshape(self.sizes) for m in moments)
            return tuple(self.side(m).reshape(wanted.shape) for m in diagonals)
        return super().both(moments, have, wanted)


@dataclass(frozen=True)
class Pool(IndexMap):
    """Sums over windows of positions."""

    windows: tuple[Window, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return tuple(w.output_size(n) for w, n in zip(self.windows, self.sizes, strict=True))

    def side(self, array: jax.Array) -> jax.Array:
        """Sum windows of the leading axes."""
        rest = [1] * (array.ndim - len(self.sizes))
        ws = self.windows
        return lax.reduce_window(
            array,
            np.zeros((), array.dtype),
            lax.add,
            [w.size for w in ws] + rest,
            [w.stride for w in ws] + rest,
            [(w.low, w.high) for w in ws] + [(0, 0) for _ in rest],
            window_dilation=[w.dilation for w in ws] + rest,
        )

    def needs(self, wanted: Layout) -> Layout:
        """A band as wide as the window around each wanted offset."""
        offsets = [
            d if w.is_identity else pool_offsets(w, d, n)
            for w, d, n in zip(self.windows, wanted.offsets, self.sizes, strict=True)
        ]
        return Layout(self.sizes, self.sizes, tuple(offsets))

    def both(self, moments: Moments, have: Layout, wanted: Layout) -> Moments:
        """Bind the pooling primitive."""
        return pooling(moments, layout=have, wanted=wanted.offsets, windows=self.windows)


@dataclass(frozen=True)
class Total(IndexMap):
    """The sum over all positions of the axes `summed`, which disappear."""

    summed: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return tuple(n for k, n in enumerate(self.sizes) if k not in self.summed)

    def side(self, array: jax.Array) -> jax.Array:
        """Sum the leading axes."""
        return array.sum(self.summed)

    def needs(self, wanted: Layout) -> Layout:
        """All pairs of the positions that are summed."""
        rest = iter(wanted.offsets)
        offsets = [None if k in self.summed else next(rest) for k in range(len(self.sizes))]
        return Layout(self.sizes, self.sizes, tuple(offsets))

    def both(self, moments: Moments, have: Layout, wanted: Layout) -> Moments:
        """Sum over all pairs."""
        axes = [axis for k in self.summed for axis in (2 * k, 2 * k + 1)]
        return tuple(m.sum(axes) for m in moments)


@dataclass(frozen=True)
class Matrix(IndexMap):
    """A constant matrix applied to one axis of positions.

    Attributes:
        axis: of the positions.
        rows: of the matrix, the size of the axis afterwards.
        entries: float64 in row-major order, as bytes: maps with the same numbers are the same.
    """

    axis: int
    rows: int
    entries: bytes

    @classmethod
    def of(cls, sizes: tuple[int, ...], axis: int, matrix: np.ndarray) -> Matrix:
        """The map by an array `[rows, sizes[axis]]`."""
        return cls(sizes, axis, matrix.shape[0], np.ascontiguousarray(matrix, np.float64).tobytes())

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return tuple(self.rows if k == self.axis else n for k, n in enumerate(self.sizes))

    def side(self, array: jax.Array) -> jax.Array:
        """Multiply along one of the leading axes."""
        return self._along(array, self.axis)

    def needs(self, wanted: Layout) -> Layout:
        """All pairs of the positions that are mixed."""
        offsets = [None if k == self.axis else d for k, d in enumerate(wanted.offsets)]
        return Layout(self.sizes, self.sizes, tuple(offsets))

    def both(self, moments: Moments, have: Layout, wanted: Layout) -> Moments:
        """Multiply from both sides, and keep the offsets that are wanted."""
        pair, offsets = 2 * self.axis, wanted.offsets[self.axis]
        products = (self._along(self._along(m, pair), pair + 1) for m in moments)
        return tuple(m if offsets is None else diagonals(m, pair, self.rows, offsets) for m in products)

    def _along(self, array: jax.Array, axis: int) -> jax.Array:
        matrix = np.frombuffer(self.entries).reshape(self.rows, -1).astype(array.dtype)
        product = jnp.tensordot(matrix, array, (1, axis), precision=lax.Precision.HIGHEST)
        return jnp.moveaxis(product, 0, axis)


@dataclass(frozen=True, eq=False)
class InputMatrix(IndexMap):
    """A matrix that depends on the example, applied to positions by `einsum`.

    Attributes:
        new_shape: the sizes of the result.
        matrix: of the example.
        subscripts: of the matrix and the positions to those of the result.
    """

    new_shape: tuple[int, ...]
    matrix: jax.Array
    subscripts: str

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return self.new_shape

    def side(self, array: jax.Array) -> jax.Array:
        """Contract the leading axes."""
        flat = array.reshape((*self.sizes, -1))
        operands, result = self.subscripts.split("->")
        product = jnp.einsum(f"{operands}Z->{result}Z", self.matrix, flat, precision=lax.Precision.HIGHEST)
        return product.reshape((*self.new_shape, *array.shape[len(self.sizes) :]))


@dataclass(frozen=True)
class Select(IndexMap):
    """Slices, flips and zero-padding: output position i of axis k is input position `step * i + first`, or zero.

    `ranges[k]` is (step, first, number of output positions).
    """

    ranges: tuple[tuple[int, int, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return tuple(n for _, _, n in self.ranges)

    def side(self, array: jax.Array) -> jax.Array:
        """Select along the leading axes."""
        for axis, (n, (step, first, count)) in enumerate(zip(self.sizes, self.ranges, strict=True)):
            array = _select(array, axis, n, step, first, count)
        return array

    def needs(self, wanted: Layout) -> Layout:
        """Offsets are scaled by the step."""
        offsets = []
        for n, (step, _, _), d in zip(self.sizes, self.ranges, wanted.offsets, strict=True):
            scaled = None if d is None else tuple(sorted({step * k for k in d if abs(step * k) < n}))
            offsets.append(scaled if scaled is None or len(scaled) < n or scaled == (0,) else None)
        return Layout(self.sizes, self.sizes, tuple(offsets))

    def both(self, moments: Moments, have: Layout, wanted: Layout) -> Moments:
        """Select rows of offsets, and positions."""
        return tuple(self._both(masked(have, m), have, wanted) for m in moments)

    def _both(self, block: jax.Array, have: Layout, wanted: Layout) -> jax.Array:
        for k, (n, (step, first, count)) in enumerate(zip(self.sizes, self.ranges, strict=True)):
            held, rows = have.offsets[k], wanted.offsets[k]
            if held == rows and (step, first, count) == (1, 0, n):
                continue
            if held is None:
                block = _select(block, 2 * k, n, step, first, count)
            elif rows is not None:
                block = _rows(block, 2 * k, held, [step * d for d in rows])
            block = _select(block, 2 * k + 1, n, step, first, count)
            if held is None and rows is not None:
                block = diagonals(block, 2 * k, count, rows)
        return block


@dataclass(frozen=True)
class Spread(IndexMap):
    """Zeros between positions: position i of axis k becomes position `factors[k] * i`."""

    factors: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return tuple((n - 1) * f + 1 for n, f in zip(self.sizes, self.factors, strict=True))

    def side(self, array: jax.Array) -> jax.Array:
        """Pad between the elements of the leading axes."""
        return _spread(array, dict(enumerate(self.factors)))

    def needs(self, wanted: Layout) -> Layout:
        """Offsets are divided by the factor; between others there are zeros."""
        offsets: list[Offsets] = []
        for n, f, d in zip(self.sizes, self.factors, wanted.offsets, strict=True):
            divided = None if d is None else tuple(sorted(k // f for k in d if k % f == 0 and abs(k // f) < n)) or (0,)
            offsets.append(divided if divided is None or len(divided) < n or divided == (0,) else None)
        return Layout(self.sizes, self.sizes, tuple(offsets))

    def both(self, moments: Moments, have: Layout, wanted: Layout) -> Moments:
        """Spread positions, and rows of offsets."""
        return tuple(self._both(m, have, wanted) for m in moments)

    def _both(self, block: jax.Array, have: Layout, wanted: Layout) -> jax.Array:
        for k, (f, n) in enumerate(zip(self.factors, self.shape, strict=True)):
            held, rows = have.offsets[k], wanted.offsets[k]
            if f == 1 and held == rows:
                continue
            if held is not None and rows is not None:
                block = _rows(block, 2 * k, held, [None if d % f else d // f for d in rows])
                block = _spread(block, {2 * k + 1: f})
            else:
                block = _spread(block, {2 * k: f, 2 * k + 1: f})
                block = block if rows is None else diagonals(block, 2 * k, n, rows)
        return block


@dataclass(frozen=True)
class Filter(IndexMap):
    """Constant filters over windows of positions; a last axis, of size `count`, tells the filters apart.

    `entries`: the filters `[count, *window sizes]`, float64 in row-major order, as bytes.
    """

    windows: tuple[Window, ...]
    count: int
    entries: bytes

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the result."""
        return (*(w.output_size(n) for w, n in zip(self.windows, self.sizes, strict=True)), self.count)

    def side(self, array: jax.Array) -> jax.Array:
        """Convolve the leading axes."""
        k, rest = len(self.sizes), array.shape[len(self.sizes) :]
        images = jnp.moveaxis(array.reshape((*self.sizes, 1, -1)), (-1, -2), (0, 1))
        filters = np.frombuffer(self.entries).reshape(self.count, 1, *(w.size for w in self.windows))
        filtered = lax.conv_general_dilated(
            images,
            jnp.asarray(filters.astype(array.dtype)),
            [w.stride for w in self.windows],
            [(w.low, w.high) for w in self.windows],
            rhs_dilation=[w.dilation for w in self.windows],
            precision=lax.Precision.HIGHEST,
        )
        return jnp.moveaxis(filtered, (0, 1), (k + 1, k)).reshape((*self.shape, *rest))


def _rows(block: jax.Array, r: int, held: tuple[int, ...], wanted: Sequence[int | None]) -> jax.Array:
    """The rows of these offsets out of those held; zeros for offsets that no two positions have."""
    padding = [(0, 0, 0)] * block.ndim
    padding[r] = (0, 1, 0)
    block = lax.pad(block, np.zeros((), block.dtype), padding)
    index = [held.index(d) if d in held else len(held) for d in wanted]
    return jnp.take(block, jnp.asarray(index), axis=r)


def _spread(array: jax.Array, factors: Mapping[int, int]) -> jax.Array:
    """The array with zeros between the elements of some axes."""
    padding = [(0, 0, factors.get(axis, 1) - 1) for axis in range(array.ndim)]
    return lax.pad(array, np.zeros((), array.dtype), padding)


def _select(array: jax.Array, axis: int, n: int, step: int, first: int, count: int) -> jax.Array:
    if (step, first, count) == (1, 0, n):
        return array
    source = step * np.arange(count) + first
    taken = jnp.take(array, jnp.asarray(np.clip(source, 0, n - 1)), axis=axis)
    valid = ((source >= 0) & (source < n)).reshape([-1 if d == axis else 1 for d in range(array.ndim)])
    return taken if valid.all() else jnp.where(valid, taken, 0)
