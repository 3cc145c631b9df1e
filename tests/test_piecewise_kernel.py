"""Kernels of piecewise exponential polynomials against quadrature, which shares no code with them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from infnet.activations.piecewise import PiecewiseActivation, joint
from infnet.primitives.piecewise import Atom, Shape, piecewise, piecewise_mean
from infnet.primitives.shapes import derivative

pytestmark = pytest.mark.optimised


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


# Few numbers go through large programs here: compiling well takes longer than running badly.
fast_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def shape(*atoms, at=(), smoothing=0.0):
    return Shape(tuple(Atom(*a) for a in atoms), tuple(at), smoothing)


def linear_pieces(*kinks):
    """A continuous piecewise-linear function that is 0 on the left, by its kinks `(point, change of slope)`."""
    return shape(*((1, p, 1, 0.0, c) for p, c in kinks))


def exponential_unit(scale, alpha, width, point=0.0):
    """`scale (x - point)` right of the point, left of it `scale alpha (exp((x - point) / width) - 1)`."""
    left = (-1, point, 0, 1 / width, scale * alpha * np.exp(-point / width)), (-1, point, 0, 0.0, -scale * alpha)
    return shape((1, point, 1, 0.0, scale), *left, at=((point, 0.0),))


def elu(x, scale=1.0, alpha=1.0, width=1.0):
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0) / width))


def density(x):
    return np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)


SELU = {"scale": 1.0507009873554805, "alpha": 1.6732632423543772, "width": 1.0}
CELU = {"scale": 1.0, "alpha": 0.7, "width": 0.7}
ELU = {"scale": 1.0, "alpha": 1.0, "width": 1.0}
# name: (shape, function, breakpoints)
CASES = {
    "shifted relu": (linear_pieces((1.0, 1.0)), lambda x: np.maximum(x - 1, 0), [1.0]),
    "hard_tanh": (
        shape((-1, -1.0, 0, 0.0, -1.0), (1, -1.0, 1, 0.0, 1.0), (1, -1.0, 0, 0.0, -1.0), (1, 1.0, 1, 0.0, -1.0)),
        lambda x: np.clip(x, -1, 1),
        [-1.0, 1.0],
    ),
    "relu6": (linear_pieces((0.0, 1.0), (6.0, -1.0)), lambda x: np.clip(x, 0, 6), [0.0, 6.0]),
    "hard_sigmoid": (linear_pieces((-3.0, 1 / 6), (3.0, -1 / 6)), lambda x: np.clip(x + 3, 0, 6) / 6, [-3.0, 3.0]),
    "elu": (exponential_unit(**ELU), elu, [0.0]),
    "selu": (exponential_unit(**SELU), functools.partial(elu, **SELU), [0.0]),
    "celu": (exponential_unit(**CELU), functools.partial(elu, **CELU), [0.0]),
    "shifted elu": (exponential_unit(**ELU, point=-1.0), lambda x: elu(x + 1), [-1.0]),
    "step": (shape((1, 0.3, 0, 0.0, 1.0), at=((0.3, 0.5),)), lambda x: (x > 0.3) * 1.0, [0.3]),
    **{f"relu^{n}": (shape((1, 0.0, n, 0.0, 1.0)), lambda x, n=n: (x > 0) * x**n, [0.0]) for n in (0, 1, 2, 5)},
    "x^5": (shape((0, 0.0, 5, 0.0, 1.0)), lambda x: x**5, []),
    "polynomial": (shape((0, 0.0, 3, 0.0, 1.0), (0, 0.0, 0, 0.0, -2.0)), lambda x: x**3 - 2, []),
    "hard_swish": (
        shape((1, -3.0, 2, 0.0, 1 / 6), (1, -3.0, 1, 0.0, -0.5), (1, 3.0, 2, 0.0, -1 / 6), (1, 3.0, 1, 0.0, -0.5)),
        lambda x: x * np.clip(x + 3, 0, 6) / 6,
        [-3.0, 3.0],
    ),
    "smooth relu": (
        shape((1, 0.0, 1, 0.0, 1.0), smoothing=0.25),
        lambda x: x * special.ndtr(2 * x) + density(2 * x) / 2,
        list(np.arange(-4, 4.5, 0.5)),
    ),
    "erf(x - 1)": (
        shape((0, 0.0, 0, 0.0, -1.0), (1, 1.0, 0, 0.0, 2.0), smoothing=0.5),
        lambda x: special.erf(x - 1),
        list(np.arange(-5, 7.5, 0.75)),
    ),
    "x Phi(2x + 1)": (
        shape((1, -0.5, 1, 0.0, 1.0), (1, -0.5, 0, 0.0, -0.5), (0, -0.5, -1, 0.0, -0.25), smoothing=0.25),
        lambda x: x * special.ndtr(2 * x + 1),
        list(np.arange(-4.5, 4, 0.5)),
    ),
    "exp(x / 20)": (shape((0, 0.0, 0, 0.05, 1.0)), lambda x: np.exp(x / 20), []),
}
# Every function with itself, and some with others; with means, one of each kind.
OTHERS = [("hard_tanh", "elu"), ("shifted elu", "hard_sigmoid"), ("x^5", "erf(x - 1)"), ("selu", "exp(x / 20)")]
KINDS = ["elu", "step", "relu^2", "hard_swish", "x Phi(2x + 1)"]


def pairs(means):
    return [(n, n) for n in (KINDS if means else CASES)] + OTHERS[: 2 if means else None]


GAUSS_X, GAUSS_W = np.polynomial.legendre.leggauss(16)


def composite(ends):
    """Points and weights of Gauss-Legendre rules between consecutive ends, along the last axis."""
    low, high = ends[..., :-1, None], ends[..., 1:, None]
    x, w = low + (high - low) * (GAUSS_X + 1) / 2, (high - low) / 2 * GAUSS_W
    return x.reshape(*ends.shape[:-1], -1), w.reshape(*ends.shape[:-1], -1)


def expectation(f, kinks, mean, variance):
    sd = np.sqrt(variance)
    ends = np.unique(np.clip(np.concatenate([np.arange(-11, 12), (np.asarray(kinks) - mean) / sd]), -11, 11))
    z, w = composite(ends)
    return np.sum(w * density(z) * f(mean + sd * z))


def second_moment(f, kinks, g, other_kinks, q12, q11, q22, m1, m2):
    """E f(u) g(v): over u, and inside over v given u, both between the kinks."""
    slope = q12 / q11
    rho = q12 / np.sqrt(q11 * q22)
    sd = np.sqrt(q22 * max(0, 1 - rho) * (1 + rho))
    if sd < 1e-7 * np.sqrt(q22):
        crossings = [m1 + (k - m2) / slope for k in other_kinks]
        return expectation(lambda x: f(x) * g(m2 + slope * (x - m1)), [*kinks, *crossings], m1, q11)
    # Where the line u -> E(v | u) crosses a kink of g, the inner integral changes within sd / slope.
    steps = np.array([-8, -5, -3, -2, -1, 0, 1, 2, 3, 5, 8]) * sd / max(abs(slope), 1e-9)
    crossings = [m1 + (k - m2) / slope + steps for k in other_kinks if abs(slope) > 1e-9]
    root = np.sqrt(q11)
    ends = np.unique(
        np.clip(np.concatenate([m1 + root * np.arange(-11, 12), kinks, *crossings]), m1 - 11 * root, m1 + 11 * root)
    )
    u, w = composite(ends)
    centre = m2 + slope * (u - m1)
    inner = np.clip((np.asarray(other_kinks)[None] - centre[:, None]) / sd, -10, 10)
    grid = np.broadcast_to(np.arange(-10, 10.5, 2.0), (u.size, 11))
    z, v = composite(np.sort(np.concatenate([grid, inner], axis=1), axis=1))
    values = np.sum(v * density(z) * g(centre[:, None] + sd * z), axis=1)
    return np.sum(w * density((u - m1) / root) / root * f(u) * values)


def grams():
    """(q12, q11, q22): all correlations with each of some variances."""
    rhos = [-1, -0.99, 0, 0.5, 0.999, 1 - 1e-8, 1]
    variances = [(1e-4, 1e-4), (0.02, 0.3), (9.0, 4.0), (100.0, 100.0)]
    rows = [(rho * np.sqrt(q * r) if q != r else rho * q, q, r) for q, r in variances for rho in rhos]
    return np.array(rows).T


@functools.cache
def kernels(means):
    """All functions with themselves, and each with the next: one compilation."""

    @fast_jit
    def run(q12, q11, q22):
        m = tuple(jnp.full_like(q11, x) for x in means) if means else None
        left, right = zip(*((CASES[f][0], CASES[g][0]) for f, g in pairs(means)), strict=True)
        return jnp.stack(piecewise(q12, q11, q22, m, left=left, right=right))

    return run


@functools.cache
def expected(means):
    q, m = grams(), means or (0.0, 0.0)
    k = np.array([[second_moment(*CASES[f][1:], *CASES[g][1:], *row, *m) for row in q.T] for f, g in pairs(means)])
    left, right = (
        {n: [expectation(lambda x, f=f: f(x) ** 2, kinks, mean, v) for v in row] for n, (_, f, kinks) in CASES.items()}
        for row, mean in ((q[1], m[0]), (q[2], m[1]))
    )
    return k, np.maximum([np.sqrt(np.multiply(left[f], right[g])) for f, g in pairs(means)], 1e-8)


MEANS = [None, (0.4, -0.7)]


@pytest.mark.parametrize("means", MEANS, ids=["zero means", "means"])
def test_values(means):
    k, scale = expected(means)
    error = np.abs(np.asarray(kernels(means)(*grams())) - k) / scale
    # At |rho| = 1 and unequal variances the oracle's and our rho differ by rounding: steps see the root of that.
    sharp = (np.abs(np.abs(grams()[0]) - np.sqrt(grams()[1] * grams()[2])) > 1e-7) | (grams()[1] == grams()[2])
    assert error[:, sharp].max() < 2e-12, worst(error * sharp, means)
    assert error.max() < 1e-7, worst(error, means)


def worst(error, means):
    i, j = np.unravel_index(np.argmax(error), error.shape)
    return pairs(means)[i], grams()[:, j], error[i, j]


def test_float32():
    q = np.float32(grams())
    # q12 rounded beyond the root of the variances would be clipped differently.
    q[0] = np.where(q[1] == q[2], q[0], q[0] * np.float32(1 - 1e-4))
    error = np.abs(np.asarray(kernels(None)(*q)) - kernels(None)(*np.float64(q))) / expected(None)[1]
    # Errors are relative to the terms: large where a function is much smaller than its pieces, or saturates far away.
    ordinary = np.array([f != "x Phi(2x + 1)" for f, _ in pairs(None)])[:, None] & (q[1] < 50)
    assert (error * ordinary).max() < 2e-6, worst(error * ordinary, None)
    assert error[:, q[1] > 1e-3].max() < 2e-5, worst(error * (q[1] > 1e-3), None)


def test_arc_cosine_kernels():
    """Orders 0 to 2 of Cho and Saul (2009), whose formulas are J_n(theta) |x|^n |y|^n / pi, here halved."""
    theta = np.linspace(0, np.pi, 40)
    cos, sin = np.cos(theta), np.sin(theta)
    j = [np.pi - theta, sin + (np.pi - theta) * cos, 3 * sin * cos + (np.pi - theta) * (1 + 2 * cos**2)]
    powers = tuple(CASES[f"relu^{n}"][0] for n in (0, 1, 2))
    ones = np.ones_like(cos)
    for k, expected_j in zip(piecewise(cos, ones, ones, left=powers, right=powers), j, strict=True):
        np.testing.assert_allclose(k, expected_j / (2 * np.pi), atol=2e-8 if k[-1] == 0 else 1e-13)


ACTIVATION = PiecewiseActivation(CASES["hard_tanh"][0], derivative(CASES["hard_tanh"][0]), "hard_tanh")


def test_activation():
    q, m = jnp.array([0.0, 1e-3, 0.7, 30.0]), jnp.array([0.2, 0.0, -0.5, 1.5])
    elu_case, step = (PiecewiseActivation(CASES[n][0], derivative(CASES[n][0]), n) for n in ("elu", "step"))
    smooth = PiecewiseActivation(CASES["x Phi(2x + 1)"][0], derivative(CASES["x Phi(2x + 1)"][0]), "smooth")
    for activation, name, mean in ((ACTIVATION, "hard_tanh", m), (elu_case, "elu", None), (smooth, "x Phi(2x + 1)", m)):
        _, f, kinks = CASES[name]
        laws = [(max(float(v), 1e-30), float(a)) for v, a in zip(q, np.zeros(4) if mean is None else m, strict=True)]
        mean_of, (square, _) = fast_jit(lambda *x, a=activation: (a.mean(*x), a.squares(*x)))(q, mean)
        np.testing.assert_allclose(mean_of, [expectation(f, kinks, a, v) for v, a in laws], atol=1e-12)
        squares = [expectation(lambda x, f=f: f(x) ** 2, kinks, a, v) for v, a in laws]
        np.testing.assert_allclose(square, squares, rtol=1e-10, atol=1e-15)
    assert [a.odd for a in (ACTIVATION, elu_case, step, smooth)] == [True, False, False, False]
    assert [PiecewiseActivation(CASES[n][0], shape(), n).odd for n in ("x^5", "polynomial")] == [True, False]
    # Stein's lemma sees the jump of a step, `jax.grad` does not.
    stein, slope = PiecewiseActivation(step.values, shape(), "step").mean_slopes(q[1:], m[1:])
    np.testing.assert_allclose(stein, density((0.3 - m[1:]) / np.sqrt(q[1:])) / np.sqrt(q[1:]), rtol=1e-13)
    np.testing.assert_array_equal(slope, 0)
    k, kdot = fast_jit(lambda *x: joint(ACTIVATION, elu_case)(*x, True, (m, -m)))(0.3 * q, q, 2 * q)
    (f, a), (g, b) = CASES["hard_tanh"][1:], CASES["elu"][1:]
    np.testing.assert_allclose(k[2], second_moment(f, a, g, b, 0.21, 0.7, 1.4, -0.5, 0.5), rtol=1e-12)
    assert kdot.shape == k.shape


CHOSEN = ("elu", "hard_swish", "x Phi(2x + 1)", "step")


@functools.cache
def chosen(order):
    """The kernels of some functions, and their derivatives along one or two directions."""
    shapes = tuple(CASES[n][0] for n in CHOSEN[: 4 if order < 2 else 3])

    def run(*operands):
        return jnp.stack(piecewise(*operands[:3], operands[3:] or None, left=shapes, right=shapes))

    def first(operands, one):
        return jax.jvp(run, operands, one)

    def second(operands, one, two):
        return jax.jvp(lambda *x: jax.jvp(run, x, one)[1], operands, two)

    return fast_jit(second if order == 2 else first)


def ordinary_points(rng, n):
    q11, q22 = np.exp(rng.normal(size=(2, n)))
    q12 = rng.uniform(-0.9, 0.9, n) * np.sqrt(q11 * q22)
    return tuple(jnp.asarray(x) for x in (q12, q11, q22, *rng.normal(size=(2, n))))


def along(f, x, direction, eps=1e-5):
    """The derivative of f by differences of the fourth order."""
    a, b, c, d = (f(*(p + s * eps * t for p, t in zip(x, direction, strict=True))) for s in (-2, -1, 1, 2))
    return (a - 8 * b + 8 * c - d) / (12 * eps)


def check_slopes(slopes, expected_slopes, tolerance):
    assert np.abs((slopes - expected_slopes) / (1 + np.abs(slopes))).max() < tolerance


def test_first_derivatives():
    rng = np.random.default_rng(3)
    x, direction = ordinary_points(rng, 8), tuple(jnp.asarray(d) for d in rng.normal(size=(5, 8)))
    slopes = chosen(1)(x, direction)[1]
    check_slopes(slopes, along(lambda *y: chosen(1)(y, direction)[0], x, direction), 1e-9)


def test_second_derivatives():
    rng = np.random.default_rng(3)
    x, one, two = ordinary_points(rng, 8)[:3], *jnp.asarray(rng.normal(size=(2, 3, 8)))
    one, two = tuple(one), tuple(two)
    _, mixed = chosen(2)(x, one, two)
    check_slopes(mixed, along(lambda *y: chosen(2)(y, one, two)[0], x, two), 1e-7)


@pytest.mark.parametrize(("order", "count"), [(1, 5), (2, 3)])
def test_degenerate_points_are_finite(order, count):
    q12 = jnp.array([1.0, -1.0, 2.0, 0.0, 0.0, 0.0, 1e-30, jnp.nan])
    q11 = jnp.array([1.0, 1.0, 2.0, 0.0, 0.0, 1.0, 1e-30, 1.0])
    q22 = jnp.array([1.0, 1.0, 2.0, 0.0, 1.0, 0.0, 1e-30, 1.0])
    x = (q12, q11, q22, 0 * q11, 0 * q11)[:count]
    for result in chosen(order)(x, *[tuple(map(jnp.ones_like, x))] * order):
        assert np.isfinite(result[:, :-1]).all(), result
        assert np.isnan(result[:, -1]).all()


def test_zero_variance():
    one, zero = jnp.ones(3), jnp.zeros(3)
    mean = jnp.array([0.3, 1.0, -2.0])
    step, tanh = CASES["step"][0], CASES["hard_tanh"][0]
    k, smooth = piecewise(zero, zero, one, (mean, zero), left=(step, step._replace(smoothing=0.04)), right=(tanh,) * 2)
    np.testing.assert_array_equal(k, 0)  # E hard_tanh = 0
    (k,) = piecewise(zero, zero, zero, (mean, mean), left=(step,), right=(step,))
    np.testing.assert_array_equal(k, [0.25, 1, 0])
    (mean_of_smooth,) = piecewise_mean(zero, mean, shapes=(step._replace(smoothing=0.04),))
    np.testing.assert_allclose(mean_of_smooth, special.ndtr((mean - 0.3) / 0.2), rtol=1e-13)
    assert smooth.shape == (3,)


def test_jit_vmap_and_reverse_mode():
    rng = np.random.default_rng(5)
    x = rng.normal(size=(4, 3))
    gram = jnp.asarray(x @ x.T / 3)
    diagonal = jnp.diag(gram)

    def one(q12, q11, q22):
        return ACTIVATION.kernel(q12, q11, q22, True)

    expected_k = one(gram, diagonal[:, None], diagonal[None])
    rows = fast_jit(jax.vmap(jax.vmap(one, (0, None, 0)), (0, 0, None)))(gram, diagonal, diagonal)
    assert "piecewise_kernel" in str(jax.make_jaxpr(jax.vmap(one))(diagonal, diagonal, diagonal))
    for a, b in zip(rows, expected_k, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)

    def total(*q):
        return one(*q)[0].sum()

    q = (gram * 0.9, diagonal[:, None], diagonal[None])
    gradient = fast_jit(jax.grad(total, (0, 1, 2)))(*q)
    direction = [jnp.asarray(rng.normal(size=a.shape)) for a in q]
    slope = sum(jnp.vdot(a, b) for a, b in zip(gradient, direction, strict=True))
    compiled = fast_jit(total)
    ends = [compiled(*(a + s * 1e-5 * d for a, d in zip(q, direction, strict=True))) for s in (1, -1)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-7)
