"""Functions of kernels by eigendecomposition: their derivatives, also at equal eigenvalues, and their precision."""

from __future__ import annotations

from decimal import Decimal, getcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infnet
from infnet import predict
from infnet.errors import InputError
from infnet.predict import filters

N = 6


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def kernels():
    """Equal eigenvalues: exactly, up to rounding, nearly, and zeros; a spectrum that falls below rounding; and none."""
    random = np.random.RandomState(0)
    distinct, few = random.standard_normal((N, 9)) / 3, random.standard_normal((3, 5)) / 2
    line = np.linspace(0, 1, N)
    return {
        "identity": np.eye(N),
        "identity and rank one": np.eye(N) + np.ones((N, N)),
        "nearly the identity": np.diag(1 + 1e-9 * np.arange(N)),
        "gaps of all sizes": np.diag(1 + 10.0 ** -np.arange(2, 2 + 2 * N, 2)),
        "duplicated points": np.repeat(few, 2, 0) @ np.repeat(few, 2, 0).T,
        "smooth": np.exp(-((line[:, None] - line) ** 2)),
        "distinct": distinct @ distinct.T,
    }


RULES = {
    "flow": ({}, {"t": np.array([0.0, 0.5, 20.0])}),
    "limit of a regularised kernel": ({"diag_reg": 0.1}, {"t": None}),
    "steps": ({}, {"steps": np.array([0, 1, 2, 40])}),
    "Nesterov": ({"momentum": 0.25, "nesterov": True}, {"steps": np.array([1, 3, 40])}),
}


def outputs(name, y, td):
    """Of the test set, as a function of the kernel; the rate makes a step of an eigenvalue of 1 ½, or exactly 1."""
    options, question = RULES[name]
    rate = y.size / (1 if name == "steps" else 2)

    def predicted(kernel):
        return predict.gradient_descent_mse(kernel, y, rate, **options)(
            question.get("t"), None, 0.0, td, steps=question.get("steps")
        )

    return predicted


@pytest.mark.parametrize("rule", RULES)
def test_derivatives_where_eigenvalues_are_equal(double, rule):
    """Forward and backward, under vmap and jit, against differences along congruences, which keep kernels kernels."""
    random = np.random.RandomState(1)
    y, td, turn = (random.standard_normal(shape) for shape in ((N, 2), (3, N), (N, N)))
    names = list(kernels())
    stacked = np.stack([kernels()[name] for name in names])
    predicted = outputs(rule, y, td)

    @jax.jit
    @jax.vmap
    def of_kernel(kernel, tangent):
        value, moved = jax.jvp(predicted, (kernel,), (tangent,))
        weights = jnp.cos(jnp.arange(moved.size)).reshape(moved.shape)
        gradient = jax.grad(lambda k: jnp.vdot(weights, predicted(k)))(kernel)
        return value, moved, jnp.vdot(weights, moved), jnp.vdot(gradient, tangent), gradient

    def moved(h):
        congruence = np.eye(N) + h / 3 * turn
        return of_kernel(congruence @ stacked @ congruence.T, tangents)[0]

    tangents = (turn @ stacked + stacked @ turn.T) / 3
    _, found, forward, backward, gradient = of_kernel(stacked, tangents)
    h = 1e-5
    expected = (moved(h) - moved(-h)) / (2 * h)
    for name, a, b in zip(names, found, expected, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7 * max(1, np.abs(b).max()), err_msg=name)
    np.testing.assert_allclose(forward, backward, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(gradient, gradient.mT, atol=1e-12)


def test_derivatives_are_those_of_jax_where_eigenvalues_differ(double):
    """First and second; the latter are NaN, rather than wrong, where eigenvalues are equal."""
    random = np.random.RandomState(1)
    y, td, tangent = (random.standard_normal(shape) for shape in ((N, 2), (3, N), (N, N)))
    predicted = outputs("flow", y, td)

    def by_eigenvectors(kernel):
        values, vectors = jnp.linalg.eigh(kernel)
        x = values * RULES["flow"][1]["t"][:, None] / 2
        return td @ ((vectors * (-jnp.expm1(-x) / values)[:, None]) @ vectors.T @ y)

    def twice(function):
        def total(k):
            return jnp.sum(function(k) ** 2)

        return jax.jit(lambda k: (total(k), *jax.jvp(jax.grad(total), (k,), (tangent,))))

    distinct = kernels()["distinct"]
    for found, wanted in zip(twice(predicted)(distinct), twice(by_eigenvectors)(distinct), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-8, atol=1e-8 * np.abs(wanted).max())
    _, first, second = twice(predicted)(kernels()["identity and rank one"])
    assert np.isfinite(first).all()
    assert np.isnan(second).all()


def iterated(a, momentum, nesterov, count):
    """The filter over the rate after `count` steps, by the recursion of optax.sgd, in 50 digits."""
    velocity = total = Decimal(0)
    for _ in range(count):
        gradient = 1 - a * total
        velocity = gradient + momentum * velocity
        total += gradient + momentum * velocity if nesterov else velocity
    return total


@pytest.mark.parametrize(("momentum", "nesterov"), [(None, False), (0.25, False), (0.9, True)])
def test_slopes_of_filters(double, momentum, nesterov):
    """In eigenvalues and in the momentum, where roots are equal, nearly so, 0 and -1."""
    getcontext().prec = 50
    mu, h = Decimal(momentum or 0), Decimal(10) ** -20
    equal = float((1 - mu) / (1 + mu)) ** 2 if nesterov else (1 - (momentum or 0) ** 0.5) ** 2
    largest = float(2 * (1 + mu) / (1 + 2 * mu if nesterov else 1))
    near = np.concatenate([np.array([equal, 1.0, largest]) * (1 + e) for e in (0, -1e-15, 1e-12, -1e-7, 1e-4, -0.01)])
    a = np.array([0, 1e-14, 1e-6, 0.1, 0.125, *near[near <= largest]])
    counts = (1, 2, 3, 60)

    @jax.jit
    def slopes(values, momentum):
        def of_one(value, count):
            def filtered(*args):
                return filters.steps(args[0], 0.0, np.inf, count, 1.0, None if momentum is None else args[1], nesterov)

            args = (value,) if momentum is None else (value, momentum)
            return jnp.stack(jax.jacfwd(filtered, tuple(range(len(args))))(*args))

        return jax.vmap(jax.vmap(of_one, (0, None)), (None, 0))(values, jnp.array(counts))

    def difference(value, count):
        value, both = Decimal(float(value)), []
        for step in ((h, 0), (0, h))[: 1 if momentum is None else 2]:
            ends = [iterated(value + sign * step[0], mu + sign * step[1], nesterov, count) for sign in (1, -1)]
            both.append(float((ends[0] - ends[1]) / (2 * h)))
        return both

    expected = np.array([[difference(value, count) for value in a] for count in counts])
    np.testing.assert_allclose(slopes(a, momentum), expected, rtol=1e-9, atol=1e-10)


def ill_conditioned(n=40):
    """A kernel in float32 whose condition number is 1e5, of the training and of a test set; and targets."""
    x, x_test = np.linspace(-3, 3, n), np.array([0.3, 2.9])
    k, cross = (np.float32(np.exp(-((a[:, None] - x) ** 2) / 2)) for a in (x, x_test))
    return k + np.eye(n, dtype=np.float32) * np.float32(2.0**-13), cross, np.float32(np.cos(37 * x))[:, None]


def test_float32_kernels_are_decomposed_in_float64():
    k, cross, y = ill_conditioned()
    values, vectors = np.linalg.eigh(np.float64(k))
    singles = np.linalg.eigh(k)
    rate, times = 1.0, np.float32([1e3, 1e5])
    assert not jax.config.jax_enable_x64

    def by_hand(values, vectors):
        x = -np.expm1(-rate / y.size * times[:, None] * values) / values
        return cross @ ((vectors * x[:, None]) @ (vectors.T @ y))

    exact = by_hand(values, vectors)
    assert np.abs(by_hand(*singles) - exact).max() > 5e-5

    def trained(k):
        return predict.gradient_descent_mse(k, y, rate)

    def predicted(k):
        return trained(k)(times, None, 0.0, cross)

    for found in (predicted(k), jax.jit(predicted)(k), jax.vmap(predicted)(k[None])[0]):
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, exact, atol=1e-6)
    info = trained(k).info
    assert info.ok
    assert info.dtype == "float64"
    assert info.eigenvalue_min.dtype == np.float32
    np.testing.assert_allclose([info.eigenvalue_min, info.eigenvalue_max], values[[0, -1]], rtol=1e-6)
    np.testing.assert_allclose(info.condition, np.linalg.cond(np.float64(k)), rtol=1e-5)
    assert not jax.jit(lambda k: trained(k).info)(-k).ok


def test_ensembles_are_solved_in_float64():
    k, cross, y = ill_conditioned()
    own = np.eye(2, dtype=np.float32)
    blocks = {(0, 0): k, (1, 0): cross, (1, 1): own}
    x_train, x_test = np.zeros(1), np.ones(1)

    def kernel_fn(x1, x2, get):
        return blocks[int(x1[0]), int(x1[0] if x2 is None else x2[0])]

    gaussian = predict.gradient_descent_mse_ensemble(kernel_fn, x_train, y)(None, x_test, "nngp", True)
    inverse = np.linalg.inv(np.float64(k))
    np.testing.assert_allclose(gaussian.mean, cross @ inverse @ y, atol=1e-6)
    np.testing.assert_allclose(gaussian.covariance, own - cross @ inverse @ cross.T, atol=1e-6)
    assert gaussian.info.dtype == "float64"
    assert gaussian.covariance.dtype == np.float32


def test_weights_are_found_in_float64():
    """Features that are exact in few bits, so that the NTK is, too; its condition number is 7e4."""
    x, y = np.float32([[1, 1], [1, 1 + 2.0**-6]]), np.float32([[1.0], [2.0]])
    params_at = infnet.linearized_gradient_descent_mse(lambda w, x: x @ w, jnp.zeros((2, 1)), x, y)
    np.testing.assert_allclose(params_at(), np.linalg.solve(np.float64(x), y), rtol=1e-6)


def test_learning_rates_have_derivatives():
    """Of the identity, whose eigenvalues are all the largest, along itself."""
    rate, slope = jax.value_and_grad(lambda scale: predict.max_learning_rate(scale * np.eye(3)))(2.0)
    np.testing.assert_allclose((rate, slope), (3.0, -1.5), rtol=1e-6)


def test_a_training_that_lost_half_of_its_digits_is_refused():
    with jax.enable_x64(True):
        leaves, tree = jax.tree.flatten(predict.gradient_descent_mse(np.eye(2), np.ones(2)))
    with pytest.raises(InputError, match="made with x64 on"):
        jax.tree.unflatten(tree, [np.asarray(x) for x in leaves])(1.0)
