"""Blocks in every layout hold the entries of the full block; the oracle is a numpy array indexed by positions."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from infnet.layout import (
    Layout,
    coincident,
    from_sides,
    inner,
    masked,
    restrict,
    spread_left,
    spread_right,
    to_sides,
)

SIZES = (4, 5)
OFFSETS = [None, (0,), (-1, 0, 2), (-2, 1)]
PAIRS = list(itertools.product(OFFSETS, OFFSETS))
RNG = np.random.RandomState(0)
X, Y = (jnp.asarray(RNG.randn(*SIZES, 3).astype(np.float32)) for _ in range(2))
FULL = Layout.full(SIZES, SIZES)


def stored(layout, array):
    """The block of an array [*left, *right], entry by entry."""
    block = np.zeros(layout.shape, array.dtype)
    for index in np.ndindex(*layout.shape):
        position = []
        for (_, m, offsets), (r, p) in zip(layout.axes, zip(index[::2], index[1::2], strict=True), strict=True):
            j = r if offsets is None else p + offsets[r]
            position.append((p, j if 0 <= j < m else None))
        if all(j is not None for _, j in position):
            block[index] = array[tuple(p for p, _ in position) + tuple(j for _, j in position)]
    return block


@pytest.mark.parametrize("offsets", PAIRS, ids=str)
def test_every_way_to_make_a_block_agrees(offsets):
    layout = Layout(SIZES, SIZES, offsets)
    array = np.einsum("abc,dec->abde", X, Y)
    expected = stored(layout, array)
    full = from_sides(FULL, jnp.asarray(array))
    np.testing.assert_allclose(masked(layout, inner(layout, X, Y)), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(masked(layout, restrict(full, FULL, layout)), expected)
    outer = spread_left(layout, X[..., 0]) * spread_right(layout, Y[..., 0]) * jnp.ones(layout.shape)
    rank_one = stored(layout, np.einsum("ab,de->abde", X[..., 0], Y[..., 0]))
    np.testing.assert_allclose(masked(layout, outer), rank_one, rtol=1e-6)
    same = np.einsum("ad,be->abde", np.eye(4), np.eye(5))
    np.testing.assert_array_equal(np.broadcast_to(coincident(layout), layout.shape), stored(layout, same))


def test_sides_are_inverse():
    array = jnp.asarray(RNG.randn(4, 5, 4, 5))
    np.testing.assert_array_equal(to_sides(FULL, from_sides(FULL, array)), array)


def test_features_with_different_index_axes():
    layout = Layout.full((4, 5), (3,))
    array = jnp.asarray(RNG.randn(4, 5, 3))
    block = from_sides(layout, array)
    assert block.shape == layout.shape == (3, 4, 1, 5)
    np.testing.assert_array_equal(to_sides(layout, block), array)


def test_union_keeps_rows_until_all_pairs_are_cheaper():
    diagonal, band = Layout((5,), (5,), ((0,),)), Layout((5,), (5,), ((-1, 0, 1),))
    assert diagonal.union(band) == band
    assert band.union(Layout((5,), (5,), ((-2, 2),))) == Layout.full((5,), (5,))
    with pytest.raises(ValueError, match="same two features"):
        diagonal.union(Layout.full((4,), (4,)))


def test_layouts_print_for_people():
    assert str(Layout((4, 5, 6), (4, 5, 6), ((0,), None, (-1, 0, 1)))) == "diagonal x all x -1..1"
    assert str(Layout((), (), ())) == "scalar"
