"""Elementwise functions without parameters. What they compute stands in `infnet.functional`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from infnet import functional
from infnet_flax.annotate import annotate


@annotate
class ABRelu(nn.Module):
    """`a x` below zero, `b x` above."""

    a: float
    b: float

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.ab_relu`."""
        return functional.ab_relu(jnp.asarray(x), self.a, self.b)


@annotate
class Abs(nn.Module):
    """`|x|`."""

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.absolute`."""
        return functional.absolute(jnp.asarray(x))


@annotate
class Cos(nn.Module):
    """`a cos(b x + c)`."""

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.cos`."""
        return functional.cos(jnp.asarray(x), self.a, self.b, self.c)


@annotate
class Elementwise(nn.Module):
    """`fn(x)`, with the kernel that infnet finds, or with `nngp_fn` and its derivative `d_nngp_fn`."""

    fn: Callable[[jax.Array], jax.Array]
    nngp_fn: functional.Dual | None = None
    d_nngp_fn: functional.Dual | None = None

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.elementwise`."""
        return functional.elementwise(jnp.asarray(x), self.fn, self.nngp_fn, self.d_nngp_fn)


@annotate
class ElementwiseNumerical(nn.Module):
    """`fn(x)`, as `Elementwise(fn)`.

    Neural Tangents takes quadrature of `deg` points here. infnet finds a closed form, or a series with as many terms as
    the option `tol` of `kernel_fn` needs, whatever `deg` is.
    """

    fn: Callable[[jax.Array], jax.Array]
    deg: int | None = None

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.elementwise`."""
        return functional.elementwise(jnp.asarray(x), self.fn)


@annotate
class Erf(nn.Module):
    """`a erf(b x) + c`."""

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.erf`."""
        return functional.erf(jnp.asarray(x), self.a, self.b, self.c)


@annotate
class Exp(nn.Module):
    """`a exp(b x)`."""

    a: float = 1.0
    b: float = 1.0

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.exp`."""
        return functional.exp(jnp.asarray(x), self.a, self.b)


@annotate
class ExpNormalized(nn.Module):
    """The function of the kernel `sqrt(q11 q22) exp(gamma (rho + shift))`."""

    gamma: float = 1.0
    shift: float = -1.0

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.exp_normalized`."""
        return functional.exp_normalized(jnp.asarray(x), self.gamma, self.shift)


@annotate
class Gabor(nn.Module):
    """`exp(-x^2) sin(x)`."""

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.gabor`."""
        return functional.gabor(jnp.asarray(x))


@annotate
class Gaussian(nn.Module):
    """`a exp(b x^2)`."""

    a: float = 1.0
    b: float = -1.0

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.gaussian`."""
        return functional.gaussian(jnp.asarray(x), self.a, self.b)


@annotate
class Gelu(nn.Module):
    """`x Phi(x)`, or its approximation by a tanh."""

    approximate: bool = False

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.gelu`."""
        return functional.gelu(jnp.asarray(x), self.approximate)


@annotate
class Hermite(nn.Module):
    """The Hermite polynomial of this degree, of mean square 1 at standard normal x."""

    degree: int

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.hermite`."""
        return functional.hermite(jnp.asarray(x), self.degree)


@annotate
class LeakyRelu(nn.Module):
    """`alpha x` below zero, x above."""

    alpha: float

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.leaky_relu`."""
        return functional.leaky_relu(jnp.asarray(x), self.alpha)


@annotate
class Monomial(nn.Module):
    """`x^degree`."""

    degree: int

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.monomial`."""
        return functional.monomial(jnp.asarray(x), self.degree)


@annotate
class Polynomial(nn.Module):
    """`sum_k coef[k] x^k`."""

    coef: Sequence[float]

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.polynomial`."""
        return functional.polynomial(jnp.asarray(x), self.coef)


@annotate
class Rbf(nn.Module):
    """`sqrt(2) sin(sqrt(2 gamma) x + pi/4)`."""

    gamma: float = 1.0

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.rbf`."""
        return functional.rbf(jnp.asarray(x), self.gamma)


@annotate
class RectifiedMonomial(nn.Module):
    """`x^degree` where x >= 0, else 0."""

    degree: int

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.rectified_monomial`."""
        return functional.rectified_monomial(jnp.asarray(x), self.degree)


@annotate
class Relu(nn.Module):
    """`max(x, 0)`."""

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.relu`."""
        return functional.relu(jnp.asarray(x))


@annotate
class Sigmoid_like(nn.Module):
    """`(1 + erf(x / 2.402...)) / 2`, close to the sigmoid."""

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.sigmoid_like`."""
        return functional.sigmoid_like(jnp.asarray(x))


@annotate
class Sign(nn.Module):
    """-1, 0 or 1."""

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.sign`."""
        return functional.sign(jnp.asarray(x))


@annotate
class Sin(nn.Module):
    """`a sin(b x + c)`."""

    a: float = 1.0
    b: float = 1.0
    c: float = 0.0

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.sin`."""
        return functional.sin(jnp.asarray(x), self.a, self.b, self.c)
