"""Gradient descent on the squared error as a spectral filter: an inverse of the kernel that is stopped early.

Under the loss |f - y|² / (2 size), the outputs of a network that is linear in its parameters, with tangent kernel
Θ = V diag(λ) Vᵀ on the training set, are at any time

    f = f₀ + Θ V diag(s(λ)) Vᵀ (y - f₀)                       (Θ between any examples and the training set)

with s = 0 at first and s = 1 / λ at last (Lee et al. 2019, arXiv:1902.06720, eqs. 8 to 11, for gradient flow; Engl,
Hanke & Neubauer 1996, "Regularization of inverse problems", section 6.1, for steps). With x = λ / size:

    gradient flow for a time t     s = (1 - exp(-x t)) / λ
    k steps of size η              s = (1 - (1 - η x)ᵏ) / λ

Momentum μ, as `optax.sgd` has it, keeps v ← g + μ v, and steps by -η v, or by -η (g + μ v) after Nesterov. In one
eigendirection, where g is proportional to the error, both are linear recursions of order two. With a = η x,

    uⱼ = pⱼ₊₁                       (heavy ball, D = μ)            s = η / size · Pₖ
    uⱼ = (1 + μ) pⱼ₊₁ - μ pⱼ        (Nesterov, D = μ (1 - a))      s = η / size · ((1 + μ) Pₖ - μ Pₖ₋₁)

are the updates j = 0, 1, ... over the first gradient, where p₀ = 0, p₁ = 1, pⱼ₊₁ = T pⱼ - D pⱼ₋₁ with T = 1 - a + D,
and Pₖ = p₁ + ... + pₖ.

All are smooth in λ, and so is what JAX's rules of differentiation see: where a formula is 0 / 0, a series takes over.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from infnet.predict.posterior import pytree

Array = jax.Array

# Roots whose relative distance is below this are summed by a formula that also holds where they coincide; unless they
# are the roots 1 and D of a small a.
APART = 1e-2

# Recursions whose trace is below this, and their determinant below its square, have died out after nine terms.
SMALL = 1e-2

# Coefficients in x² of sinh(x) / x and atanh(x) / x: exact to rounding for |x| < 1 / 2, and for |x| < 1 / 15.
SINH_RATIO = [1 / math.factorial(2 * n + 1) for n in range(8)]
ATANH_RATIO = [1 / (2 * n + 1) for n in range(8)]
# Terms of p where the roots nearly coincide, of which the last is below 1 / 19!.
TERMS = 10


@pytree(meta=("size", "nesterov"))
@dataclass(frozen=True)
class Filter:
    """The filter s of a training: a function of eigenvalues, at several times or after several numbers of steps."""

    when: Array
    """Times of gradient flow, of any shape; infinity is allowed. Or numbers of steps, integers."""
    rate: Array
    """The learning rate."""
    momentum: Array | None
    cutoff: Array
    """See `flow`."""
    horizon: Array
    size: int
    """The number of targets."""
    nesterov: bool

    def __call__(self, values: Array) -> Array:
        """`(*times, *axes)` of values with any axes; to be called in float64."""
        when = self.when.reshape(self.when.shape + (1,) * values.ndim)
        rate = self.rate / self.size
        if jnp.issubdtype(when.dtype, jnp.integer):
            return steps(values, self.cutoff, self.horizon, when, rate, self.momentum, self.nesterov)
        return flow(values, self.cutoff, self.horizon, rate * when)


@jax.jit
def flow(values: Array, cutoff: Array, horizon: Array, time: Array) -> Array:
    """The filter of gradient flow.

    Args:
        values: eigenvalues, not negative.
        cutoff: eigenvalues up to this are rounding errors of zero.
        horizon: the time from which on these would move outputs by their own rounding errors. Then, as in the limit,
            the pseudo-inverse, they do not move any.
        time: of the flow, in units of size / eigenvalue; infinity is allowed.
    """
    null = values <= cutoff
    forever = jnp.isinf(time)
    finite = jnp.where(forever, 0, time)
    moving = finite * _decay_ratio(finite * values)
    moving = jnp.where(null & (finite > horizon), 0, moving)
    return jnp.where(forever, jnp.where(null, 0, 1 / jnp.where(null, 1, values)), moving)


@functools.partial(jax.jit, static_argnames=("nesterov",))
def steps(
    values: Array, cutoff: Array, horizon: Array, count: Array, rate: Array, momentum: Array | None, nesterov: bool
) -> Array:
    """The filter of gradient descent.

    Args:
        values: eigenvalues, not negative.
        cutoff, horizon: see `flow`.
        count: numbers of steps, integers.
        rate: learning rate, over the size of the targets.
        momentum: in [0, 1), or None.
        nesterov: which momentum.
    """
    a = rate * values
    if momentum is None:
        total, reach = _geometric_sum(count, a), rate * count
    else:
        d = momentum * (1 - a) if nesterov else jnp.broadcast_to(momentum, a.shape)
        reach = rate * count / (1 - momentum)
        counts = jnp.stack([count, jnp.maximum(count - 1, 0)]) if nesterov else count[None]
        total, *before = jax.vmap(_recursive_sum, (0, None, None))(counts, a, d)
        if nesterov:
            total = (1 + momentum) * total - momentum * before[0]
    return jnp.where((values <= cutoff) & (reach > horizon), 0, rate * total)


def _polynomial(coefficients: Sequence[float | Array], x: Array) -> Array:
    """Horner's scheme; coefficients in ascending order."""
    return functools.reduce(lambda total, c: total * x + c, reversed(coefficients), jnp.zeros_like(x))


def _decay_ratio(x: Array) -> Array:
    """(1 - exp(-x)) / x, 1 at 0."""
    near = jnp.abs(x) < 1
    half, far = jnp.where(near, x / 2, 0), jnp.where(near, 1, x)
    return jnp.where(near, jnp.exp(-half) * _polynomial(SINH_RATIO, half**2), -jnp.expm1(-far) / far)


def _geometric_sum(count: Array, gap: Array) -> Array:
    """1 + r + ... + r^(count - 1) with r = 1 - gap, any real number; exact to rounding as gap goes to 0."""
    near = jnp.abs(gap) < 1 / 8
    small, far = jnp.where(near, gap, 0), jnp.where(near, 1, gap)
    ratio = 2 / (2 - small) * _polynomial(ATANH_RATIO, (small / (2 - small)) ** 2)  # -log(1 - gap) / gap
    return jnp.where(near, count * ratio * _decay_ratio(count * small * ratio), (1 - (1 - far) ** count) / far)


def _recursive_sum(count: Array, a: Array, d: Array) -> Array:
    """P of the recursion at the top of this file, after `count` terms: its roots have product d, and 1 - T + d = a.

    Well separated roots give two geometric sums. Their gaps 1 - r are found from (1 - r₁) (1 - r₂) = a, without
    cancellation for small a. Others, and complex ones, give (1 - pₖ₊₁ + D pₖ) / a. Where both are near 0, as those of
    Nesterov's momentum are at a = 1, few terms of the sum are all of it.
    """
    # XLA rounds what it computes twice in two ways: without the barriers, here and below, some of the selections would
    # take the one side, and some the other.
    few = lax.optimization_barrier((jnp.abs(1 - a + d) < SMALL) & (jnp.abs(d) < SMALL**2))
    first = _first_terms(count, jnp.where(few, 1 - a + d, 0), jnp.where(few, d, 0))
    a, d = jnp.where(few, 1, a), jnp.where(few, 0.25, d)
    trace = 1 - a + d
    discriminant = trace**2 - 4 * d
    apart = lax.optimization_barrier(discriminant > jnp.minimum(APART * jnp.abs(trace), jnp.abs(1 - d) / 2) ** 2)
    root = jnp.sqrt(jnp.where(apart, discriminant, 1))
    larger = (jnp.where(apart, trace, 1) + jnp.where(trace < 0, -root, root)) / 2  # in absolute value
    larger = jnp.where(apart, larger, 1)
    smaller = jnp.where(apart, d, 0) / larger
    gap = jnp.where(apart, a, 1) / (1 - smaller)
    one, other = jax.vmap(_geometric_sum, (None, 0))(count, jnp.stack([gap, 1 - smaller]))
    sums = larger * one - smaller * other
    trace, d = jnp.where(apart, 1, trace), jnp.where(apart, 0.25, d)
    after, now = jax.vmap(_recursion, (0, None, None))(jnp.stack([count + 1, count]), trace, d)
    close = 1 - after + d * now
    return jnp.where(few, first, jnp.where(apart, sums / (larger - smaller), close / jnp.where(apart, 1, a)))


def _first_terms(count: Array, trace: Array, d: Array) -> Array:
    """P for roots below 1.7 SMALL, of which only so many terms are above rounding."""
    before, now, total = jnp.zeros_like(trace), jnp.ones_like(trace), jnp.zeros_like(count * trace)
    for k in range(1, 10):
        total += jnp.where(k <= count, now, 0)
        before, now = now, trace * now - d * before
    return total


def _recursion(count: Array, trace: Array, d: Array) -> Array:
    """p of the recursion at the top of this file, for close roots, of ratio exp(-η), or complex ones, of angles ±θ:

    pₖ = r₁ᵏ⁻¹ (1 - exp(-k η)) / (1 - exp(-η))   or   D^((k - 1) / 2) sin(k θ) / sin(θ).

    Where k η or k θ is small, it is its series in z = 1 - 4 D / T², (T / 2)ᵏ⁻¹ Σⱼ C(k, 2 j + 1) zʲ: the binomial series
    of (r₁ᵏ - r₂ᵏ) / (r₁ - r₂), with roots T / 2 (1 ± √z).
    """
    discriminant, before = trace**2 - 4 * d, jnp.maximum(count - 1, 0)
    equal = lax.optimization_barrier(count.astype(trace.dtype) ** 2 * jnp.abs(discriminant) < trace**2)
    half = jnp.where(equal, trace, 0) / 2
    series = half**before * _odd_binomials(count, jnp.where(equal, discriminant, 0) / jnp.where(equal, trace, 1) ** 2)
    positive, negative = ~equal & (discriminant > 0), ~equal & (discriminant <= 0)
    root, turned = (jnp.sqrt(jnp.where(mine, jnp.abs(discriminant), 1)) for mine in (positive, negative))
    larger = jnp.where(positive, jnp.abs(trace) + root, 2) / 2
    eta = jnp.log1p(root / jnp.where(positive, larger - root, 1))
    theta = jnp.arctan2(turned, jnp.where(negative, jnp.abs(trace), 1)) / jnp.pi
    real = larger**before * _decay_ratio(count * eta) / _decay_ratio(eta)
    complex_ = jnp.sqrt(jnp.where(negative, d, 1)) ** before * jnp.sinc(count * theta) / jnp.sinc(theta)
    sign = jnp.where((trace < 0) & (count % 2 == 0), -1, 1)
    return jnp.where(equal, series, sign * count * jnp.where(positive, real, complex_))


def _odd_binomials(count: Array, z: Array) -> Array:
    """Σⱼ C(count, 2 j + 1) zʲ, for |z| < 1 / count²."""
    coefficients = [count.astype(z.dtype)]
    for n in range(2, 2 * TERMS, 2):
        coefficients.append(coefficients[-1] * ((count - n) / n) * ((count - n + 1) / (n + 1)))
    return _polynomial(coefficients, z)
