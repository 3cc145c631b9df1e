"""Masks and lengths that differ from example to example, against matrices built without infnet.

For a linear map L_a of positions, which depends on the mask of example a, K(a, b) -> L_a K(a, b) L_bᵀ for both
kernels. L_a is the Jacobian of the operation itself on example a, and K the kernel of the model before the operation.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Function
from flax import linen as nn

import infnet_flax
from infnet.errors import UnsupportedError

T, D, N = 4, 3, 8
RNG = np.random.RandomState(0)


def examples(n):
    mask = RNG.rand(n, T) > 0.4
    mask[:, 0] = True
    return {
        "x": RNG.randn(n, T, D),
        "mask": mask,
        "length": RNG.randint(1, T + 1, n),
        "edges": RNG.randint(0, T, (n, 6, 2)),
    }


G1, G2 = examples(2), examples(3)


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def dense(x, width=N):
    return nn.Dense(width, kernel_init=nn.initializers.normal(0.6), param_dtype=jnp.float64)(x)


def kernels(function):
    return infnet_flax.kernel_fn(Function(function), G1)(G1, G2, ("nngp", "ntk"))


@functools.cache
def base(activation):
    with jax.enable_x64(True):
        return kernels(lambda g: activation(dense(g["x"])))


def identity(h):
    return h


def messages(h, edges):
    """Sums over the senders of the edges that arrive at each vertex."""
    return jax.ops.segment_sum(h[edges[:, 0]], edges[:, 1], len(h))


SENT_TO = np.array([1, 3, 1, 0])


def column(mask):
    return mask[..., None]


# Of features (n, T, channels) and of the data of each example.
OPERATIONS = {
    "where": lambda h, g: jnp.where(column(g["mask"]), h, 0),
    "product with a mask": lambda h, g: h * column(g["mask"]),
    "mean of what is there": lambda h, g: jnp.where(column(g["mask"]), h, 0).sum(1) / g["mask"].sum(1)[:, None],
    "mean with where=": lambda h, g: h.mean(1, where=column(g["mask"])),
    "selected neighbours": lambda h, g: jnp.where(column(g["mask"]), h, jnp.flip(h, 1)),
    "mask from lengths": lambda h, g: jnp.where((jnp.arange(T) < g["length"][:, None])[..., None], h, 0).sum(1),
    "last position, with arange": lambda h, g: h[jnp.arange(len(h)), g["length"] - 1],
    "last position, with vmap": lambda h, g: jax.vmap(lambda one, i: one[i - 1])(h, g["length"]),
    "last position, along the axis": lambda h, g: jnp.take_along_axis(h, g["length"][:, None, None] - 1, 1),
    "an order of each example": lambda h, g: jnp.take_along_axis(h, jnp.argsort(g["x"][..., :1], 1), 1),
    "neighbours, with vmap": lambda h, g: jax.vmap(lambda one, e: one[e[:, 0]])(h, g["edges"]),
    "neighbours, with arange": lambda h, g: h[jnp.arange(len(h))[:, None], g["edges"][..., 0]],
    "messages along edges": lambda h, g: jax.vmap(messages)(h, g["edges"]),
    "messages to vertices that exist": lambda h, g: jax.vmap(messages)(h, g["edges"] + np.array([0, 2])),
    "messages added": lambda h, g: jax.vmap(lambda one, e: one.at[e[:, 1]].add(one[e[:, 0]]))(h, g["edges"]),
    "messages added, clipped": lambda h, g: jax.vmap(lambda one, e: one.at[2 * e[:, 1]].add(one[e[:, 0]], mode="clip"))(
        h, g["edges"]
    ),
    "the same edges for all": lambda h, g: jnp.zeros_like(h).at[:, SENT_TO].add(jnp.flip(h, 1)),
    "one message": lambda h, g: jax.vmap(lambda one, e: one.at[e[0, 1]].add(one[e[0, 0]]))(h, g["edges"]),
    "constant index of each example": lambda h, g: h[jnp.arange(len(h)), 2],
    "one of three": lambda h, g: jax.lax.select_n(
        jnp.broadcast_to(column(g["mask"] * 1 + (g["x"][..., 0] > 0)), h.shape), h, 2 * h, jnp.flip(h, 1)
    ),
}


def matrices(operation, g):
    """The operation on the positions of each example, (n, positions of the result, T)."""

    def of_example(one):
        def on_positions(z):
            return operation(z[None, :, None], jax.tree.map(lambda leaf: leaf[None], one)).reshape(-1)

        return jax.jacobian(on_positions)(jnp.zeros(T))

    return jax.jit(jax.vmap(of_example))(jax.tree.map(jnp.asarray, g))


@pytest.mark.parametrize("name", OPERATIONS)
def test_maps_that_differ_from_example_to_example(name):
    operation = OPERATIONS[name]
    left, right = matrices(operation, G1), matrices(operation, G2)
    found = kernels(lambda g: operation(nn.relu(dense(g["x"])), g))
    for after, before in zip(found, base(nn.relu), strict=True):
        expected = jnp.einsum("apt,abts,bqs->abpq", left, before, right)
        np.testing.assert_allclose(after, expected.reshape(after.shape), rtol=1e-10, atol=1e-12)


def test_one_of_two_independent_features():
    """mask u + (1 - mask) v, whose kernels are those of u where both masks are set, and of v where neither is."""
    found = kernels(lambda g: jnp.where(column(g["mask"]), nn.relu(dense(g["x"])), dense(g["x"])))
    both = G1["mask"][:, None, :, None] & G2["mask"][None, :, None]
    neither = ~G1["mask"][:, None, :, None] & ~G2["mask"][None, :, None]
    for after, u, v in zip(found, base(nn.relu), base(identity), strict=True):
        np.testing.assert_allclose(after, both * u + neither * v, rtol=1e-10)


def test_a_nonlinearity_of_a_masked_gaussian_feature():
    """Masked Gaussian features stay Gaussian: relu of a masked layer is the masked relu."""
    found = kernels(lambda g: nn.relu(jnp.where(column(g["mask"]), dense(g["x"]), 0)))
    both = G1["mask"][:, None, :, None] & G2["mask"][None, :, None]
    for after, before in zip(found, base(nn.relu), strict=True):
        np.testing.assert_allclose(after, both * before, rtol=1e-10)


def test_inputs_where_the_mask_is_not_set():
    """W(mask W'x + (1 - mask) x): data in the place of features, and infinities that are not selected."""
    found = kernels(
        lambda g: jnp.where(column(g["mask"]), dense(g["x"], D), jnp.where(column(g["mask"]), jnp.inf, 2.0))
    )
    both = G1["mask"][:, None, :, None] & G2["mask"][None, :, None]
    neither = ~G1["mask"][:, None, :, None] & ~G2["mask"][None, :, None]
    nngp, ntk = base(identity)
    np.testing.assert_allclose(found.nngp, both * nngp + 4.0 * neither, rtol=1e-10)
    np.testing.assert_allclose(found.ntk, both * ntk, rtol=1e-10)


def test_channels_that_a_mask_leaves_out():
    kept = np.arange(N) < 3
    found = kernels(lambda g: dense(jnp.where(kept, nn.relu(dense(g["x"])), 0))[:, 0])
    plain = kernels(lambda g: dense(nn.relu(dense(g["x"])))[:, 0])
    np.testing.assert_allclose(found.nngp, plain.nngp * 3 / N, rtol=1e-10)
    with pytest.raises(UnsupportedError, match="channels are not alike"):
        kernels(lambda g: nn.relu(jnp.where(kept, dense(g["x"]), 0)))


REFUSED = {
    "a lookup that reads 7": lambda h, g: jnp.take_along_axis(h, g["length"][:, None, None], 1, "fill", fill_value=7.0),
    "a lookup that reads 5": lambda h, g: jnp.take_along_axis(h, g["edges"][..., :1], 1, "fill", fill_value=5.0),
    "indexing of several axes": lambda h, g: jax.vmap(lambda one, i: one[i - 1, i])(h, g["length"]),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_the_reason(what):
    with pytest.raises(UnsupportedError, match=what) as caught:
        kernels(lambda g: REFUSED[what](dense(g["x"]), g))
    assert "test_masks.py" in caught.value.where.line
