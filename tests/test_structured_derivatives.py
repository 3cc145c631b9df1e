"""Structured derivatives: the gradient at one use of each kind, and the kernel by its definition, in float64."""

from __future__ import annotations

import finite_zoo
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite_zoo import assert_definition, dense_kernels
from jax import lax

import infnet
from infnet.empirical.model import Model
from infnet.empirical.shares import Dense, Outer, Rows
from infnet.empirical.structured import _sketch


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


def few_positions(w, x):
    return jnp.sin(x.reshape(len(x), 2, -1) @ w).sum(1)[:, :3]


def weight_on_the_left(w, x):
    return jnp.sin(jnp.einsum("kl,nk->ln", w, x[:, :20])).T[:, :3]


def renamed(w, x):
    return jnp.sin(x[:, :20] @ w.reshape(5, 20).T.reshape(20, 5)).astype(float)[:, :2]


def convolution(w, x):
    h = lax.conv_general_dilated(
        x[:, :50].reshape(-1, 5, 5, 2),
        w.reshape(2, 5, 2, 5),
        (2, 1),
        ((1, 0), (2, 1)),
        lhs_dilation=(1, 2),
        rhs_dilation=(2, 1),
        dimension_numbers=("NHWC", "HWIO", "CNHW"),
    )
    return jnp.sin(h).sum((2, 3)).T[:, :2]


def grouped_convolution(w, x):
    h = lax.conv_general_dilated(
        x[:, :50].reshape(-1, 25, 2),
        w.reshape(5, 1, 20),
        (1,),
        "SAME",
        feature_group_count=2,
        dimension_numbers=("NWC", "WIO", "NWC"),
    )
    return jnp.sin(h).sum(1)[:, 3:5]


def lookup(mode):
    def f(w, x):
        numbers = (7 * x[:, :4]).astype(int)  # some of them outside
        rows = jnp.take(w.reshape(10, 2, 5), numbers, axis=0, mode=mode, fill_value=0.0)
        return jnp.sin(rows).sum((1, 2))[:, :2]

    return f


def lookup_of_scalars(w, x):
    return jnp.sin(jnp.take(w.ravel(), jnp.argsort(x[:, :4], 1))).cumsum(1)[:, 1:3]


def twice(w, x):
    return jnp.sin(jnp.sin(x[:, :20] @ w) @ w.T)[:, :2]


def squared(w, x):
    return jnp.sin(x[:, :5] @ (w.T @ w))[:, :2]


def batched(w, x):
    return jnp.einsum("kab,nka->nkb", w.reshape(5, 4, 5), x[:, :20].reshape(-1, 5, 4)).sum(1)[:, :2]


def elementwise(w, x):
    return jnp.tanh(x[:, :20, None] * jnp.exp(w)).sum(1)[:, :2]


def returned(w, x):
    return jnp.broadcast_to(w[None], (len(x), 20, 5))


def unused(w, x):
    return x[:, :2] + jnp.argmax(w)


def twice_alike(w, x):
    return jnp.sin(jnp.sin(x[:, :20] @ w) @ w)[:, :2]


def in_a_scan(w, x):
    """Fewer turns than the weight has channels."""

    def turn(h, row):
        return jnp.tanh(jnp.tanh(h @ w) @ w + row), h

    h, rows = lax.scan(turn, x[:, :20], x[:, 20:80].reshape(-1, 3, 20).swapaxes(0, 1), reverse=True)
    return h[:, :2] + rows.sum(0)[:, 3:5]


def inside_and_outside(w, x):
    def turn(h, _):
        return jnp.tanh(h @ w), h @ w

    h, rows = lax.scan(turn, jnp.sin(x[:, :20] @ w), None, length=2)
    return h[:, :2] * rows[0, :, 3:5]


def many_turns(w, x):
    def turn(h, _):
        return jnp.tanh(h @ w), None

    return lax.scan(turn, x[:, :20], None, length=21)[0][:, :2]


def carried(w, x):
    def turn(state, _):
        h, v = state
        return (jnp.tanh(h @ v), 2 * v), None

    return lax.scan(turn, (x[:, :20], w), None, length=2)[0][0][:, :2]


def returned_by_a_scan(w, x):
    def turn(h, _):
        return jnp.tanh(h @ w), w

    h, copies = lax.scan(turn, x[:, :20], None, length=2)
    return h[:, :2] * copies.sum()


def turn_by_turn(w, x):
    """A row of the weight in each turn."""
    return lax.scan(lambda h, v: (jnp.tanh(h * v), h.sum(1)), x[:, :20], w)[0][:, :2]


def lookup_in_a_scan(w, x):
    numbers = (3 * jnp.abs(x[:, :6])).astype(int).reshape(-1, 3, 2)

    def turn(h, rows):
        return jnp.tanh(h + jnp.take(w, rows, axis=0, mode="clip").prod(1)), None

    return lax.scan(turn, x[:, :20], numbers.swapaxes(0, 1))[0][:, 1:3]


SQUARE = [
    (twice_alike, Outer),
    (in_a_scan, Outer),
    (inside_and_outside, Outer),
    (many_turns, Dense),
    (carried, Dense),
    (returned_by_a_scan, Dense),
    (turn_by_turn, Dense),
    (lookup_in_a_scan, Rows),
]
STRUCTURES = [
    *SQUARE,
    (few_positions, Outer),
    (weight_on_the_left, Outer),
    (renamed, Outer),
    (convolution, Outer),
    (grouped_convolution, Dense),
    (lookup("clip"), Rows),
    (lookup("fill"), Rows),
    (lookup("wrap"), Rows),
    (lookup_of_scalars, Rows),
    (twice, Dense),
    (squared, Dense),
    (batched, Dense),
    (elementwise, Dense),
    (unused, Dense),
    (returned, None),
]


@pytest.mark.parametrize(("f", "kind"), STRUCTURES)
def test_structures(f, kind):
    rng = np.random.RandomState(0)
    shape = (40, 30) if f is few_positions else (20, 20) if f in dict(SQUARE) else (20, 5)
    w = rng.standard_normal(shape) / 2
    network = finite_zoo.Network(f, w, rng.standard_normal((3, 80)), rng.standard_normal((3, 80)))
    model = Model(f, w, {})
    x = jnp.asarray(network.x1)
    (side,) = model.sides(x, model.structs(x)[0], 0)
    found = _sketch(side)
    assert (found and type(found[0])) is kind
    dense = dense_kernels(network, network.x2)
    for trace, diagonal in [((), ()), ((1,), ()), ((), (0, 1))]:
        assert_definition(network, dense, trace=trace, diagonal=diagonal, implementation="structured_derivatives")


def test_an_embedding_costs_no_memory():
    """The Jacobian in the table has 1600 x 64 columns: 33 MB."""

    def f(p, x):
        return jnp.tanh(p["table"][x].mean(1) @ p["w"])

    params = {"table": np.ones((1600, 64), np.float32), "w": np.ones((64, 10), np.float32)}
    x = np.zeros((8, 16), int)
    compiled = (
        jax.jit(lambda p: infnet.empirical_ntk_fn(f, implementation="structured_derivatives")(x, None, p))
        .lower(params)
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes < 8e6
