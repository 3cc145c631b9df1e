"""Kernels of sums of `c x^k exp(a x^2 + s x)`, c and s complex: sin, cos, exp, Gaussian, Gabor, polynomials.

A function is a tuple of such terms with a real sum. Collected by their exponents, its terms are waves
`exp(a x^2 + p x) (C(x) cos(w x) + S(x) sin(w x))` with real polynomials C and S, and a kernel is a sum over pairs of
waves. All is derived here, by completing the square and with Stein's lemma. For `(u, v) ~ N(m, Q)`:

1. Real exponents tilt the Gaussian. With `P = 2 diag(a, c)`, `h = (p, r)` and `R = (I - Q P)^-1`,

       E exp(a u^2 + c v^2 + h.(u, v)) F(u, v) = N E~ F(u, v),    E~ over N(R m + V h, V),    V = R Q,
       N = det(R)^(1/2) exp(m.P R m / 2 + h.R m + h.V h / 2)

   R exists for singular Q. Its determinant is formed as `angles.smoothed` does it, from the gaps between q12 and
   `sqrt(q11 q22)` and divided by `(1 - 2 a q11) (1 - 2 c q22)`: no cancellation at nearly parallel points, and no
   overflow where the result is representable.
2. Imaginary exponents tilt it to a complex mean, by the same formula. Without polynomials the sum and the difference
   of frequencies are combined before the exponential is taken:

       E cos(w y) cos(t z) = e^(-D/2) (1 + e^(-2 w t |V12|)) / 2
       E sin(w y) sin(t z) = e^(-D/2) (1 - e^(-2 w t |V12|)) / 2 * sign(V12)

   for y = u - E~ u, z = v - E~ v and D the smaller of Var(w y - t z) and Var(w y + t z). So both keep their relative
   accuracy at small q12 and at near-duplicates, and nothing overflows.
3. Polynomials A and B: `E A(u) B(v) = sum_j V12^j / j! E A^(j)(u) E B^(j)(v)` (Mehler's formula, exact because it
   ends), with the moments of one variable `E u^k = mu E u^(k-1) + (k - 1) q E u^(k-2)` (Stein).

Derivatives: Price's theorem and d/dm = E d/dx; the family is closed under differentiation, so all orders are exact:

    dK = E f' g' dq12 + E f'' g dq11 / 2 + E f g'' dq22 / 2 + E f' g dm1 + E f g' dm2

Domain: q11, q22 >= 0 and |q12| <= sqrt(q11 q22); rounding errors beyond it are clipped, NaN is not. The kernels are
smooth at |rho| = 1 and at zero variance. Errors are relative to `sqrt(K11 K22)`, also where terms of one function
cancel (as those of sinh(x) do at small x). Where a > 0 and `1 - 2 a q11 <= 0` the moment is infinite: NaN or infinity.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infnet.primitives.angles import gaps
from infnet.primitives.define import define


class ExpTerm(NamedTuple):
    """`coefficient * x^power * exp(quadratic * x^2 + linear * x)`."""

    coefficient: complex
    power: int
    linear: complex
    quadratic: float


Function = tuple[ExpTerm, ...]
"""The sum of the terms, which is real at every real x. The empty sum is zero."""

ONE: Function = (ExpTerm(1.0, 0, 0.0, 0.0),)


def differentiated(function: Function) -> Function:
    """The derivative."""
    total: dict[tuple[int, complex, float], complex] = defaultdict(complex)
    for c, k, s, a in function:
        for coefficient, power in ((c * k, k - 1), (c * s, k), (2 * a * c, k + 1)):
            if coefficient != 0:
                total[power, s, a] += coefficient
    return tuple(ExpTerm(c, *key) for key, c in total.items() if c != 0)


class Wave(NamedTuple):
    """`exp(quadratic x^2 + rate x) (C(x) cos(frequency x) + S(x) sin(frequency x))`, C and S by rising powers."""

    quadratic: float
    rate: float
    frequency: float
    cosine: tuple[float, ...]
    sine: tuple[float, ...]


@functools.cache
def waves(function: Function) -> tuple[Wave, ...]:
    """The terms, collected; frequencies are not negative, and the last coefficients are not both zero."""
    sums: dict[tuple[float, float, float], dict[int, complex]] = defaultdict(lambda: defaultdict(complex))
    for c, k, s, a in function:
        c, s = complex(c), complex(s)
        if s.imag < 0:  # the real part is that of the conjugate
            c, s = c.conjugate(), s.conjugate()
        sums[float(a), s.real, s.imag][k] += c if s.imag else c.real
    collected = []
    for exponent, by_power in sums.items():
        powers = range(1 + max(by_power))
        pairs = [_without_rounding(by_power[k].real, -by_power[k].imag) for k in powers]
        while pairs and pairs[-1] == (0.0, 0.0):
            pairs.pop()
        if pairs:
            collected.append(Wave(*exponent, *zip(*pairs, strict=True)))
    return tuple(collected)


def _without_rounding(cosine: float, sine: float) -> tuple[float, float]:
    """Zero in the place of a rounding error of the phase, as in cos(pi/2)."""
    small = 1e-15 * max(abs(cosine), abs(sine))
    return (cosine if abs(cosine) > small else 0.0, sine if abs(sine) > small else 0.0)


# Arithmetic in which Python's 0.0 stands for what is known to be zero, and costs nothing.

Scalar = Any
"""An array or a float."""


def _is_zero(x: Scalar) -> bool:
    return isinstance(x, float) and x == 0.0


def _plus(*terms: Scalar) -> Scalar:
    total, *rest = [x for x in terms if not _is_zero(x)] or [0.0]
    for x in rest:
        total = total + x
    return total


def _times(*factors: Scalar) -> Scalar:
    if any(_is_zero(x) for x in factors):
        return 0.0
    total, *rest = [x for x in factors if not (isinstance(x, float) and x == 1.0)] or [1.0]
    for x in rest:
        total = total * x
    return total


class _Complex(NamedTuple):
    re: Scalar
    im: Scalar

    def plus(self, other: _Complex) -> _Complex:
        return _Complex(_plus(self.re, other.re), _plus(self.im, other.im))

    def times(self, other: _Complex) -> _Complex:
        return _Complex(
            _plus(_times(self.re, other.re), _times(-1.0, self.im, other.im)),
            _plus(_times(self.re, other.im), _times(self.im, other.re)),
        )

    def scaled(self, factor: Scalar) -> _Complex:
        return _Complex(_times(self.re, factor), _times(self.im, factor))


# Steps 1 to 3 of the derivation.


class _Gaussian(NamedTuple):
    """Two Gaussians, and `factor * exp(exponent)`, by which expectations over them are to be multiplied."""

    mean1: Scalar
    mean2: Scalar
    v12: Scalar
    v11: Scalar
    v22: Scalar
    exponent: Scalar
    factor: Scalar

    def covariances(self, x: float, y: float) -> tuple[Scalar, Scalar]:
        """Of `x u + y v` with u and with v."""
        if abs(x) == abs(y) > 0:  # the difference of near-duplicates is exact, that of their multiples is not
            v12 = self.v12 if x == y else -self.v12
            return x * (self.v11 + v12), y * (self.v22 + v12)
        return (
            _plus(_times(x, self.v11), _times(y, self.v12)),
            _plus(_times(y, self.v22), _times(x, self.v12)),
        )

    def variance(self, x: float, y: float) -> Scalar:
        """Of `x u + y v`."""
        cov1, cov2 = self.covariances(x, y)
        return _plus(_times(x, cov1), _times(y, cov2))


def _tilted(
    plain: _Gaussian, below: jax.Array, above: jax.Array, quadratics: tuple[float, float], rates: tuple[float, float]
) -> _Gaussian:
    """Step 1."""
    damped = _damped(plain, below, above, -2 * quadratics[0], -2 * quadratics[1])
    shift1, shift2 = damped.covariances(*rates)
    exponent = _plus(
        damped.exponent,
        _times(rates[0], damped.mean1),
        _times(rates[1], damped.mean2),
        _times(0.5, damped.variance(*rates)),
    )
    return damped._replace(mean1=_plus(damped.mean1, shift1), mean2=_plus(damped.mean2, shift2), exponent=exponent)


def _damped(plain: _Gaussian, below: jax.Array, above: jax.Array, a: float, c: float) -> _Gaussian:
    """Multiplied by `exp(-(a u^2 + c v^2) / 2)`."""
    if a == c == 0:
        return plain
    m1 = jax.lax.rsqrt(1 + a * plain.v11) if a else 1.0
    m2 = jax.lax.rsqrt(1 + c * plain.v22) if c else 1.0
    i1, i2 = _times(m1, m1), _times(m2, m2)
    det = _times(below, m1, m2) * _times(above, m1, m2)
    if a * c > 0:
        scaled_det = i1 + i2 - i1 * i2 + (a * c) * det
    else:
        scaled_det = 1 - (a * c) * _times(plain.v12, m1, m2) ** 2 if a * c else jnp.ones((), det.dtype)
    inverse = 1 / scaled_det
    v12 = _times(plain.v12, m1, m2, m1, m2, inverse)
    v11 = _plus(_times(plain.v11, i1, i2), _times(c, det)) * inverse
    v22 = _plus(_times(plain.v22, i1, i2), _times(a, det)) * inverse
    mean1 = _plus(_times(plain.mean1, i1, inverse), _times(-c, v12, plain.mean2))
    mean2 = _plus(_times(plain.mean2, i2, inverse), _times(-a, v12, plain.mean1))
    exponent = _plus(_times(-a / 2, plain.mean1, mean1), _times(-c / 2, plain.mean2, mean2))
    return _Gaussian(mean1, mean2, v12, v11, v22, exponent, _times(m1, m2, jnp.sqrt(scaled_det) * inverse))


def _sinusoids(f: Wave, g: Wave, z: _Gaussian) -> Scalar:
    """E f g for waves whose polynomials are constants, without their real exponents."""
    w, t = f.frequency, g.frequency
    cos1, sin1 = _amplitudes(f, z.mean1)
    cos2, sin2 = _amplitudes(g, z.mean2)
    both = w > 0 and t > 0
    nearest = z._replace(v12=jnp.abs(z.v12)) if both else z
    distance = jnp.maximum(nearest.variance(w, -t), 0)
    shared = jnp.exp(_plus(z.exponent, -0.5 * distance))
    if not both:
        return _times(z.factor, cos1, cos2, shared)
    drop = jnp.expm1(-2 * w * t * nearest.v12)
    cos_cos = _times(0.5, cos1, cos2, 2 + drop)
    sin_sin = _times(-0.5, sin1, sin2, jnp.sign(z.v12), drop)
    return _times(z.factor, shared, _plus(cos_cos, sin_sin))


def _amplitudes(wave: Wave, mean: Scalar) -> tuple[Scalar, Scalar]:
    """Of the cosine and the sine of the centred variable."""
    c, s = wave.cosine[0], wave.sine[0]
    if _is_zero(mean) or wave.frequency == 0:
        return c, s
    cos, sin = jnp.cos(wave.frequency * mean), jnp.sin(wave.frequency * mean)
    return _plus(_times(c, cos), _times(s, sin)), _plus(_times(s, cos), _times(-c, sin))


def _with_polynomials(f: Wave, g: Wave, z: _Gaussian) -> Scalar:
    """E f g: `Re(F e^iwu) Re(G e^itv)` is half the real part of `F e^iwu` times `G e^itv` and its conjugate."""
    w, total = f.frequency, 0.0
    signs = (1.0, -1.0) if w > 0 and g.frequency > 0 else (1.0,)
    for sign in signs:
        t = sign * g.frequency
        shift1, shift2 = z.covariances(w, t)
        left = [_Complex(c, -s) for c, s in zip(f.cosine, f.sine, strict=True)]
        right = [_Complex(c, -sign * s) for c, s in zip(g.cosine, g.sine, strict=True)]
        left = _mean_derivatives(left, _Complex(z.mean1, shift1), z.v11, math.comb)
        right = _mean_derivatives(right, _Complex(z.mean2, shift2), z.v22, math.perm)
        moment = _Complex(0.0, 0.0)
        for j in reversed(range(min(len(left), len(right)))):
            moment = moment.scaled(z.v12).plus(left[j].times(right[j]))
        angle = _plus(_times(w, z.mean1), _times(t, z.mean2))
        if not _is_zero(angle):
            moment = moment.times(_Complex(jnp.cos(angle), jnp.sin(angle)))
        exponent = _plus(z.exponent, _times(-0.5, z.variance(w, t)))
        weight = 1.0 if _is_zero(exponent) else jnp.exp(exponent)
        total = _plus(total, _times(1 / len(signs), z.factor, weight, moment.re))
    return total


def _mean_derivatives(
    polynomial: list[_Complex], mean: _Complex, variance: Scalar, count: Callable[[int, int], int]
) -> list[_Complex]:
    """E A^(j)(u) for j = 0 ... degree, divided by j! if `count` is not `math.perm` but `math.comb`."""
    moments = [_Complex(1.0, 0.0)]
    for k in range(1, len(polynomial)):
        before = moments[k - 2].scaled(_times(float(k - 1), variance)) if k > 1 else _Complex(0.0, 0.0)
        moments.append(mean.times(moments[k - 1]).plus(before))
    means = []
    for j in range(len(polynomial)):
        terms = [c.scaled(float(count(k + j, j))).times(moments[k]) for k, c in enumerate(polynomial[j:])]
        means.append(functools.reduce(_Complex.plus, terms))
    return means


def _kernel(
    q12: jax.Array,
    q11: jax.Array,
    q22: jax.Array,
    *means: jax.Array,
    left: tuple[Function, ...],
    right: tuple[Function, ...],
) -> tuple[jax.Array, ...]:
    # A kernel and its derivative share exponentials. XLA on CPU would share them by writing them to memory; behind the
    # barrier, both are single fused loops (of sin: 5 instead of 11 ns per element of float32).
    barrier = jax.lax.optimization_barrier
    behind = [_moments(barrier(q12), q11, q22, means)] if len(left) == 2 else []
    moments = [_moments(q12, q11, q22, means)] * (len(left) - len(behind)) + behind
    return tuple(moment(one, two) for moment, one, two in zip(moments, left, right, strict=True))


def _moments(
    q12: jax.Array, q11: jax.Array, q22: jax.Array, means: tuple[jax.Array, ...]
) -> Callable[[Function, Function], jax.Array]:
    """The function that gives E f(u) g(v); what functions have in common is traced once."""
    all_operands = sum(means, q12 + (q11 + q22))
    q11, q22 = jnp.maximum(q11, 0), jnp.maximum(q22, 0)
    q12, below, above = gaps(q12, q11, q22)
    mean1, mean2 = means or (0.0, 0.0)
    plain = _Gaussian(mean1, mean2, q12, q11, q22, 0.0, 1.0)
    tilted = functools.cache(functools.partial(_tilted, plain, below, above))

    def moment(one: Function, two: Function) -> jax.Array:
        total = 0.0
        for f in waves(one):
            for g in waves(two):
                z = tilted((f.quadratic, g.quadratic), (f.rate, g.rate))
                constant = len(f.cosine) == len(g.cosine) == 1 and (f.frequency > 0 or g.frequency > 0)
                total = _plus(total, (_sinusoids if constant else _with_polynomials)(f, g, z))
        return jnp.where(jnp.isnan(all_operands), jnp.nan, total).astype(all_operands.dtype)

    return moment


def _jvp(
    primals: Sequence[jax.Array],
    tangents: Sequence[jax.Array],
    *,
    left: tuple[Function, ...],
    right: tuple[Function, ...],
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    left1, right1 = tuple(map(differentiated, left)), tuple(map(differentiated, right))
    left2, right2 = tuple(map(differentiated, left1)), tuple(map(differentiated, right1))
    dq12, dq11, dq22, *dmeans = tangents
    changes = [(left1, right1, dq12), (left2, right, dq11 / 2), (left, right2, dq22 / 2)]
    if dmeans:
        changes += [(left1, right, dmeans[0]), (left, right1, dmeans[1])]
    n = len(left)
    values = exponential_p.bind(
        *primals,
        left=left + sum((change[0] for change in changes), ()),
        right=right + sum((change[1] for change in changes), ()),
    )
    outputs, *slopes = (tuple(values[i : i + n]) for i in range(0, len(values), n))
    totals = [jnp.zeros_like(x) for x in outputs]
    for slope, (*_, change) in zip(slopes, changes, strict=True):
        totals = [total + s * change for total, s in zip(totals, slope, strict=True)]
    return outputs, tuple(totals)


exponential_p = define("exponential_kernel", _kernel, jvp=_jvp)


def exponential(
    q12: jax.Array,
    q11: jax.Array,
    q22: jax.Array,
    *,
    left: tuple[Function, ...],
    right: tuple[Function, ...],
    means: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[jax.Array, ...]:
    """`E left[k](u) right[k](v)` for every k.

    Args:
        q12: covariance of u and v; like the variances, of any rank, axes of size 1 broadcasting.
        q11: variance of u.
        q22: variance of v.
        left: functions of u.
        right: functions of v, as many.
        means: of u and v; None if both are exactly zero.
    """
    return tuple(exponential_p.bind(q12, q11, q22, *(means or ()), left=left, right=right))
