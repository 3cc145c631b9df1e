"""Graphs given as inputs: adjacency matrices, and lists of edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Model, assert_limit_of_finite_networks, dense
from flax import linen as nn

import infnet_flax
from infnet.errors import UnsupportedError


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


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


def test_finite_networks():
    x1, x2 = graphs(0), graphs(1)
    assert_limit_of_finite_networks(lambda w: Model(graph_network, w), x1, x2, n_samples=(500, 250), largest_error=0.1)


# Lists of edges: with[b, e] is an edge from sender to receiver, and padding edges point outside.

EDGES = 6


def edges(seed):
    rng = np.random.RandomState(seed)
    senders, receivers = rng.randint(0, 5, (2, 2, EDGES))
    return {"nodes": rng.standard_normal((2, 5, 3)), "senders": senders, "receivers": receivers}


def sums(values, receivers):
    return jax.vmap(lambda v, r: jax.ops.segment_sum(v, r, num_segments=5))(values, receivers)


TAKE = {
    "take_along_axis": lambda h, i: jnp.take_along_axis(h, i[..., None], axis=1),
    "vmap": lambda h, i: jax.vmap(lambda own, index: own[index])(h, i),
    "arange": lambda h, i: h[jnp.arange(h.shape[0])[:, None], i],
}


def message_passing(take):
    def body(module, width, x):
        h = nn.relu(dense(width)(x["nodes"]))
        h = sums(take(h, x["senders"]), x["receivers"])
        return nn.relu(dense(width)(h)).mean(1)

    return body


def with_matrices(module, width, x):
    """The same, with the adjacency matrix that the edges make."""
    adjacency = jnp.einsum("ber,bes->brs", *(jax.nn.one_hot(x[name], 5) for name in ("receivers", "senders")))
    h = jnp.einsum("brs,bsc->brc", adjacency, nn.relu(dense(width)(x["nodes"])))
    return nn.relu(dense(width)(h)).mean(1)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", TAKE)
def test_edges_are_an_adjacency_matrix(name):
    x1, x2 = edges(0), edges(1)
    expected = infnet_flax.kernel_fn(Model(with_matrices, 8), x1)(x1, x2, ("nngp", "ntk"))
    found = infnet_flax.kernel_fn(Model(message_passing(TAKE[name]), 8), x1)(x1, x2, ("nngp", "ntk"))
    np.testing.assert_allclose(found.nngp, expected.nngp, rtol=1e-10)
    np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-10)


@pytest.mark.usefixtures("float64")
def test_sums_into_other_features():
    x = edges(0)

    def by(adds):
        def body(module, width, x):
            h = nn.relu(dense(width)(x["nodes"]))
            return adds(h, h[:, :1] + jnp.zeros((EDGES, 1)), x["receivers"]).mean(1)

        return infnet_flax.kernel_fn(Model(body, 8), x)(x, get="ntk")

    into = by(lambda h, updates, r: jax.vmap(lambda a, u, i: a.at[i].add(u))(h, updates, r))
    np.testing.assert_allclose(into, by(lambda h, updates, r: h + sums(updates, r)), rtol=1e-12)


@pytest.mark.usefixtures("float64")
def test_edges_that_point_outside_add_nothing():
    x = edges(0)
    padded = {
        **x,
        "senders": np.concatenate([x["senders"], np.zeros((2, 3), int)], 1),
        "receivers": np.concatenate([x["receivers"], np.full((2, 3), 9)], 1),
    }
    body = message_passing(TAKE["vmap"])
    expected = infnet_flax.kernel_fn(Model(body, 8), x)(x, get="ntk")
    np.testing.assert_allclose(infnet_flax.kernel_fn(Model(body, 8), padded)(padded, get="ntk"), expected, rtol=1e-12)


def test_indices_into_several_axes_are_refused():
    def body(module, width, x):
        h = dense(width)(x["nodes"][:, :, None] + x["nodes"][:, None])
        return jax.vmap(lambda own, s, r: own[s, r])(h, x["senders"], x["receivers"])

    with pytest.raises(UnsupportedError, match="several axes"):
        infnet_flax.kernel_fn(Model(body, 8), edges(0))
