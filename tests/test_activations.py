"""Activations are recognised by what they compute: many ways to write the same, and what only looks the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from infnet._jax import jaxpr_as_fun
from infnet.activations import recognise
from infnet.activations.chains import derivative
from infnet.activations.closed_forms import Erf, Gelu, Homogeneous
from infnet.activations.piecewise_linear import interpret
from infnet.errors import UnsupportedError, Where

WHERE = Where("MLP/activation", "model.py:12 (f)")


def chain(function, dtype="float32", shape=(1, 3)):
    return jax.make_jaxpr(function)(jax.ShapeDtypeStruct(shape, dtype))


def recognised(function, dtype="float32", shape=(1, 3)):
    return recognise(chain(function, dtype, shape), WHERE)


@jax.custom_jvp
def straight_through(x):
    return jnp.sign(x)


straight_through.defjvp(lambda x, t: (straight_through(*x), t[0]))


@jax.custom_vjp
def leaky_backward(x):
    return jnp.maximum(x, 0)


leaky_backward.defvjp(lambda x: (jnp.maximum(x, 0), x), lambda x, t: (jnp.where(x > 0, t, 0.25 * t),))


@jax.jit
def nested(x):
    return jax.jit(lambda y: jax.checkpoint(jax.nn.relu)(y))(x)


def relu(x):  # not one
    return jnp.maximum(x, 0) - 0.25 * jnp.abs(x)


RELU, MAXIMUM, HALF_OPEN = (0.0, 1.0, 0.0), (0.0, 1.0, 0.5), (0.0, 1.0, 1.0)
# function, (a, b), (phi' for x < 0, for x > 0, at 0)
DEGREE_1 = {
    "nn.relu": (jax.nn.relu, (0, 1), RELU),
    "maximum": (lambda x: jnp.maximum(x, 0), (0, 1), MAXIMUM),
    "maximum, swapped": (lambda x: jnp.maximum(0.0, x), (0, 1), MAXIMUM),
    "clip": (lambda x: jnp.clip(x, 0), (0, 1), MAXIMUM),
    "where >": (lambda x: jnp.where(x > 0, x, 0), (0, 1), RELU),
    "where >=": (lambda x: jnp.where(x >= 0, x, 0), (0, 1), HALF_OPEN),
    "where, negated": (lambda x: jnp.where(~(x > 0), 0, x), (0, 1), RELU),
    "where, both": (lambda x: jnp.where((x > 0) & (x < jnp.inf), x, 0.0), (0, 1), RELU),
    "mask": (lambda x: (x > 0) * x, (0, 1), RELU),
    "mask, cast": (lambda x: x * (x >= 0).astype(x.dtype), (0, 1), HALF_OPEN),
    "heaviside": (lambda x: x * jnp.heaviside(x, 0.5), (0, 1), MAXIMUM),
    "half sum": (lambda x: (x + jnp.abs(x)) / 2, (0, 1), HALF_OPEN),
    "sign": (lambda x: x * (1 + jnp.sign(x)) / 2, (0, 1), MAXIMUM),
    "minimum": (lambda x: -jnp.minimum(-x, 0), (0, 1), MAXIMUM),
    "nested": (nested, (0, 1), RELU),
    "lax.max": (lambda x: jax.lax.max(x, jnp.zeros_like(x)), (0, 1), MAXIMUM),
    "select": (lambda x: jax.lax.select(x > 0, x, jnp.zeros_like(x)), (0, 1), RELU),
    "relu of relu": (lambda x: jax.nn.relu(jax.nn.relu(x)), (0, 1), RELU),
    "x - min": (lambda x: x - jnp.minimum(x, 0), (0, 1), MAXIMUM),
    "scaled": (lambda x: 3 * jax.nn.relu(2 * x), (0, 6), (0, 6, 0)),
    "divided": (lambda x: jax.nn.relu(x / 4) / 0.5, (0, 0.5), (0, 0.5, 0)),
    "reflected": (lambda x: jax.nn.relu(-x), (-1, 0), (-1, 0, 0)),
    "negative": (lambda x: -jax.nn.relu(x), (0, -1), (0, -1, 0)),
    "both sides": (lambda x: jax.nn.relu(x) - jax.nn.relu(-x), (1, 1), (1, 1, 0)),
    "affine, there and back": (lambda x: (2 * (jax.nn.relu(x) + 1) - 2) / 2, (0, 1), RELU),
    "reshaped": (lambda x: jax.nn.relu(x.reshape(3)[:, None].T), (0, 1), RELU),
    "nn.leaky_relu": (lambda x: jax.nn.leaky_relu(x, 0.25), (0.25, 1), (0.25, 1, 1)),
    "leaky maximum": (lambda x: jnp.maximum(x, 0.25 * x), (0.25, 1), (0.25, 1, 0.625)),
    "leaky sum": (lambda x: 0.625 * x + 0.375 * jnp.abs(x), (0.25, 1), (0.25, 1, 1)),
    "abs": (jnp.abs, (-1, 1), (-1, 1, 1)),
    "abs, sign": (lambda x: x * jnp.sign(x), (-1, 1), (-1, 1, 0)),
    "abs, max": (lambda x: jnp.maximum(x, -x), (-1, 1), (-1, 1, 0)),
    "abs, relus": (lambda x: jax.nn.relu(x) + jax.nn.relu(-x), (-1, 1), (-1, 1, 0)),
    "linear": (lambda x: 2 * x, (2, 2), (2, 2, 2)),
    "stopped": (lambda x: jax.lax.stop_gradient(jax.nn.relu(x)), (0, 1), (0, 0, 0)),
    "custom_vjp": (leaky_backward, (0, 1), (0.25, 1, 0.25)),
}
# function, (a, b, phi(0)), (phi' for x < 0, for x > 0, at 0)
DEGREE_0 = {
    "sign": (jnp.sign, (-1, 1, 0), (0, 0, 0)),
    "step": (lambda x: (x > 0).astype(jnp.float32) + 0 * x, (0, 1, 0), (0, 0, 0)),
    "heaviside": (lambda x: jnp.heaviside(x, 0.5), (0, 1, 0.5), (0, 0, 0)),
    "where": (lambda x: jnp.where(x >= 0, 1.0, -2.0), (-2, 1, 1), (0, 0, 0)),
    "straight through": (straight_through, (-1, 1, 0), (1, 1, 1)),
    "stop_gradient": (lambda x: x + jax.lax.stop_gradient(jnp.sign(x) - x), (-1, 1, 0), (1, 1, 1)),
    "function of a step": (lambda x: jnp.exp(jnp.sign(x)), (np.exp(-1), np.exp(1), 1), (0, 0, 0)),
    "constant": (jnp.ones_like, (1, 1, 1), (0, 0, 0)),
}


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


def test_agrees_with_jax():
    """Values and jax.grad of each function, at 0 too."""
    points = [-2.0, -0.5, 0.0, 0.5, 2.0]
    for function, *_ in (*DEGREE_1.values(), *DEGREE_0.values()):
        found = recognised(function, shape=(1, 3))
        degree, a, b, at_zero = found.values
        for x in points:
            side = a if x < 0 else b if x > 0 else at_zero
            slope = found.slope[0 if x < 0 else 1 if x > 0 else 2]
            y, pullback = jax.vjp(function, jnp.full((1, 3), x))
            np.testing.assert_allclose(y, (x if degree else 1) * side, rtol=1e-6)
            np.testing.assert_allclose(pullback(jnp.ones_like(y))[0], slope, rtol=1e-6)


def exact_gelu(x):
    return jax.nn.gelu(x, approximate=False)


SMOOTH = {
    "erf": (jax.lax.erf, Erf(1, 1)),
    "scaled erf": (lambda x: -3 * jax.lax.erf(0.5 * x), Erf(-3, 0.5)),
    "small erf": (lambda x: 1e-3 * jax.lax.erf(200 * x), Erf(1e-3, 200)),
    "erfc": (lambda x: 1 - jax.lax.erfc(x), Erf(1, 1)),
    "centred cdf": (lambda x: 2 * jax.scipy.stats.norm.cdf(x) - 1, Erf(1, 0.5**0.5)),
    "gelu": (exact_gelu, Gelu(1, 1)),
    "gelu by hand": (lambda x: 0.5 * x * (1 + jax.lax.erf(x / jnp.sqrt(2.0))), Gelu(1, 1)),
    "gelu by cdf": (lambda x: x * jax.scipy.stats.norm.cdf(x), Gelu(1, 1)),
    "gelu by erfc": (lambda x: 0.5 * x * jax.lax.erfc(-x * np.sqrt(0.5)), Gelu(1, 1)),
    "scaled gelu": (lambda x: 2 * exact_gelu(3 * x), Gelu(6, 3)),
    "reflected gelu": (lambda x: exact_gelu(-x), Gelu(-1, -1)),
    "jitted gelu": (jax.jit(exact_gelu), Gelu(1, 1)),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", SMOOTH)
def test_smooth(name, dtype):
    function, expected = SMOOTH[name]
    with jax.enable_x64(dtype == "float64"):
        found = recognised(function, dtype)
    rel = 1e-12 if dtype == "float64" and name != "gelu by hand" else 1e-6
    assert type(found) is type(expected)
    assert (found.scale, found.rate) == pytest.approx((expected.scale, expected.rate), rel=rel)


def test_bfloat16():
    assert isinstance(recognised(exact_gelu, "bfloat16"), Gelu)
    assert isinstance(recognised(jax.lax.erf, "bfloat16"), Erf)
    assert recognised(jax.nn.relu, "bfloat16").name == "relu"
    for function in (jax.nn.gelu, jax.nn.silu, jnp.tanh, lambda x: x * jax.nn.sigmoid(1.702 * x)):
        with pytest.raises(UnsupportedError):
            recognised(function, "bfloat16")


@jax.custom_jvp
def other_slope(x):
    return exact_gelu(x)


other_slope.defjvp(lambda x, t: (other_slope(*x), t[0] * jax.nn.sigmoid(1.702 * x[0])))


@jax.custom_jvp
def clipped_slope(x):
    return jnp.sign(x)


clipped_slope.defjvp(lambda x, t: (clipped_slope(*x), t[0] * (jnp.abs(x[0]) < 1)))

NEAR_MISSES = {
    "relu6": jax.nn.relu6,
    "relu60": lambda x: jnp.minimum(jax.nn.relu(x), 1e6),
    "clip": lambda x: jnp.clip(x, -20, 20),
    "hard_tanh": jax.nn.hard_tanh,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "relu + sin": lambda x: jax.nn.relu(x) + 1e-3 * jnp.sin(x),
    "relu + offset": lambda x: jax.nn.relu(x) + 1e-6,
    "shifted relu": lambda x: jax.nn.relu(x - 1e-7),
    "relu but for 0": lambda x: jnp.where(x == 0, 1, jax.nn.relu(x)),
    "gelu tanh": jax.nn.gelu,
    "gelu sigmoid": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu + 1e-5 x": lambda x: exact_gelu(x) + 1e-5 * x,
    "silu": jax.nn.silu,
    "softplus": jax.nn.softplus,
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "erf + x": lambda x: jax.lax.erf(x) + 1e-3 * x,
    "erf + 1": lambda x: jax.lax.erf(x) + 1,
    "cdf": jax.scipy.stats.norm.cdf,
    "squared relu": lambda x: jax.nn.relu(x) ** 2,
    "exp": jnp.exp,
    "log": jnp.log,
    "gelu, slope of another": other_slope,
    "sign, clipped slope": clipped_slope,
}


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name):
    with pytest.raises(UnsupportedError):
        recognised(NEAR_MISSES[name])
    with jax.enable_x64(True), pytest.raises(UnsupportedError):
        recognised(NEAR_MISSES[name], "float64")


def test_small_differences_in_float64():
    with jax.enable_x64(True):
        for function in (lambda x: exact_gelu(x) + 1e-8 * jnp.tanh(x), lambda x: jax.lax.erf(x) + 1e-8 * jnp.sin(x)):
            with pytest.raises(UnsupportedError):
                recognised(function, "float64")


def test_names_do_not_count():
    assert recognised(jax.jit(relu)).values == (1, 0.25, 0.75, 0.0)
    assert recognised(straight_through).slope != recognised(jnp.sign).slope


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
        recognised(jax.nn.relu6)
    assert "`max, min` is piecewise linear with offsets" in str(error.value)
    assert "MLP/activation at model.py:12 (f)" in str(error.value)
    assert "breakpoints 0, 6" in error.value.why
    assert "sampling finite networks" in error.value.remedy
    with pytest.raises(UnsupportedError, match="activation `tanh` has no known closed form yet"):
        recognised(jnp.tanh)


def test_names():
    named = {
        "relu": jax.nn.relu,
        "6*relu": lambda x: 6 * jax.nn.relu(x),
        "leaky_relu(0.01)": jax.nn.leaky_relu,
        "abs": jnp.abs,
        "step": lambda x: jnp.heaviside(x, 0.5),
        "sign with slopes (1, 1)": straight_through,
        "erf(x)": jax.lax.erf,
        "gelu": exact_gelu,
    }
    assert [recognised(f).name for f in named.values()] == list(named)


@pytest.mark.parametrize("name", ["nn.leaky_relu", "abs", "linear"])
def test_mean_of_degree_1(name):
    _check_mean(DEGREE_1[name][0])


def test_other_means():
    for function in (jax.lax.erf, exact_gelu, SMOOTH["scaled gelu"][0], SMOOTH["reflected gelu"][0]):
        _check_mean(function)
    for function in (jnp.sign, DEGREE_0["where"][0]):
        _check_mean(function)


def _check_mean(function):
    found = recognised(function)
    z, w = special.roots_legendre(60)
    z = np.concatenate([6 * z - 6, 6 * z + 6])  # [-12, 12], no node at the kink
    w = np.tile(6 * w, 2) * np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi)
    for q in (0.3, 2.0):
        values = jaxpr_as_fun(chain(function, shape=z.shape))(jnp.float32(np.sqrt(q) * z))[0]
        np.testing.assert_allclose(found.mean(jnp.float32(q)), w @ np.asarray(values, "float64"), atol=2e-6)
    assert found.mean(jnp.float32(0)) == function(jnp.zeros((1, 3)))[0, 0]
    assert jnp.isfinite(jax.grad(found.mean)(jnp.float32(0)))
    assert jnp.isnan(found.mean(jnp.float32(jnp.nan)))
    assert found.odd == (abs(found.mean(jnp.float32(1))) + abs(found.mean(jnp.float32(0))) == 0)


def test_kernels_are_primitives_and_traced_values_are_concrete():
    def kernel(q12, q11, q22):
        found = [recognised(f) for f in (jax.nn.relu, jax.lax.erf, exact_gelu)]
        assert all(isinstance(v, float) for v in (*found[0].values[1:], *found[0].slope, found[1].rate))
        return [f.kernel(q12, q11, q22, True) for f in found]

    jaxpr = jax.make_jaxpr(jax.jit(kernel))(0.5, 1.0, 1.0)
    assert all(name in str(jaxpr) for name in ("relu_kernel", "erf_kernel", "gelu_kernel"))
    assert jax.jit(kernel)(0.5, 1.0, 1.0)[0][1] == pytest.approx(1 / 3)


def test_traced_constants_are_refused():
    def kernel(slope):
        return recognised(lambda x: jnp.maximum(x, slope * x)).name

    with pytest.raises(UnsupportedError, match="not known while"):
        jax.jit(kernel)(0.25)


def test_breakpoints_and_values():
    found = interpret(chain(lambda x: jnp.maximum(jnp.abs(x - 1), jnp.minimum(2.0, x))))
    np.testing.assert_allclose(found.points, [0.5, 2.0, 3.0])
    np.testing.assert_allclose(found.slopes, [-1, 1, 0, 1])
    np.testing.assert_allclose(found.values, [0.5, 2, 2])
    slope = interpret(derivative(chain(jax.nn.hard_tanh)))
    np.testing.assert_allclose(slope.points, [-1, 1])
    assert interpret(chain(lambda x: x * x)) is None
    assert interpret(chain(lambda x: jnp.where(x > 0, x, jnp.nan))) is None
    assert len(interpret(chain(lambda x: jnp.where(jnp.isnan(x), jnp.nan, x))).points) == 0
