"""Kernels of powers, exponentials, sines and cosines against quadrature in numpy, which shares no code with them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet.activations.exponential import (
    ExpNormalized,
    joint,
    of_terms,
    polynomial,
    sinusoid,
    times_exponential,
)
from infnet.primitives.erf import erf
from infnet.primitives.exponential import ONE, differentiated, exponential
from infnet.primitives.gelu import gelu

pytestmark = pytest.mark.optimised


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def _times_power(function, power):
    return tuple(t._replace(power=t.power + power) for t in function)


FUNCTIONS = {
    "sin": (sinusoid(1.3, 2.0, 0.0), lambda x: 1.3 * np.sin(2 * x)),
    "phase": (sinusoid(-0.8, 0.7, 0.4), lambda x: -0.8 * np.sin(0.7 * x + 0.4)),
    "cos": (sinusoid(1.0, 2.0, np.pi / 2), lambda x: np.cos(2 * x)),
    "exp": (times_exponential(ONE, 0.7, 0.0, 1.2), lambda x: 1.2 * np.exp(0.7 * x)),
    "gaussian": (times_exponential(ONE, 0.0, -1.0), lambda x: np.exp(-(x**2))),
    "growing": (times_exponential(sinusoid(1.0, 1.0, 0.2), 0.3, 0.05), None),
    "gabor": (times_exponential(sinusoid(1.0, 1.0, 0.0), 0.0, -1.0), lambda x: np.exp(-(x**2)) * np.sin(x)),
    "cubic": (polynomial([1.0, -2.0, 0.5, 0.3]), lambda x: 1 - 2 * x + 0.5 * x**2 + 0.3 * x**3),
    "x^7": (polynomial([0.0] * 7 + [1.0]), lambda x: x**7),
    "x^2 sin": (_times_power(sinusoid(1.0, 1.5, 0.3), 2), lambda x: x**2 * np.sin(1.5 * x + 0.3)),
    "hermite": (polynomial([0.2, 1.0, 0.3]), lambda x: 0.2 + x + 0.3 * x**2),
}
FUNCTIONS["growing"] = (FUNCTIONS["growing"][0], lambda x: np.exp(0.05 * x**2 + 0.3 * x) * np.sin(x + 0.2))
Q11, Q22, M1, M2 = 0.8, 1.3, 0.5, -0.8
RHOS = np.array([0.4, -0.7, 0.0, 1.0, -1.0])
Z = np.linspace(-11, 11, 881)
W = np.exp(-(Z**2) / 2) / np.sqrt(2 * np.pi) * (Z[1] - Z[0])


@functools.cache
def integrals(centred):
    """E f(u) g(v) for all correlations and pairs of functions, E f(u)^2 and E f(v)^2."""
    m1, m2 = (0.0, 0.0) if centred else (M1, M2)
    functions = [f for _, f in FUNCTIONS.values()]
    values = np.array([f(m1 + np.sqrt(Q11) * Z) * W for f in functions])
    found = []
    for rho in RHOS:
        v = m2 + np.sqrt(Q22) * (rho * Z[:, None] + np.sqrt(1 - rho**2) * Z)
        found.append(values @ np.array([g(v) @ W for g in functions]).T)
    v = m2 + np.sqrt(Q22) * Z
    squares2 = np.array([f(v) ** 2 @ W for f in functions])
    return np.array(found), values**2 @ (1 / W), squares2


def pairs(functions):
    """All pairs of functions, as `left` and `right`."""
    return tuple(f for f in functions for _ in functions), tuple(g for _ in functions for g in functions)


@pytest.mark.parametrize("centred", [True, False])
def test_against_quadrature(centred):
    functions = [terms for terms, _ in FUNCTIONS.values()]
    left, right = pairs(functions)
    means = None if centred else (jnp.full(1, M1), jnp.full(1, M2))
    q12 = jnp.asarray(RHOS * np.sqrt(Q11 * Q22))
    with jax.disable_jit():  # a hundred formulas, each once: to compile them would take a minute
        found = exponential(q12, jnp.full(1, Q11), jnp.full(1, Q22), left=left, right=right, means=means)
    found = np.moveaxis(np.array(found).reshape(len(functions), len(functions), len(RHOS)), -1, 0)
    expected, squares1, squares2 = integrals(centred)
    size = np.sqrt(squares1[:, None] * squares2)
    np.testing.assert_allclose(found / size, expected / size, atol=1e-12)


DERIVED = [("phase", "exp"), ("gabor", "gaussian"), ("x^2 sin", "growing")]
LEFT = tuple(FUNCTIONS[f][0] for f, _ in DERIVED)
RIGHT = tuple(FUNCTIONS[g][0] for _, g in DERIVED)
# q12, q11, q22 and the means: ordinary, coincident, antiparallel, without variance
ORDINARY = np.array([[0.3, 0.8, 1.3, 0.5, -0.8], [-0.6, 1.1, 0.7, 0.2, 0.9]])
DEGENERATE = np.array([[0.9, 0.9, 0.9, 0.3, 0.3], [-0.9, 0.9, 0.9, 0.2, 0.1], [0, 0, 1, 0, 1.0], [0, 0, 0, 0, 0]])


def moments(x):
    q12, q11, q22, mean1, mean2 = x
    return jnp.stack(exponential(q12, q11, q22, left=LEFT, right=RIGHT, means=(mean1, mean2)))


def differences(function, points, step=1e-3):
    """The function at the points, and its central differences of sixth order, with one axis more at the end."""
    weights = np.array([-1, 9, -45, 45, -9, 1]) / 60
    shifts = step * np.array([-3, -2, -1, 1, 2, 3])
    moved = points[:, None, None] + shifts[:, None] * np.eye(points.shape[1])[:, None]
    every = np.concatenate([points, moved.reshape(-1, points.shape[1])])
    found = [np.array(y) for y in function(every)]
    n = len(points)
    around = [y[n:].reshape(n, points.shape[1], 6, *y.shape[1:]) for y in found]
    return [y[:n] for y in found], [np.moveaxis(np.einsum("nik...,k->ni...", y, weights / step), 1, -1) for y in around]


def derivatives(x):
    """Values, forward and reverse first derivatives and the second ones, at a batch of points."""

    def all_of_them(x):
        return moments(x), jax.jacfwd(moments)(x), jax.jacrev(moments)(x), jax.jacfwd(jax.jacrev(moments))(x)

    with jax.disable_jit():
        return jax.vmap(all_of_them)(x)


def test_derivatives():
    """Against differences; at degenerate points, against points close by, for all derivatives are continuous."""
    inside = DEGENERATE + 1e-7 * np.array([0, 1, 1, 0, 0])
    (_, *found), (of_values, of_slopes, *_) = differences(derivatives, np.concatenate([ORDINARY, DEGENERATE, inside]))
    forward, reverse, second = found
    ordinary = slice(len(ORDINARY))
    np.testing.assert_allclose(forward[ordinary], of_values[ordinary], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(second[ordinary], of_slopes[ordinary], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(reverse, forward, rtol=1e-12, atol=1e-13)
    for y in (forward, second):
        at, near = np.split(y[len(ORDINARY) :], 2)
        np.testing.assert_allclose(at, near, rtol=2e-6, atol=1e-5)


def test_nan_in_is_nan_out():
    x = np.where(np.eye(5, dtype=bool), np.nan, ORDINARY[0])
    with jax.disable_jit():
        assert np.isnan(moments(jnp.asarray(x.T))).all()


def test_derivative_kernel_is_price():
    terms = FUNCTIONS["gabor"][0]
    kernel = of_terms(terms, "gabor").kernel
    q12, q11, q22 = ORDINARY[:, :3].T
    k, kdot = kernel(q12, q11, q22, True)
    slope = jax.grad(lambda q: kernel(q, q11, q22, False)[0].sum())(q12)
    np.testing.assert_allclose(kdot, slope, rtol=1e-13)
    np.testing.assert_array_equal(k, kernel(q12, q11, q22, False)[0])


def test_zero_mean_is_a_case_of_its_own():
    q12, q11, q22 = jnp.asarray(ORDINARY[:, :3].T)
    zero = jnp.zeros(2)
    with jax.disable_jit():
        plain = exponential(q12, q11, q22, left=LEFT, right=RIGHT)
        shifted = exponential(q12, q11, q22, left=LEFT, right=RIGHT, means=(zero, zero))
    np.testing.assert_allclose(plain, shifted, rtol=1e-13, atol=1e-15)


def float32_cases():
    """Variances over four decades; ordinary, small, nearly parallel and parallel."""
    rng = np.random.default_rng(0)
    rho = np.concatenate([rng.uniform(-1, 1, 200), 10.0 ** -np.arange(8), 1 - 10.0 ** -np.arange(8), [1, -1]])
    q11 = 10 ** rng.uniform(-3, 0.5, rho.size)
    q22 = np.where(np.arange(rho.size) < 200, 10 ** rng.uniform(-3, 0.5, rho.size), q11)
    return [np.float32(x) for x in (rho * np.sqrt(q11 * q22), q11, q22)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_float32(name):
    left = (FUNCTIONS[name][0], differentiated(FUNCTIONS[name][0]))

    def kernels(*x):
        with jax.disable_jit():
            return np.array(exponential(*(jnp.asarray(y) for y in x), left=left, right=left))

    x = float32_cases()
    exact = kernels(*(np.float64(y) for y in x))
    found = kernels(*x)
    assert found.dtype == "float32"
    size = np.sqrt(kernels(*[np.float64(x[1])] * 3) * kernels(*[np.float64(x[2])] * 3))
    assert np.max(np.abs(found - exact) / size) < 2e-6
    if name in ("sin", "gabor"):  # odd without a linear term: small where the correlation is
        assert np.all(np.abs(found[0] - exact[0]) <= 5e-6 * np.abs(exact[0]))


def test_near_duplicates_keep_their_digits():
    """E cos(w (u - v)) depends on Var(u - v) alone."""
    q, w = np.float32(1.7), np.float32(2.0)
    gap = np.float32(1.7) - np.nextafter(q, np.float32(0), dtype=np.float32)
    rbf = of_terms(sinusoid(2**0.5, 2.0, np.pi / 4), "rbf")
    (k,) = rbf.kernel(q - gap, q, q, False)
    assert 1 - float(k) == pytest.approx(w**2 * gap, abs=1.2e-7)
    (k,) = rbf.kernel(np.float32(1e4) - np.float32(0.25), np.float32(1e4), np.float32(1e4), False)
    assert float(k) == pytest.approx(np.exp(-(2.0**2) * 0.25), rel=1e-6)


def test_large_variances():
    for q in (np.float32(1e30), np.float32(1e37)):
        for name, expected in (("sin", 1.3**2 / 2), ("gaussian", 0.0), ("gabor", 0.0)):
            k, kdot = of_terms(FUNCTIONS[name][0], name).kernel(q, q, q, True)
            assert float(k) == pytest.approx(expected, rel=1e-6, abs=1e-14)
            assert np.isfinite(float(kdot))
    k, _ = of_terms(FUNCTIONS["gaussian"][0], "").kernel(np.float32(0), np.float32(1e30), np.float32(1e30), True)
    assert float(k) == pytest.approx(0.5e-30, rel=1e-6)


def test_beyond_the_domain():
    """Correlations that rounding made larger than 1 are 1, negative variances 0; divergent moments are not finite."""
    sine = of_terms(FUNCTIONS["sin"][0], "sin")
    np.testing.assert_allclose(sine.kernel(1.0 + 1e-3, 1.0, 1.0, True), sine.kernel(1.0, 1.0, 1.0, True))
    np.testing.assert_allclose(sine.kernel(1e-9, -1e-9, 1.0, True), sine.kernel(0.0, 0.0, 1.0, True))
    growing = of_terms(times_exponential(ONE, 0.0, 0.25), "exp(x^2/4)")
    assert float(growing.squares(jnp.asarray(0.9))[0]) == pytest.approx(10**0.5)
    assert not np.isfinite(growing.squares(jnp.asarray(1.1))[0])


@pytest.mark.parametrize("name", ["phase", "gabor", "cubic"])
def test_activation(name):
    terms, function = FUNCTIONS[name]
    activation = of_terms(terms, name)
    assert activation.odd == (name == "gabor")
    assert activation.exact == "exact"
    q, m = 0.8, 0.5
    for mean in (None, m):
        x = (mean or 0) + np.sqrt(q) * Z
        slope = (function(x + 1e-5) - function(x - 1e-5)) / 2e-5
        arguments = (jnp.asarray(q), None if mean is None else jnp.asarray(mean))
        assert activation.mean(*arguments) == pytest.approx(W @ function(x), abs=1e-12)
        np.testing.assert_allclose(activation.mean_slopes(*arguments), [W @ slope] * 2, atol=1e-8)
        np.testing.assert_allclose(activation.squares(*arguments), [W @ function(x) ** 2, W @ slope**2], rtol=1e-8)


def test_odd():
    assert of_terms(sinusoid(1.0, 2.0, np.pi), "sin(2 x + pi)").odd
    assert of_terms(polynomial([0.0, 1.0, 0.0, 0.5]), "x + x^3 / 2").odd
    assert not of_terms(polynomial([0.0, 0.0, 1.0]), "x^2").odd
    assert not of_terms(times_exponential(polynomial([0.0, 1.0]), 0.1, 0.0), "x exp(x / 10)").odd


def test_high_degree():
    """The Hermite polynomial of degree 30, normalised: rho^30 at variance 1."""
    coefficients = np.polynomial.hermite_e.herme2poly(np.eye(31)[30])
    hermite = of_terms(polynomial(coefficients / math.factorial(30) ** 0.5), "hermite")
    k, kdot = hermite.kernel(0.9, 1.0, 1.0, True)
    assert float(k) == pytest.approx(0.9**30, rel=1e-8)
    assert float(kdot) == pytest.approx(30 * 0.9**29, rel=1e-8)


def test_joint_of_different_functions():
    one, two = (of_terms(FUNCTIONS[f][0], f) for f in ("phase", "exp"))
    x = jnp.asarray(ORDINARY[:, :3].T)
    k, kdot = joint(one, two)(*x, True)
    swapped = joint(two, one)(x[0], x[2], x[1], True)
    np.testing.assert_allclose(swapped, (k, kdot), rtol=1e-14)
    slope = jax.grad(lambda q: joint(one, two)(q, x[1], x[2], False)[0].sum())(x[0])
    np.testing.assert_allclose(kdot, slope, rtol=1e-14)


def test_stays_a_primitive_under_vmap():
    kernel = of_terms(FUNCTIONS["exp"][0], "exp").kernel

    def gram(q12, q):
        return jax.vmap(jax.vmap(lambda a, b, c: kernel(a, b, c, False)[0], (0, None, 0)), (0, 0, None))(q12, q, q)

    q12 = np.array([[1.0, 0.2], [0.2, 0.5]])
    assert "exponential_kernel" in str(jax.make_jaxpr(gram)(q12, np.diag(q12)))
    q = np.diag(q12)
    expected = 1.2**2 * np.exp(0.49 * ((q[:, None] + q) / 2 + q12))
    np.testing.assert_allclose(gram(q12, q), expected, rtol=1e-14)


def hermite_function(x, q, gamma, shift):
    """The function of `ExpNormalized` and its derivative, by the recursion of the normalised polynomials."""
    z, h = x / np.sqrt(q), [np.ones_like(x), x / np.sqrt(q)]
    for n in range(1, 40):
        h.append((z * h[n] - np.sqrt(n) * h[n - 1]) / np.sqrt(n + 1))
    c = [np.exp(gamma * shift / 2)]
    for n in range(1, 40):
        c.append(c[-1] * np.sqrt(gamma / n))
    value = np.sqrt(q) * sum(a * b for a, b in zip(c, h, strict=False))
    return value, sum(c[n] * np.sqrt(n) * h[n - 1] for n in range(1, 40))


def test_exp_normalized():
    activation = ExpNormalized(0.7, -0.4)
    for rho in (0.4, -0.7):
        v = np.sqrt(Q22) * (rho * Z[:, None] + np.sqrt(1 - rho**2) * Z)
        f, g = (hermite_function(x, q, 0.7, -0.4) for x, q in ((np.sqrt(Q11) * Z, Q11), (v, Q22)))
        expected = [(W * a) @ (b @ W) for a, b in zip(f, g, strict=True)]
        found = activation.kernel(rho * np.sqrt(Q11 * Q22), Q11, Q22, True)
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    np.testing.assert_allclose(activation.squares(jnp.asarray(Q22)), activation.kernel(Q22, Q22, Q22, True))
    value, slope = hermite_function(np.sqrt(Q11) * Z, Q11, 0.7, -0.4)
    assert activation.mean(jnp.asarray(Q11)) == pytest.approx(W @ value)
    assert activation.mean_slopes(jnp.asarray(Q11))[0] == pytest.approx(W @ slope)
    with pytest.raises(ValueError, match="mean zero only"):
        activation.mean(1.0, 1.0)


def test_derivatives_of_exp_normalized():
    def kernels(x):
        return jnp.stack(ExpNormalized(1.3, -1.0).kernel(*x, True))

    def all_of_them(x):
        return kernels(x), jax.jacfwd(kernels)(x), jax.jacfwd(jax.jacrev(kernels))(x)

    n = len(ORDINARY)
    not_numbers = np.where(np.eye(3, dtype=bool), np.nan, ORDINARY[0, :3])
    x = np.concatenate([ORDINARY[:, :3], DEGENERATE[:, :3], not_numbers])
    found, (of_values, of_slopes, _) = differences(jax.jit(jax.vmap(all_of_them)), x)
    np.testing.assert_allclose(found[1][:n], of_values[:n], rtol=1e-9, atol=1e-10)
    np.testing.assert_allclose(found[2][:n], of_slopes[:n], rtol=1e-9, atol=1e-10)
    assert all(np.isfinite(y[:-3]).all() for y in found)
    assert np.isnan(found[0][-3:]).all()
    np.testing.assert_allclose(found[0][-4], [0, 1.3 * np.exp(-1.3)])


@pytest.mark.parametrize("primitive", [erf, gelu])
def test_erf_and_gelu_at_any_scale(primitive):
    """Values and derivatives in float32 at variances of 1e-20 ... 1e30, where naive formulas overflow."""

    def kernels(x):
        return jnp.stack(primitive(*x, scale=1.3, rate=0.7, derivative=True))

    def all_of_them(x):
        return kernels(x), jax.jacfwd(kernels)(x)

    of = jax.jit(jax.vmap(all_of_them))
    shapes = np.array([[1, 1, 1], [-1, 1, 1], [0, 1, 1], [0.5, 1, 1], [1, 1, 4], [0.3, 2, 1]])
    x = np.float32(10.0 ** np.arange(-20, 31, 10)[:, None, None] * shapes)
    for found, exact in zip(of(x.reshape(-1, 3)), of(np.float64(x).reshape(-1, 3)), strict=True):
        exact = np.reshape(exact, (*x.shape[:2], *exact.shape[1:]))
        error = np.abs(np.reshape(found, exact.shape) - exact)
        assert np.all(error <= 2e-6 * np.max(np.abs(exact), axis=1, keepdims=True) + 1e-37)
