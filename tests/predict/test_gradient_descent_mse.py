"""Training on the mean squared error in closed form: values, limits, shapes, errors."""

from __future__ import annotations

import functools
from collections import namedtuple
from decimal import Decimal, getcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import infnet
from infnet import predict
from infnet.errors import InputError, NumericalError
from infnet.predict import filters

FROZEN = np.load(Path(__file__).parents[1] / "references/neural_tangents_dynamics.npz")
Kernel = namedtuple("Kernel", ("nngp", "ntk"))
REGULARISERS = {"none": (0.0, False), "relative": (0.1, False), "absolute": (0.1, True)}


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def problem(n=5, m=3, rank=None, shape=(2,)):
    """The NTK of a linear model with random features: `(dd, td, y)`, outputs independent."""
    random = np.random.RandomState(0)
    features = random.standard_normal((n + m, rank or 3 * n))
    kernel = features @ features.T
    return kernel[:n, :n], kernel[n:, :n], random.standard_normal((n, *shape))


def of_channels(n, law=None):
    """A `Kernel` of five channels."""
    return infnet.Kernel(np.eye(n), np.eye(n), np.ones(n), np.ones(n), 0.0, 5, "as_model", law=law)


# Against Neural Tangents.


@pytest.mark.parametrize("regulariser", REGULARISERS)
@pytest.mark.parametrize(("net", "trace_axes"), [("wide", (-1,)), ("narrow", ())])
def test_neural_tangents(net, trace_axes, regulariser):
    kernel, y, *start = (FROZEN[f"{net}/{name}"] for name in ("dd/ntk", "y", "f_train", "f_test", "td/ntk"))
    fn = predict.gradient_descent_mse(kernel, y, FROZEN["rate"], *REGULARISERS[regulariser], trace_axes)
    for when, t in {"forever": None, "times": FROZEN["times"]}.items():
        for which, outputs in zip(("train", "test"), fn(t, *start), strict=True):
            expected = FROZEN[f"{net}/mse/{regulariser}/{when}/{which}"]
            np.testing.assert_allclose(outputs, expected, rtol=1e-10, atol=1e-10)


# Against integrating and iterating.


@pytest.mark.parametrize(("trace_axes", "diagonal_axes", "labels"), [((1,), (2,), "nmp"), ((), (), "nmoOpP")])
def test_flow_with_axes(trace_axes, diagonal_axes, labels):
    random = np.random.RandomState(0)
    sizes = dict(zip("nmoOpP", (4, 4, 2, 2, 3, 3), strict=True))
    y = random.standard_normal((4, 2, 3))
    mixed = random.standard_normal((24, 30) if diagonal_axes == () else (3, 4, 6))
    gram = mixed @ np.swapaxes(mixed, -1, -2) / 10
    kernel = gram.transpose(1, 2, 0) if diagonal_axes else gram.reshape(4, 2, 3, 4, 2, 3).transpose(0, 3, 1, 4, 2, 5)
    assert kernel.shape == tuple(sizes[k] for k in labels)
    product = f"{labels},{'mop->nop' if diagonal_axes else 'mOP->nop'}"

    def velocity(_, f):
        return -0.3 * np.einsum(product, kernel, f.reshape(y.shape) - y).ravel() / y.size

    start = random.standard_normal(y.shape)
    exact = scipy.integrate.solve_ivp(velocity, (0, 50), start.ravel(), "DOP853", [0, 2, 50], rtol=1e-12, atol=1e-12)
    fn = predict.gradient_descent_mse(kernel, y, 0.3, trace_axes=trace_axes, diagonal_axes=diagonal_axes)
    found, same = fn(np.array([0.0, 2.0, 50.0]), start, start, kernel)
    np.testing.assert_allclose(found.reshape(3, -1), exact.y.T, atol=1e-9)
    np.testing.assert_allclose(same, found, atol=1e-12)


def iterated(a, momentum, nesterov, count):
    """The filter over the rate at every step, by the recursion of optax.sgd, in 50 digits."""
    getcontext().prec = 50
    a, momentum = Decimal(float(a)), Decimal(momentum)
    velocity, total, totals = Decimal(0), Decimal(0), []
    for _ in range(count + 1):
        totals.append(float(total))
        gradient = 1 - a * total
        velocity = gradient + momentum * velocity
        total += gradient + momentum * velocity if nesterov else velocity
    return np.array(totals)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_filters_to_the_last_digits(momentum, nesterov):
    """Where the roots are equal, nearly so, 0, 1 and -1."""
    equal = ((1 - momentum) / (1 + momentum)) ** 2 if nesterov else (1 - momentum**0.5) ** 2
    largest = 2 * (1 + momentum) / (1 + 2 * momentum if nesterov else 1)
    critical = np.array([equal, 1.0, largest, (1 + momentum**0.5) ** 2])
    near = np.concatenate([critical * (1 + e) for e in (0, -1e-15, 1e-12, -1e-7, 1e-4, -0.01, 0.3)])
    a = np.array([0, 1e-14, 1e-6, 0.1, *near[near <= largest]])
    counts = np.array([0, 1, 2, 3, 10, 101])
    found = filters.steps(a, 0.0, np.inf, counts[:, None], 1.0, momentum or None, nesterov and momentum > 0)
    expected = np.stack([iterated(x, momentum, nesterov and momentum > 0, 101)[counts] for x in a], 1)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_time_counts_small_steps():
    dd, td, y = problem()
    fn = predict.gradient_descent_mse(dd, y, learning_rate=1e-6)
    for flow, steps in zip(fn(2e6, 0.0, 0.0, td), fn(None, 0.0, 0.0, td, steps=2_000_000), strict=True):
        np.testing.assert_allclose(flow, steps, rtol=1e-5)


# Limits.


def test_singular_kernels_have_the_limit_of_the_pseudo_inverse():
    dd, td, y = problem(rank=3)
    start = np.random.RandomState(1).standard_normal(y.shape)
    fn = predict.gradient_descent_mse(dd, y, 0.01)
    inverse = np.linalg.pinv(dd, rcond=1e-10)
    projected, test = start + dd @ inverse @ (y - start), td @ inverse @ (y - start)
    for t in (None, np.inf, 1e6, 1e30):
        train, moved = fn(t, start, 0.0, td)
        np.testing.assert_allclose(train, projected, atol=1e-9)
        np.testing.assert_allclose(moved, test, atol=1e-9)
    for momentum in (None, 0.9):
        fn = predict.gradient_descent_mse(dd, y, 0.01, momentum=momentum)
        for steps in (10**6, 10**15):
            np.testing.assert_allclose(fn(None, start, 0.0, td, steps=steps)[1], test, atol=1e-8)


def test_duplicated_points_are_averaged():
    dd, td, y = problem(shape=())
    twice = np.repeat(np.arange(5), 2)
    fn = predict.gradient_descent_mse(dd[np.ix_(twice, twice)], np.stack([y + 1, y - 1], 1).ravel())
    train, test = fn(None, 0.0, 0.0, td[:, twice])
    np.testing.assert_allclose(train, y[twice], rtol=1e-9)
    np.testing.assert_allclose(test, td @ np.linalg.solve(dd, y), rtol=1e-9)


def test_single_precision_at_any_time():
    """400 points on a line under a smooth kernel: the spectrum falls below rounding."""
    with jax.enable_x64(False):
        x = np.linspace(-np.pi, np.pi, 400, dtype=np.float32)
        k = np.exp(-((x[:, None] - x) ** 2) / 8)
        fn = predict.gradient_descent_mse(k, np.sin(x), 1.0)
        train, test = fn(np.array([1e3, 1e6, 1e9, np.inf]), 0.0, 0.0, k)
        assert train.dtype == test.dtype == np.float32
        np.testing.assert_allclose(test[-1], np.sin(x), atol=1e-2)
        np.testing.assert_allclose(test, train, atol=1e-2)


def test_one_example_and_zero_targets():
    fn = predict.gradient_descent_mse([[2.0]], [3.0])
    np.testing.assert_allclose(fn(0.5), [3 * (1 - np.exp(-1.0))])
    np.testing.assert_allclose(fn(None, 1.0, 1.0, [[1.0], [4.0]])[1], [2.0, 5.0])
    dd, td, y = problem()
    assert not any(fx.any() for fx in predict.gradient_descent_mse(dd, 0 * y)(3.0, 0.0, 0.0, td))
    assert not predict.gradient_descent_mse(0 * dd, y)(None).any()


# Learning rates.


@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.3, False), (0.9, False), (0.3, True), (0.9, True)])
def test_max_learning_rate_is_where_steps_begin_to_diverge(momentum, nesterov):
    dd, _, y = problem()
    limit = predict.max_learning_rate(dd, y.size, momentum, nesterov=nesterov)
    assert np.isclose(limit, 2 * (1 + momentum) / (1 + 2 * momentum * nesterov) * y.size / np.linalg.eigvalsh(dd)[-1])

    def distance(rate):  # after many steps by hand
        f, velocity = np.zeros(y.shape), np.zeros(y.shape)
        for _ in range(2000):
            gradient = dd @ (f - y) / y.size
            velocity = gradient + momentum * velocity
            f = f - rate * (gradient + momentum * velocity if nesterov else velocity)
        return np.abs(f - y).max()

    assert distance(float(limit) * (1 - 1e-2)) < 1e-3
    assert distance(float(limit) * (1 + 1e-2)) > 1e3
    kwargs = {"momentum": momentum, "nesterov": nesterov} if momentum else {}
    for factor, divergent in ((1 - 1e-6, False), (1 + 1e-6, True)):
        fn = predict.gradient_descent_mse(dd, y, limit * factor, **kwargs)
        # The slowest decay of all is that of the direction at the limit.
        assert (np.abs(fn(steps=10**9) - y).max() > 1e3) == divergent


def test_max_learning_rate_of_kernels():
    eye = np.eye(3)
    assert np.isclose(predict.max_learning_rate(eye[:, :, None, None] * np.eye(2)), 12)
    assert np.isclose(predict.max_learning_rate(Kernel(None, eye), 6), 12)
    assert np.isclose(predict.max_learning_rate(eye), 6)
    assert np.isclose(predict.max_learning_rate(of_channels(3)), 30)
    for bad in (np.ones((3, 3, 2)), np.ones((3, 2)), np.ones(3)):
        with pytest.raises(InputError, match=r"every axis of the outputs twice|points of y_train"):
            predict.max_learning_rate(bad)
    with pytest.raises(InputError, match="y_train_size must be"):
        predict.max_learning_rate(np.eye(3), 2)


# Transformations.


def test_jit_vmap_and_grad():
    dd, td, y = problem()
    times, steps = np.array([1.0, 10.0]), np.array([1, 30])

    def outputs(dd, td, y, rate):
        """Of the test set, by flow and with momentum."""
        test = (None, 0.0, td)
        flow = predict.gradient_descent_mse(dd, y, rate)(times, *test)
        return jnp.stack([flow, predict.gradient_descent_mse(dd, y, rate, momentum=0.5)(None, *test, steps=steps)])

    expected = outputs(dd, td, y, 0.1)
    np.testing.assert_allclose(jax.jit(outputs)(dd, td, y, 0.1), expected, rtol=1e-9)
    stacked = (np.stack([dd, 2 * dd]), np.stack([td, 2 * td]), np.stack([y, y]), np.full(2, 0.1))
    np.testing.assert_allclose(jax.jit(jax.vmap(outputs))(*stacked)[0], expected, rtol=1e-9)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1))
    def scalar(scale, rate):
        return jnp.sum(outputs(scale * dd, scale * td, y, rate) ** 2)

    for i, slope in enumerate(scalar(1.0, 0.1)[1]):
        step = np.eye(2)[i] * 1e-6
        ends = [scalar(*(np.array([1.0, 0.1]) + sign * step))[0] for sign in (1, -1)]
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-6)
    digested = predict.gradient_descent_mse(dd, y)
    np.testing.assert_allclose(jax.jit(lambda fn, t: fn(t))(digested, times), digested(times))


# Arguments.


def test_what_comes_back():
    dd, td, y = problem()
    fn = predict.gradient_descent_mse(Kernel(None, dd), y)
    times = np.zeros((2, 3, 1))
    assert fn(times).shape == (2, 3, 1, 5, 2)
    train, test = fn(times, fx_test_0=0.0, k_test_train=Kernel(None, td))
    assert (train.shape, test.shape) == ((2, 3, 1, 5, 2), (2, 3, 1, 3, 2))
    only = fn(times, None, 0.0, td)
    np.testing.assert_array_equal(only, test)
    assert fn(steps=np.array([1, 2])).shape == (2, 5, 2)
    np.testing.assert_array_equal(fn(0.0, y), y)


def spoiled(array, *index):
    array = np.array(array)
    array[index] = np.nan
    return array


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ({"k": np.eye(5)[:, :4]}, {}, r"first two axes must be the n = 5"),
        ({"k": np.eye(5)[:, :, None, None] * np.eye(2)}, {}, r"trace_axes=\(\) would fit"),
        ({"k": np.eye(5) + 0.1 * np.eye(5, k=1)}, {}, "symmetric"),
        ({"k": Kernel(np.eye(5), None)}, {}, r"attribute \.ntk.*NNGP"),
        ({"k": of_channels(5, infnet.kernel.Law(False, True, True))}, {}, "up to its last dense layer"),
        ({"y": np.ones(())}, {}, "n >= 1"),
        ({"y": np.ones((5, 0))}, {}, "n >= 1"),
        ({}, {"learning_rate": 0.0}, "learning_rate must be"),
        ({}, {"momentum": 1.0}, r"in \[0, 1\)"),
        ({}, {"nesterov": True}, "needs a momentum"),
        ({}, {"diag_reg": -1.0}, "non-negative"),
        ({}, {"trace_axes": (0,)}, "axis 0"),
    ],
)
def test_bad_arguments(arguments, options, message):
    given = {"k": np.eye(5), "y": np.ones((5, 2))} | arguments
    with pytest.raises(InputError, match=message):
        predict.gradient_descent_mse(given["k"], given["y"], **options)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"t": -1.0}, "t must be"),
        ({"steps": 1.5}, "integers"),
        ({"steps": -1}, "integers"),
        ({"steps": []}, "integers"),
        ({"steps": np.uint64(2**63)}, "integers 0, 1, 2"),
        ({"t": []}, "t must be"),
        ({"t": 1.0, "steps": 1}, "not both"),
        ({"fx_train_0": None}, "nothing is predicted"),
        ({"fx_test_0": 0.0}, "need its kernel"),
        ({"k_test_train": np.ones((3, 5))}, "but not fx_test_0"),
        ({"fx_test_0": 0.0, "k_test_train": np.ones((3, 4))}, "n = 5 training points"),
        ({"fx_train_0": np.ones((4, 2))}, r"fx_train_0 must have the shape \(5, 2\)"),
        ({"fx_test_0": np.ones((3, 5)), "k_test_train": np.ones((3, 5))}, r"fx_test_0 must have the shape \(3, 2\)"),
    ],
)
def test_bad_questions(arguments, message):
    dd, _, y = problem()
    with pytest.raises(InputError, match=message):
        predict.gradient_descent_mse(dd, y)(**arguments)


def test_momentum_has_no_flow_here():
    dd, _, y = problem()
    fn = predict.gradient_descent_mse(dd, y, momentum=0.9)
    with pytest.raises(InputError, match="has no momentum"):
        fn(1.0)
    np.testing.assert_allclose(fn(), y)  # the limit is the same


def test_numbers_that_are_not_finite_are_named():
    dd, td, y = problem()
    with pytest.raises(NumericalError, match=r"k_train_train contains 1 .* at \(2, 3\)"):
        predict.gradient_descent_mse(spoiled(dd, 2, 3), y)
    with pytest.raises(NumericalError, match=r"y_train contains 2"):
        predict.gradient_descent_mse(dd, spoiled(y, 1))
    fn = predict.gradient_descent_mse(dd, y)
    with pytest.raises(NumericalError, match=r"k_test_train contains 1"):
        fn(1.0, 0.0, 0.0, spoiled(td, 0, 0))
    with pytest.raises(NumericalError, match=r"fx_train_0 contains 1"):
        fn(1.0, spoiled(y, 0, 0))
    with pytest.raises(NumericalError, match="not positive semidefinite"):
        predict.gradient_descent_mse(np.array([[1.0, 3.0], [3.0, 1.0]]), np.ones(2))
    assert np.isnan(jax.jit(lambda k: predict.gradient_descent_mse(k, y)(1.0))(spoiled(dd, 2, 3))).any()
