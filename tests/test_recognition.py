"""Activations are recognised by what they compute: many ways to write the same, and what only looks the same."""

import math

import activation_ways as ways
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from activation_ways import DEGREE_0, DEGREE_1, ERF, FAMILIES, GELU, NEAR_MISSES, REFUSED
from scipy import special

from infnet.activations import recognise
from infnet.activations.chains import derivative
from infnet.activations.closed_forms import Erf, Gelu, Homogeneous
from infnet.activations.exponential import ExponentialActivation
from infnet.activations.piecewise import PiecewiseActivation
from infnet.activations.series import SeriesActivation
from infnet.errors import UnsupportedError, Where
from infnet.numpy_rules import evaluate

WHERE = Where("MLP/activation", "model.py:12 (f)")
DTYPES = ["float32", "float64"]
POINTS = np.concatenate([np.arange(-7, 8), np.linspace(-7.1, 7.3, 48)])  # breakpoints included


def chain(function, dtype="float32", shape=(1, 3)):
    with jax.enable_x64(dtype == "float64"):
        return jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, dtype))


def recognised(function, dtype="float32", shape=(1, 3)):
    traced = chain(function, dtype, shape)
    with jax.enable_x64(dtype == "float64"):
        return recognise(traced, WHERE)


# What a description says, in numpy. Sums of atoms and of terms are written out from their definitions.


def values_and_slope(activation, x):
    if isinstance(activation, Homogeneous):
        degree, a, b, at_zero = activation.values
        return np.where(x == 0, at_zero, np.where(x < 0, a, b) * x**degree), side_values(x, *activation.slope)
    if isinstance(activation, Erf):
        slope = activation.scale * activation.rate * 2 / math.sqrt(math.pi) * np.exp(-((activation.rate * x) ** 2))
        return activation.scale * special.erf(activation.rate * x), slope
    if isinstance(activation, Gelu):
        scale, z = activation.scale, activation.rate * x
        return scale * x * special.ndtr(z), scale * (special.ndtr(z) + z * normal(z))
    describe = {PiecewiseActivation: shape_values, ExponentialActivation: term_values}[type(activation)]
    return describe(activation.values, x), describe(activation.slope, x)


def side_values(x, left, right, at_zero):
    return np.where(x < 0, left, np.where(x > 0, right, at_zero))


def normal(z):
    return np.exp(-(z**2) / 2) / math.sqrt(2 * math.pi)


def term_values(terms, x):
    total = sum((t.coefficient * x**t.power * np.exp(t.quadratic * x**2 + t.linear * x) for t in terms), 0 * x)
    np.testing.assert_allclose(np.imag(total), 0, atol=1e-12)
    return np.real(total)


def shape_values(shape, x):
    t = math.sqrt(shape.smoothing)
    total = sum((a.coefficient * (smoothed_atom(a, x, t) if t else atom(a, x)) for a in shape.atoms), 0 * x)
    for point, value in shape.at:
        total = np.where(x == point, value, total)
    return total


def atom(a, x):
    y = x if a.side == 0 else np.maximum(a.side * (x - a.point), 0)
    inside = (a.side == 0) | (a.side * (x - a.point) > 0)
    return np.where(inside, y**a.power * np.exp(a.rate * np.where(inside, x, 0)), 0)


def smoothed_atom(a, x, t):
    """The atom convolved with N(0, t^2), by quadrature; deltas are differentiated densities."""
    assert a.rate == 0
    z = (x - a.point) / t
    if a.power < 0:
        order = -1 - a.power
        return (-1) ** order * special.eval_hermitenorm(order, z) * normal(z) / t ** (order + 1)
    nodes, weights = special.roots_legendre(120)
    low = np.full_like(z, -12) if a.side == 0 else np.clip(-a.side * z, -12, 12)
    half = (12 - low) / 2
    noise = low[:, None] + half[:, None] * (nodes + 1)
    sign = a.side or 1
    return (half[:, None] * weights * (sign * (x - a.point)[:, None] + t * noise) ** a.power * normal(noise)).sum(1)


def check_against_trace(function, activation, dtype):
    """The description is the function and its `jax.grad`, evaluated in float64 with the constants of the trace."""
    traced = chain(function, dtype)
    values, slope = values_and_slope(activation, POINTS)
    with np.errstate(all="ignore"):
        expected = [evaluate(c, POINTS)[0] for c in (traced, derivative_of(traced, dtype))]
    for ours, theirs in zip((values, slope), expected, strict=True):
        tolerance = 1e-12 if dtype == "float64" else 2e-7
        np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance * np.max(np.abs(theirs), initial=1))


def derivative_of(traced, dtype):
    with jax.enable_x64(dtype == "float64"):
        return derivative(traced)


# The known functions.


@pytest.mark.parametrize("name", DEGREE_1)
def test_degree_1(name):
    function, (a, b), slope = DEGREE_1[name]
    assert recognised(function) == Homogeneous((1, a, b, 0.0), slope)


@pytest.mark.parametrize("name", DEGREE_0)
def test_degree_0(name):
    function, (a, b, at_zero), slope = DEGREE_0[name]
    found = recognised(function)
    assert found.slope == slope
    assert found.values == pytest.approx((0, a, b, at_zero), rel=1e-14)


def test_descriptions_agree_with_jax():
    """Values and jax.grad of every function, run by JAX in float64, at breakpoints too."""
    tables = (DEGREE_1, DEGREE_0, ERF, GELU)
    functions = [entry[0] for table in tables for entry in table.values()]
    functions += [family[0] for family in FAMILIES.values()]

    def run(x):
        results = [jax.vjp(function, x) for function in functions]
        return [(y, pullback(jnp.ones_like(y))[0]) for y, pullback in results]

    with jax.enable_x64(True):
        x = jnp.asarray(POINTS[None])
        # Compiling is all the time this takes.
        options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        results = jax.jit(run).lower(x).compile(compiler_options=options)(x)
    for function, theirs in zip(functions, results, strict=True):
        ours = values_and_slope(recognised(function, "float64"), POINTS)
        for one, two in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(one, two[0], rtol=1e-12, atol=1e-12 * np.max(np.abs(two), initial=1))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("kind", "table"), [(Erf, ERF), (Gelu, GELU)])
def test_erf_and_gelu(kind, table, dtype):
    for name, (function, scale, rate) in table.items():
        found = recognised(function, dtype)
        rel = 1e-12 if dtype == "float64" and name != "by hand" else 1e-6
        assert type(found) is kind, name
        assert (found.scale, found.rate) == pytest.approx((scale, rate), rel=rel), name
        check_against_trace(function, found, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name, dtype):
    """All ways to write a function give one description, which is the function."""
    first, *others = (recognised(function, dtype) for function in FAMILIES[name])
    polynomial = name in ("x^3", "1 + 2*x")
    elementary = polynomial or ("erf" not in name and any(part in name for part in ("exp(", "sin(", "cos(")))
    kind = ExponentialActivation if elementary else PiecewiseActivation
    assert type(first) is kind
    assert first.name == name
    check_against_trace(FAMILIES[name][0], first, dtype)
    x = POINTS + 0.01  # at breakpoints, derivatives may differ
    for function, found in zip(FAMILIES[name][1:], others, strict=True):
        assert type(found) is kind
        assert found.name == name
        check_against_trace(function, found, dtype)
        for ours, theirs in zip(values_and_slope(found, x), values_and_slope(first, x), strict=True):
            tolerance = 1e-12 if dtype == "float64" else 2e-6
            np.testing.assert_allclose(ours, theirs, rtol=tolerance, atol=tolerance)


# What only looks like one.


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name, dtype):
    function, lookalike = NEAR_MISSES[name]
    if name in REFUSED:
        with pytest.raises(UnsupportedError):
            recognised(function, dtype)
        return
    found, other = recognised(function, dtype), recognised(lookalike, dtype)
    assert found != other
    if isinstance(found, SeriesActivation):
        assert not isinstance(other, SeriesActivation)
        return
    check_against_trace(function, found, dtype)
    ours, theirs = (np.stack(values_and_slope(f, POINTS)) for f in (found, other))
    far = {"relu60": 80.0, "relu1e6": 2e6, "clip": 30.0}
    if name in far:
        ours, theirs = (np.stack(values_and_slope(f, np.array([far[name]]))) for f in (found, other))
    assert np.abs(ours - theirs).max() > (1e-8 if name == "relu, shifted" else 1e-7)


def test_small_differences_in_float64():
    for function in (
        lambda x: ways.exact_gelu(x) + 1e-8 * jnp.tanh(x),
        lambda x: jax.lax.erf(x) + 1e-8 * jnp.tanh(x),
        lambda x: jnp.sin(x) + 1e-12 * jnp.tanh(x),
    ):
        assert isinstance(recognised(function, "float64"), SeriesActivation)
    assert recognised(lambda x: jax.nn.relu(x) + 1e-15 * x, "float64").values == (1, 1e-15, 1 + 1e-15, 0)


def test_bfloat16():
    assert isinstance(recognised(ways.exact_gelu, "bfloat16"), Gelu)
    assert isinstance(recognised(jax.lax.erf, "bfloat16"), Erf)
    assert recognised(jax.nn.relu, "bfloat16").name == "relu"
    assert recognised(jax.nn.relu6, "bfloat16").name == "relu6"
    for function in (jax.nn.gelu, jax.nn.silu, jnp.tanh, lambda x: x * jax.nn.sigmoid(1.702 * x)):
        assert isinstance(recognised(function, "bfloat16"), SeriesActivation)


def test_names_do_not_count():
    assert recognised(jax.jit(ways.relu)).values == (1, 0.25, 0.75, 0.0)
    assert recognised(ways.straight_through).slope != recognised(jnp.sign).slope


def test_derivatives_of_their_own():
    assert recognised(ways.clipped_slope).name.endswith("with a derivative of its own")
    stopped = recognised(lambda x: jax.lax.stop_gradient(jnp.sin(x)))
    assert stopped.slope == ()
    assert recognised(jnp.sin).name == "sin(x)"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (jax.nn.softmax, "reduce_max"),
        (lambda x: x + x[:, ::-1], "combines different elements"),
        (lambda x: jnp.maximum(x, x.T), "combines different elements"),
        (lambda x: x * jnp.arange(3.0), "iota"),
        (lambda x: x * np.arange(3.0, dtype="float32"), "different constants"),
        (lambda x: x > 0, "not a function of one real array"),
        (jnp.cumsum, "cumsum"),
    ],
)
def test_not_elementwise(function, reason):
    with pytest.raises(UnsupportedError, match=reason):
        recognised(function, shape=(3, 3))


def test_refusals_say_what_where_why_and_what_instead():
    with pytest.raises(UnsupportedError) as error:
        recognised(lambda x: jnp.where(x > 0.5, jnp.sin(x), x))
    assert "`gt, sin, select_n` has no known closed form" in str(error.value)
    assert "MLP/activation at model.py:12 (f)" in str(error.value)
    assert "breakpoints (0.5) between pieces" in error.value.why
    assert "x; sin(x)" in error.value.why
    assert "sampling finite networks" in error.value.remedy
    with pytest.raises(UnsupportedError, match=r"derivative by `jax.grad` is not"):
        recognised(lambda x: jnp.sqrt(x * x))  # NaN at 0


def test_usual_names():
    named = {
        "relu": jax.nn.relu,
        "6*relu": lambda x: 6 * jax.nn.relu(x),
        "leaky_relu(0.01)": jax.nn.leaky_relu,
        "abs": jnp.abs,
        "step": lambda x: jnp.heaviside(x, 0.5),
        "sign with slopes (1, 1)": ways.straight_through,
        "erf(x)": jax.lax.erf,
        "gelu": ways.exact_gelu,
        "clip(x, -20, 20)": lambda x: jnp.clip(x, -20, 20),
        "elu(0.3)": lambda x: jax.nn.elu(x, 0.3),
        "2*relu^3": lambda x: 2 * jax.nn.relu(x) ** 3,
        "polynomial of degree 5": lambda x: (x + 1) ** 5,
        "piecewise polynomial of degree 2 with breakpoints -1, 1": jax.nn.sparse_plus,
        "-3*sin(2*x)": lambda x: -3 * jnp.sin(2 * x),
        "2*exp(0.5*x)*cos(3*x)": lambda x: 2 * jnp.exp(x / 2) * jnp.cos(3 * x),
    }
    assert [recognised(f).name for f in named.values()] == list(named)
