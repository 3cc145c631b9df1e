"""Attention with scores divided by sqrt(d) and without a softmax, whose heads are sent to infinity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Model, assert_limit_of_finite_networks, dense, examples
from flax import linen as nn

import infnet_flax
from infnet.errors import UnsupportedError

TOKENS, HEADS, KEYS, VALUES = 3, 4, 4, 2
CAUSAL = np.tri(TOKENS, dtype=bool)


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


def residual(module, width, x):
    x = nn.LayerNorm()(dense(32 * width)(x))
    return (x + dense(32 * width)(attention(x, width, before=True))).mean(1)


def causal_relu(module, width, x):
    x = nn.LayerNorm()(dense(32 * width)(x))
    x = attention(x, width, lambda scores: jnp.where(CAUSAL, nn.relu(scores), 0))
    return nn.relu(dense(32 * width)(x)).mean(1)


@pytest.mark.parametrize("body", [residual, causal_relu], ids=lambda f: f.__name__)
def test_heads_of_finite_networks(body):
    x1, x2 = examples(TOKENS, 3)
    assert_limit_of_finite_networks(lambda w: Model(body, w), x1, x2, n_samples=(800, 400), largest_error=0.1)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


X = np.random.RandomState(0).standard_normal((3, TOKENS, 5))


def kernels(function=lambda scores: scores, *, x=X, **options):
    """One layer of attention of inputs without biases, as (nngp, ntk)."""

    def body(module, width, x):
        return attention(x, width, function, **options).mean(1)

    model = Model(body, 8)
    return infnet_flax.kernel_fn(model, x, trainable=lambda path: "bias" not in path)(x, x[:2], ("nngp", "ntk"))


def covariances():
    """Of queries, keys or values with the biases of `finite`, and their tangent kernels in the `ntk` convention."""
    k = np.einsum("aic,bjc->abij", X, X[:2]) / 5
    return k + 0.3**2, k


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("mask", [np.ones((TOKENS, TOKENS)), CAUSAL, np.linspace(-1, 2, TOKENS**2).reshape(3, 3)])
def test_masked_scores_by_hand(mask):
    """sum over s, s' of m_ts m_t's' Q_tt' K_ss' V_ss', written in numpy."""
    q, _ = covariances()
    expected = np.einsum("ts,TS,abtT,absS->abtT", mask, mask, q, q * q).mean((2, 3)) + 0.3**2
    functions = [lambda scores: scores * mask, lambda scores: mask * scores]
    if mask.dtype == bool:
        functions.append(lambda scores: jnp.where(mask, scores, 0.0))
    for function in functions:
        np.testing.assert_allclose(kernels(function).nngp, expected, rtol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("options", [{"before": True}, {"spec": "nqhd,nkhd->nqkh"}, {"spec": "nkhd,nqhd->nkhq"}])
def test_ways_to_write_it(options):
    if options.get("spec") == "nkhd,nqhd->nkhq":
        options = {"spec": "nqhd,nkhd->nkqh"}
    for one, other in zip(kernels(), kernels(**options), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12)


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
    "dropout, one head": scores_of(own(1), own(1), lambda a: nn.Dropout(0.5, deterministic=False)(a)),
}


@pytest.mark.parametrize("name", NOT_DIVIDED)
def test_what_has_no_closed_form_is_refused(name):
    error = refused(
        NOT_DIVIDED[name], "not divided by their number", call_kwargs={"rngs": {"dropout": jax.random.key(0)}}
    )
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
