"""numpy_rules against JAX itself, in float64."""

import jax
import numpy as np
import pytest
from jax import numpy as jnp

from infnet.numpy_rules import NUMPY_RULES, NoNumpyRule, evaluate

ACTIVATIONS = [
    "celu", "elu", "gelu", "hard_sigmoid", "hard_silu", "hard_tanh", "identity", "leaky_relu",
    "log_sigmoid", "mish", "relu", "relu6", "selu", "sigmoid", "silu", "soft_sign", "softplus",
    "sparse_plus", "sparse_sigmoid", "squareplus", "tanh",
]  # fmt: skip

LAX = {
    "abs": jnp.abs, "sign": jnp.sign, "neg": lambda x: -x, "sub": lambda x: 1 - x,
    "exp": jnp.exp, "exp2": jnp.exp2, "expm1": jnp.expm1, "sinh": jnp.sinh, "cosh": jnp.cosh,
    "tan": jnp.tan, "sin": jnp.sin, "cos": jnp.cos, "atan": jnp.arctan, "asinh": jnp.arcsinh,
    "asin": lambda x: jnp.arcsin(x / 4), "acos": lambda x: jnp.arccos(x / 4),
    "atanh": lambda x: jnp.arctanh(x / 4), "acosh": lambda x: jnp.arccosh(1 + x * x),
    "log": lambda x: jnp.log(x * x), "log2": lambda x: jnp.log2(1 + x * x),
    "log1p": lambda x: jnp.log1p(x * x), "atan2": lambda x: jnp.arctan2(x, 1 - x),
    "erf": jax.lax.erf, "erfc": jax.lax.erfc, "erf_inv": lambda x: jax.lax.erf_inv(x / 4),
    "sqrt": lambda x: jnp.sqrt(x * x + 1), "rsqrt": lambda x: jax.lax.rsqrt(x * x + 1),
    "cbrt": jnp.cbrt, "square": jnp.square, "pow3": lambda x: x**3, "pow-2": lambda x: x**-2,
    "pow": lambda x: jnp.abs(x) ** 1.7, "rem": lambda x: jax.lax.rem(x, 0.7),
    "floor": jnp.floor, "ceil": jnp.ceil, "round": jnp.round,
    "round away": lambda x: jax.lax.round(2 * x, jax.lax.RoundingMethod.AWAY_FROM_ZERO),
    "clip": lambda x: jnp.clip(x, -1, 0.5), "clamp": lambda x: jax.lax.clamp(-1.0, x, 0.5),
    "lgamma": lambda x: jax.lax.lgamma(x * x + 0.5), "digamma": lambda x: jax.lax.digamma(x * x + 1),
    "where": lambda x: jnp.where((x > 0) & ~(x > 1) | (x <= -2) ^ (x >= 2), x, x * x),
    "compare": lambda x: (x < 1).astype(x.dtype) + (x == 0.0) + (x != 0.0) * x,
    "finite": lambda x: jnp.where(jnp.isfinite(1 / (x - x)), 1.0, x),
    "cast": lambda x: x.astype(jnp.int32).astype(jnp.float32) + x.astype(bool),
    "select_n": lambda x: jax.lax.select_n((x > 0).astype(jnp.int32) + (x > 1), x, x * x, -x),
    "integers": lambda x: x * (x.astype(jnp.int32) // 2),
    "stop_gradient": lambda x: jax.lax.stop_gradient(x) + jax.lax.reduce_precision(x, 11, 52),
}  # fmt: skip


def points():
    return np.concatenate([np.random.default_rng(0).normal(size=200) * 1.2, [0.25, 0.75, 2.5]])


def check(function, shape=(2, 3)):
    x = points().clip(-3.9, 3.9)
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(function)(jnp.ones(shape))
        expected = np.asarray(jax.vmap(function)(x))
    (got,) = evaluate(jaxpr, x)
    assert got.dtype == np.float64 or got.dtype == bool
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name):
    check(getattr(jax.nn, name))


@pytest.mark.parametrize("name", LAX)
def test_primitives(name):
    check(LAX[name])


def test_shapes_and_calls():
    scale = jnp.full((3, 1), 0.5)

    @jax.custom_vjp
    def custom(x):
        return jnp.sin(x)

    custom.defvjp(lambda x: (custom(x), x), lambda x, g: (g,))

    def function(x):
        y = jax.remat(lambda x: jnp.tanh(x) * scale)(x[None].reshape(3, 2))
        return jax.jit(lambda y: custom(y.T)[::-1] + 1)(y)[None]

    x = points()
    (got,) = evaluate(jax.make_jaxpr(function)(jnp.ones((2, 3))), x)
    np.testing.assert_allclose(got, np.sin(np.tanh(x) * 0.5) + 1, rtol=1e-14)


def test_float64_whatever_the_trace():
    jaxpr = jax.make_jaxpr(lambda x: (x * x - 1).astype(jnp.bfloat16))(jnp.ones(3))
    (got,) = evaluate(jaxpr, np.array([1 + 1e-12]))
    np.testing.assert_allclose(got, 2e-12, rtol=1e-3)


def test_no_warnings_on_overflow():
    (got,) = evaluate(jax.make_jaxpr(lambda x: jnp.exp(x) / (x - x))(1.0), np.array([1e6]))
    assert np.isinf(got)


def test_refusals():
    with pytest.raises(NoNumpyRule, match="cumsum") as info:
        evaluate(jax.make_jaxpr(lambda x: jax.lax.cumsum(x))(jnp.ones(3)), points())
    assert info.value.primitive not in NUMPY_RULES
    with pytest.raises(ValueError, match="different elements"):
        evaluate(jax.make_jaxpr(lambda x: x * np.arange(3.0))(jnp.ones(3)), points())
