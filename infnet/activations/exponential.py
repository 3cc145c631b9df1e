"""Functions made of powers, exponentials, sines and cosines, whose moments are elementary."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from infnet.activations.protocol import Means
from infnet.primitives.angles import safe_sqrt
from infnet.primitives.exp_normalized import exp_normalized
from infnet.primitives.exponential import ONE, ExpTerm, Function, differentiated, exponential, waves


@dataclass(frozen=True)
class ExponentialActivation:
    """A sum of terms `c x^k exp(a x^2 + s x)`; see the primitive `exponential`.

    With a > 0 the moments exist for `2 a q < 1` only (of two functions: `det(I - 2 diag(a, c) Q) > 0`); beyond, they
    are infinite, and the kernel is NaN or infinite.
    """

    values: Function
    slope: Function
    name: str
    exact: str = "exact"

    @property
    def odd(self) -> bool:
        """Whether phi(-x) = -phi(x), so that E phi vanishes at every variance."""
        reflected = tuple(ExpTerm(-c * (-1) ** k, k, -s, a) for c, k, s, a in self.values)
        return set(waves(reflected)) == set(waves(self.values))

    def kernel(
        self, q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[jax.Array, ...]:
        """See `Activation`."""
        return joint(self, self)(q12, q11, q22, derivative, means)

    def squares(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """See `Activation`: the kernels at rho = 1."""
        k, kdot = self.kernel(q, q, q, True, None if mean is None else (mean, mean))
        return k, kdot

    def mean(self, q: jax.Array, mean: jax.Array | None = None) -> jax.Array:
        """See `Activation`."""
        return _means((self.values,), q, mean)[0]

    def mean_slopes(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """See `Activation`; the values have no jumps."""
        of_values, of_slope = _means((differentiated(self.values), self.slope), q, mean)
        return of_values, of_slope


def _means(functions: tuple[Function, ...], q: jax.Array, mean: jax.Array | None) -> tuple[jax.Array, ...]:
    """With a constant, 1, as the other function."""
    zero = jnp.zeros_like(q)
    means = None if mean is None else (mean, zero)
    return exponential(zero, q, zero, left=functions, right=(ONE,) * len(functions), means=means)


def joint(one: ExponentialActivation, two: ExponentialActivation) -> Callable[..., tuple[jax.Array, ...]]:
    """The kernels E phi(u) psi(v) and E phi'(u) psi'(v) of two functions, with the signature of `Activation.kernel`."""

    def kernel(
        q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[jax.Array, ...]:
        left, right = (one.values, one.slope), (two.values, two.slope)
        outputs = 2 if derivative else 1
        return exponential(q12, q11, q22, left=left[:outputs], right=right[:outputs], means=means)

    return kernel


def of_terms(values: Function, name: str) -> ExponentialActivation:
    """The function with its own derivative."""
    return ExponentialActivation(values, differentiated(values), name)


def polynomial(coefficients: Sequence[float]) -> Function:
    """`sum_k coefficients[k] x^k`."""
    return tuple(ExpTerm(float(c), k, 0.0, 0.0) for k, c in enumerate(coefficients) if c != 0)


def sinusoid(amplitude: float, frequency: float, phase: float) -> Function:
    """`amplitude * sin(frequency * x + phase)`."""
    c = amplitude * cmath.exp(1j * phase) / 2j
    return (ExpTerm(c, 0, 1j * frequency, 0.0), ExpTerm(c.conjugate(), 0, -1j * frequency, 0.0))


def times_exponential(function: Function, linear: float, quadratic: float, factor: float = 1.0) -> Function:
    """`factor * exp(linear * x + quadratic * x^2)` times the function."""
    return tuple(ExpTerm(factor * c, k, s + linear, a + quadratic) for c, k, s, a in function)


@dataclass(frozen=True)
class ExpNormalized:
    """The kernel `sqrt(q11 q22) exp(gamma (rho + shift))` in the place of an elementwise function.

    Its function depends on the variance; see the primitive `exp_normalized`. Means other than zero are not defined.
    """

    gamma: float = 1.0
    shift: float = -1.0
    odd: bool = False
    exact: str = "exact"

    @property
    def name(self) -> str:
        """With its constants."""
        return f"exp_normalized({self.gamma:.6g}, {self.shift:.6g})"

    def kernel(
        self, q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[jax.Array, ...]:
        """See `Activation`."""
        _no_mean(means)
        return exp_normalized(q12, q11, q22, gamma=self.gamma, shift=self.shift, derivative=derivative)

    def squares(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """See `Activation`: the kernels at rho = 1."""
        _no_mean(mean)
        k, kdot = self.kernel(q, q, q, True)
        return k, kdot

    def mean(self, q: jax.Array, mean: jax.Array | None = None) -> jax.Array:
        """The Hermite coefficient of order 0."""
        _no_mean(mean)
        return safe_sqrt(q) * math.exp(self.gamma * self.shift / 2)

    def mean_slopes(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """The Hermite coefficient of order 1, over sqrt(q)."""
        _no_mean(mean)
        slope = math.sqrt(self.gamma) * math.exp(self.gamma * self.shift / 2) + 0 * q
        return slope, slope


def _no_mean(mean: object) -> None:
    if mean is not None:
        raise ValueError("`ExpNormalized` is defined for arguments of mean zero only")
