"""One list of activations through every transformation, and the properties that every kernel has.

The list is that of the table in the README, `benchmarks/activations.py`.
"""

import functools
import importlib.util
import sys
from pathlib import Path

import hypothesis
import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from xla_flags import HAS_FUSION_EMITTERS

pytestmark = pytest.mark.optimised

PATH = Path(__file__).parents[1] / "benchmarks/activations.py"
SPEC = importlib.util.spec_from_file_location("activation_table", PATH)
TABLE = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = TABLE
SPEC.loader.exec_module(TABLE)

KINKS = [-3.0, -1.0, 0.0, 0.5, 1.0, 3.0, 6.0]  # of all activations in the list
every_activation = pytest.mark.parametrize("name", TABLE.CASES)
N = 12


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


@functools.cache
def activation(name):
    return TABLE.activation_of(TABLE.CASES[name])


def pair(name, q):
    """(K, Kdot) at q = (q12, q11, q22)."""
    return jnp.stack(activation(name).kernel(*q, True))


TRACED = []


@functools.cache
def values(name):
    """K and Kdot of N triples, and of each variance with itself; compiled once for each activation and dtype."""

    def function(q):
        TRACED.append((name, q.dtype))
        _, q11, q22 = q.T
        own = [jnp.stack(activation(name).squares(x)) for x in (q11, q22)]
        return pair(name, q.T), *own

    return jax.jit(function)


@functools.cache
def transformed(name):
    f = functools.partial(pair, name)
    matrix = jax.vmap(jax.vmap(lambda a, b, c: f((a, b, c)), (0, None, 0)), (0, 0, None))

    def twice(q):
        """The derivative by vjp, and that of it by jvp."""
        reverse = jax.jacrev(f)(q)
        return reverse, reverse

    def function(q):
        q12, q11, q22 = q.T
        second, reverse = jax.vmap(jax.jacfwd(twice, has_aux=True))(q)
        return {
            "vmap": jax.vmap(f)(q),
            "vmap of vmap": matrix(jnp.broadcast_to(q12[:, None], (N, N)), q11, q22),
            "jvp": jax.vmap(jax.jacfwd(f))(q),
            "vjp": reverse,
            "grad of grad": second,
        }

    # Few numbers go through large programs here: compiling well would take longer than running badly.
    emitters = {"xla_cpu_use_fusion_emitters": False} if HAS_FUSION_EMITTERS else {}
    return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0, **emitters})


def triples(seed=0, largest=TABLE.Q_MAX):
    rng = np.random.default_rng(seed)
    q11, q22 = rng.uniform(0.1, largest, (2, N))
    return np.stack([rng.uniform(-0.9, 0.9, N) * np.sqrt(q11 * q22), q11, q22], 1)


@every_activation
def test_transformations(name):
    q = triples()
    k = np.asarray(values(name)(q)[0]).T
    eager = activation(name).kernel(*q.T, True)
    np.testing.assert_allclose(np.stack(eager, 1), k, rtol=1e-12, atol=1e-14)
    found = transformed(name)(q)
    np.testing.assert_allclose(found["vmap"], k, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found["vmap of vmap"][np.arange(N), np.arange(N)], k, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found["vjp"], found["jvp"], rtol=1e-10, atol=1e-12)
    step = 1e-5
    moved = [[transformed(name)(q + sign * step * e) for sign in (1, -1)] for e in np.eye(3)]
    for order, of in (("jvp", "vmap"), ("grad of grad", "jvp")):
        differences = np.stack([(up[of] - down[of]) / (2 * step) for up, down in moved], -1)
        scale = np.abs(differences).max()
        np.testing.assert_allclose(found[order], differences, rtol=1e-6, atol=1e-7 * scale + 1e-9)


@every_activation
def test_derivatives_are_finite_at_parallel_and_zero_points(name):
    q = np.resize([(1, 1, 1), (-1, 1, 1), (0, 0, 0), (0, 0, 1), (0, 1, 0), (0.3, 0.09, 1), (1e-9, 1e-9, 1)], (N, 3))
    found = transformed(name)(np.asarray(q, float))
    for what, value in found.items():
        assert np.isfinite(value).all(), what


@every_activation
def test_float32(name):
    q = triples(1).astype("float32")
    exact, one, two = values(name)(q.astype("float64"))
    found, *_ = values(name)(q)
    assert found.dtype == np.float32
    assert (np.abs(found - exact) / (np.sqrt(one * two) + 1e-30)).max() < 3e-6


@every_activation
def test_nothing_is_traced_twice(name):
    for dtype in ("float32", "float64"):
        for seed in (2, 3):
            values(name)(triples(seed).astype(dtype))
        assert TRACED.count((name, np.dtype(dtype))) == 1


def quadrature(phi, q12, q11, q22, mean=0.0):
    """E phi(mean + u) phi(mean + v) on a grid of Gauss-Legendre panels in u and v, with the kinks between panels."""
    z, w = np.polynomial.legendre.leggauss(8)

    def axis(q):
        ends = np.unique([*np.sqrt(q) * np.linspace(-9, 9, 41), *(np.array(KINKS) - mean)])
        ends = ends[np.abs(ends) <= 9 * np.sqrt(q)]
        low, high = ends[:-1, None], ends[1:, None]
        return (low + (high - low) * (z + 1) / 2).ravel(), (w * (high - low) / 2).ravel()

    (u, wu), (v, wv) = axis(q11), axis(q22)
    det = q11 * q22 - q12**2
    exponent = (q22 * u[:, None] ** 2 - 2 * q12 * u[:, None] * v + q11 * v**2) / (2 * det)
    density = np.exp(-exponent) / (2 * np.pi * np.sqrt(det))
    return (wu * phi(mean + u)) @ density @ (wv * phi(mean + v))


@every_activation
def test_against_quadrature(name):
    function = TABLE.CASES[name].function
    slope = jax.vmap(jax.grad(function))
    found, one, two = values(name)(triples(4))
    sizes = np.sqrt(one * two) + 1e-30
    for k, phi in enumerate((function, slope)):
        at = lambda x, phi=phi: np.asarray(phi(jnp.asarray(x)), float)  # noqa: E731
        expected = np.array([quadrature(at, *q) for q in triples(4)[:4]])
        tolerance = 1e-11 if activation(name).exact == "exact" else 1e-6
        assert (np.abs(found[k][:4] - expected) / sizes[k][:4]).max() < tolerance


# Properties of all kernels

variances = arrays.arrays(float, N, elements=st.floats(1e-3, TABLE.Q_MAX))
correlations = arrays.arrays(float, N, elements=st.floats(-1, 1))
few = hypothesis.settings(max_examples=15, deadline=None, derandomize=True)


@every_activation
@few
@hypothesis.given(q11=variances, q22=variances, rho=correlations)
def test_symmetric_and_bounded(name, q11, q22, rho):
    q12 = rho * np.sqrt(q11 * q22)
    k, one, two = values(name)(np.stack([q12, q11, q22], 1))
    swapped, *_ = values(name)(np.stack([q12, q22, q11], 1))
    sizes = np.sqrt(one * two)
    atol = 1e-12 * sizes.max()
    np.testing.assert_allclose(k, swapped, rtol=1e-9, atol=atol)
    assert (np.abs(k) <= sizes * (1 + 1e-9) + atol).all()  # Cauchy and Schwarz


@every_activation
@few
@hypothesis.given(points=arrays.arrays(float, (4, 3), elements=st.floats(-0.8, 0.8)))
def test_positive_semidefinite(name, points):
    gram = points @ points.T
    i, j = np.triu_indices(4)
    q = np.zeros((N, 3))
    q[: len(i)] = np.stack([gram[i, j], gram[i, i], gram[j, j]], 1)
    for k in values(name)(q)[0]:
        matrix = np.zeros((4, 4))
        matrix[i, j] = matrix[j, i] = k[: len(i)]
        assert np.linalg.eigvalsh(matrix)[0] >= -1e-6 * np.trace(matrix) - 1e-12


@every_activation
@few
@hypothesis.given(q=st.floats(1e-2, TABLE.Q_MAX))
def test_monotone_and_convex_in_the_correlation(name, q):
    """At equal variances a kernel is a power series in rho with coefficients that are not negative."""
    rho = np.linspace(0, 1, N)
    k, one, _ = values(name)(np.stack([rho * q, np.full(N, q), np.full(N, q)], 1))
    assert (np.diff(k) >= -1e-9 * one[:, -1:]).all()
    assert (np.diff(k, 2) >= -1e-9 * one[:, -1:]).all()


@few
@hypothesis.given(scale=st.floats(1e-3, 1e3), rho=arrays.arrays(float, N, elements=st.floats(-0.999, 0.999)))
@pytest.mark.parametrize(("name", "degree"), [("relu", 1), ("leaky_relu", 1), ("abs", 1), ("sign", 0), ("monomial", 3)])
def test_homogeneous(name, degree, scale, rho):
    q = np.stack([rho, np.ones(N), np.ones(N)], 1)
    one, two = values(name)(q)[0], values(name)(scale * q)[0]
    np.testing.assert_allclose(two[0], scale**degree * one[0], rtol=1e-10, atol=1e-13 * scale**degree)
