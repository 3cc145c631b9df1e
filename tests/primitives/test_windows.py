"""Convolution and pooling of blocks, in every layout, against sums written as loops over positions."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet.layout import Layout, from_sides, masked, restrict
from infnet.primitives.contraction import contraction
from infnet.primitives.pooling import pooling
from infnet.primitives.windows import Window, conv_offsets, pool_offsets

SIZES = (7, 6)
WINDOWS = [
    (Window(3, 1, 1, 1, 1), Window(3, 1, 1, 1, 1)),
    (Window(3, 2, 1, 0, 1), Window(2, 1, 2, 1, 0)),
    (Window(1, 2), Window(3, 1, 2, 2, 2)),
    (Window(), Window(3, 3)),
]
WANTED = [(None, None), ((0,), (0,)), ((-1, 0, 1), (0,)), (None, (-1, 0))]
RNG = np.random.RandomState(0)
ARRAY = RNG.randn(*SIZES, *SIZES)
FULL = Layout.full(SIZES, SIZES)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def taps(window, i):
    return [window.stride * i - window.low + window.dilation * k for k in range(window.size)]


def output_sizes(windows):
    return tuple(w.output_size(n) for w, n in zip(windows, SIZES, strict=True))


def conv_oracle(windows, weights):
    sizes = output_sizes(windows)
    out = np.zeros((*sizes, *sizes))
    for index in np.ndindex(*out.shape):
        i, j = index[:2], index[2:]
        for k in np.ndindex(*(w.size for w in windows)):
            reads = [[taps(w, p)[t] for w, p, t in zip(windows, side, k, strict=True)] for side in (i, j)]
            if all(0 <= r < n for side in reads for r, n in zip(side, SIZES, strict=True)):
                out[index] += weights[k] * ARRAY[(*reads[0], *reads[1])]
    return out


def pool_matrix(window, n):
    matrix = np.zeros((window.output_size(n), n))
    for i, row in enumerate(matrix):
        for read in taps(window, i):
            if 0 <= read < n:
                row[read] += 1
    return matrix


def blocks_of(array, offsets):
    sizes = array.shape[:2]
    layout, full = Layout(sizes, sizes, offsets), Layout.full(sizes, sizes)
    return layout, masked(layout, restrict(from_sides(full, jnp.asarray(array)), full, layout))


@pytest.mark.parametrize(("windows", "wanted"), list(itertools.product(WINDOWS, WANTED)), ids=str)
def test_convolution(windows, wanted):
    offsets = tuple(conv_offsets(w, d) for w, d in zip(windows, wanted, strict=True))
    have, block = blocks_of(ARRAY, offsets)
    weights = RNG.rand(*(w.size for w in windows))
    plain, weighted = (conv_oracle(windows, w) for w in (np.ones(weights.shape), weights))
    layout, plain = blocks_of(plain, wanted)
    _, weighted = blocks_of(weighted, wanted)
    two, three = jnp.full((1, 1), 2.0), jnp.full((1, 1), 3.0)
    s, t = contraction(block, 10 * block, two, three, layout=have, geometry=windows, channels=5)
    np.testing.assert_allclose(masked(layout, s), 10 * plain, atol=1e-12)
    np.testing.assert_allclose(masked(layout, t), 115 * plain, atol=1e-11)
    s, t = contraction(block, block, jnp.asarray(weights), three, layout=have, geometry=windows, channels=1)
    np.testing.assert_allclose(masked(layout, s), weighted, atol=1e-12)
    np.testing.assert_allclose(masked(layout, t), weighted + 3 * plain, atol=1e-12)


@pytest.mark.parametrize(("windows", "wanted"), list(itertools.product(WINDOWS, WANTED)), ids=str)
def test_pooling(windows, wanted):
    offsets = tuple(pool_offsets(w, d, n) for w, d, n in zip(windows, wanted, SIZES, strict=True))
    have, block = blocks_of(ARRAY, offsets)
    a, b = (pool_matrix(w, n) for w, n in zip(windows, SIZES, strict=True))
    layout, expected = blocks_of(np.einsum("ai,bj,ijkl,ck,dl->abcd", a, b, ARRAY, a, b), wanted)
    (pooled,) = pooling((block,), layout=have, wanted=wanted, windows=windows)
    np.testing.assert_allclose(masked(layout, pooled), expected, atol=1e-12)


def test_a_sum_over_positions_reads_the_diagonal():
    have, block = blocks_of(ARRAY, ((0,), None))
    one = jnp.ones((1, 1))
    (s,) = contraction(block, None, one, one, layout=have, geometry=(None, Window()), channels=1)
    np.testing.assert_allclose(s, np.einsum("iaib->ba", ARRAY), atol=1e-12)


def test_mapping_over_two_sets_keeps_axes_of_size_one():
    have, block = blocks_of(ARRAY, ((0,), (0,)))
    one = jnp.ones((1, 1))

    def pair(a, b):
        scaled = block * a
        return contraction(scaled, scaled * b, one, one, layout=have, geometry=WINDOWS[0], channels=1)

    jaxpr = jax.make_jaxpr(jax.vmap(jax.vmap(pair, (None, 0)), (0, None)))(jnp.ones(2), jnp.ones(3))
    (eqn,) = [e for e in jaxpr.jaxpr.eqns if e.primitive.name == "conv_kernel"]
    assert [v.aval.shape[:2] for v in eqn.invars] == [(1, 1), (1, 1), (2, 1), (2, 3)]
