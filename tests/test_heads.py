"""Attention with scores divided by sqrt(d) and without a softmax, whose heads are sent to infinity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Model, assert_limit_of_finite_networks, dense, examples, relu_kernels
from flax import linen as nn

import infnet_flax
from infnet.errors import UnsupportedError

TOKENS, HEADS, KEYS, VALUES = 3, 4, 4, 2
CAUSAL = np.tri(TOKENS, dtype=bool)
DROPOUT = {"rngs": {"dropout": jax.random.key(0)}}


def by_heads(x, heads, channels):
    """A layer with `heads` times `channels` outputs, on two axes."""
    return dense(heads * channels)(x).reshape(*x.shape[:-1], heads, channels)


def attention(x, width, function=lambda scores: scores, *, spec="nqhd,nkhd->nhqk", before=False, heads=HEADS):
    """All heads side by side; the division by sqrt(d) comes after the product, or `before` it in the queries."""
    q, k, v = (by_heads(x, heads * width, channels) for channels in (KEYS * width, KEYS * width, VALUES))
    root = np.sqrt(KEYS * width)
    scores = jnp.einsum(spec, q / root, k) if before else jnp.einsum(spec, q, k) / root
    y = jnp.einsum(f"{spec.split('>')[1]},nkhc->nqhc", function(scores), v)
    return y.reshape(*x.shape[:2], -1)


def causal_relu(module, width, x):
    """In a residual block, with the average over positions of linear attention beside it."""
    x = nn.LayerNorm()(dense(16 * width)(x))
    y = attention(x, width, lambda scores: jnp.where(CAUSAL, nn.relu(scores), 0))
    z = attention(x, width, lambda scores: scores / TOKENS, before=True)
    x = x + dense(16 * width)(y) + dense(16 * width)(z)
    return nn.relu(dense(16 * width)(x)).mean(1)


def test_heads_of_finite_networks():
    x1, x2 = examples(TOKENS, 3)
    assert_limit_of_finite_networks(lambda w: Model(causal_relu, w), x1, x2, n_samples=(300, 150), largest_error=0.1)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


X = np.random.RandomState(0).standard_normal((3, TOKENS, 5))
X2 = np.random.RandomState(1).standard_normal((2, TOKENS, 5))
ALL = np.ones((TOKENS, TOKENS))


def kernels(function=lambda scores: scores, **options):
    """Of attention of inputs, and the mean over its positions, without training the biases."""

    def body(module, width, x):
        return attention(x, width, function, **options).mean(1)

    settings = {"trainable": lambda path: "bias" not in path, "parameterization": "ntk", "call_kwargs": DROPOUT}
    return infnet_flax.kernel_fn(Model(body, 8), X, **settings)(X, X2, ("nngp", "ntk"))


def by_hand(mask=ALL, relu=False):
    """The kernels of `kernels`, by the formulas in `infnet.rules.heads` over all pairs of pairs of positions."""
    t = np.einsum("aic,bjc->abij", X, X2) / 5
    q = t + 0.3**2
    scores = np.einsum("abtT,absS->abtTsS", q, q)
    of_scores = np.einsum("abtT,absS->abtTsS", t, q) + np.einsum("abtT,absS->abtTsS", q, t)
    if relu:
        own = (np.einsum("aic,aic->ai", x, x) / 5 + 0.3**2 for x in (X, X2))
        own1, own2 = (np.einsum("at,as->ats", one, one) for one in own)
        own1, own2 = own1[:, None, :, None, :, None], own2[None, :, None, :, None, :]
        scores, slope = relu_kernels(scores, own1, own2)
        of_scores = slope * of_scores
    y = np.einsum("ts,TS,abtTsS,absS->abtT", mask, mask, scores, q)
    of_y = np.einsum("ts,TS,abtTsS,absS->abtT", mask, mask, of_scores, q)
    of_y += np.einsum("ts,TS,abtTsS,absS->abtT", mask, mask, scores, t)
    return y.mean((2, 3)) + 0.3**2, of_y.mean((2, 3)) + y.mean((2, 3))


WEIGHTS = np.linspace(-1, 2, TOKENS**2).reshape(TOKENS, TOKENS)
BY_HAND = {
    "identity": (lambda a: a, {}),
    "relu": (nn.relu, {"relu": True}),
    "masked": (lambda a: jnp.where(CAUSAL, a, 0), {"mask": CAUSAL}),
    "times a mask": (lambda a: CAUSAL * a, {"mask": CAUSAL}),
    "times weights": (lambda a: a * WEIGHTS, {"mask": WEIGHTS}),
    "masked relu": (lambda a: jnp.where(CAUSAL, nn.relu(a), 0), {"mask": CAUSAL, "relu": True}),
    # As small as scores that are divided by the number of channels; but no softmax follows.
    "average": (lambda a: nn.relu(a / 64), {"mask": ALL / 64, "relu": True}),
    "dropout": (lambda a: nn.Dropout(0.5, deterministic=False)(a), {}),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", BY_HAND)
def test_functions_of_scores_by_hand(name):
    function, options = BY_HAND[name]
    for kernel, expected in zip(kernels(function), by_hand(**options), strict=True):
        np.testing.assert_allclose(kernel, expected, rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_a_query_for_all_positions():
    """Queries that are repeated along the positions attend alike."""

    def body(repeated):
        def attend(module, width, x):
            q, k, v = (by_heads(one, 8 * HEADS, KEYS) for one in (x[:, :1], x, x))
            q = jnp.repeat(q, TOKENS, 1) if repeated else q
            y = jnp.einsum("nhqk,nkhc->nqhc", jnp.einsum("nqhd,nkhd->nhqk", q, k) / KEYS**0.5, v)
            return y.reshape(*y.shape[:2], -1).mean(1)

        return attend

    one, other = (infnet_flax.kernel_fn(Model(body(repeated), 8), X)(X) for repeated in (True, False))
    np.testing.assert_allclose(one.nngp, other.nngp, rtol=1e-10)
    np.testing.assert_allclose(one.ntk, other.ntk, rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_heads_that_are_mixed():
    """A weight applied to the heads makes new ones of the same law."""

    def body(mixed):
        def attend(module, width, x):
            def mix(scores):
                weights = module.param("mix", nn.initializers.normal((HEADS * 8) ** -0.5), (HEADS * 8, HEADS * 8))
                return jnp.einsum("nhqk,hg->ngqk", scores, weights)

            return attention(x, width, mix if mixed else lambda scores: scores).mean(1)

        return attend

    one, other = (infnet_flax.kernel_fn(Model(body(mixed), 8), X)(X, get="nngp") for mixed in (True, False))
    np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("options", [{"before": True}, {"spec": "nqhd,nkhd->nqkh"}, {"spec": "nqhd,nkhd->nkhq"}])
def test_ways_to_write_it(options):
    for one, other in zip(kernels(**options), by_hand(), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


def refused(body, match, **options):
    with pytest.raises(UnsupportedError, match=match) as caught:
        infnet_flax.kernel_fn(Model(body, 8), X, **options)(X)
    assert "test_heads.py" in caught.value.where.line
    return caught.value


def scores_of(q, k, function=lambda scores: scores):
    """`function` of scores, as attention weights of further values."""

    def body(module, width, x):
        scores = function(jnp.einsum("nqhd,nkhd->nhqk", q(x), k(x)) / np.sqrt(KEYS))
        return jnp.einsum("nhqk,nkhc->nqhc", scores, by_heads(x, HEADS, VALUES)).reshape(len(x), TOKENS, -1).mean(1)

    return body


def own(heads=HEADS):
    return lambda x: by_heads(x, heads, KEYS)


def in_neural_tangents_units(x):
    """Weights N(0, 1) and a factor beside them, as large as other keys."""
    layer = nn.DenseGeneral((HEADS, KEYS), use_bias=False, kernel_init=nn.initializers.normal(1.0))
    return layer(x) / np.sqrt(x.shape[-1])


NOT_DIVIDED = {
    "softmax": scores_of(own(), own(), nn.softmax),
    "masked softmax": scores_of(own(), own(), lambda a: nn.softmax(jnp.where(CAUSAL, a, -1e30))),
    "exponential": scores_of(own(), own(), jnp.exp),
    "inputs added": scores_of(own(), own(), lambda a: a + np.eye(TOKENS)),
    "one head": scores_of(own(1), own(1)),
    "a layer, one head": scores_of(own(1), own(1), lambda a: dense(TOKENS)(a)),
    "dropout, one head": scores_of(own(1), own(1), lambda a: nn.Dropout(0.5, deterministic=False)(a)),
}


@pytest.mark.parametrize("name", NOT_DIVIDED)
def test_what_has_no_closed_form_is_refused(name):
    error = refused(NOT_DIVIDED[name], "not divided by their number", call_kwargs=DROPOUT)
    assert "divided by sqrt(d)" in error.why
    assert "sampling finite networks" in error.remedy


def test_equal_weights_are_refused():
    def tied(module, width, x):
        q = in_neural_tangents_units(x)
        return jnp.einsum("nhqk,nkhd->nqhd", jnp.einsum("nqhd,nkhd->nhqk", q, q) / np.sqrt(KEYS), q).mean(1)

    refused(tied, "not divided by their number")


def test_a_temperature_is_no_square_root():
    """Scores divided by d, times 1.4, have concentrated, with weights in either units."""

    def body(layer):
        def attend(module, width, x):
            q = layer(x)
            scores = nn.softmax(1.4 * jnp.einsum("nqhd,nkhd->nhqk", q, q) / KEYS)
            return jnp.einsum("nhqk,nkhc->nqhc", scores, by_heads(x, HEADS, VALUES)).reshape(len(x), 3, -1).mean(1)

        return attend

    def without_bias(x):
        return dense(HEADS * KEYS, use_bias=False)(x).reshape(*x.shape[:-1], HEADS, KEYS)

    one, other = (
        infnet_flax.kernel_fn(Model(body(f), 8), X)(X, get="nngp") for f in (in_neural_tangents_units, without_bias)
    )
    np.testing.assert_allclose(one, other, rtol=1e-4)


def test_channels_of_a_head_depend_on_each_other():
    """The layer's result is Gaussian over heads only: no nonlinearity, and no mean over one head."""

    def result(after):
        def body(module, width, x):
            return after(attention(x, width)).mean(1)

        return body

    refused(result(nn.relu), "not Gaussian")
    refused(result(lambda y: nn.GroupNorm(HEADS * 8, reduction_axes=(-1,))(y)), "channels of a head")


def test_explain_counts_heads():
    def body(module, width, x):
        return dense(64)(attention(dense(64)(x), 8, heads=3)).mean(1)

    remarks = " ".join(infnet_flax.kernel_fn(Model(body, 8), X).explain().remarks)
    assert "smallest width is 24" in remarks
    assert "attend to all positions alike" not in remarks
