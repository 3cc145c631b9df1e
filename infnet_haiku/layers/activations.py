"""Elementwise functions without parameters. What they compute stands in `infnet.functional`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from infnet import functional


class ABRelu(hk.Module):
    """`a x` below zero, `b x` above."""

    def __init__(self, a: float, b: float, name: str | None = None):
        super().__init__(name=name)
        self.a = a
        self.b = b

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.ab_relu`."""
        return functional.ab_relu(jnp.asarray(x), self.a, self.b)


class Abs(hk.Module):
    """`|x|`."""

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.absolute`."""
        return functional.absolute(jnp.asarray(x))


class Cos(hk.Module):
    """`a cos(b x + c)`."""

    def __init__(self, a: float = 1.0, b: float = 1.0, c: float = 0.0, name: str | None = None):
        super().__init__(name=name)
        self.a = a
        self.b = b
        self.c = c

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.cos`."""
        return functional.cos(jnp.asarray(x), self.a, self.b, self.c)


class Elementwise(hk.Module):
    """`fn(x)`, with the kernel that infnet finds, or with `nngp_fn` and its derivative `d_nngp_fn`."""

    def __init__(
        self,
        fn: Callable[[jax.Array], jax.Array],
        nngp_fn: functional.Dual | None = None,
        d_nngp_fn: functional.Dual | None = None,
        name: str | None = None,
    ):
        super().__init__(name=name)
        self.fn = fn
        self.nngp_fn = nngp_fn
        self.d_nngp_fn = d_nngp_fn

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.elementwise`."""
        return functional.elementwise(jnp.asarray(x), self.fn, self.nngp_fn, self.d_nngp_fn)


class ElementwiseNumerical(hk.Module):
    """`fn(x)`, as `Elementwise(fn)`.

    Neural Tangents takes quadrature of `deg` points here. infnet finds a closed form, or a series with as many terms as
    the option `tol` of `kernel_fn` needs, whatever `deg` is.
    """

    def __init__(self, fn: Callable[[jax.Array], jax.Array], deg: int | None = None, name: str | None = None):
        super().__init__(name=name)
        self.fn = fn
        self.deg = deg

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.elementwise`."""
        return functional.elementwise(jnp.asarray(x), self.fn)


class Erf(hk.Module):
    """`a erf(b x) + c`."""

    def __init__(self, a: float = 1.0, b: float = 1.0, c: float = 0.0, name: str | None = None):
        super().__init__(name=name)
        self.a = a
        self.b = b
        self.c = c

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.erf`."""
        return functional.erf(jnp.asarray(x), self.a, self.b, self.c)


class Exp(hk.Module):
    """`a exp(b x)`."""

    def __init__(self, a: float = 1.0, b: float = 1.0, name: str | None = None):
        super().__init__(name=name)
        self.a = a
        self.b = b

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.exp`."""
        return functional.exp(jnp.asarray(x), self.a, self.b)


class ExpNormalized(hk.Module):
    """The function of the kernel `sqrt(q11 q22) exp(gamma (rho + shift))`."""

    def __init__(self, gamma: float = 1.0, shift: float = -1.0, name: str | None = None):
        super().__init__(name=name)
        self.gamma = gamma
        self.shift = shift

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.exp_normalized`."""
        return functional.exp_normalized(jnp.asarray(x), self.gamma, self.shift)


class Gabor(hk.Module):
    """`exp(-x^2) sin(x)`."""

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.gabor`."""
        return functional.gabor(jnp.asarray(x))


class Gaussian(hk.Module):
    """`a exp(b x^2)`."""

    def __init__(self, a: float = 1.0, b: float = -1.0, name: str | None = None):
        super().__init__(name=name)
        self.a = a
        self.b = b

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.gaussian`."""
        return functional.gaussian(jnp.asarray(x), self.a, self.b)


class Gelu(hk.Module):
    """`x Phi(x)`, or its approximation by a tanh."""

    def __init__(self, approximate: bool = False, name: str | None = None):
        super().__init__(name=name)
        self.approximate = approximate

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.gelu`."""
        return functional.gelu(jnp.asarray(x), self.approximate)


class Hermite(hk.Module):
    """The Hermite polynomial of this degree, of mean square 1 at standard normal x."""

    def __init__(self, degree: int, name: str | None = None):
        super().__init__(name=name)
        self.degree = degree

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.hermite`."""
        return functional.hermite(jnp.asarray(x), self.degree)


class LeakyRelu(hk.Module):
    """`alpha x` below zero, x above."""

    def __init__(self, alpha: float, name: str | None = None):
        super().__init__(name=name)
        self.alpha = alpha

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.leaky_relu`."""
        return functional.leaky_relu(jnp.asarray(x), self.alpha)


class Monomial(hk.Module):
    """`x^degree`."""

    def __init__(self, degree: int, name: str | None = None):
        super().__init__(name=name)
        self.degree = degree

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.monomial`."""
        return functional.monomial(jnp.asarray(x), self.degree)


class Polynomial(hk.Module):
    """`sum_k coef[k] x^k`."""

    def __init__(self, coef: Sequence[float], name: str | None = None):
        super().__init__(name=name)
        self.coef = coef

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.polynomial`."""
        return functional.polynomial(jnp.asarray(x), self.coef)


class Rbf(hk.Module):
    """`sqrt(2) sin(sqrt(2 gamma) x + pi/4)`."""

    def __init__(self, gamma: float = 1.0, name: str | None = None):
        super().__init__(name=name)
        self.gamma = gamma

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.rbf`."""
        return functional.rbf(jnp.asarray(x), self.gamma)


class RectifiedMonomial(hk.Module):
    """`x^degree` where x >= 0, else 0."""

    def __init__(self, degree: int, name: str | None = None):
        super().__init__(name=name)
        self.degree = degree

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.rectified_monomial`."""
        return functional.rectified_monomial(jnp.asarray(x), self.degree)


class Relu(hk.Module):
    """`max(x, 0)`."""

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.relu`."""
        return functional.relu(jnp.asarray(x))


class Sigmoid_like(hk.Module):
    """`(1 + erf(x / 2.402...)) / 2`, close to the sigmoid."""

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.sigmoid_like`."""
        return functional.sigmoid_like(jnp.asarray(x))


class Sign(hk.Module):
    """-1, 0 or 1."""

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.sign`."""
        return functional.sign(jnp.asarray(x))


class Sin(hk.Module):
    """`a sin(b x + c)`."""

    def __init__(self, a: float = 1.0, b: float = 1.0, c: float = 0.0, name: str | None = None):
        super().__init__(name=name)
        self.a = a
        self.b = b
        self.c = c

    def __call__(self, x: Any) -> jax.Array:
        """See `infnet.functional.sin`."""
        return functional.sin(jnp.asarray(x), self.a, self.b, self.c)
