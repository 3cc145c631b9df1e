"""Many ways to write the known activations, and functions that only look like them.

Every table goes from a name to a function and what it is. The families go from a function to others that are the same.
"""

import jax
import jax.numpy as jnp
import numpy as np


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
    "reshaped": (lambda x: jax.nn.relu(x.reshape(-1)[:, None].T), (0, 1), RELU),
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


def exact_gelu(x):
    return jax.nn.gelu(x, approximate=False)


def cdf(x):
    return jax.scipy.stats.norm.cdf(x)


# The function, and the constants A and B of `A erf(B x)`.
ERF = {
    "erf": (jax.lax.erf, 1, 1),
    "scaled": (lambda x: -3 * jax.lax.erf(0.5 * x), -3, 0.5),
    "small": (lambda x: 1e-3 * jax.lax.erf(200 * x), 1e-3, 200),
    "reflected": (lambda x: jax.lax.erf(-x), -1, 1),
    "erfc": (lambda x: 1 - jax.lax.erfc(x), 1, 1),
    "centred cdf": (lambda x: 2 * cdf(x) - 1, 1, 0.5**0.5),
}
# The function, and the constants A and B of `A x Phi(B x)`.
GELU = {
    "gelu": (exact_gelu, 1, 1),
    "by hand": (lambda x: 0.5 * x * (1 + jax.lax.erf(x / jnp.sqrt(2.0))), 1, 1),
    "by cdf": (lambda x: x * cdf(x), 1, 1),
    "by erfc": (lambda x: 0.5 * x * jax.lax.erfc(-x * np.sqrt(0.5)), 1, 1),
    "scaled": (lambda x: 2 * exact_gelu(3 * x), 6, 3),
    "reflected": (lambda x: exact_gelu(-x), -1, -1),
    "jitted": (jax.jit(exact_gelu), 1, 1),
    "the rest of x": (lambda x: x - exact_gelu(x), 1, -1),
}


@jax.custom_jvp
def own_relu6(x):
    return jnp.minimum(jnp.maximum(x, 0), 6)


own_relu6.defjvp(lambda x, t: (own_relu6(*x), t[0] * ((x[0] > 0) & (x[0] < 6))))


@jax.custom_vjp
def own_sine(x):
    return jnp.sin(x)


own_sine.defvjp(lambda x: (jnp.sin(x), x), lambda x, t: (t * jnp.cos(x),))


@jax.custom_jvp
def half_angle_slope(x):
    return jnp.sin(x)


half_angle_slope.defjvp(lambda x, t: (jnp.sin(*x), t[0] * (2 / (1 + jnp.tan(x[0] / 2) ** 2) - 1)))


def safe_elu(x):
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


def torch_celu(x):
    return jnp.maximum(x, 0) + jnp.minimum(0, 0.5 * jnp.expm1(x / 0.5))


# The name infnet gives it, and the ways to write it, of which all must have the same description.
FAMILIES = {
    "relu6": [
        jax.nn.relu6,
        own_relu6,
        jax.jit(lambda x: jax.checkpoint(jax.nn.relu6)(x)),
        lambda x: jnp.clip(x, 0, 6),
        lambda x: jax.lax.clamp(0.0, x, 6.0),
        lambda x: jnp.where(x < 0, 0, jnp.where(x > 6, 6, x)),
        lambda x: jax.nn.relu(x) - jax.nn.relu(x - 6),
        lambda x: 6 * jnp.clip(x / 6, 0, 1),
        lambda x: x * (x > 0) * (x < 6) + 6 * (x >= 6),
        lambda x: (jnp.abs(x) - jnp.abs(x - 6) + 6) / 2,
        lambda x: 3 + 3 * jax.nn.hard_tanh((x - 3) / 3),
    ],
    "hard_tanh": [
        jax.nn.hard_tanh,
        lambda x: jnp.clip(x, -1, 1),
        lambda x: jnp.maximum(-1, jnp.minimum(1, x)),
        lambda x: (jnp.abs(x + 1) - jnp.abs(x - 1)) / 2,
        lambda x: jnp.where(jnp.abs(x) < 1, x, jnp.sign(x)),
        lambda x: jax.lax.select(x < -1, -jnp.ones_like(x), jax.lax.select(x > 1, jnp.ones_like(x), x)),
        lambda x: jnp.sign(x) * jnp.minimum(jnp.abs(x), 1),
    ],
    "hard_sigmoid": [
        jax.nn.hard_sigmoid,
        lambda x: jax.nn.relu6(x + 3) / 6,
        lambda x: (jax.nn.hard_tanh(x / 3) + 1) / 2,
        lambda x: jnp.where(x > 3, 1, jnp.where(x < -3, 0, (x + 3) / 6)),
    ],
    "hard_swish": [
        jax.nn.hard_swish,
        jax.nn.hard_silu,
        lambda x: x * jnp.clip(x + 3, 0, 6) / 6,
        lambda x: jnp.where(x > 3, x, jnp.where(x < -3, 0, x * (x + 3) / 6)),
    ],
    "elu": [
        jax.nn.elu,
        safe_elu,
        lambda x: jnp.maximum(x, 0) + jnp.minimum(jnp.expm1(x), 0),
        lambda x: jax.nn.relu(x) + jnp.exp(-jax.nn.relu(-x)) - 1,
        lambda x: jnp.where(x < 0, 2 * jnp.exp(x / 2) * jnp.sinh(x / 2), x),
        lambda x: jax.nn.celu(x, 1.0),
    ],
    "selu": [jax.nn.selu, lambda x: 1.0507009873554805 * jax.nn.elu(x, 1.6732632423543772)],
    "celu(0.5)": [
        lambda x: jax.nn.celu(x, 0.5),
        torch_celu,
        lambda x: jnp.where(x > 0, x, jax.nn.elu(2 * x) / 2),
    ],
    "relu^2": [
        lambda x: jax.nn.relu(x) ** 2,
        lambda x: jnp.square(jax.nn.relu(x)),
        lambda x: x * jax.nn.relu(x),
        lambda x: jnp.power(jax.nn.relu(x), 2.0),
        lambda x: jnp.where(x > 0, x * x, 0),
        lambda x: (x * x + x * jnp.abs(x)) / 2,
        lambda x: jax.nn.relu(x * jnp.abs(x)),
    ],
    "x^3": [
        lambda x: x**3,
        lambda x: x * x * x,
        lambda x: jnp.power(x, 3),
        lambda x: jnp.sign(x) * jnp.abs(x) ** 3,
        lambda x: (x + 1) ** 3 - 3 * x**2 - 3 * x - 1,
    ],
    "1 + 2*x": [lambda x: 2 * x + 1, lambda x: (4 * x + 2) / 2, lambda x: 2 * (x + 0.5)],
    "sin(2*x + 1)": [
        lambda x: jnp.sin(2 * x + 1),
        lambda x: jnp.cos(2 * x + (1 - np.pi / 2)),
        lambda x: jnp.sin(2 * x) * np.cos(1.0) + jnp.cos(2 * x) * np.sin(1.0),
        lambda x: 2 * jnp.sin(x + 0.5) * jnp.cos(x + 0.5),
    ],
    "sin(x)": [jnp.sin, own_sine, half_angle_slope, lambda x: -jnp.sin(-x), lambda x: jnp.cos(x - np.pi / 2)],
    "cos(x)": [jnp.cos, lambda x: jnp.cos(jnp.abs(x)), lambda x: 1 - 2 * jnp.sin(x / 2) ** 2],
    "0.5 + x - 0.5*cos(2*x)": [lambda x: x + jnp.sin(x) ** 2, lambda x: x + 1 - jnp.cos(x) ** 2],
    "exp(-x^2)": [
        lambda x: jnp.exp(-(x**2)),
        lambda x: 1 / jnp.exp(x * x),
        lambda x: jnp.exp(-(jnp.abs(x) ** 2)),
        lambda x: jnp.sqrt(jnp.exp(-2 * x * x)),
    ],
    "exp(-x^2)*sin(x)": [lambda x: jnp.exp(-(x**2)) * jnp.sin(x), lambda x: jnp.sin(x) / jnp.exp(jnp.square(x))],
    "exp(0.5*x)": [lambda x: jnp.exp(x / 2), lambda x: jnp.expm1(x / 2) + 1, lambda x: jnp.exp2(x / (2 * np.log(2)))],
    "0.5*exp(-x) + 0.5*exp(x)": [
        jnp.cosh,
        lambda x: (jnp.exp(x) + jnp.exp(-x)) / 2,
        lambda x: jnp.sinh(x) + jnp.exp(-x),
    ],
    "1 + 2*erf(3*x - 1)": [lambda x: 1 + 2 * jax.lax.erf(3 * x - 1), lambda x: 3 - 2 * jax.lax.erfc(3 * x - 1)],
    "0.5 + 0.5*erf(0.707107*x)": [cdf, lambda x: jax.lax.erfc(-x / np.sqrt(2)) / 2],
    # smoothed relu: x Phi(x) + n(x), and the gelu of an affine function
    "0.398942*exp(-0.5*x^2) + 0.5*x + 0.5*x*erf(0.707107*x)": [
        lambda x: x * cdf(x) + jax.scipy.stats.norm.pdf(x),
        lambda x: exact_gelu(x) + jnp.exp(-(x**2) / 2) / np.sqrt(2 * np.pi),
    ],
    "3 + x^2 + x^2*erf(2*x + 1)": [
        lambda x: x * x * jax.lax.erf(2 * x + 1) + x**2 + 3,
        lambda x: 2 * x**2 * (1 - jax.lax.erfc(2 * x + 1) / 2) + 3,
    ],
    "0.5*x + 0.5*x^2 - x^3 - 0.5*x^2*erf(1.41421*x - 0.707107)": [
        lambda x: x**2 * cdf(1 - 2 * x) - x**3 + 0.5 * x,
        lambda x: 0.5 * x**2 * (1 - jax.lax.erf(np.sqrt(0.5) * (2 * x - 1))) - x**3 + x / 2,
    ],
    "-1 + x - erf(0.707107*x - 0.707107) + x*erf(0.707107*x - 0.707107)": [
        lambda x: 2 * exact_gelu(x - 1),
        lambda x: (x - 1) * (1 + jax.lax.erf((x - 1) / np.sqrt(2))),
    ],
}


@jax.custom_jvp
def other_slope(x):
    return exact_gelu(x)


other_slope.defjvp(lambda x, t: (other_slope(*x), t[0] * jax.nn.sigmoid(1.702 * x[0])))


@jax.custom_jvp
def clipped_slope(x):
    return jnp.sign(x)


clipped_slope.defjvp(lambda x, t: (clipped_slope(*x), t[0] * (jnp.abs(x[0]) < 1)))


def step(x):  # not one
    return jnp.round(x)


# What it is, and what it looks like.
NEAR_MISSES = {
    "relu + sin": (lambda x: jax.nn.relu(x) + 1e-3 * jnp.sin(x), jax.nn.relu),
    "relu + offset": (lambda x: jax.nn.relu(x) + 1e-6, jax.nn.relu),
    "relu, named": (jax.jit(relu), jax.nn.relu),
    "relu, shifted": (lambda x: jax.nn.relu(x - 1e-7), jax.nn.relu),
    "relu but for 0": (lambda x: jnp.where(x == 0, 1, jax.nn.relu(x)), jax.nn.relu),
    "relu60": (lambda x: jnp.minimum(jax.nn.relu(x), 60), jax.nn.relu),
    "relu1e6": (lambda x: jnp.minimum(jax.nn.relu(x), 1e6), jax.nn.relu),
    "relu, stopped": (lambda x: jax.lax.stop_gradient(jax.nn.relu(x)), jax.nn.relu),
    "relu, other slope": (leaky_backward, jax.nn.relu),
    "clip": (lambda x: jnp.clip(x, -20, 20), lambda x: x),
    "leaky": (lambda x: jax.nn.leaky_relu(x, 0.0100001), lambda x: jax.nn.leaky_relu(x, 0.01)),
    "relu6.001": (lambda x: jnp.clip(x, 0, 6.001), jax.nn.relu6),
    "sign, straight through": (straight_through, jnp.sign),
    "sign, clipped slope": (clipped_slope, jnp.sign),
    "sign + x": (lambda x: jnp.sign(x) + 1e-6 * x, jnp.sign),
    "erf + x": (lambda x: jax.lax.erf(x) + 1e-3 * x, jax.lax.erf),
    "erf + 1": (lambda x: jax.lax.erf(x) + 1, jax.lax.erf),
    "erf, moved": (lambda x: jax.lax.erf(x + 1e-5), jax.lax.erf),
    "tanh": (jnp.tanh, lambda x: jax.lax.erf(0.8862 * x)),
    "erf**3": (lambda x: jax.lax.erf(x) ** 3, jax.lax.erf),
    "gelu, tanh": (jax.nn.gelu, exact_gelu),
    "gelu, sigmoid": (lambda x: x * jax.nn.sigmoid(1.702 * x), exact_gelu),
    "gelu + 1e-5 x": (lambda x: exact_gelu(x) + 1e-5 * x, exact_gelu),
    "gelu, moved": (lambda x: x * cdf(x + 1e-5), exact_gelu),
    "gelu, other slope": (other_slope, exact_gelu),
    "silu": (jax.nn.silu, exact_gelu),
    "softplus": (jax.nn.softplus, jax.nn.relu),
    "sin, other phase": (lambda x: jnp.sin(x + 1e-5), jnp.sin),
    "sin, other frequency": (lambda x: jnp.sin(1.00001 * x), jnp.sin),
    "sin, stopped": (lambda x: jax.lax.stop_gradient(jnp.sin(x)), jnp.sin),
    "x |x|": (lambda x: x * jnp.abs(x), lambda x: x**2),
    "x**2 and x**4": (lambda x: x**2 + 1e-5 * x**4, lambda x: x**2),
    "elu of 1.0001": (lambda x: jax.nn.elu(x, 1.0001), jax.nn.elu),
    "exp(-|x|)": (lambda x: jnp.exp(-jnp.abs(x)), lambda x: jnp.exp(-(x**2))),
    "gaussian + 1e-5": (lambda x: jnp.exp(-(x**2)) + 1e-5, lambda x: jnp.exp(-(x**2))),
    "round": (step, lambda x: x),
    "floor": (jnp.floor, lambda x: x),
    "mod": (lambda x: jnp.mod(x, 1e3), lambda x: x),
    "relu * tanh": (lambda x: jax.nn.relu(jnp.tanh(x)), jax.nn.relu6),
    "sin for x > 0": (lambda x: jnp.where(x > 0, jnp.sin(x), x), jnp.sin),
    "sin**(x > 0)": (lambda x: jnp.where(x > 30, x, jnp.sin(x)), jnp.sin),
    "log": (jnp.log, lambda x: x),
}
REFUSED = {
    "relu + sin", "round", "floor", "mod", "relu * tanh", "sin for x > 0", "sin**(x > 0)", "log",
}  # fmt: skip
