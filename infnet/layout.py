"""How a covariance block between the positions of two features is stored.

A *block* holds a moment `M[i, j]` of two features for one pair of examples; i and j run over the index axes (space,
time, tokens) of the left and of the right feature. Every pair of index axes becomes two axes of the block, `(r, p)`:
p is the position i, and r is either the position j (all pairs) or a row of the offsets `d = j - i` that are needed.
A convolution, a bias and a nonlinearity keep offsets apart, so a network that ends in flatten + Dense needs d = 0
alone: the square root of the work (Novak et al. 2020, arXiv:1912.02803, call this the diagonal).

Entries of an offset row whose j = i + d lies outside are undefined; who sums over neighbours masks them first.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Offsets = tuple[int, ...] | None  # sorted values of j - i, or None for all pairs


@dataclass(frozen=True)
class Layout:
    """The storage of a block: index-axis sizes of the left and right feature, and the offsets kept of each pair.

    Axes are paired by position; a feature with fewer index axes counts as having axes of size 1 at the end.
    """

    left: tuple[int, ...]
    right: tuple[int, ...]
    offsets: tuple[Offsets, ...]

    @classmethod
    def full(cls, left: tuple[int, ...], right: tuple[int, ...]) -> Layout:
        """All pairs of positions."""
        return cls(left, right, (None,) * max(len(left), len(right)))

    @classmethod
    def diagonal(cls, sizes: tuple[int, ...]) -> Layout:
        """Each position with itself."""
        return cls(sizes, sizes, ((0,),) * len(sizes))

    @property
    def axes(self) -> list[tuple[int, int, Offsets]]:
        """(left size, right size, offsets) of each pair of index axes."""
        pairs = zip_longest(self.left, self.right, fillvalue=1)
        return [(n, m, d) for (n, m), d in zip(pairs, self.offsets, strict=True)]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of a block: two axes (r, p) for each pair of index axes."""
        return tuple(k for n, m, d in self.axes for k in (m if d is None else len(d), n))

    @property
    def is_full(self) -> bool:
        """Whether all pairs of positions are stored."""
        return all(d is None for d in self.offsets)

    @property
    def is_diagonal(self) -> bool:
        """Whether only pairs of equal positions are stored."""
        return all(d == (0,) for d in self.offsets)

    def union(self, other: Layout) -> Layout:
        """The smallest layout that holds the entries of both."""
        if (self.left, self.right) != (other.left, other.right):
            raise ValueError("only layouts of the same two features can be united")
        merged = [_union(n, a, b) for (n, _, a), b in zip(self.axes, other.offsets, strict=True)]
        return Layout(self.left, self.right, tuple(merged))

    def __str__(self) -> str:
        return " x ".join("all" if d is None else _short(d) for d in self.offsets) or "scalar"


def _union(size: int, one: Offsets, two: Offsets) -> Offsets:
    if one is None or two is None:
        return None
    united = tuple(sorted({*one, *two}))
    return united if len(united) < size or united == (0,) else None


def _short(offsets: tuple[int, ...]) -> str:
    return "diagonal" if offsets == (0,) else f"{offsets[0]}..{offsets[-1]}"


def spread_left(layout: Layout, x: jax.Array) -> jax.Array:
    """Values at the left positions, `x[*left]` (size-1 axes allowed), in the axes of a block."""
    return x.reshape([k for size in _padded(x.shape, layout) for k in (1, size)])


def spread_right(layout: Layout, x: jax.Array) -> jax.Array:
    """Values at the right positions, `x[*right]` (size-1 axes allowed), in the axes of a block."""
    x = x.reshape(_padded(x.shape, layout))
    for axis, (n, _, offsets) in enumerate(layout.axes):
        position = 2 * axis
        if x.shape[position] == 1 or offsets == (0,):
            x = jnp.expand_dims(x, position + 1 if offsets is None or x.shape[position] == 1 else position)
        elif offsets is None:
            x = jnp.expand_dims(x, position + 1)
        else:
            j = np.add.outer(offsets, np.arange(n))
            x = jnp.take(x, jnp.asarray(np.clip(j, 0, n - 1)), axis=position)
    return x


def _padded(shape: tuple[int, ...], layout: Layout) -> tuple[int, ...]:
    return (*shape, *(1,) * (len(layout.offsets) - len(shape)))


def inside(layout: Layout) -> np.ndarray | None:
    """Mask of the entries whose right position exists, broadcasting over a block; None if all do."""
    if all(d is None or d == (0,) for d in layout.offsets):
        return None
    mask = np.ones((1,) * (2 * len(layout.offsets)), bool)
    for axis, (n, _, offsets) in enumerate(layout.axes):
        if offsets is not None:
            j = np.add.outer(offsets, np.arange(n))
            mask = mask & _on_axis((j >= 0) & (j < n), axis, mask.ndim)
    return mask


def coincident(layout: Layout, axes: Sequence[int] | None = None) -> np.ndarray:
    """Mask of the entries with equal left and right position (on `axes`, or on all), broadcasting over a block."""
    mask = np.ones((1,) * (2 * len(layout.offsets)), bool)
    for axis, (n, m, offsets) in enumerate(layout.axes):
        if axes is not None and axis not in axes:
            continue
        one = np.eye(m, n, dtype=bool) if offsets is None else np.equal(offsets, 0)[:, None]
        mask = mask & _on_axis(one, axis, mask.ndim)
    return mask


def spread_coincident(block: jax.Array, have: Layout, want: Layout) -> jax.Array:
    """A block in `have`, which may hold the diagonal of a pair of axes alone, in `want`: with zeros elsewhere."""
    for axis, (held, wanted) in enumerate(zip(have.offsets, want.offsets, strict=True)):
        if held != wanted:
            pair = tuple((0,) if k != axis else d for k, d in enumerate(want.offsets))
            block = jnp.where(coincident(Layout(want.left, want.right, pair)), block, 0)
    return block


def _on_axis(rows: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    shape = [1] * ndim
    shape[2 * axis : 2 * axis + 2] = rows.shape
    return rows.reshape(shape)


def filled(layout: Layout, block: jax.Array) -> jax.Array:
    """A block whose axes of size 1 are broadcast to those of the layout."""
    return jnp.broadcast_to(block, layout.shape)


def masked(layout: Layout, block: jax.Array) -> jax.Array:
    """The block with undefined entries set to zero."""
    mask = inside(layout)
    return block if mask is None else jnp.where(mask, block, 0)


def to_sides(layout: Layout, block: jax.Array) -> jax.Array:
    """A full block as an array `[*left, *right]`."""
    assert layout.is_full
    k = len(layout.offsets)
    block = jnp.transpose(block, [*range(1, 2 * k, 2), *range(0, 2 * k, 2)])
    return block.reshape((*layout.left, *layout.right))


def from_sides(layout: Layout, array: jax.Array) -> jax.Array:
    """An array `[*left, *right]` as a full block."""
    assert layout.is_full
    k = len(layout.offsets)
    array = array.reshape((*_padded(layout.left, layout), *_padded(layout.right, layout)))
    return jnp.transpose(array, [axis for pair in zip(range(k, 2 * k), range(k), strict=True) for axis in pair])


def restrict(block: jax.Array, have: Layout, want: Layout) -> jax.Array:
    """The entries of `want` out of a block that holds at least these."""
    for axis, ((n, _, held), wanted) in enumerate(zip(have.axes, want.offsets, strict=True)):
        r = 2 * axis
        if held == wanted:
            continue
        assert wanted is not None
        if held is None:
            block = diagonals(block, r, n, wanted)
        else:
            block = jnp.take(block, jnp.asarray([held.index(d) for d in wanted]), axis=r)
    return block


def diagonals(block: jax.Array, r: int, n: int, offsets: tuple[int, ...]) -> jax.Array:
    """The rows `d = j - i` in `offsets`, out of all pairs (j, i) on the axes (r, r + 1) of size n."""
    i = np.arange(n)
    j = np.clip(np.add.outer(offsets, i), 0, n - 1)
    flat = block.reshape((*block.shape[:r], n * n, *block.shape[r + 2 :]))
    return jnp.take(flat, jnp.asarray(j * n + i), axis=r)


def inner(layout: Layout, x: jax.Array, y: jax.Array) -> jax.Array:
    """Sum over channels of `x[*left, c] y[*right, c]`, as a block.

    Written as one `dot_general`, so that mapping it over two sets of examples gives a matrix product.
    """
    letters = iter(string.ascii_letters)
    c = next(letters)
    x = x.reshape((*_padded(x.shape[:-1], layout), x.shape[-1]))
    y = y.reshape((*_padded(y.shape[:-1], layout), y.shape[-1]))
    left, right, out = "", "", ""
    for n, _, offsets in layout.axes:
        r, p = next(letters), next(letters)
        left += p
        out += r + p
        if offsets is None:
            right += r
        elif offsets == (0,):
            right += p
            out = out[:-2] + p
        else:
            j = np.clip(np.add.outer(offsets, np.arange(n)), 0, n - 1)
            y = jnp.take(y, jnp.asarray(j), axis=len(right))
            right += r + p
    block = jnp.einsum(f"{left}{c},{right}{c}->{out}", x, y, precision=lax.Precision.HIGHEST)
    return block.reshape(layout.shape)
