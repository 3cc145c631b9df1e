"""Loops and branches: networks against the recursions of `recurrence.py`, and one network written in many ways."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Function
from flax import linen as nn
from jax import lax
from recurrence import RECURSION, S_B, S_X, X1, X2, D, N, T, check, deep, readout, recursion, relu_moments

import infnet
import infnet_flax
from infnet.errors import UnsupportedError

RNG = np.random.RandomState(1)
LENGTHS1, LENGTHS2 = np.array([3, 2]), np.array([1, 2, 3])


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


# Flax


def head(x):
    return nn.Dense(3, use_bias=False, kernel_init=nn.initializers.normal(1 / np.sqrt(N)), param_dtype=jnp.float64)(x)


def cell(activation="relu"):
    """The recurrent weights keep their orthogonal initialiser, of variance 1/N."""
    return nn.SimpleCell(
        N,
        activation_fn=nn.relu if activation == "relu" else jax.scipy.special.erf,
        kernel_init=nn.initializers.normal(S_X),
        bias_init=nn.initializers.normal(S_B),
        param_dtype=jnp.float64,
    )


def kernels(function, x1=X1, x2=X2):
    return infnet_flax.kernel_fn(Function(function), x1)(x1, x2, ("nngp", "ntk"))


@pytest.mark.parametrize("activation", ["relu", "erf"])
def test_simple_rnn_pooled_over_time(activation):
    found = kernels(lambda x: head(nn.RNN(cell(activation))(x).mean(1)))
    expected = [k.mean((2, 3)) for k in readout(*recursion(X1, X2, RECURSION[activation]))]
    check(found, expected)
    untied = readout(*recursion(X1, X2, RECURSION[activation], tied=False))[1].mean((2, 3))
    assert np.linalg.norm(untied - expected[1]) > 0.05 * np.linalg.norm(expected[1])


def last(x1=X1, x2=X2, **options):
    return [k[:, :, -1, -1] for k in readout(*recursion(x1, x2, relu_moments, **options))]


LAST_STEP = {
    "RNN": lambda x: nn.RNN(cell())(x)[:, -1],
    "time_major": lambda x: nn.RNN(cell(), time_major=True)(x.swapaxes(0, 1))[-1],
    "reverse": lambda x: nn.RNN(cell(), reverse=True, keep_order=True)(x[:, ::-1])[:, 0],
    "loop in Python": lambda x: python_loop(cell(), x),
    "remat": lambda x: nn.RNN(nn.remat(nn.SimpleCell)(**fields(cell())))(x)[:, -1],
}


def python_loop(own, x):
    carry = jnp.zeros((len(x), N))
    for t in range(T):
        carry, _ = own(carry, x[:, t])
    return carry


def fields(module):
    names = ("features", "activation_fn", "kernel_init", "bias_init", "param_dtype")
    return {name: getattr(module, name) for name in names}


@pytest.mark.parametrize("way", LAST_STEP)
def test_last_state_however_it_is_written(way):
    check(kernels(lambda x: head(LAST_STEP[way](x))), last())


def test_a_scan_in_plain_jax_and_both_parameterizations():
    def apply(p, x):
        def step(h, z):
            h = nn.relu(z @ p["x"] + h @ p["h"] + p["b"])
            return h, None

        return lax.scan(step, jnp.zeros((len(x), N)), x.swapaxes(0, 1))[0] @ p["o"]

    shapes = {"x": (D, N), "h": (N, N), "b": (N,), "o": (N, 3)}
    stds = {"x": S_X, "h": 1 / np.sqrt(N), "b": S_B, "o": 1 / np.sqrt(N)}
    priors = {name: infnet.Prior(0.0, stds[name], shape=shapes[name], dtype=jnp.float64) for name in shapes}
    check(infnet.kernel_fn(apply, priors, X1)(X1, X2, ("nngp", "ntk")), last())


def test_lengths_that_differ_from_example_to_example():
    def model(x, lengths):
        return head(nn.RNN(cell(), return_carry=True)(x, seq_lengths=lengths)[0])

    found = kernels(model, (X1, LENGTHS1), (X2, LENGTHS2))
    rows, columns = np.indices((2, 3))
    every = readout(*recursion(X1, X2, relu_moments))
    check(found, [k[rows, columns, LENGTHS1[:, None] - 1, LENGTHS2[None] - 1] for k in every])


def test_states_that_are_kept_where_a_mask_says_so():
    """where(mask, new, old) inside of a loop: with the last steps masked, the state stays what it was."""

    def model(x, lengths):
        own = cell()

        def step(module, carry, inputs):
            z, t = inputs
            new, _ = module(carry, z)
            return jnp.where((t < lengths)[:, None], new, carry), None

        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        return head(scan(own, jnp.zeros((len(x), N)), (x.swapaxes(0, 1), jnp.arange(T)))[0])

    short = np.array([2, 2]), np.array([2, 2, 2])
    check(kernels(model, (X1, short[0]), (X2, short[1])), last(X1[:, :2], X2[:, :2]))


def test_both_directions():
    found = kernels(lambda x: head(nn.Bidirectional(nn.RNN(cell()), nn.RNN(cell()))(x)[:, -1])[:, :3])
    forward, backward = (recursion(x, z, relu_moments) for x, z in ((X1, X2), (X1[:, -1:], X2[:, -1:])))
    check(
        found, [a[:, :, -1, -1] + b[:, :, -1, -1] for a, b in zip(readout(*forward), readout(*backward), strict=True)]
    )


# Loops over different weights


def test_stacked_layers_are_different_weights():
    x1, x2 = RNG.randn(2, N), RNG.randn(3, N)
    options = {"use_bias": False, "kernel_init": nn.initializers.normal(1 / np.sqrt(N)), "param_dtype": jnp.float64}

    class Layer(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return nn.relu(nn.Dense(N, **options)(x)), None

    def scanned(x):
        layers = nn.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return head(layers()(x, None)[0])

    check(kernels(scanned, x1, x2), readout(*deep(x1, x2, 3)))


# Elementwise loops, branches, and what is refused


def dense(x):
    return nn.Dense(N, use_bias=False, kernel_init=nn.initializers.normal(0.5), param_dtype=jnp.float64)(x)


def weighted(h):
    return jnp.einsum("btc,t->bc", h, jnp.arange(1.0, T + 1))[:, None]


SAME = {
    "polyval": (lambda h: jnp.polyval(jnp.array([0.5, -1.0, 0.3]), h), lambda h: 0.5 * h**2 - h + 0.3),
    "fori_loop": (lambda h: lax.fori_loop(0, 3, lambda t, z: z * (t + 1.0), nn.relu(h)), lambda h: 6 * nn.relu(h)),
    "cond": (lambda h: lax.cond(jnp.arange(2).sum() == 1, nn.relu, jnp.tanh, h), nn.relu),
    "branch of a step": (
        lambda h: lax.fori_loop(0, 2, lambda t, z: lax.cond(t == 0, nn.relu, lambda z: 2 * z, z), h),
        lambda h: 2 * nn.relu(h),
    ),
    "index of a step": (
        lambda h: lax.fori_loop(0, T, lambda t, c: c + (t + 1.0) * h[:, t], 0 * h[:, 0])[:, None],
        weighted,
    ),
    "switch": (lambda h: lax.switch(1, [jnp.sin, nn.relu], h), nn.relu),
    "map": (lambda h: lax.map(nn.relu, h.swapaxes(0, 1)).swapaxes(0, 1), nn.relu),
    "custom_vjp": (lambda h: halved(h), lambda h: h / 2),
}


@jax.custom_vjp
def halved(h):
    return h / 2


halved.defvjp(lambda h: (h / 2, None), lambda _, g: (g / 2,))


@pytest.mark.parametrize("name", SAME)
def test_the_same_function_without_a_loop_or_a_branch(name):
    written, plain = SAME[name]
    one, two = (kernels(lambda x, f=f: head(f(dense(x))[:, 0])) for f in (written, plain))
    check(one, two, rtol=1e-12)


CELLS = [nn.GRUCell, nn.LSTMCell, nn.OptimizedLSTMCell, nn.MGUCell]


@pytest.mark.parametrize("kind", CELLS, ids=lambda kind: kind.__name__)
def test_gated_cells_are_refused(kind):
    with pytest.raises(UnsupportedError) as caught:
        kernels(lambda x: head(nn.RNN(kind(N, param_dtype=jnp.float64))(x)[:, -1]))
    assert "test_control_flow.py" in caught.value.where.line


REFUSED = {
    "how often the loop runs": lambda h: lax.while_loop(lambda c: c[0] < 4, lambda c: (c[0] + 1, 2 * c[1]), (0, h))[1],
    "loop without any step": lambda h: lax.scan(lambda c, _: (2 * c, None), h, None, length=0)[0],
    "without any position": lambda h: h[:, :0].sum(1),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refused_with_the_reason(reason):
    with pytest.raises(UnsupportedError, match=reason) as caught:
        kernels(lambda x: head(REFUSED[reason](dense(x))))
    assert "test_control_flow.py" in caught.value.where.line
