"""Where a form is positive, zero and negative: exactly, or not at all.

Known are polynomials `x^k (a x^2 + b x + c)`, these times an exponential, `c exp(Q(x)) + d exp(R(x))` with polynomials
of degree at most 2, and sums of which one part outweighs all others. Elsewhere the sign is NaN: not known.
"""

from __future__ import annotations

import math
from bisect import bisect_right

from infnet.activations.forms import (
    ONE,
    Exponent,
    Form,
    NotAForm,
    Number,
    Piecewise,
    Polynomial,
    constant_form,
)

Pattern = tuple[list[float], list[float]]
"""The sorted zeros, and the signs before, between and after them."""


def sign(f: Piecewise) -> Piecewise:
    """The sign function of f: its breakpoints are those of f and its zeros."""
    patterns = [_pattern(g) for g in f.forms]
    ends = (-math.inf, *f.points, math.inf)
    zeros = [r for i, (roots, _) in enumerate(patterns) for r in roots if ends[i] < r < ends[i + 1]]
    points = sorted({*f.points, *zeros})
    values = {**dict.fromkeys(zeros, 0.0), **{x: _sign(v) for x, v in zip(f.points, f.values, strict=True)}}
    forms = []
    for low in (-math.inf, *points):
        # On which side of a zero an interval lies is told by its ends: exact, unlike the value of the form.
        roots, signs = patterns[bisect_right(f.points, low)]
        forms.append(constant_form(signs[bisect_right(roots, low)]))
    return Piecewise(tuple(points), tuple(forms), tuple(values[x] for x in points)).simplify()


def _sign(x: float) -> float:
    return math.nan if math.isnan(x) else float((x > 0) - (x < 0))


def _pattern(f: Form) -> Pattern:
    try:
        return _known_pattern(f)
    except NotAForm:
        return [], [math.nan]


def _known_pattern(f: Form) -> Pattern:
    if not f.terms:
        return [], [0.0]
    if len(f.terms) == 1:
        exponent, p = f.terms[0]
        if exponent.is_real and not exponent.rate:
            return _of_polynomial(p)
    if len(f.terms) == 2:
        found = _of_two(*f.terms)
        if found is not None:
            return found
    return [], [_outweighing(f)]


def _of_polynomial(p: Polynomial) -> Pattern:
    numbers = [float(c.real) for c in p]
    if any(map(math.isnan, numbers)):
        raise NotAForm
    zeros = next(i for i, c in enumerate(numbers) if c != 0)
    rest = numbers[zeros:]
    if len(rest) > 3 or (len(rest) == 3 and not all(map(math.isfinite, rest))):
        raise NotAForm
    roots, signs = (_constant, _line, _parabola)[len(rest) - 1](*rest)
    if not zeros:
        return roots, signs
    before = bisect_right(roots, 0.0)  # the rest is not zero at 0
    flipped = signs if zeros % 2 == 0 else [-s for s in signs[: before + 1]]
    return [*roots[:before], 0.0, *roots[before:]], [*flipped[: before + 1], *signs[before:]]


def _constant(c: float) -> Pattern:
    return [], [_sign(c)]


def _line(c: float, b: float) -> Pattern:
    return [-c / b + 0.0], [-_sign(b), _sign(b)]  # not -0.0


def _parabola(c: float, b: float, a: float) -> Pattern:
    d = b * b - 4 * a * c
    side = _sign(a)
    if d == 0:
        return [-b / (2 * a) + 0.0], [side, side]
    if not abs(d) > 1e-14 * b * b:
        raise NotAForm  # one zero or two or none: rounding decides
    if d < 0:
        return [], [side]
    if b == 0:
        root = math.sqrt(-c / a)
        return [-root, root], [side, -side, side]
    t = -(b + math.copysign(math.sqrt(d), b)) / 2
    return sorted([t / a + 0.0, c / t + 0.0]), [side, -side, side]


def _of_two(one: tuple[Exponent, Polynomial], two: tuple[Exponent, Polynomial]) -> Pattern | None:
    """`c exp(Q) + d exp(R)`: with opposite signs, it has the sign of `c (Q - R - log(-d/c))`."""
    (e, p), (f, q) = one, two
    if len(p) > 1 or len(q) > 1 or not (e.is_real and f.is_real) or e.rate or f.rate:
        return None
    c, d = p[0].real, q[0].real
    if not (math.isfinite(c) and math.isfinite(d)):
        raise NotAForm
    if _sign(c) == _sign(d):
        return [], [_sign(c)]
    ratio = -d / c
    level = math.log(ratio) if 0 < ratio < math.inf else math.log(abs(d)) - math.log(abs(c))
    difference: list[Number] = [-level, e.linear - f.linear, e.quadratic - f.quadratic]
    while difference[-1] == 0:
        difference.pop()
    return _of_polynomial(tuple(_sign(c) * x for x in difference))


def _outweighing(f: Form) -> float:
    """The sign of a sum in which all parts have one sign, or the constant is larger than the sum of all bounds."""
    signs: set[float] = set()
    never_zero = False
    constant, bounds = 0.0, 0.0
    for e, p in f.terms:
        zeros, of_term = _of_polynomial(p) if e.is_real and not e.rate else ([], [math.nan])
        signs.update(of_term)
        never_zero |= not zeros
        if e == ONE and len(p) == 1:
            constant = p[0].real
        else:
            bounds += abs(p[0]) if len(p) == 1 and _below_one(e) else math.inf
    if never_zero and len(signs) == 1 and signs <= {-1.0, 1.0}:
        return signs.pop()
    if abs(constant) > bounds * (1 + 1e-14):
        return _sign(constant)
    raise NotAForm


def _below_one(e: Exponent) -> bool:
    """Whether |exp(a x^2 + b x) erf(...)| is at most 1 everywhere."""
    return e.linear.real == 0 and e.quadratic.real <= 0
