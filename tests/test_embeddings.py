"""Embeddings, learned positions and class tokens, against arithmetic on one-hot vectors and finite networks.

A lookup is a Dense layer on one-hot vectors: the oracle of the first is the kernel of the second, built with numpy.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from oracles import assert_ratio_is_one, extrapolate
from zoo import settings

import infnet_flax
from infnet.errors import NumericalError, UnsupportedError

VOCABULARY, LENGTH, C = 5, 4, 16
RNG = np.random.RandomState(0)
IDS1, IDS2 = RNG.randint(0, VOCABULARY, (2, LENGTH)), RNG.randint(0, VOCABULARY, (3, LENGTH))
STD, MEAN = 0.7, 0.4
DTYPES = {"dtype": jnp.float64, "param_dtype": jnp.float64}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def shifted(key, shape, dtype=jnp.float64):
    return MEAN + STD * jax.random.normal(key, shape, dtype)


def embed(rows=VOCABULARY, **options):
    return nn.Embed(rows, C, embedding_init=shifted, **DTYPES, **options)


def own(module, name, shape):
    return module.param(name, shifted, shape, jnp.float64)


def same(left, right):
    """[t_i(a) = t_j(b)] for (n1, i) and (n2, j) indices: (n1, n2, i, j)."""
    return (left[:, None, :, None] == right[None, :, None, :]).astype(float)


def places(n):
    return np.eye(n)[None, None]


WORDS, NOTHING = same(IDS1, IDS2), np.zeros((2, 3, LENGTH, LENGTH))
# name -> (x -> array, sum over all tables of "the same row", number of tables at each position)
TABLES = {
    "embedding": (lambda m, t: embed()(t), WORDS, 1),
    "one token": (lambda m, t: embed()(t[:, 1]), WORDS[:, :, 1:2, 1:2], 1),
    "looked up twice": (lambda m, t: 2 * embed(name="e")(t), 4 * WORDS, 2),
    "positions": (lambda m, t: embed()(t) + embed(9)(jnp.arange(LENGTH)), WORDS + places(LENGTH), 2),
    "positions of each": (
        lambda m, t: embed()(t) + embed(9)(jnp.broadcast_to(jnp.arange(LENGTH)[None], t.shape)),
        WORDS + places(LENGTH),
        2,
    ),
    "added array": (lambda m, t: embed()(t) + own(m, "p", (1, LENGTH, C)), WORDS + places(LENGTH), 2),
    "slice of an array": (lambda m, t: embed()(t) + own(m, "p", (9, C))[2 : 2 + LENGTH], WORDS + places(LENGTH), 2),
}


class Tables(nn.Module):
    operation: object

    @nn.compact
    def __call__(self, t):
        return self.operation(self, t)


def kernels(operation, x1=IDS1, x2=IDS2, **options):
    return infnet_flax.kernel_fn(Tables(operation), x1, **options)(x1, x2, ("nngp", "ntk"))


@pytest.mark.parametrize("name", TABLES)
def test_lookups(name):
    operation, equal, count = TABLES[name]
    nngp, ntk = kernels(operation)
    np.testing.assert_allclose(nngp, np.squeeze(STD**2 * equal + MEAN**2 * count**2), rtol=1e-12)
    np.testing.assert_allclose(ntk, np.squeeze(equal), rtol=1e-12)


def test_the_ntk_parameterization_and_frozen_tables():
    ntk = kernels(TABLES["positions"][0], parameterization="ntk").ntk
    np.testing.assert_allclose(ntk, STD**2 * TABLES["positions"][1], rtol=1e-12)
    ntk = kernels(TABLES["embedding"][0], trainable={"*embedding": False}).ntk
    np.testing.assert_array_equal(ntk, NOTHING)


ROOT = np.random.RandomState(1).standard_normal((LENGTH, LENGTH))  # of the covariance of positions


def test_a_table_times_zero_adds_nothing():
    def zero(module, t):
        return 0.0 * embed(name="zero")(t) + embed(name="table")(t)

    jax.tree.map(np.testing.assert_array_equal, kernels(zero), kernels(lambda module, t: embed(name="table")(t)))


def correlated(module, twice=False):
    p = module.param("p", nn.initializers.normal(STD), (LENGTH, C), jnp.float64)
    return ROOT @ p + p if twice else ROOT @ p


def correlated_over_two_axes(module):
    p = module.param("p", nn.initializers.normal(STD), (2, 2, C), jnp.float64)
    return jnp.einsum("hwij,ijc->hwc", ROOT.reshape(2, 2, 2, 2), p).reshape(1, LENGTH, C)


@pytest.mark.parametrize("positions", [correlated, correlated_over_two_axes])
def test_correlated_positions(positions):
    """A constant matrix applied to learned positions: they have the covariance R R^T."""
    nngp, ntk = kernels(lambda m, t: embed()(t) + positions(m))
    np.testing.assert_allclose(nngp, STD**2 * (WORDS + ROOT @ ROOT.T) + MEAN**2, rtol=1e-12)
    np.testing.assert_allclose(ntk, WORDS + ROOT @ ROOT.T, rtol=1e-12)


def with_class_token(how):
    def operation(module, t):
        token = own(module, "token", (1, 1, C))
        first = {
            "broadcast": lambda: jnp.broadcast_to(token, (t.shape[0], 1, C)),
            "tile": lambda: jnp.tile(token, (t.shape[0], 1, 1)),
            "repeat": lambda: jnp.repeat(token, t.shape[0], axis=0),
            "zeros": lambda: jnp.zeros((t.shape[0], 1, C)),
        }[how]()
        return jnp.concatenate([first, embed()(t)], axis=1)

    return operation


@pytest.mark.parametrize("how", ["broadcast", "tile", "repeat", "zeros"])
def test_class_tokens(how):
    nngp, ntk = kernels(with_class_token(how))
    learned = float(how != "zeros")
    equal = np.zeros((2, 3, LENGTH + 1, LENGTH + 1))
    equal[:, :, 0, 0], equal[:, :, 1:, 1:] = learned, WORDS
    present = np.array([learned, *[1.0] * LENGTH])
    np.testing.assert_allclose(nngp, STD**2 * equal + MEAN**2 * np.outer(present, present), rtol=1e-12)
    np.testing.assert_allclose(ntk, equal, rtol=1e-12)


class Transformerless(nn.Module):
    """What comes before attention, and a head: words, positions, a class token, an MLP at each of them."""

    width: int

    @nn.compact
    def __call__(self, t):
        normal = nn.initializers.normal(1.0)
        x = nn.Embed(VOCABULARY, self.width, embedding_init=normal)(t)
        token = jnp.broadcast_to(self.param("token", normal, (1, 1, self.width)), (t.shape[0], 1, self.width))
        x = jnp.concatenate([token, x], axis=1)
        x = nn.relu(x + nn.Embed(9, self.width, embedding_init=normal)(jnp.arange(LENGTH + 1)))
        options = settings(jnp.float32)
        x = nn.relu(nn.Conv(self.width, (2,), **options)(x))
        return nn.Dense(32, **options)(x.mean(1))


def test_the_limit_of_finite_networks():
    with jax.enable_x64(False):

        def analytic(multiplier):
            k = infnet_flax.kernel_fn(Transformerless(12 * multiplier), IDS1)
            return tuple(k(IDS1, IDS2[:2], ("nngp", "ntk")))

        fits = extrapolate(
            lambda multiplier: Transformerless(12 * multiplier),
            IDS1,
            IDS2[:2],
            jax.random.key(0),
            n_samples=(1200, 600),
            analytic=analytic,
        )
    for fit in fits:
        assert_ratio_is_one(fit, largest_error=0.04)


def test_x1_alone_the_diagonal_and_highest_precision():
    with jax.enable_x64(False):
        k = infnet_flax.kernel_fn(nn.Embed(VOCABULARY, C), IDS1, precision="highest")
        kernel = k(IDS1)
        assert kernel.nngp.dtype == jnp.float32
        np.testing.assert_allclose(kernel.ntk, same(IDS1, IDS1))
        np.testing.assert_allclose(k.diag(IDS1, "ntk"), np.einsum("aaij->aij", same(IDS1, IDS1)))


def test_indices_out_of_bounds_are_what_the_model_reads():
    with pytest.raises(NumericalError, match="lookup"):  # the model gives NaN
        kernels(TABLES["embedding"][0], IDS1, IDS2 + VOCABULARY)

    def clipped(module, t):
        return jnp.take(own(module, "w", (VOCABULARY, C)), t, axis=0, mode="clip")

    def zero(module, t):
        return jnp.take(own(module, "w", (VOCABULARY, C)), t, axis=0, mode="fill", fill_value=0)

    outside = IDS2 + 2
    np.testing.assert_allclose(kernels(clipped, IDS1, outside).ntk, same(IDS1, np.minimum(outside, VOCABULARY - 1)))
    nngp, ntk = kernels(zero, IDS1, outside)
    inside = (outside < VOCABULARY)[None, :, None, :]
    np.testing.assert_allclose(ntk, same(IDS1, outside))
    np.testing.assert_allclose(nngp, np.where(inside, STD**2 * same(IDS1, outside) + MEAN**2, 0.0))
    negative = kernels(TABLES["embedding"][0], IDS1 - VOCABULARY, IDS2)  # counts from the end
    np.testing.assert_allclose(negative.ntk, WORDS)


def attended(module, t):
    table = nn.Embed(VOCABULARY, C, **DTYPES)
    return table.attend(nn.Dense(C, **DTYPES)(table(t)))


def one_fill_value(module, t):
    return jnp.take(own(module, "w", (VOCABULARY, C)), t, axis=0, mode="fill", fill_value=1.0)


REFUSED = {
    "used a second time in another way": attended,
    "a second time in another way": lambda m, t: embed()(t) + correlated(m, twice=True),
    "reads 1.0 at indices out of bounds": one_fill_value,
    "parameters are concatenated": lambda m, t: embed()(t) + jnp.roll(own(m, "p", (LENGTH, C)), 1, 0),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_refused(what):
    with pytest.raises(UnsupportedError, match=what) as caught:
        kernels(REFUSED[what])
    assert "test_embeddings.py" in caught.value.where.line
