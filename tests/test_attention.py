"""Attention with scores divided by the number of channels, written by users."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Function, Model, assert_limit_of_finite_networks, dense, examples
from flax import linen as nn

import infnet_flax
from infnet.errors import UnsupportedError

TOKENS = 4


def heads(x, number):
    return x.reshape(*x.shape[:-1], number, -1)


def attention(x, width, *, tied=True, number=1, mask=None, normalise=nn.softmax):
    """Self-attention with `number` heads over (batch, token, channel)."""
    query, value = dense(width), dense(width)
    key = query if tied else dense(width)
    q, k, v = (heads(layer(x), number) for layer in (query, key, value))
    scores = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1]
    scores = scores if mask is None else jnp.where(mask, scores, -1e30)
    y = jnp.einsum("bhqk,bkhd->bqhd", normalise(scores), v)
    return y.reshape(*y.shape[:2], -1)


def encoder(**options):
    """Attention and an MLP, each in a pre-norm residual block."""

    def body(module, width, x):
        width = 24 * width
        x = dense(width)(x)
        x = x + attention(nn.LayerNorm()(x), width, **options)
        x = x + dense(width)(nn.relu(dense(width)(nn.LayerNorm()(x))))
        return x.mean(1)

    return body


CAUSAL = np.tri(TOKENS, dtype=bool)
ENCODERS = {
    "tied": encoder(),
    "two heads, causal": encoder(number=2, mask=CAUSAL),
    "untied": encoder(tied=False),
    "linear": encoder(normalise=lambda scores: scores),
}


@pytest.mark.parametrize("name", ENCODERS)
def test_transformer_encoders(name):
    x1, x2 = examples(TOKENS, 3)
    assert_limit_of_finite_networks(lambda w: Model(ENCODERS[name], w), x1, x2, n_samples=(500, 250), largest_error=0.1)


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def only_attention(**options):
    return lambda module, width, x: attention(x, width, **options).mean(1)


@pytest.mark.usefixtures("float64")
def test_attention_by_hand():
    """softmax(S + b^2) S softmax(S + b^2)^T for tied queries and keys of the inputs, written in numpy."""
    x = np.random.RandomState(0).standard_normal((3, TOKENS, 5))
    nngp = infnet_flax.kernel_fn(Model(only_attention(), 8), x)(x, get="nngp") - 0.3**2
    s = np.einsum("aic,bjc->abij", x, x) / 5 + 0.3**2
    own = np.exp(s[np.arange(3), np.arange(3)])
    weights = own / own.sum(-1, keepdims=True)
    expected = np.einsum("aqi,abij,brj->abqr", weights, s, weights).mean((2, 3))
    np.testing.assert_allclose(nngp, expected, rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_different_queries_and_keys_attend_uniformly():
    x = np.random.RandomState(0).standard_normal((3, TOKENS, 5))
    untied = infnet_flax.kernel_fn(Model(only_attention(tied=False), 8), x)
    average = infnet_flax.kernel_fn(Model(lambda module, width, x: dense(width)(x).mean(1), 8), x)
    for get in ("nngp", "ntk"):
        np.testing.assert_allclose(untied(x, get=get), average(x, get=get), rtol=1e-12)
    remarks = " ".join(untied.explain().remarks)
    assert "attend to all positions alike" in remarks
    assert "test_attention.py" in remarks


def scaled_by_root(module, width, x):
    q, k, v = dense(width)(x), dense(width)(x), dense(width)(x)
    return (nn.softmax(jnp.einsum("bqd,bkd->bqk", q, k) / width**0.5) @ v).mean(1)


def of_linen(module, width, x):
    return nn.MultiHeadDotProductAttention(num_heads=2)(dense(width)(x)).mean(1)


@pytest.mark.parametrize("body", [scaled_by_root, of_linen], ids=lambda f: f.__name__)
def test_scores_divided_by_the_root_are_refused(body):
    with pytest.raises(UnsupportedError, match="not divided by their number") as caught:
        infnet_flax.kernel_fn(Model(body, 8), examples(TOKENS, 3)[0])
    assert "divided by sqrt(d)" in caught.value.why
    assert "sampling finite networks" in caught.value.remedy
    assert "test_attention.py" in caught.value.where.line


def test_a_series_whose_mean_alone_matters():
    """Queries and keys silu(W x) meet at infinite width as their means do, E silu(z |x| / sqrt(D)), by quadrature."""
    with jax.enable_x64(True):
        x = np.random.RandomState(0).standard_normal((3, 4, 5))

        def attend(x):
            q, k = (nn.silu(dense(64, use_bias=False)(x)) for _ in range(2))
            scores = nn.softmax(jnp.einsum("nqc,nkc->nqk", q, k) / 64)
            return jnp.einsum("nqk,nkc->nqc", scores, dense(64, use_bias=False)(x))

        z, weights = np.polynomial.hermite_e.hermegauss(80)
        at = np.linalg.norm(x, axis=-1)[..., None] / 5**0.5 * z
        mean = (at / (1 + np.exp(-at))) @ (weights / weights.sum())
        scores = np.exp(mean[:, :, None] * mean[:, None])
        scores /= scores.sum(-1, keepdims=True)
        values = np.einsum("aic,bjc->abij", x, x) / 5
        expected = np.einsum("aqi,abij,bkj->abqk", scores, values, scores)
        found = infnet_flax.kernel_fn(Function(attend), x)(x, get="nngp")
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
