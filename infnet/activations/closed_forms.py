"""Elementwise functions whose kernels have a closed form, with everything a layer needs of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import jax
import jax.numpy as jnp

from infnet.primitives.erf import erf
from infnet.primitives.gelu import gelu
from infnet.primitives.piecewise import Slope, Values, piecewise


class Activation(Protocol):
    """An elementwise function phi whose kernels are known."""

    @property
    def name(self) -> str:
        """What it is called in explanations."""

    @property
    def odd(self) -> bool:
        """Whether E phi vanishes at every variance."""

    def kernel(self, q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool) -> tuple[jax.Array, ...]:
        """`(E phi(u) phi(v),)`, and `E phi'(u) phi'(v)` if `derivative`; see the primitives."""

    def squares(self, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        """E phi(u)^2 and E phi'(u)^2 at the variance q."""

    def mean(self, q: jax.Array) -> jax.Array:
        """E phi(u) at the variance q."""

    def mean_slopes(self, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        """E of the derivative of phi's values (as in Stein's lemma), and E phi' by `jax.grad`, at the variance q."""


@dataclass(frozen=True)
class Homogeneous:
    """A positively homogeneous function of degree 1 or 0, and its derivative."""

    values: Values
    slope: Slope

    @property
    def name(self) -> str:
        """A usual name where there is one."""
        degree, a, b, _ = self.values
        name = _homogeneous_name(degree, a, b)
        usual = (a, b) if degree == 1 else (0.0, 0.0)
        alpha, beta, _ = self.slope
        return name if (alpha, beta) == usual else f"{name} with slopes ({alpha:.6g}, {beta:.6g})"

    @property
    def odd(self) -> bool:
        """Whether both sides cancel, and phi(0) = 0."""
        degree, a, b, at_zero = self.values
        return a == b if degree == 1 else a == -b and at_zero == 0

    def kernel(self, q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool) -> tuple[jax.Array, ...]:
        """See `Activation`."""
        return piecewise(q12, q11, q22, values=self.values, slope=self.slope, derivative=derivative)

    def squares(self, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The mean of both sides: `(a^2 + b^2) / 2`, times q for degree 1."""
        degree, a, b, at_zero = self.values
        alpha, beta, slope_at_zero = self.slope
        of_slope = jnp.where(q <= 0, slope_at_zero**2, (alpha**2 + beta**2) / 2 + (q - q))
        if degree == 1:
            return (a**2 + b**2) / 2 * q, of_slope
        return jnp.where(q <= 0, at_zero**2, (a**2 + b**2) / 2 + (q - q)), of_slope

    def mean(self, q: jax.Array) -> jax.Array:
        """`(b - a) sqrt(q / 2 pi)`, or `(a + b) / 2` for degree 0 and q > 0."""
        degree, a, b, at_zero = self.values
        empty = q <= 0  # also guards the square root, whose slope at 0 is infinite
        if degree == 0:
            # `q - q` keeps NaN.
            return jnp.where(empty, at_zero, (a + b) / 2 + (q - q))
        root = jnp.where(empty, 0, jnp.sqrt(jnp.where(empty, 1, q)))
        return (b - a) / math.sqrt(2 * math.pi) * root

    def mean_slopes(self, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Activation`: the mean of both sides, and the density of the jump for degree 0."""
        degree, a, b, _ = self.values
        alpha, beta, at_zero = self.slope
        empty = q <= 0
        jump = (b - a) / jnp.sqrt(2 * math.pi * jnp.where(empty, 1, q))
        of_values = (a + b) / 2 + (q - q) if degree == 1 else jnp.where(empty, 0, jump)
        return of_values, jnp.where(empty, at_zero, (alpha + beta) / 2 + (q - q))


@dataclass(frozen=True)
class Erf:
    """`scale * erf(rate * x)`."""

    scale: float
    rate: float
    odd: bool = True

    @property
    def name(self) -> str:
        """`erf` with its constants."""
        return f"{_times(self.scale)}erf({_times(self.rate)}x)"

    def kernel(self, q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool) -> tuple[jax.Array, ...]:
        """See `Activation`."""
        return erf(q12, q11, q22, scale=self.scale, rate=self.rate, derivative=derivative)

    def squares(self, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Activation`: the kernels at rho = 1."""
        k, kdot = self.kernel(q, q, q, derivative=True)
        return k, kdot

    def mean(self, q: jax.Array) -> jax.Array:
        """Zero; NaN stays NaN."""
        return 0 * q

    def mean_slopes(self, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`2 A B / sqrt(pi (1 + 2 B^2 q))`, a Gaussian integral."""
        slope = 2 * self.scale * self.rate / jnp.sqrt(math.pi * (1 + 2 * self.rate**2 * q))
        return slope, slope


@dataclass(frozen=True)
class Gelu:
    """`scale * x * Phi(rate * x)`, Phi the normal distribution function."""

    scale: float
    rate: float
    odd: bool = False

    @property
    def name(self) -> str:
        """`gelu`, or its formula with other constants than 1."""
        if _times(self.scale) == _times(self.rate) == "":
            return "gelu"
        return f"{_times(self.scale)}x*Phi({_times(self.rate)}x)"

    def kernel(self, q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool) -> tuple[jax.Array, ...]:
        """See `Activation`."""
        return gelu(q12, q11, q22, scale=self.scale, rate=self.rate, derivative=derivative)

    def squares(self, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        """See `Activation`: the kernels at rho = 1."""
        k, kdot = self.kernel(q, q, q, derivative=True)
        return k, kdot

    def mean(self, q: jax.Array) -> jax.Array:
        """`A B q / sqrt(2 pi (1 + B^2 q))`, by Stein's lemma: `E x f(x) = q E f'(x)`."""
        return self.scale * self.rate * q / jnp.sqrt(2 * math.pi * (1 + self.rate**2 * q))

    def mean_slopes(self, q: jax.Array) -> tuple[jax.Array, jax.Array]:
        """`A / 2`: E Phi(B u) = 1/2, and u times an even function has mean zero."""
        slope = self.scale / 2 + (q - q)
        return slope, slope


def joint_kernel(one: Activation, two: Activation) -> Callable[..., tuple[jax.Array, ...]] | None:
    """The kernels E phi(u) psi(v) and E phi'(u) psi'(v) of two functions, with the signature of `Activation.kernel`.

    Two homogeneous functions of one degree: sums and differences of them are homogeneous too, and the kernel is
    bilinear, so 4 K(phi, psi) = K(phi + psi, phi + psi) - K(phi - psi, phi - psi). None where no form is known.
    """
    if one == two:
        return one.kernel
    if not (isinstance(one, Homogeneous) and isinstance(two, Homogeneous) and one.values[0] == two.values[0]):
        return None
    total, difference = _combined(one, two, 1.0), _combined(one, two, -1.0)

    def kernel(q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool) -> tuple[jax.Array, ...]:
        both = (f.kernel(q12, q11, q22, derivative) for f in (total, difference))
        return tuple((a - b) / 4 for a, b in zip(*both, strict=True))

    return kernel


def _combined(one: Homogeneous, two: Homogeneous, sign: float) -> Homogeneous:
    degree, a, b, at_zero = one.values
    _, c, d, two_at_zero = two.values
    slope = tuple(s + sign * t for s, t in zip(one.slope, two.slope, strict=True))
    alpha, beta, slope_at_zero = slope
    return Homogeneous((degree, a + sign * c, b + sign * d, at_zero + sign * two_at_zero), (alpha, beta, slope_at_zero))


def _homogeneous_name(degree: int, a: float, b: float) -> str:
    if degree == 0 and a == b:
        return f"constant({a:.6g})"
    if degree == 0:
        usual = {(0.0, 1.0): "step", (-1.0, 1.0): "sign"}
        return usual.get((a, b), f"step({a:.6g}, {b:.6g})")
    if a == b:
        return f"{_times(a)}x"
    if b == 1 and 0 < a < 1:
        return f"leaky_relu({a:.6g})"
    if a == 0 and b > 0:
        return f"{_times(b)}relu"
    if a == -b and b > 0:
        return f"{_times(b)}abs"
    return f"piecewise_linear({a:.6g}, {b:.6g})"


def _times(factor: float) -> str:
    return "" if f"{factor:.6g}" == "1" else f"{factor:.6g}*"
