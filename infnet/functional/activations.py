"""Elementwise functions with the names and arguments of Neural Tangents' layers.

Any other elementwise function of JAX does as well: activations are recognised by what they compute.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from infnet.errors import InputError

_PROBIT = 2.4020563531719796
"""The scale at which an error function is closest to the sigmoid on [-5, 5]."""


def ab_relu(x: jax.Array, a: float, b: float) -> jax.Array:
    """`a x` below zero, `b x` above."""
    return a * jnp.minimum(x, 0) + b * jnp.maximum(x, 0)


def relu(x: jax.Array) -> jax.Array:
    """`max(x, 0)`."""
    return jax.nn.relu(x)


def leaky_relu(x: jax.Array, alpha: float) -> jax.Array:
    """`alpha x` below zero, x above."""
    return ab_relu(x, alpha, 1.0)


def absolute(x: jax.Array) -> jax.Array:
    """`|x|`."""
    return jnp.abs(x)


def sign(x: jax.Array) -> jax.Array:
    """-1, 0 or 1."""
    return jnp.sign(x)


def erf(x: jax.Array, a: float = 1.0, b: float = 1.0, c: float = 0.0) -> jax.Array:
    """`a erf(b x) + c`."""
    return a * jax.lax.erf(b * x) + c


def sigmoid_like(x: jax.Array) -> jax.Array:
    """`(1 + erf(x / 2.402...)) / 2`, which is close to the sigmoid and has a closed form."""
    return erf(x, 0.5, 1 / _PROBIT, 0.5)


def gelu(x: jax.Array, approximate: bool = False) -> jax.Array:
    """`x Phi(x)`, or its approximation by a tanh (Hendrycks & Gimpel 2016, arXiv:1606.08415).

    The kernel is that of the function chosen; Neural Tangents takes the exact one's for both.
    """
    return jax.nn.gelu(x, approximate=approximate)


def sin(x: jax.Array, a: float = 1.0, b: float = 1.0, c: float = 0.0) -> jax.Array:
    """`a sin(b x + c)`."""
    return a * jnp.sin(b * x + c)


def cos(x: jax.Array, a: float = 1.0, b: float = 1.0, c: float = 0.0) -> jax.Array:
    """`a cos(b x + c)`."""
    return a * jnp.cos(b * x + c)


def rbf(x: jax.Array, gamma: float = 1.0) -> jax.Array:
    """`sqrt(2) sin(sqrt(2 gamma) x + pi/4)`, of kernel `exp(-gamma E(u - v)^2)` (Rahimi & Recht 2007)."""
    if gamma < 0:
        raise InputError(f"gamma must be >= 0, not {gamma!r}")
    return sin(x, math.sqrt(2), math.sqrt(2 * gamma), math.pi / 4)


def exp(x: jax.Array, a: float = 1.0, b: float = 1.0) -> jax.Array:
    """`a exp(b x)`."""
    return a * jnp.exp(b * x)


def gaussian(x: jax.Array, a: float = 1.0, b: float = -1.0) -> jax.Array:
    """`a exp(b x^2)`."""
    return a * jnp.exp(b * x**2)


def gabor(x: jax.Array) -> jax.Array:
    """`exp(-x^2) sin(x)`."""
    return jnp.exp(-(x**2)) * jnp.sin(x)


def monomial(x: jax.Array, degree: int) -> jax.Array:
    """`x^degree`."""
    return x ** _degree(degree)


def rectified_monomial(x: jax.Array, degree: int) -> jax.Array:
    """`x^degree` where x >= 0, else 0."""
    return jnp.where(x >= 0, monomial(x, degree), 0)


def polynomial(x: jax.Array, coef: Sequence[float]) -> jax.Array:
    """`sum_k coef[k] x^k`."""
    if len(coef) == 0:
        raise InputError("a polynomial needs one coefficient at least")
    y = jnp.full_like(x, coef[-1])
    for c in reversed(coef[:-1]):
        y = y * x + float(c)
    return y


def hermite(x: jax.Array, degree: int) -> jax.Array:
    """The Hermite polynomial of this degree, of mean square 1 at standard normal x.

    Neural Tangents takes the variance of x to be 1 for its kernel; here it is what it is.
    """
    unit = np.zeros(_degree(degree) + 1)
    unit[-1] = 1 / math.sqrt(math.factorial(degree))
    return polynomial(x, np.polynomial.hermite_e.herme2poly(unit).tolist())


def _degree(degree: int) -> int:
    if not isinstance(degree, int) or degree < 0:
        raise InputError(f"the degree must be an integer >= 0, not {degree!r}")
    return degree
