"""Hermite series of smooth activations, against quadrature and much longer series written here in numpy."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from infnet.activations.chains import derivative
from infnet.activations.series import ORDERS, joint, series_activation
from infnet.errors import Where
from infnet.primitives.series import series_p

pytestmark = pytest.mark.optimised

WHERE = Where("MLP/activation", "model.py:12 (f)")


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def chain(function, dtype="float32", shape=(1, 3)):
    return jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, dtype))


@functools.cache
def activation(function, dtype="float32"):
    traced = chain(function, dtype)
    return series_activation(traced, derivative(traced), WHERE)


def expit_slope(x):
    return special.expit(x) * special.expit(-x)


def gelu(x):
    return jax.nn.gelu(x, approximate=True)


def np_gelu(x):
    return x * special.expit(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))


def np_gelu_slope(x):
    a = 2 * math.sqrt(2 / math.pi)
    y = a * (x + 0.044715 * x**3)
    return special.expit(y) + x * expit_slope(y) * a * (1 + 3 * 0.044715 * x**2)


def shifted(x):
    return jnp.tanh(0.5 * x + 1)


# The function, and in numpy its values and its slope.
FUNCTIONS = {
    "tanh": (jnp.tanh, np.tanh, lambda x: 1 / np.cosh(x) ** 2),
    "silu": (jax.nn.silu, lambda x: x * special.expit(x), lambda x: special.expit(x) + x * expit_slope(x)),
    "softplus": (jax.nn.softplus, lambda x: np.logaddexp(x, 0), special.expit),
    "gelu": (gelu, np_gelu, np_gelu_slope),
    "shifted": (shifted, lambda x: np.tanh(x / 2 + 1), lambda x: 0.5 / np.cosh(x / 2 + 1) ** 2),
}


# Oracles.

GAUSS, GAUSS_WEIGHTS = np.polynomial.legendre.leggauss(300)
GAUSS, GAUSS_WEIGHTS = 9 * GAUSS, 9 * GAUSS_WEIGHTS * np.exp(-((9 * GAUSS) ** 2) / 2) / math.sqrt(2 * math.pi)


def quadrature(f, g, q12, q11, q22, m1=0.0, m2=0.0):
    """E f(u) g(v) on a tensor grid in the coordinates of (u + v) and (u - v) after scaling to variance 1."""
    rho = q12 / math.sqrt(q11 * q22)
    x, y = math.sqrt((1 + rho) / 2) * GAUSS[:, None], math.sqrt((1 - rho) / 2) * GAUSS
    values = f(m1 + math.sqrt(q11) * (x + y)) * g(m2 + math.sqrt(q22) * (x - y))
    return GAUSS_WEIGHTS @ values @ GAUSS_WEIGHTS


@functools.cache
def hermite(order):
    """3000 nodes z, and the columns `h_n(z) sqrt(weight)`."""
    step = 24 / 3000
    z = (np.arange(3000) + 0.5) * step - 12
    root = np.exp(-(z**2) / 4) * math.sqrt(step) / (2 * math.pi) ** 0.25
    h = [root, root * z]
    for n in range(1, order):
        h.append((z * h[-1] - math.sqrt(n) * h[-2]) / math.sqrt(n + 1))
    return z, np.stack(h, 1)


def coefficients(f, q, order):
    """`[len(q), order + 1]`: E f(sqrt(q) z) h_n(z), by the midpoint rule, with the second moments of f."""
    z, h = hermite(order)
    values = f(np.sqrt(q)[:, None] * z) * h[:, 0]
    return values @ h, (values**2).sum(1)


# Values.

POINTS = [  # q12 / sqrt(q11 q22), q11, q22, m1, m2
    (0.3, 1.0, 1.0, 0.0, 0.0),
    (-0.8, 0.5, 1.2, 0.0, 0.0),
    (0.95, 0.01, 1.0, 0.0, 0.0),
    (1.0, 0.8, 0.8, 0.0, 0.0),
    (-1.0, 0.8, 0.8, 0.0, 0.0),
    (0.5, 1.0, 0.4, 0.7, -0.3),
    (-0.9, 0.3, 0.9, -1.0, 0.2),
]


def operands(points=POINTS):
    rho, q11, q22, m1, m2 = np.array(points).T
    return rho * np.sqrt(q11 * q22), q11, q22, m1, m2


def of_order(function, order):
    return dataclasses.replace(activation(function, "float64"), order=order, nodes=16 * order)


def second_moment(f, q, m=0.0):
    return quadrature(f, f, q, q, q, m, m)


@pytest.mark.parametrize(("name", "count"), [("tanh", 3), ("softplus", 3), ("gelu", 5), ("shifted", 5)])
def test_kernels_equal_two_dimensional_quadrature(name, count):
    function, *references = FUNCTIONS[name]
    args = operands(POINTS if count == 5 else POINTS[:5])[:count]

    @jax.jit
    def kernels(q12, q11, q22, *means):
        return of_order(function, 64).kernel_and_bound(q12, q11, q22, True, means or None)

    for f, value, bound in zip(references, *kernels(*args), strict=True):
        for i, (q12, *rest) in enumerate(zip(*args, strict=True)):
            size = math.sqrt(second_moment(f, *rest[::2]) * second_moment(f, *rest[1::2]))
            assert abs(value[i] - quadrature(f, f, q12, *rest)) <= size * (bound[i] + 2e-13)
            assert bound[i] < 1e-6


@pytest.mark.parametrize("with_mean", [False, True])
def test_moments_of_one_gaussian(with_mean):
    q, m = np.array([0.0, 0.3, 1.5]), np.array([0.4, -0.2, 0.7]) * with_mean
    for function, f, df in (FUNCTIONS["gelu"], FUNCTIONS["shifted"]):
        a = activation(function, "float64")

        @jax.jit
        def moments(q, *mean, a=a):
            return *a.squares(q, *mean), a.mean(q, *mean), *a.mean_slopes(q, *mean)

        found = moments(q, m) if with_mean else moments(q)
        wanted = (lambda x: f(x) ** 2), (lambda x: df(x) ** 2), f, df, df  # noqa: B023 (used at once)
        for value, g in zip(found, wanted, strict=True):
            one = np.ones_like
            exact = [quadrature(g, one, 0, x, 1, y) if x > 0 else g(y) for x, y in zip(q, m, strict=True)]
            np.testing.assert_allclose(value, exact, rtol=1e-12, atol=1e-13)


# The bound.


def sample(count, seed=0):
    """Variances over two decades and correlations: anywhere, and close to -1, 0 and 1."""
    rng = np.random.default_rng(seed)
    q11, q22 = 10 ** rng.uniform(-1.3, 0.6, (2, count))
    q22 = np.where(rng.random(count) < 0.3, q11, q22)
    rho = rng.uniform(-1, 1, count)
    rho[::10] = np.sign(rho[::10]) * (1 - 10 ** rng.uniform(-6, -1, len(rho[::10])))
    rho[1::50] = np.sign(rho[1::50])
    return rho, q11, q22


@pytest.mark.parametrize("name", ["tanh", "silu", "gelu", "shifted"])
def test_the_error_is_within_the_bound(name):
    function, *references = FUNCTIONS[name]
    rho, q11, q22 = sample(300)
    orders = ORDERS[:2]

    @jax.jit
    def kernels(q12, q11, q22):
        return [of_order(function, order).kernel_and_bound(q12, q11, q22, True) for order in orders]

    found = kernels(rho * np.sqrt(q11 * q22), q11, q22)
    powers = rho[:, None] ** np.arange(513)
    ratios = []
    for i, f in enumerate(references):
        (a, size1), (b, size2) = coefficients(f, q11, 512), coefficients(f, q22, 512)
        rest = np.sqrt(np.maximum(size1 - (a**2).sum(1), 0) * np.maximum(size2 - (b**2).sum(1), 0))
        size = np.sqrt(size1 * size2)
        exact, unknown = (a * b * powers).sum(1) / size, rest / size * np.abs(rho) ** 513
        for kernel, bound in found:
            error = np.abs(kernel[i] / size - exact)
            assert (error <= np.asarray(bound[i]) + 2 * unknown + 2e-13).all()
            # Where terms of both parities are cut off, their errors cancel at negative correlations.
            alike = (rho > 0) | (name != "shifted")
            telling = (np.asarray(bound[i]) > 1e-11) & (np.abs(rho) < 0.99) & alike
            ratios.append(np.asarray(bound[i])[telling] / error[telling])
    assert len(np.concatenate(ratios)) > 30
    assert np.concatenate(ratios).max() < 100


def test_two_different_functions_stay_within_the_bound():
    rho, q11, q22 = sample(200, 1)
    one, two = of_order(jnp.tanh, 16), of_order(shifted, 16)
    (k, _), (bound, _) = jax.jit(joint(one, two), static_argnums=3)(rho * np.sqrt(q11 * q22), q11, q22, True, None)
    (a, size1), (b, size2) = coefficients(np.tanh, q11, 512), coefficients(FUNCTIONS["shifted"][1], q22, 512)
    size = np.sqrt(size1 * size2)
    error = np.abs(k - (a * b * rho[:, None] ** np.arange(513)).sum(1)) / size
    assert (error <= bound + 1e-10).all()
    assert (bound[np.abs(rho) > 0.9] > 1e-9).any()


def test_coincident_and_antipodal_points_are_exact():
    q = np.array([0.1, 1.0, 9.0])
    a = of_order(shifted, 8)
    kernel = jax.jit(lambda q12, q: a.kernel(q12, q, q, True))
    np.testing.assert_allclose(kernel(q, q), a.squares(q), rtol=1e-13)
    _, f, _ = FUNCTIONS["shifted"]
    k, _ = kernel(-q, q)
    weight = np.exp(-((x := np.linspace(-12, 12, 4001)) ** 2) / 2) * (x[1] - x[0]) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(k, (f(np.sqrt(q)[:, None] * x) * f(-np.sqrt(q)[:, None] * x)) @ weight, rtol=1e-12)


def test_matrices_are_positive_semi_definite():
    x = np.random.default_rng(0).normal(size=(40, 4)) * np.geomspace(0.1, 4, 40)[:, None]
    x = np.concatenate([x, x[:10], -x[:10], 1.0001 * x[10:20], 0 * x[:1]])
    s = x @ x.T
    q = np.diag(s)
    functions = of_order(jnp.tanh, 8), of_order(shifted, 8)  # far too short, so that the rest matters

    @jax.jit
    def blocks(s, q1, q2):
        return [[joint(f, g)(s, q1, q2, True, None)[0] for g in functions] for f in functions]

    found = blocks(s, q[:, None], q[None])
    for i in range(2):
        matrix = np.block([[np.asarray(k[i]) for k in row] for row in found])
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-14 * matrix.max())
        assert np.linalg.eigvalsh(matrix).min() > -1e-13 * matrix.max()


# Derivatives.


def long_series(f, df, order=200):
    """The kernels as a function of (q12, q11, q22), one element each."""

    def kernels(q12, q11, q22):
        rho = np.array(q12 / math.sqrt(q11 * q22)) ** np.arange(order + 1)
        q = np.array([q11, q22])
        return np.array([np.prod(coefficients(g, q, order)[0], 0) @ rho for g in (f, df)])

    return kernels


def difference(function, point, i, step=1e-3):
    """The partial derivative by i, central differences of order four."""
    unit = np.eye(len(point))[i] * step
    values = [function(*(point + k * unit)) for k in (-2, -1, 1, 2)]
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)


def test_first_derivatives():
    _, f, df = FUNCTIONS["silu"]
    a = of_order(jax.nn.silu, 32)
    gradients = jax.jit(jax.jacrev(lambda x: jnp.stack(a.kernel(*x, True))))
    reference = long_series(f, df)
    for point in (np.array([0.3, 1.0, 0.7]), np.array([-0.6, 0.8, 0.9])):
        expected = np.stack([difference(reference, point, i) for i in range(3)], 1)
        np.testing.assert_allclose(gradients(point), expected, rtol=1e-8, atol=1e-9)


def test_second_derivatives():
    """Those of the series that the first derivatives are; these are checked on the same points."""
    _, f, df = FUNCTIONS["shifted"]
    a = of_order(shifted, 8)
    point = np.array([-0.04, 0.08, 0.1])

    def kernels(x):
        return jnp.stack(a.kernel(*x, True))

    first, second = jax.jit(jax.jacfwd(kernels)), jax.jit(jax.jacfwd(jax.jacrev(kernels)))
    reference = long_series(f, df)
    expected = np.stack([difference(reference, point, i) for i in range(3)], 1)
    np.testing.assert_allclose(first(point), expected, rtol=1e-8, atol=1e-9)
    expected = np.stack([difference(lambda *x: first(np.array(x)), point, i) for i in range(3)], 2)
    np.testing.assert_allclose(second(point), expected, rtol=1e-7, atol=1e-8)


def test_derivatives_by_the_means():
    a = of_order(shifted, 8)
    _, f, df = FUNCTIONS["shifted"]

    def kernels(x):
        return jnp.stack(a.kernel(*x[:3], True, (x[3], x[4])))

    point = np.array([0.04, 0.08, 0.1, 0.5, -0.2])
    found = jax.jit(jax.jacfwd(kernels))(point)
    for i, g in enumerate((f, df)):
        expected = [difference(functools.partial(quadrature, g, g), point, j) for j in range(5)]
        np.testing.assert_allclose(found[i], expected, rtol=1e-8, atol=1e-10)
    q, m = 0.6, 0.3
    mean, by_m = jax.value_and_grad(lambda m: a.mean(jnp.asarray(q), m))(m)
    assert float(mean) == pytest.approx(quadrature(f, np.ones_like, 0, q, 1, m), rel=1e-12)
    assert float(by_m) == pytest.approx(quadrature(df, np.ones_like, 0, q, 1, m), rel=1e-12)


def test_derivatives_are_right_where_points_coincide_or_vanish():
    """On the diagonal and at zero the derivatives are one-dimensional moments."""
    a = of_order(jax.nn.softplus, 8)
    gradient = jax.jit(jax.vmap(jax.grad(lambda x: a.kernel(*x, False)[0])))
    short = of_order(shifted, 4)
    hessian = jax.jit(jax.vmap(jax.hessian(lambda x: sum(short.kernel(*x, True)))))
    q = 0.05
    points = np.array([[q, q, q], [-q, q, q], [0, 0, 0], [0, 0, q], [q + 1e-16, q, q], [1e-300, 1e-300, 1e-300]])
    _, f, df = FUNCTIONS["softplus"]
    pairs = (df, df), (expit_slope, f), (f, expit_slope)
    for row, (q12, q1, q2) in zip(gradient(points), points, strict=True):
        args = (np.clip(q12, -q, q) if q1 == q else 0), max(q1, 1e-30), max(q2, 1e-30)
        expected = np.array([quadrature(*pair, *args) for pair in pairs]) * [1, 0.5, 0.5]
        np.testing.assert_allclose(row, expected, rtol=1e-10)
    assert np.isfinite(hessian(points)).all()
    assert np.isfinite(jax.grad(lambda q: sum(short.squares(q)))(0.0))


# Precision, shapes, transformations.


@pytest.mark.parametrize("name", ["tanh", "gelu"])
def test_float32(name):
    function = FUNCTIONS[name][0]
    rho, q11, q22 = (x.astype("float32") for x in sample(300))
    q11[:3], q22[3:6] = 1e-8, 1e-30
    q12 = rho * np.sqrt(q11) * np.sqrt(q22)
    a = activation(function, "float32")

    def kernels(q12, q11, q22):
        return *a.kernel(q12, q11, q22, True), *a.squares(q11), *a.squares(q22)

    exact = jax.jit(kernels)(*(x.astype("float64") for x in (q12, q11, q22)))
    with jax.enable_x64(False):
        found = jax.jit(kernels)(q12, q11, q22)
    for i in range(2):
        assert found[i].dtype == jnp.float32
        size = np.sqrt(exact[2 + i]) * np.sqrt(exact[4 + i])
        assert np.max(np.abs(np.asarray(found[i], "float64") - exact[i]) / size) < 2e-6
        np.testing.assert_allclose(found[2 + i], exact[2 + i], rtol=2e-6)


def test_nan_stays_nan_and_negative_variance_is_zero():
    a = of_order(jnp.tanh, 4)
    args = np.full((3, 4), 0.5)
    args[[0, 1, 2], [0, 1, 2]] = np.nan
    assert np.isnan(jnp.stack(a.kernel(*args, True))).tolist() == [[True] * 3 + [False]] * 2
    np.testing.assert_allclose(a.kernel(*np.array([0.0, -1e-9, 0.5]), True)[1], a.mean_slopes(jnp.asarray(0.5))[1])


def test_batching_binds_the_primitive_again_and_computes_one_side_once():
    a = of_order(jnp.tanh, 4)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6, 3))
    s, q = x @ x.T, (x**2).sum(1)

    def kernel(q12, q11, q22):
        return a.kernel(q12, q11, q22, True)

    pairs = jax.vmap(jax.vmap(kernel, (0, None, 0)), (0, 0, None))
    (eqn,) = jax.make_jaxpr(pairs)(s, q, q).eqns[-1:]
    assert eqn.primitive is series_p
    assert [v.aval.shape for v in eqn.invars] == [(6, 6), (6, 1), (1, 6)]
    (jitted,) = jax.make_jaxpr(jax.vmap(jax.jit(kernel), (0, 0, None)))(s, q[:, None], q).eqns[-1:]
    assert any(e.primitive is series_p for e in jitted.params["jaxpr"].jaxpr.eqns)
    for got, wanted in zip(pairs(s, q, q), kernel(s, q[:, None], q[None]), strict=True):
        np.testing.assert_array_equal(got, wanted)
