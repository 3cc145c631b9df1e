"""The elementwise functions whose kernels at mean zero are worth a primitive of their own: relu, erf, gelu.

Each is also a smoothed piecewise polynomial, `general`, whose kernels are known at any mean.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp

from infnet.activations.piecewise import PiecewiseActivation
from infnet.activations.protocol import Means
from infnet.primitives.angles import safe_sqrt
from infnet.primitives.erf import erf
from infnet.primitives.gelu import gelu
from infnet.primitives.homogeneous import Slope, Values, homogeneous
from infnet.primitives.piecewise import Atom, Shape


@dataclass(frozen=True)
class Homogeneous:
    """A positively homogeneous function of degree 1 or 0, and its derivative."""

    values: Values
    slope: Slope
    exact: str = "exact"

    @property
    def name(self) -> str:
        """A usual name where there is one."""
        degree, a, b, _ = self.values
        name = _homogeneous_name(degree, a, b)
        usual = (a, b) if degree == 1 else (0.0, 0.0)
        alpha, beta, _ = self.slope
        return name if (alpha, beta) == usual else f"{name} with slopes ({alpha:.6g}, {beta:.6g})"

    @cached_property
    def general(self) -> PiecewiseActivation:
        """The same as a line and a kink, or a jump."""
        degree, a, b, at_zero = self.values
        alpha, beta, slope_at_zero = self.slope
        values = Shape((Atom(0, 0.0, degree, 0.0, a), Atom(1, 0.0, degree, 0.0, b - a)), ((0.0, at_zero),))
        slope = Shape((Atom(0, 0.0, 0, 0.0, alpha), Atom(1, 0.0, 0, 0.0, beta - alpha)), ((0.0, slope_at_zero),))
        return PiecewiseActivation(values, slope, self.name)

    @property
    def odd(self) -> bool:
        """Whether both sides cancel, and phi(0) = 0."""
        degree, a, b, at_zero = self.values
        return a == b if degree == 1 else a == -b and at_zero == 0

    def kernel(
        self, q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[jax.Array, ...]:
        """See `Activation`."""
        if means is not None:
            return self.general.kernel(q12, q11, q22, derivative, means)
        return homogeneous(q12, q11, q22, values=self.values, slope=self.slope, derivative=derivative)

    def squares(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """The mean of both sides: `(a^2 + b^2) / 2`, times q for degree 1."""
        if mean is not None:
            return self.general.squares(q, mean)
        degree, a, b, at_zero = self.values
        alpha, beta, slope_at_zero = self.slope
        of_slope = jnp.where(q <= 0, slope_at_zero**2, (alpha**2 + beta**2) / 2 + (q - q))
        if degree == 1:
            return (a**2 + b**2) / 2 * q, of_slope
        return jnp.where(q <= 0, at_zero**2, (a**2 + b**2) / 2 + (q - q)), of_slope

    def mean(self, q: jax.Array, mean: jax.Array | None = None) -> jax.Array:
        """`(b - a) sqrt(q / 2 pi)`, or `(a + b) / 2` for degree 0 and q > 0."""
        if mean is not None:
            return self.general.mean(q, mean)
        degree, a, b, at_zero = self.values
        if degree == 0:
            # `q - q` keeps NaN.
            return jnp.where(q <= 0, at_zero, (a + b) / 2 + (q - q))
        return (b - a) / math.sqrt(2 * math.pi) * safe_sqrt(q)

    def mean_slopes(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """See `Activation`: the mean of both sides, and the density of the jump for degree 0."""
        if mean is not None:
            return self.general.mean_slopes(q, mean)
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
    exact: str = "exact"

    @property
    def name(self) -> str:
        """`erf` with its constants."""
        return f"{_times(self.scale)}erf({_times(self.rate)}x)"

    @cached_property
    def general(self) -> PiecewiseActivation:
        """The mean of `A sign(B x + noise)`, the variance of the noise being 1/2."""
        scale, variance = math.copysign(self.scale, self.scale * self.rate), 1 / (2 * self.rate**2)
        values = Shape((Atom(0, 0.0, 0, 0.0, -scale), Atom(1, 0.0, 0, 0.0, 2 * scale)), (), variance)
        return PiecewiseActivation(values, Shape((Atom(1, 0.0, -1, 0.0, 2 * scale),), (), variance), self.name)

    def kernel(
        self, q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[jax.Array, ...]:
        """See `Activation`."""
        if means is not None:
            return self.general.kernel(q12, q11, q22, derivative, means)
        return erf(q12, q11, q22, scale=self.scale, rate=self.rate, derivative=derivative)

    def squares(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """See `Activation`: the kernels at rho = 1."""
        if mean is not None:
            return self.general.squares(q, mean)
        k, kdot = self.kernel(q, q, q, derivative=True)
        return k, kdot

    def mean(self, q: jax.Array, mean: jax.Array | None = None) -> jax.Array:
        """Zero; NaN stays NaN."""
        if mean is not None:
            return self.general.mean(q, mean)
        return 0 * q

    def mean_slopes(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """`2 A B / sqrt(pi (1 + 2 B^2 q))`, a Gaussian integral."""
        if mean is not None:
            return self.general.mean_slopes(q, mean)
        slope = 2 * self.scale * self.rate / jnp.sqrt(math.pi * (1 + 2 * self.rate**2 * q))
        return slope, slope


@dataclass(frozen=True)
class Gelu:
    """`scale * x * Phi(rate * x)`, Phi the normal distribution function."""

    scale: float
    rate: float
    odd: bool = False
    exact: str = "exact"

    @property
    def name(self) -> str:
        """`gelu`, or its formula with other constants than 1."""
        if _times(self.scale) == _times(self.rate) == "":
            return "gelu"
        return f"{_times(self.scale)}x*Phi({_times(self.rate)}x)"

    @cached_property
    def general(self) -> PiecewiseActivation:
        """For B > 0: the mean of `A relu(x + noise)` less `A noise^2` times that of a delta function.

        The variance of the noise is 1/B^2, and E relu(x + t z) = x Phi(x/t) + t n(x/t). For B < 0, Phi(Bx) is
        1 - Phi(-Bx).
        """
        scale, variance = math.copysign(self.scale, self.scale * self.rate), 1 / self.rate**2
        line = self.scale if self.rate < 0 else 0.0
        values = (Atom(0, 0.0, 1, 0.0, line), Atom(1, 0.0, 1, 0.0, scale), Atom(1, 0.0, -1, 0.0, -scale * variance))
        slope = (Atom(0, 0.0, 0, 0.0, line), Atom(1, 0.0, 0, 0.0, scale), Atom(1, 0.0, -2, 0.0, -scale * variance))
        return PiecewiseActivation(Shape(values, (), variance), Shape(slope, (), variance), self.name)

    def kernel(
        self, q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[jax.Array, ...]:
        """See `Activation`."""
        if means is not None:
            return self.general.kernel(q12, q11, q22, derivative, means)
        return gelu(q12, q11, q22, scale=self.scale, rate=self.rate, derivative=derivative)

    def squares(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """See `Activation`: the kernels at rho = 1."""
        if mean is not None:
            return self.general.squares(q, mean)
        k, kdot = self.kernel(q, q, q, derivative=True)
        return k, kdot

    def mean(self, q: jax.Array, mean: jax.Array | None = None) -> jax.Array:
        """`A B q / sqrt(2 pi (1 + B^2 q))`, by Stein's lemma: `E x f(x) = q E f'(x)`."""
        if mean is not None:
            return self.general.mean(q, mean)
        return self.scale * self.rate * q / jnp.sqrt(2 * math.pi * (1 + self.rate**2 * q))

    def mean_slopes(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """`A / 2`: E Phi(B u) = 1/2, and u times an even function has mean zero."""
        if mean is not None:
            return self.general.mean_slopes(q, mean)
        slope = self.scale / 2 + (q - q)
        return slope, slope


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
