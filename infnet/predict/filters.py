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
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

# Roots whose relative distance is below this are summed by a formula that also holds where they coincide; unless they
# are the roots 1 and D of a small a.
APART = 1e-2


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
        total, reach = _recursive_sum(count, a, d), rate * count / (1 - momentum)
        if nesterov:
            total = (1 + momentum) * total - momentum * _recursive_sum(jnp.maximum(count - 1, 0), a, d)
    return jnp.where((values <= cutoff) & (reach > horizon), 0, rate * total)


def _decay_ratio(x: Array) -> Array:
    """(1 - exp(-x)) / x, 1 at 0."""
    at_zero = x == 0
    x = jnp.where(at_zero, 1, x)
    return jnp.where(at_zero, 1, -jnp.expm1(-x) / x)


def _geometric_sum(count: Array, gap: Array) -> Array:
    """1 + r + ... + r^(count - 1) with r = 1 - gap, any real number; exact to rounding as gap goes to 0."""
    special = (gap == 0) | (gap == 1)
    safe = jnp.where(special, 0.5, gap)
    near = jnp.abs(safe) < 0.5
    size = jnp.where(near, jnp.log1p(-jnp.where(near, safe, 0)), jnp.log(jnp.abs(1 - safe)))
    odd = (safe > 1) & (count % 2 == 1)  # a negative root changes sign
    shrunk = jnp.where(odd, 1 + jnp.exp(count * size), -jnp.expm1(count * size))
    return jnp.where(gap == 0, count, jnp.where(gap == 1, count > 0, shrunk / safe))


def _recursive_sum(count: Array, a: Array, d: Array) -> Array:
    """P of the recursion at the top of this file, after `count` terms: its roots have product d, and 1 - T + d = a.

    Well separated roots give two geometric sums. Their gaps 1 - r are found from (1 - r₁) (1 - r₂) = a, without
    cancellation for small a. Others, and complex ones, give (1 - pₖ₊₁ + D pₖ) / a.
    """
    trace = 1 - a + d
    discriminant = trace**2 - 4 * d
    # XLA rounds what it computes twice in two ways: without the barrier, some of the selections below would take the
    # one side, and some the other.
    apart = lax.optimization_barrier(discriminant > jnp.minimum(APART * jnp.abs(trace), jnp.abs(1 - d) / 2) ** 2)
    root = jnp.sqrt(jnp.where(apart, discriminant, 1))
    larger = (jnp.where(apart, trace, 1) + jnp.where(trace < 0, -root, root)) / 2  # in absolute value
    larger = jnp.where(apart, larger, 1)
    smaller = jnp.where(apart, d, 0) / larger
    gap = jnp.where(apart, a, 1) / (1 - smaller)
    sums = larger * _geometric_sum(count, gap) - smaller * _geometric_sum(count, 1 - smaller)
    trace, d = jnp.where(apart, 1, trace), jnp.where(apart, 0.25, d)
    close = 1 - _recursion(count + 1, trace, d) + d * _recursion(count, trace, d)
    return jnp.where(apart, sums / (larger - smaller), close / jnp.where(apart, 1, a))


def _recursion(count: Array, trace: Array, d: Array) -> Array:
    """p of the recursion at the top of this file, for close roots, of ratio exp(-η), or complex ones, of angles ±θ:

    pₖ = r₁ᵏ⁻¹ (1 - exp(-k η)) / (1 - exp(-η))   or   D^((k - 1) / 2) sin(k θ) / sin(θ).
    """
    discriminant, before, tiny = trace**2 - 4 * d, jnp.maximum(count - 1, 0), jnp.finfo(trace.dtype).tiny
    # both are k r^(k - 1) where the roots are equal
    apart, turned = (jnp.sqrt(jnp.maximum(x, tiny)) for x in (discriminant, -discriminant))
    larger, smaller = (jnp.abs(trace) + apart) / 2, (jnp.abs(trace) - apart) / 2
    eta = jnp.log1p(apart / jnp.where(discriminant > 0, jnp.maximum(smaller, tiny), 1))
    theta = jnp.arctan2(turned, jnp.abs(trace)) / jnp.pi
    real = larger**before * _decay_ratio(count * eta) / _decay_ratio(eta)
    complex_ = jnp.sqrt(jnp.maximum(d, tiny)) ** before * jnp.sinc(count * theta) / jnp.sinc(theta)
    sign = jnp.where((trace < 0) & (count % 2 == 0), -1, 1)
    return sign * count * jnp.where(discriminant > 0, real, complex_)
