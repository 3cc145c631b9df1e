"""The bivariate normal quadrant against one-dimensional quadrature and the known values at the ends."""

import jax
import numpy as np
import pytest
from scipy import special

from infnet.primitives.orthant import orthant, scaled_tail

pytestmark = pytest.mark.optimised


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


GAUSS_X, GAUSS_W = np.polynomial.legendre.leggauss(20)


def conditional(h, k, rho):
    """The integral over x > h of the density times P(Y > k | X = x), cut finely where the latter changes."""
    if abs(rho) == 1:
        return special.ndtr(-max(h, k)) if rho > 0 else max(0.0, special.ndtr(-h) - special.ndtr(k))
    root = np.sqrt((1 - rho) * (1 + rho))
    steps = np.linspace(-9, 9, 37)
    ends = np.unique(np.clip(np.concatenate([steps, (k + root * steps) / rho]), h, max(9.0, h + 1)))
    low, high = ends[:-1, None], ends[1:, None]
    x, w = low + (high - low) * (GAUSS_X + 1) / 2, (high - low) / 2 * GAUSS_W
    return np.sum(w * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) * special.ndtr(-(k - rho * x) / root))


def points():
    rng = np.random.default_rng(0)
    n = 600
    h, k = rng.normal(size=(2, n)) * rng.choice([0.01, 0.3, 1, 3], (2, n))
    rho = rng.choice([-1, 1], n) * (1 - 10 ** rng.uniform(-10, 0, n))
    h[:10] = k[5:15] = 0
    rho[15:30], rho[30:45] = 1, -1
    k[45:60], k[60:75] = h[45:60], -h[60:75]
    return h, k, rho


def test_quadrature():
    values = jax.jit(orthant)(*points())
    np.testing.assert_allclose(values, [conditional(*row) for row in zip(*points(), strict=True)], rtol=0, atol=6e-15)


def test_float32():
    rounded = [np.float32(x) for x in points()]
    exact = [conditional(*row) for row in zip(*map(np.float64, rounded), strict=True)]
    np.testing.assert_allclose(jax.jit(orthant)(*rounded), exact, rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ends(dtype):
    inf = np.inf
    h = np.array([0, 0, 0, -inf, inf, 1, 1, -inf, np.nan, 0, 0], dtype)
    k = np.array([0, 0, 0, 0.5, 0.5, -1, 1, -inf, 0, np.nan, 0], dtype)
    rho = np.array([0.5, 1, -1, 0.3, 0.3, -1, 1, -0.2, 0, 0, np.nan], dtype)
    tail = special.ndtr(-np.array([0.5, 1.0]))
    expected = [1 / 3, 0.5, 0, tail[0], 0, 0, tail[1], 1, np.nan, np.nan, np.nan]
    np.testing.assert_allclose(orthant(h, k, rho), expected, rtol=0, atol=1e-15 if dtype == "float64" else 1e-7)


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-7), ("float64", 2e-14)])
def test_scaled_tail(dtype, rtol):
    x = np.concatenate([np.linspace(0, 20, 500), np.geomspace(20, 1e8, 100)]).astype(dtype)
    np.testing.assert_allclose(scaled_tail(x), special.erfcx(x.astype("float64") / np.sqrt(2)) / 2, rtol=rtol)
