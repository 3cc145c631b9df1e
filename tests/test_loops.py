"""Repeated layers run as a loop: the same kernels as layer by layer, and nothing that grows with the depth.

The oracle is the plan executed step by step, which shares no code with the finding and the running of loops; that its
steps are right is what all other tests are about.
"""

from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import dense
from flax import linen as nn

import infnet
import infnet_flax
from infnet.errors import NumericalError
from infnet.schedule import Loop

DEPTH, WIDTH = 9, 32
X1 = np.random.RandomState(0).standard_normal((3, 4, 6))
NAMES = ("nngp", "ntk")


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


class Stack(nn.Module):
    """A Dense layer, `depth` blocks, and a readout of the pooled result."""

    block: type[nn.Module]
    depth: int = DEPTH
    scanned: bool = True

    @nn.compact
    def __call__(self, x):
        h = dense(WIDTH)(x)
        if self.scanned:
            h, _ = nn.scan(
                self.block, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=self.depth
            )()(h, None)
        else:
            for _ in range(self.depth):
                h, _ = self.block()(h, None)
        return dense(3)(nn.relu(dense(WIDTH)(h)).mean(1))


class Plain(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        return dense(WIDTH)(nn.relu(h)), None


class Residual(nn.Module):
    """Sums over channels that are Known, and trained scales before a nonlinearity."""

    @nn.compact
    def __call__(self, h, _):
        return h + dense(WIDTH)(nn.relu(nn.LayerNorm()(dense(WIDTH)(h)))), None


class Series(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        return dense(WIDTH)(nn.tanh(h)), None


class Attention(nn.Module):
    """Scores divided by d; values and scores of one block meet in Known weights that depend on sums over channels."""

    @nn.compact
    def __call__(self, h, _):
        h = nn.LayerNorm()(h)
        q = dense(WIDTH)(h)
        weights = nn.softmax(q @ q.swapaxes(1, 2) / WIDTH)
        return h + dense(WIDTH)(weights @ dense(WIDTH)(h)), None


class Convolution(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        return nn.Conv(WIDTH, (3,))(nn.relu(h)), None


class Gate(nn.Module):
    @nn.compact
    def __call__(self, h, _):
        return dense(WIDTH)(jnp.cos(dense(WIDTH)(h)) * dense(WIDTH)(h)), None


class Alternating(nn.Module):
    """Two layers a period."""

    @nn.compact
    def __call__(self, h, _):
        return nn.Dense(WIDTH)(jnp.sin(dense(WIDTH)(nn.relu(h)))), None


def loops(kernel, side=0, names=NAMES):
    computation = kernel.computation
    schedule = computation.schedule(computation.plan(names, (1, 2)))
    return [part for part in schedule.parts[side] if isinstance(part, Loop)]


def layer_by_layer():
    return mock.patch("infnet.schedule.FEWEST", 10**9)


def assert_same_layer_by_layer(make, x=X1):
    """Compare with the plan run step by step, for pairs of examples and for each with itself."""
    kernel = make()
    assert all(loops(kernel, side) for side in (0, 1, 2))
    found = kernel(x, get=NAMES)
    with layer_by_layer():
        plain = make()
        assert not loops(plain)
        wanted = plain(x, get=NAMES)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("block", [Plain, Residual, Attention, Convolution, Gate, Alternating])
def test_loops_compute_what_the_layers_do(block):
    assert_same_layer_by_layer(lambda: infnet_flax.kernel_fn(Stack(block), X1))


def test_layers_of_a_python_loop_are_found_too():
    assert_same_layer_by_layer(lambda: infnet_flax.kernel_fn(Stack(Residual, scanned=False), X1))


def apply_dense(params, x):
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def priors_of(stds, width=8):
    return [infnet.Prior(0.0, s, shape=(width, width), dtype=jnp.float64) for s in stds]


def test_layers_with_laws_of_their_own():
    """One loop over parameters of different standard deviations and learning rates, and its derivative in them."""
    stds = np.linspace(0.3, 0.6, DEPTH + 1)
    x, other = np.random.RandomState(2).standard_normal((2, 3, 8))
    rates = list(np.linspace(0.5, 2, DEPTH + 1))

    def kernel():
        return infnet.kernel_fn(apply_dense, priors_of(stds), x, lr_scale=rates)

    def total(h, k):
        return sum(v.sum() for v in k.with_hyperparameters(h)(x, other, get=NAMES))

    made = kernel()
    assert len(loops(made)) == 1
    found = jax.value_and_grad(total)(made.hyperparameters, made)
    with layer_by_layer():
        plain = kernel()
        wanted = jax.value_and_grad(total)(plain.hyperparameters, plain)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11)
    assert len({float(g) for g in found[1]}) == DEPTH + 1  # every layer has its own derivative


def test_recurrent_networks_read_at_their_last_step():
    """The same weights at every step, and each step reads inputs of its own."""
    x = np.random.RandomState(3).standard_normal((3, DEPTH + 3, 5))

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(nn.RNN(nn.SimpleCell(WIDTH, activation_fn=nn.relu, param_dtype=float))(x)[:, -1])

    assert_same_layer_by_layer(lambda: infnet_flax.kernel_fn(Network(), x), x)


def test_dropout_in_every_layer():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, h, _):
            return nn.Dense(WIDTH)(nn.Dropout(0.4, deterministic=False)(nn.relu(h))), None

    options = {"call_kwargs": {"rngs": {"dropout": jax.random.key(0)}}}
    assert_same_layer_by_layer(lambda: infnet_flax.kernel_fn(Stack(Block), X1, **options))


def test_known_arrays_of_every_step():
    """Each step multiplies by a column of a mask, and by numbers that are constants of its own."""
    masks = np.random.RandomState(4).uniform(0.2, 1, (3, 9))

    class Network(nn.Module):
        @nn.compact
        def __call__(self, x, masks):
            h = dense(WIDTH)(x)
            for n in range(9):
                signs = jnp.asarray(np.sign(np.sin(np.arange(WIDTH) + n)))
                h = h + masks[:, n, None] * dense(WIDTH)(signs * nn.relu(h))
            return dense(2)(h)

    x = X1[:, 0]
    assert_same_layer_by_layer(lambda: infnet_flax.kernel_fn(Network(), (x, masks)), (x, masks))


@pytest.mark.parametrize("differing", ["relu and tanh", "scales", "widths"])
def test_layers_that_differ_are_not_taken_for_alike(differing):
    """Every second, third ... layer differs in a number or a function, without a period."""
    odd = {1, 4, 5}
    widths = [16 + 8 * (differing == "widths" and n in odd) for n in range(DEPTH)]

    def apply(params, x):
        for n, w in enumerate(params[:-1]):
            x = x @ w * (1.25 if differing == "scales" and n in odd else 0.8)
            x = jnp.tanh(x) if differing == "relu and tanh" and n in odd else jax.nn.relu(x)
        return x @ params[-1]

    shapes = zip([6, *widths], [*widths, 2], strict=True)
    priors = [infnet.Prior(0.0, 0.3, shape=shape, dtype=jnp.float64) for shape in shapes]
    x = X1[:, 0]
    with mock.patch("infnet.schedule.FEWEST", 2):
        found = infnet.kernel_fn(apply, priors, x)(x, get=NAMES)
    with layer_by_layer():
        wanted = infnet.kernel_fn(apply, priors, x)(x, get=NAMES)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def convolved(h, *window):
    return nn.Conv(WIDTH, window, param_dtype=float)(nn.relu(h))


# Pairs of layers whose plans differ in no more than a number, a window or a function.
ALIKE = {
    "coefficients": (
        lambda h: h + 1.25 * dense(WIDTH)(nn.relu(h)),
        lambda h: h + 0.8 * dense(WIDTH)(nn.relu(h)),
    ),
    "windows": (lambda h: convolved(h, 2), lambda h: convolved(h, 3)),
    "functions": (lambda h: dense(WIDTH)(nn.relu(h)), lambda h: dense(WIDTH)(nn.leaky_relu(h, 0.3))),
    "norms": (
        lambda h: dense(WIDTH)(nn.LayerNorm(epsilon=0.5)(nn.relu(h))),
        lambda h: dense(WIDTH)(nn.LayerNorm(epsilon=0.1)(nn.relu(h))),
    ),
}


# The sums of variances in norms are rounded alike in a loop and out of it only if XLA fuses them, and the derivative of
# relu takes the root of what is rounded.
@pytest.mark.parametrize("name", [*[*ALIKE][:-1], pytest.param("norms", marks=pytest.mark.optimised)])
def test_layers_that_are_nearly_alike(name):
    """Two kinds of layers in an order with runs of each and alternations; every repetition of two is a loop."""

    class Network(nn.Module):
        @nn.compact
        def __call__(self, h):
            h = dense(WIDTH)(h)
            for kind in (0, 0, 0, 0, 1, 1, 1, 0, 1, 0, 1):
                h = ALIKE[name][kind](h)
            return dense(2)(h.mean(1))

    with mock.patch("infnet.schedule.FEWEST", 2):
        assert_same_layer_by_layer(lambda: infnet_flax.kernel_fn(Network(), X1))


@pytest.mark.parametrize("scanned", [True, False])
def test_what_is_compiled_does_not_grow_with_the_depth(scanned):
    def size(depth):
        kernel = infnet_flax.kernel_fn(Stack(Residual, depth, scanned), X1)
        computation = kernel.computation
        function = jax.jit(computation.matrix(NAMES, symmetric=False, sharded=False))
        return function.lower(kernel.weights, [X1], [X1]).as_text().count("\n")

    growth = size(30) / size(10)
    # Written as a Python loop, each layer has arrays of its own for the laws of its parameters.
    assert growth < 1.05 if scanned else growth < 1.5


def test_where_a_deep_network_overflows_is_found():
    priors = priors_of([1e4] * 60)
    with pytest.raises(NumericalError, match="not finite from this layer on"):
        infnet.kernel_fn(apply_dense, priors, np.ones((2, 8)))(np.ones((2, 8)), get="nngp")


def test_the_error_of_every_layer_of_a_loop_counts():
    """The bound on the error of series is the largest of all layers, inside of loops too."""
    x, other = X1[:, :1], X1[::-1, 1:2]
    found = infnet_flax.kernel_fn(Stack(Series), x)(x, other)
    with layer_by_layer():
        wanted = infnet_flax.kernel_fn(Stack(Series), x)(x, other)
    np.testing.assert_allclose(found.error, wanted.error, rtol=1e-11)
    np.testing.assert_allclose(found.ntk, wanted.ntk, rtol=1e-12)
    assert found.error > 0
