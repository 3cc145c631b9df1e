"""Activations that are piecewise exponential polynomials, smoothed or not."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from infnet.activations.protocol import Means
from infnet.primitives.angles import safe_sqrt
from infnet.primitives.piecewise import Shape, piecewise, piecewise_mean, takes_taylor
from infnet.primitives.shapes import derivative, is_odd, square, summands

NEGLIGIBLE = 1e-5


@dataclass(frozen=True)
class PiecewiseActivation:
    """The function `values`, whose derivative by `jax.grad` is `slope`: not necessarily that of `values`."""

    values: Shape
    slope: Shape
    name: str
    exact: str = "exact"

    @property
    def odd(self) -> bool:
        """Whether the values cancel exactly, those at the breakpoints included."""
        return is_odd(self.values)

    def kernel(
        self, q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[jax.Array, ...]:
        """See `Activation`."""
        return joint(self, self)(q12, q11, q22, derivative, means)

    def squares(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """The means of the squares, which are of the family too; of smoothed functions, the kernels at rho = 1."""
        shapes = (self.values, self.slope)
        if any(s.smoothing for s in shapes):
            k, kdot = piecewise(q, q, q, None if mean is None else (mean, mean), left=shapes, right=shapes)
        else:
            k, kdot = piecewise_mean(q, mean, shapes=tuple(map(square, shapes)))
        return k, kdot

    def mean(self, q: jax.Array, mean: jax.Array | None = None) -> jax.Array:
        """See `Activation`."""
        return piecewise_mean(q, mean, shapes=(self.values,))[0]

    def mean_slopes(self, q: jax.Array, mean: jax.Array | None = None) -> tuple[jax.Array, jax.Array]:
        """See `Activation`."""
        of_values, slope = piecewise_mean(q, mean, shapes=(derivative(self.values), self.slope))
        return of_values, slope


def rounding(one: PiecewiseActivation, two: PiecewiseActivation) -> Callable[..., jax.Array]:
    """A function of (q11, q22, derivative, means): rounding errors of the joint kernels.

    Relative to `sqrt(E phi^2 E psi^2)`. The kernels are sums of those of `summands`; where these cancel, as those of
    hard tanh do at variances much larger than 1, digits are lost. Errors up to `NEGLIGIBLE` count as 0.
    """

    def largest(q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None) -> jax.Array:
        m1, m2 = means or (None, None)
        pairs = [(one.values, two.values), (one.slope, two.slope)][: 1 + derivative]
        sizes = [_cancellation(f, q11, m1) * _cancellation(g, q22, m2) for f, g in pairs]
        error = jnp.finfo(q11.dtype).eps * functools.reduce(jnp.maximum, sizes)
        return jnp.where(error > NEGLIGIBLE, error, 0)

    return largest


def _cancellation(shape: Shape, q: jax.Array, mean: jax.Array | None) -> jax.Array:
    """The sum of the sizes `sqrt(E f^2)` of the summands of a function, over the size of their sum."""
    shapes = (shape, *summands(shape))
    if shape.smoothing:
        whole, *parts = piecewise(q, q, q, None if mean is None else (mean, mean), left=shapes, right=shapes)
    else:
        whole, *parts = piecewise_mean(q, mean, shapes=tuple(map(square, shapes)))
    total = sum(map(safe_sqrt, parts), jnp.zeros_like(q))
    # Where there is no variance, values are not sums, and where Taylor polynomials are taken, not these ones; and
    # E f^2 may be lost to rounding altogether.
    nothing = (q <= 0) | (total <= 0) | takes_taylor(shape, q, mean)
    return jnp.where(nothing, 0, total / safe_sqrt(jnp.maximum(whole, jnp.finfo(q.dtype).tiny)))


def joint(one: PiecewiseActivation, two: PiecewiseActivation) -> Callable[..., tuple[jax.Array, ...]]:
    """The kernels `E phi(u) psi(v)` and `E phi'(u) psi'(v)`, with the signature of `Activation.kernel`."""

    def kernel(
        q12: jax.Array, q11: jax.Array, q22: jax.Array, derivative: bool, means: Means = None
    ) -> tuple[jax.Array, ...]:
        left = (one.values, one.slope) if derivative else (one.values,)
        right = (two.values, two.slope) if derivative else (two.values,)
        return piecewise(q12, q11, q22, means, left=left, right=right)

    return kernel
