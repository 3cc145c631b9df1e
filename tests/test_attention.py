"""Attention with scores divided by the number of channels, written by users, and graphs given as inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Model, assert_limit_of_finite_networks, dense, examples
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


# Graphs


def graph_network(module, width, x):
    """Two graph convolutions; the adjacency matrix of each example is an input."""
    nodes, adjacency = x["nodes"], x["adjacency"]
    degree = adjacency.sum(-1, keepdims=True)
    for _ in range(2):
        nodes = nn.relu(dense(32 * width)(jnp.einsum("bij,bjc->bic", adjacency / degree, nodes)))
    return nodes.mean(1)


def graphs(seed, dtype=np.float32):
    rng = np.random.RandomState(seed)
    adjacency = np.triu(rng.uniform(size=(2, 5, 5)) < 0.4, 1)
    adjacency = adjacency | adjacency.swapaxes(1, 2) | np.eye(5, dtype=bool)
    return {"nodes": rng.standard_normal((2, 5, 3)).astype(dtype) + 1, "adjacency": adjacency.astype(dtype)}


@pytest.mark.usefixtures("float64")
def test_graph_network_by_hand():
    """A S A^T at every layer; the adjacency of each example is its own."""
    x1, x2 = graphs(0, np.float64), graphs(1, np.float64)

    def body(module, width, x):
        return jnp.einsum("bij,bjc->bic", x["adjacency"], nn.relu(dense(width)(x["nodes"]))).sum(1)

    nngp = infnet_flax.kernel_fn(Model(body, 8), x1)(x1, x2, "nngp") - 0.3**2
    plain = infnet_flax.kernel_fn(_PerNode(8), x1["nodes"])(x1["nodes"], x2["nodes"], "nngp")
    expected = np.einsum("aij,abjl,bkl->ab", x1["adjacency"], plain, x2["adjacency"])
    np.testing.assert_allclose(nngp, expected, rtol=1e-10)


class _PerNode(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        return nn.relu(dense(self.width)(x))


@pytest.mark.usefixtures("float64")
def test_features_on_the_left_of_the_matrix():
    x = graphs(0, np.float64)

    def by(product):
        body = lambda module, width, x: product(nn.relu(dense(width)(x["nodes"])), x["adjacency"]).mean(1)  # noqa: E731
        return infnet_flax.kernel_fn(Model(body, 8), x)(x, get="ntk")

    left = by(lambda h, a: jnp.einsum("bic,bij->bjc", h, a))
    np.testing.assert_allclose(left, by(lambda h, a: jnp.einsum("bji,bjc->bic", a, h)), rtol=1e-12)


def test_channels_mixed_by_inputs_are_refused():
    def body(module, width, x):
        return jnp.einsum("bic,bi->bc", dense(5)(x["nodes"]).swapaxes(1, 2), x["adjacency"][:, 0])

    with pytest.raises(UnsupportedError, match="channels are mixed by an array of inputs"):
        infnet_flax.kernel_fn(Model(body, 8), graphs(0))
