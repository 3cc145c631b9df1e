"""The bivariate normal probability of a quadrant, `L(h, k, rho) = P(X > h, Y > k)`, and its exponential tilt.

With `A = (k - rho h) / sqrt(1 - rho^2)` and `B = (h - rho k) / sqrt(1 - rho^2)`,

    L = [h < 0 and k < 0] + sgn(h) G(|h|, A) + sgn(k) G(|k|, B),
    G(h, A) = (1/2pi) int_A^inf exp(-(h^2 + z^2)/2) h / (h^2 + z^2) dz        (h >= 0)

Derived here: the field `-x exp(-|x|^2/2) / (2 pi |x|^2)` has the standard normal density as its divergence, but for
a point mass at the origin. `G` is its flux through the half-line at distance h of the origin that begins at the
foot of the perpendicular plus A: an edge of the quadrant, in coordinates in which X and Y are independent.
`G(h, A) = Q(h)/2 - T(h, A/h)` with the T of D. Owen, "Tables for computing bivariate normal probabilities", Annals of
Mathematical Statistics 27 (1956).

Every term is kept as `exp(exponent) * factor` where the factor is at most of order 1. The density at the corner,
`exp(-R^2/2)` with `R^2 = h^2 + A^2 = k^2 + B^2`, is in the exponent: a tilt by `exp(x U + y V)` moves h, k, A and B,
and adds to the exponents, in which nothing then cancels. So E exp(x U + y V) of a quadrant is accurate, and overflows
only if it is itself too large, at any variance.

Domain: |rho| <= 1 and all h, k. At rho = 1 it is `Q(max(h, k))`, at rho = -1 `max(0, Q(h) - Q(-k))`;
both follow from A and B in {-inf, 0, inf}. NaN gives NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import Chebyshev, Polynomial
from scipy import special

SQRT_2PI = math.sqrt(2 * math.pi)
_FAR = 1e9
"""Distances are clipped to this, so that their squares and products stay finite in float32."""


def _tail_coefficients(degree: int) -> list[float]:
    """`(1 + x) scaled_tail(x)` as a polynomial in `(x - 3) / (x + 3)`, which maps [0, inf] to [-1, 1]."""

    def function(t: np.ndarray) -> np.ndarray:
        x = 3 * (1 + t) / (1 - t)
        return (1 + x) * special.erfcx(x / math.sqrt(2)) / 2

    return Chebyshev.interpolate(function, degree).convert(kind=Polynomial).coef.tolist()


class _Rules(NamedTuple):
    """What depends on the precision. Errors below are relative to 1."""

    tail: list[float]  # of `_tail_coefficients`
    near: list[tuple[float, float]]  # Gauss-Legendre points and weights on [0, 1], for an even function
    far: list[tuple[float, float]]  # Gauss-Laguerre points and weights
    split: float  # where to change from one to the other


def _rules(degree: int, near: int, far: int, split: float) -> _Rules:
    # A Gauss rule on [-1, 1] has half of its points on [0, 1], and is exact for even functions up to twice the degree.
    x, w = np.polynomial.legendre.leggauss(2 * near)
    s, v = np.polynomial.laguerre.laggauss(far)
    pairs = list(zip(x[near:].tolist(), w[near:].tolist(), strict=True))
    return _Rules(_tail_coefficients(degree), pairs, list(zip(s.tolist(), v.tolist(), strict=True)), split)


# Chosen so that each error is below the rounding errors: 3e-8 and 3e-16.
_RULES = {4: _rules(11, 6, 8, 2.0), 8: _rules(24, 13, 22, 3.0)}


def rules_of(x: jax.Array) -> _Rules:
    """The rules for the precision of `x`."""
    return _RULES[max(4, x.dtype.itemsize)]


def scaled_tail(x: jax.Array) -> jax.Array:
    """`exp(x^2/2) Q(x)` for x >= 0, Q the upper tail of the normal distribution: `erfcx(x / sqrt 2) / 2`."""
    x = jnp.minimum(x, _FAR)
    t = (x - 3) / (x + 3)
    *coefficients, last = rules_of(x).tail
    total = jnp.full_like(t, last)
    for c in reversed(coefficients):
        total = total * t + c
    return total / (1 + x)


class Corner(NamedTuple):
    """A quadrant `X > h, Y > k` in the coordinates of the module; `root` is sqrt(1 - rho^2)."""

    h: jax.Array
    k: jax.Array
    a: jax.Array
    b: jax.Array
    root: jax.Array
    foot_a: jax.Array
    """`k - rho h`, which is `a * root`; likewise `foot_b`."""
    foot_b: jax.Array
    tangent: jax.Array
    """Of half of acos(rho)."""


def corner(
    h: jax.Array, k: jax.Array, difference: jax.Array, total: jax.Array, below: jax.Array, above: jax.Array
) -> Corner:
    """The corner at (h, k), all digits kept near |rho| = 1 if they are in the arguments.

    Args:
        h: the first coordinate.
        k: the second.
        difference: `k - h`, which may be known better than by subtraction.
        total: `k + h`.
        below: `1 - rho`.
        above: `1 + rho`.
    """
    h, k = _clip(h), _clip(k)
    root = jnp.sqrt(jnp.maximum(below * above, 0))
    # k - rho h = (k - h) + (1 - rho) h = (k + h) - (1 + rho) h: no cancellation in the one or the other.
    near, gap = above >= below, jnp.minimum(below, above)
    a = jnp.where(near, difference + gap * h, total - gap * h)
    b = jnp.where(near, gap * k - difference, total - gap * k)
    tangent = jnp.sqrt(jnp.maximum(below, 0)) / jnp.sqrt(jnp.maximum(above, 1e-36))
    return Corner(h, k, _ratio(a, root), _ratio(b, root), root, a, b, tangent)


def _clip(x: jax.Array) -> jax.Array:
    return jnp.clip(x, -_FAR, _FAR)


def _ratio(x: jax.Array, root: jax.Array) -> jax.Array:
    """`x / root`, clipped, 0 where both vanish."""
    limit = jnp.sign(x) * _FAR
    return jnp.where(root <= 0, limit, _clip(x / jnp.where(root <= 0, 1, root)))


def _flux(h: jax.Array, a: jax.Array, tail_h: jax.Array, tail_a: jax.Array) -> jax.Array:
    """`exp((h^2 + a^2)/2) G(h, a)` for h, a >= 0, from the scaled tails of both.

    The integral to the infinite end is the whole one less that to the finite end, `G = Q(h)/2 - T`, in which h and a
    change roles if a > h; where both are large that would cancel, and Gauss-Laguerre points are used.
    """
    rules = rules_of(h)
    steep = a > h
    small, large = jnp.where(steep, h, a), jnp.where(steep, a, h)
    tail_small, tail_large = jnp.where(steep, tail_h, tail_a), jnp.where(steep, tail_a, tail_h)
    t = small / jnp.where(large <= 0, 1, large)
    t2, near = t * t, jnp.minimum(small, rules.split)
    half = -near * near / 2
    owen = sum((w * t) * jnp.exp(half * (x * x)) / (1 + t2 * (x * x)) for x, w in rules.near)
    rest = jnp.exp(-half) * (tail_large / 2 - owen / (2 * math.pi))
    rest = jnp.where(steep, tail_large * tail_small - rest, rest)

    a = jnp.maximum(a, rules.split)  # elsewhere not used
    a2 = a * a
    r2 = h * h + a2
    # sum of w / ((r2 + 2x) sqrt(a2 + 2x))
    far = sum(w * jax.lax.rsqrt(a2 + 2 * x) / (r2 + 2 * x) for x, w in rules.far)
    return jnp.where(small > rules.split, h * far / (2 * math.pi), rest)


class Exponents(NamedTuple):
    """The exponents of the terms of a tilted quadrant; see `flat` for the plain one."""

    apex: jax.Array
    first: jax.Array
    """Of the total of the line X = h is this plus the logarithm of a density; likewise `second`."""
    second: jax.Array
    whole: jax.Array | float
    """Of the whole plane."""


def flat(c: Corner) -> Exponents:
    """The exponents without tilt."""
    return Exponents(-(c.h * c.h + c.a * c.a) / 2, -c.h * c.h / 2, -c.k * c.k / 2, 0.0)


class Quadrant(NamedTuple):
    """Moments of a quadrant, and of its two edges and its corner without the densities of X at h and Y at k."""

    inside: jax.Array
    first: jax.Array
    second: jax.Array
    apex: jax.Array


def quadrant(c: Corner, e: Exponents) -> Quadrant:
    """The moments of the quadrant at c, which is shifted by the tilt, with the exponents e."""
    both = (c.h == 0) & (c.k == 0)
    # At the origin the two fluxes depend on the direction in which it is approached, their sum does not.
    tiny = jnp.asarray(1e-25, c.h.dtype)
    h, k = jnp.where(both, tiny, c.h), jnp.where(both, tiny, c.k)
    a, b = (jnp.where(both, _clip(tiny * c.tangent), x) for x in (c.a, c.b))
    apex = jnp.exp(e.apex)
    # A loop over the two edges: XLA compiles its body once.
    edges = [jnp.stack(jnp.broadcast_arrays(*(*pair, apex))[:2]) for pair in ((h, k), (a, b), (e.first, e.second))]
    fluxes, (first, second) = jax.lax.map(partial(_edge, apex), edges)
    inside = jnp.where((h < 0) & (k < 0), jnp.exp(e.whole), 0) + fluxes[0] + fluxes[1]
    return Quadrant(inside, first, second, apex)


def _edge(apex: jax.Array, inputs: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The flux through an edge, from its distance, its foot and the exponent of its line, and the part of the line."""
    x, z, exponent = inputs
    size, foot, line = jnp.abs(x), jnp.abs(z), jnp.exp(exponent)
    tail, tail_of_foot = scaled_tail(size), scaled_tail(foot)
    flux = apex * _flux(size, foot, tail, tail_of_foot)
    flux = jnp.where(z < 0, line * tail - flux, flux)
    beyond = apex * tail_of_foot
    return jnp.where(x < 0, -flux, flux), jnp.where(z < 0, line - beyond, beyond)


def orthant(h: jax.Array, k: jax.Array, rho: jax.Array) -> jax.Array:
    """P(X > h, Y > k) for standard normal X and Y of correlation rho; all of one rank, axes of size 1 broadcasting."""
    h, k = _clip(jnp.asarray(h)), _clip(jnp.asarray(k))  # infinities
    c = corner(h, k, k - h, k + h, 1 - rho, 1 + rho)
    return quadrant(c, flat(c)).inside
