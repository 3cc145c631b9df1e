"""Kernels of single functions against two-dimensional quadrature, which shares no code with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from infnet.primitives.erf import erf
from infnet.primitives.gelu import gelu
from infnet.primitives.homogeneous import homogeneous

pytestmark = pytest.mark.optimised


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def of_pieces(values, slope=(0.0, 0.0, 0.0)):
    return functools.partial(homogeneous, values=values, slope=slope)


HOMOGENEOUS = {
    "relu": ((1, 0.0, 1.0, 0.0), (0.0, 1.0, 0.0)),
    "maximum": ((1, 0.0, 1.0, 0.0), (0.0, 1.0, 0.5)),
    "leaky": ((1, 0.1, 1.0, 0.0), (0.1, 1.0, 1.0)),
    "abs": ((1, -1.0, 1.0, 0.0), (-1.0, 1.0, 1.0)),
    "linear": ((1, 2.0, 2.0, 0.0), (2.0, 2.0, 2.0)),
    "any": ((1, -0.7, 3.1, 0.0), (0.3, -1.2, 5.0)),
    "step": ((0, 0.0, 1.0, 0.5), (0.0, 0.0, 0.0)),
    "sign": ((0, -1.0, 1.0, 0.0), (0.0, 0.0, 0.0)),
    "straight_through": ((0, -1.0, 1.0, 0.0), (1.0, 1.0, 1.0)),
    "constant": ((0, 3.0, 3.0, 3.0), (0.0, 0.0, 0.0)),
}
SMOOTH = [(1.0, 1.0), (1.3, 0.7), (-2.0, 3.0)]
KERNELS = {
    **{name: of_pieces(*pieces) for name, pieces in HOMOGENEOUS.items()},
    **{f"erf{c}": functools.partial(erf, scale=c[0], rate=c[1]) for c in SMOOTH},
    **{f"gelu{c}": functools.partial(gelu, scale=c[0], rate=c[1]) for c in SMOOTH},
}
# One of each formula, for what is slow to compile.
FORMULAS = ["any", "sign", "erf(1.3, 0.7)", "gelu(1.3, 0.7)"]
one_of_each = pytest.mark.parametrize("kernel", [KERNELS[name] for name in FORMULAS], ids=FORMULAS)
every_kernel = pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS.keys())


@functools.cache
def both(kernel):
    """K and Kdot, compiled once for each kernel and shape."""
    return jax.jit(functools.partial(kernel, derivative=True))


def grams():
    """Triples (q12, q11, q22): ordinary, parallel, antiparallel and with zero variances."""
    rng = np.random.default_rng(0)
    rho = np.concatenate([rng.uniform(-1, 1, 12), [0, 0.999, -0.999, 1 - 1e-9, 1, -1, 1, -1, 1, 0, 0]])
    q11 = np.exp(rng.normal(size=rho.size))
    q22 = np.exp(rng.normal(size=rho.size))
    q22[-6:-2] = q11[-6:-2]
    q11[-2:] = 0
    q22[-1] = 0
    same = (q11 == q22) & (np.abs(rho) == 1)
    return np.where(same, rho * q11, rho * np.sqrt(q11 * q22)), q11, q22


def piece(a, b, at_zero, degree, x):
    return np.where(x < 0, a, np.where(x > 0, b, at_zero)) * (x if degree else 1.0)


def homogeneous_oracle(degree, a, b, at_zero, q12, q11, q22):
    """E phi phi as one integral over the angle, the radius done by hand; Gauss-Legendre between the kinks."""
    if q11 == 0 or q22 == 0:
        at = at_zero if degree == 0 else 0.0
        mean = (a + b) / 2
        return (at if q11 == 0 else mean) * (at if q22 == 0 else mean)
    theta = np.arccos(np.clip(q12 / np.sqrt(q11) / np.sqrt(q22), -1, 1))
    kinks = np.array([-np.pi / 2, np.pi / 2, theta - np.pi / 2, theta + np.pi / 2]) % (2 * np.pi)
    ends = np.concatenate([[0], np.sort(kinks), [2 * np.pi]])
    z, w = np.polynomial.legendre.leggauss(24)
    low, high = ends[:-1, None], ends[1:, None]
    t, weight = low + (high - low) * (z + 1) / 2, w * (high - low) / 2
    u, v = np.sqrt(q11) * np.cos(t), np.sqrt(q22) * np.cos(t - theta)
    phi = functools.partial(piece, a, b, at_zero, degree)
    return (2 if degree else 1) * np.sum(weight * phi(u) * phi(v)) / (2 * np.pi)


def smooth_oracle(phi, q12, q11, q22):
    """The trapezoid rule on independent coordinates: for analytic functions its error is below rounding."""
    z = np.linspace(-10, 10, 401)
    w = np.exp(-(z**2) / 2)
    w /= w.sum()
    rho = np.clip(q12 / np.sqrt(q11) / np.sqrt(q22), -1, 1) if q11 * q22 > 0 else 0.0
    u = np.sqrt(q11) * z[:, None]
    v = np.sqrt(q22) * (rho * z[:, None] + np.sqrt((1 - rho) * (1 + rho)) * z)
    return w @ (phi(u) * phi(v)) @ w


@pytest.mark.parametrize("pieces", HOMOGENEOUS.values(), ids=HOMOGENEOUS.keys())
def test_homogeneous_values(pieces):
    (degree, a, b, at_zero), slope = pieces
    q12, q11, q22 = grams()
    k, kdot = of_pieces(*pieces)(q12, q11, q22, derivative=True)
    for i in range(q12.size):
        expected = homogeneous_oracle(degree, a, b, at_zero, q12[i], q11[i], q22[i])
        # Near rho = 1 the oracle's acos has lost half of the digits of the angle.
        atol = 1e-12 if abs(q12[i]) < 0.9999 * np.sqrt(q11[i] * q22[i]) else 2e-7
        np.testing.assert_allclose(k[i], expected, rtol=1e-9, atol=1e-12 if degree else 9 * atol)
        np.testing.assert_allclose(kdot[i], homogeneous_oracle(0, *slope, q12[i], q11[i], q22[i]), atol=9 * atol)


@pytest.mark.parametrize(("scale", "rate"), SMOOTH)
@pytest.mark.parametrize("name", ["erf", "gelu"])
def test_smooth_values(name, scale, rate):
    def gaussian(x):
        return np.exp(-((rate * x) ** 2) / 2) / np.sqrt(2 * np.pi)

    if name == "erf":
        kernel = functools.partial(erf, scale=scale, rate=rate)
        phi, slope = (
            lambda x: scale * special.erf(rate * x),
            lambda x: scale * rate * 2 * np.sqrt(2) * gaussian(np.sqrt(2) * x),
        )
    else:
        kernel = functools.partial(gelu, scale=scale, rate=rate)
        phi = lambda x: scale * x * special.ndtr(rate * x)  # noqa: E731
        slope = lambda x: scale * (special.ndtr(rate * x) + rate * x * gaussian(x))  # noqa: E731
    q12, q11, q22 = grams()
    k, kdot = kernel(q12, q11, q22, derivative=True)
    for i in range(q12.size):
        np.testing.assert_allclose(k[i], smooth_oracle(phi, q12[i], q11[i], q22[i]), rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(kdot[i], smooth_oracle(slope, q12[i], q11[i], q22[i]), rtol=1e-10, atol=1e-12)


def test_zero_variance_uses_the_derivative_at_zero():
    zero, one = jnp.zeros(1), jnp.ones(1)
    for at_zero in (0.0, 0.5, 1.0):
        kernel = of_pieces((1, 0.0, 1.0, 0.0), (0.0, 1.0, at_zero))
        assert both(kernel)(zero, zero, zero)[1] == at_zero**2
        assert both(kernel)(zero, zero, one)[1] == at_zero / 2
        assert both(kernel)(zero, one, zero)[1] == at_zero / 2
        assert both(kernel)(zero, zero, one)[0] == 0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_exact_at_coincident_points(dtype):
    q = jnp.asarray(np.exp(np.random.default_rng(1).normal(scale=5, size=1000)), dtype)
    k, kdot = both(KERNELS["relu"])(q, q, q)
    assert (kdot == 0.5).all()
    assert jnp.abs(k / (q / 2) - 1).max() < 4 * jnp.finfo(dtype).eps
    _, kdot = both(KERNELS["relu"])(-q, q, q)
    assert jnp.abs(kdot).max() < jnp.finfo(dtype).eps


@every_kernel
def test_nan_is_never_hidden(kernel):
    gram = np.array([[0.3, 1.0, 2.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]).T
    for operand in range(3):
        poisoned = gram.copy()
        poisoned[operand] = np.nan
        assert all(np.isnan(x).all() for x in both(kernel)(*poisoned))


@one_of_each
def test_float32(kernel):
    rng = np.random.default_rng(2)
    q11, q22 = np.exp(rng.normal(size=(2, 2000), scale=2)).astype("float32")
    q12 = (rng.uniform(-1, 1, 2000) * np.sqrt(q11) * np.sqrt(q22)).astype("float32")
    single = both(kernel)(q12, q11, q22)
    double = both(kernel)(*(q.astype("float64") for q in (q12, q11, q22)))
    size1 = both(kernel)(*[q11.astype("float64")] * 3)
    size2 = both(kernel)(*[q22.astype("float64")] * 3)
    assert single[0].dtype == single[1].dtype == np.float32
    error = jnp.abs(single[0] - double[0]) / (jnp.sqrt(size1[0] * size2[0]) + 1e-30)
    assert error.max() < 2e-6
    # The angle is as wrong as rho: half of the digits at rho = +-1.
    ordinary = jnp.abs(q12) < 0.99 * np.sqrt(q11) * np.sqrt(q22)
    error = jnp.abs(single[1] - double[1]) / (jnp.sqrt(size1[1] * size2[1]) + 1e-30)
    assert jnp.where(ordinary, error, 0).max() < 5e-6


@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_extreme_sizes(size):
    q = [jnp.float32(x * size) for x in (0.3, 1.0, 2.0)]
    k, kdot = KERNELS["relu"](*q, derivative=True)
    expected = KERNELS["relu"](jnp.float32(0.3), jnp.float32(1), jnp.float32(2), derivative=True)
    np.testing.assert_allclose([k / size, kdot], expected, rtol=2e-6)
    for name in ("erf(1.0, 1.0)", "gelu(1.0, 1.0)"):
        assert all(jnp.isfinite(x) for x in KERNELS[name](*q, derivative=True))


@one_of_each
def test_derivatives_at_ordinary_points(kernel):
    rng = np.random.default_rng(3)
    q11, q22 = np.exp(rng.normal(size=(2, 5)))
    q = np.stack([rng.uniform(-0.9, 0.9, 5) * np.sqrt(q11 * q22), q11, q22], 1)
    f = lambda q: jnp.stack(kernel(*q, derivative=True))  # noqa: E731
    derivatives = jax.jit(jax.vmap(lambda q: (jax.jacfwd(f)(q), jax.jacrev(f)(q), jax.jacfwd(jax.jacrev(f))(q))))
    forward, reverse, second = derivatives(q)
    np.testing.assert_allclose(reverse, forward, rtol=1e-12, atol=1e-14)
    values = jax.jit(jax.vmap(f))
    steps = 1e-5 * np.eye(3)
    differences = [(values(q + e) - values(q - e)) / 2e-5 for e in steps]
    np.testing.assert_allclose(forward, np.stack(differences, -1), rtol=1e-6, atol=1e-8)
    differences = [(derivatives(q + e)[0] - derivatives(q - e)[0]) / 2e-5 for e in steps]
    np.testing.assert_allclose(second, np.stack(differences, -1), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["relu", "abs", "erf(1.3, 0.7)", "gelu(1.3, 0.7)"])
def test_price(name):
    """`dK/dq12 = Kdot` for continuous functions, at parallel points too."""
    q12, q11, q22 = (x[:-2] for x in grams())
    slope = jax.grad(lambda q12: KERNELS[name](q12, q11, q22, derivative=False)[0].sum())(q12)
    np.testing.assert_allclose(slope, KERNELS[name](q12, q11, q22, derivative=True)[1], rtol=1e-9, atol=1e-12)


@one_of_each
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_finite_everywhere(kernel, dtype):
    q = np.stack(grams(), 1)
    nearly_psd = [(1 + 1e-6, 1, 1), (-1 - 1e-6, 1, 1), (1e-9, 0, 0), (1e-7, 1e-12, 1)]
    extreme = [(1e-30, 1e-30, 1e-30), (0, 1e-30, 1), (1e12, 1e12, 1e12), (-1e12, 1e12, 1e12)]

    def f(q):
        return sum(kernel(*q, derivative=True))

    first, second = jax.jit(jax.vmap(jax.grad(f))), jax.jit(jax.vmap(jax.hessian(f)))
    assert jnp.isfinite(first(jnp.asarray(np.concatenate([q, nearly_psd, extreme]), dtype))).all()
    assert jnp.isfinite(second(jnp.asarray(np.concatenate([q, nearly_psd]), dtype))).all()


@pytest.mark.parametrize("kernel", [KERNELS[name] for name in FORMULAS[2:]], ids=FORMULAS[2:])
def test_smooth_at_parallel_points(kernel):
    """Where the kernel is smooth, its derivatives at rho = 1 are those of its neighbourhood."""
    f = lambda q: jnp.stack(kernel(*q, derivative=True))  # noqa: E731
    q = jnp.array([[1.0, 1.0, 1.0], [1 - 1e-6, 1.0, 1.0], [1 - 2e-6, 1.0, 1.0]])
    for function in (jax.jacfwd(f), jax.jacfwd(jax.jacfwd(f))):
        at, near, farther = jax.jit(jax.vmap(function))(q)
        np.testing.assert_allclose(at, 2 * near - farther, rtol=1e-8, atol=1e-8)


@one_of_each
def test_double_vmap_keeps_the_primitive_and_the_sizes(kernel):
    rng = np.random.default_rng(4)
    q11, q22 = rng.uniform(0.5, 2, (5, 3)), rng.uniform(0.5, 2, (4, 3))
    q12 = rng.uniform(-1, 1, (5, 4, 3)) * np.sqrt(q11[:, None] * q22)
    pair = functools.partial(kernel, derivative=True)
    matrix = jax.vmap(jax.vmap(pair, (0, None, 0)), (0, 0, None))
    for mapped, direct in zip(matrix(q12, q11, q22), pair(q12, q11[:, None], q22[None]), strict=True):
        assert mapped.shape == (5, 4, 3)
        np.testing.assert_array_equal(mapped, direct)
    jaxpr = jax.make_jaxpr(matrix)(q12, q11, q22)
    kernels = [eqn for eqn in jaxpr.eqns if eqn.primitive.name.endswith("_kernel")]
    assert len(kernels) == 1
    assert [v.aval.shape for v in kernels[0].invars] == [(5, 4, 3), (5, 1, 3), (1, 4, 3)]


def test_names_in_jaxprs():
    one = jnp.ones(())
    found = [
        jax.make_jaxpr(functools.partial(KERNELS[name], derivative=True))(one, one, one).eqns[0].primitive.name
        for name in ("relu", "erf(1.0, 1.0)", "gelu(1.0, 1.0)")
    ]
    assert found == ["relu_kernel", "erf_kernel", "gelu_kernel"]


@one_of_each
def test_without_the_derivative(kernel):
    q = [jnp.asarray(x) for x in grams()]
    (k,) = kernel(*q, derivative=False)
    np.testing.assert_allclose(k, jax.jit(functools.partial(kernel, derivative=True))(*q)[0], rtol=1e-13, atol=1e-15)
