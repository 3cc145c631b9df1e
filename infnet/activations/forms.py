"""Piecewise exponential polynomials: the functions of one variable that `interpret` can follow exactly.

On every open interval between breakpoints the function is a *form*

    f(x) = sum_k p_k(x) exp(a_k x^2 + b_k x) [erf(r_k x + s_k)]        (the error function in some terms only)

with polynomials p_k. It is real: complex exponents (sine and cosine) come in conjugate pairs. Forms are closed under
sums, products (one error function to a term), and derivatives. Derived here; all of it is school algebra.

The value at every breakpoint is kept as well. It matters: the derivative of `jnp.maximum(x, 0)` is 1/2 at 0, that of
`jax.nn.relu` is 0, and zero-variance inputs see the difference. NaN stands for what is not known of a piece.
"""

from __future__ import annotations

import cmath
import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from scipy import special

Number = float | complex
Polynomial = tuple[Number, ...]
"""The coefficients of 1, x, x^2, ...; the last is not zero."""

_DUST = 1e-14
_MOST_TERMS = 64  # a kernel has a term for every pair: beyond, the series of a smooth function is cheaper
_EPS = float(np.finfo(np.float64).eps)


class NotAForm(Exception):
    """The result of an operation is not a form; never leaves the interpretation."""


class Exponent(NamedTuple):
    """`exp(quadratic x^2 + linear x)`, times `erf(rate x + shift)` if rate > 0."""

    quadratic: Number = 0.0
    linear: Number = 0.0
    rate: float = 0.0
    shift: float = 0.0

    @property
    def is_real(self) -> bool:
        """Whether the exponent is real."""
        return isinstance(self.quadratic, float) and isinstance(self.linear, float)


ONE = Exponent()


@dataclass(frozen=True)
class Form:
    """A sum of polynomials times exponentials; make it with `form`."""

    terms: tuple[tuple[Exponent, Polynomial], ...]

    @cached_property
    def polynomial(self) -> Polynomial | None:
        """The coefficients, if it is a polynomial."""
        if not self.terms:
            return ()
        (exponent, p), *others = self.terms
        return p if exponent == ONE and not others else None

    @property
    def constant(self) -> float | None:
        """The value, if it is a constant."""
        p = self.polynomial
        if p is None or len(p) > 1:
            return None
        return float(p[0].real) if p else 0.0

    @cached_property
    def is_finite(self) -> bool:
        """Whether no infinity and no NaN occurs."""
        return all(cmath.isfinite(c) for exponent, p in self.terms for c in (*exponent, *p))

    def __neg__(self) -> Form:
        return Form(tuple((e, tuple(-c for c in p)) for e, p in self.terms))

    def __add__(self, other: Form) -> Form:
        total = dict(self.terms)
        for e, p in other.terms:
            total[e] = _sum(total.get(e, ()), p, e.is_real)
        return form(total)

    def __sub__(self, other: Form) -> Form:
        return self + -other

    def __mul__(self, other: Form) -> Form:
        if not (self.is_finite and other.is_finite):
            return NAN  # 0 * inf would be lost, zeros not being stored
        total: dict[Exponent, Polynomial] = {}
        for e, p in self.terms:
            for f, q in other.terms:
                both = product(e, f)
                total[both] = _sum(total.get(both, ()), _multiplied(p, q), both.is_real)
        if len(total) > _MOST_TERMS:
            raise NotAForm
        return form(total)

    def power(self, n: int) -> Form:
        """The n-th power, n >= 0."""
        result = constant_form(1.0)
        for _ in range(n):
            result = result * self
        return result

    def derivative(self) -> Form:
        """d/dx."""
        result = ZERO
        for e, p in self.terms:
            inner = _multiplied(p, (e.linear, 2 * e.quadratic))
            result += form({e: _sum(tuple(k * c for k, c in enumerate(p))[1:], inner, False)})
            if e.rate:
                quadratic, linear = e.quadratic - e.rate * e.rate, e.linear - 2 * e.rate * e.shift
                factor = 2 * e.rate / math.sqrt(math.pi) * math.exp(-e.shift * e.shift)
                result += form({exponent(quadratic, linear): tuple(factor * c for c in p)})
        return result

    def __call__(self, x: Any) -> Any:
        """The values at a number or an array of numbers."""
        return self._total(x, abs_=False)

    def size(self, x: Any) -> Any:
        """The sum of the absolute values of all parts: how much rounding the value at x can have suffered."""
        return self._total(x, abs_=True)

    def _total(self, x: Any, abs_: bool) -> Any:
        total = 0.0 * x
        with np.errstate(all="ignore"):
            for e, p in self.terms:
                value = 0.0
                for c in reversed(p):
                    value = value * (abs(x) if abs_ else x) + (abs(c) if abs_ else c)
                if e.quadratic or e.linear:
                    value = value * np.exp((e.quadratic * x + e.linear) * x)
                if e.rate:
                    value = value * special.erf(e.rate * x + e.shift)
                total = total + (np.abs(value) if abs_ else value.real)
        return total


def form(terms: Mapping[Exponent, Polynomial]) -> Form:
    """The sum of the terms, without those that vanish."""
    kept = []
    for e, p in terms.items():
        # The form is real, so what belongs to a real exponent is real; its imaginary part is rounding.
        coefficients = [c.real if e.is_real else complex(c) for c in p]
        while coefficients and coefficients[-1] == 0:
            coefficients.pop()
        if coefficients:
            kept.append((e, tuple(coefficients)))
    if len(kept) > 1:
        kept.sort(key=lambda term: [x for z in term[0] for x in (z.real, z.imag)])
    return Form(tuple(kept))


def exponent(quadratic: Number, linear: Number, rate: float = 0.0, shift: float = 0.0) -> Exponent:
    """With complex numbers only where they are not real, and no -0.0."""
    quadratic, linear = (z.real + 0.0 if z.imag == 0 else z for z in (quadratic, linear))
    return Exponent(quadratic, linear, rate, shift)


def product(e: Exponent, f: Exponent) -> Exponent:
    """The exponent of a product of terms."""
    if e.rate and f.rate:
        raise NotAForm
    erf = e if e.rate else f
    return exponent(e.quadratic + f.quadratic, e.linear + f.linear, erf.rate, erf.shift)


def _sum(p: Polynomial, q: Polynomial, real: bool) -> Polynomial:
    # sin^2 + cos^2 is 1 only up to rounding where phases are added. Real coefficients are those of the user, and
    # are kept to the last bit.
    dust = 0.0 if real else _DUST
    pairs = zip_longest(p, q, fillvalue=0.0)
    return tuple(0.0 if dust and abs(a + b) <= dust * abs(a) else a + b for a, b in pairs)


def _multiplied(p: Polynomial, q: Polynomial) -> Polynomial:
    if len(p) == 1 or len(q) == 1:
        return tuple(a * b for a in p for b in q)
    result: list[Number] = [0.0] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            result[i + j] += a * b
    return tuple(result)


def constant_form(value: Number) -> Form:
    """The constant."""
    return form({ONE: (value,)})


ZERO = Form(())
NAN = Form(((ONE, (math.nan,)),))


@dataclass(frozen=True)
class Piecewise:
    """`forms[i]` between `points[i-1]` and `points[i]`; `values[i]` at `points[i]`."""

    points: tuple[float, ...]
    forms: tuple[Form, ...]
    values: tuple[float, ...]

    @property
    def is_constant(self) -> bool:
        """Whether the function is constant on every piece."""
        return all(f.constant is not None for f in self.forms)

    @property
    def is_linear(self) -> bool:
        """Whether the function is linear on every piece."""
        return self.is_polynomial and all(len(f.polynomial or ()) <= 2 for f in self.forms)

    @property
    def is_polynomial(self) -> bool:
        """Whether the function is a polynomial on every piece."""
        return all(f.polynomial is not None for f in self.forms)

    @property
    def is_finite(self) -> bool:
        """Whether no infinity and no NaN occurs."""
        return all(f.is_finite for f in self.forms) and all(map(math.isfinite, self.values))

    def simplify(self) -> Piecewise:
        """Without the breakpoints at which nothing happens."""
        if not self.points:
            return self
        needed = [i for i in range(len(self.points)) if not self._smooth_at(i)]
        if len(needed) == len(self.points):
            return self
        return Piecewise(
            tuple(self.points[i] for i in needed),
            (self.forms[0], *(self.forms[i + 1] for i in needed)),
            tuple(self.values[i] for i in needed),
        )

    def _smooth_at(self, i: int) -> bool:
        left, right, x = self.forms[i], self.forms[i + 1], self.points[i]
        if left != right:
            return False
        value = left(x)
        # The value was computed by other operations than the form.
        return self.values[i] == value or abs(self.values[i] - value) <= 8 * _EPS * left.size(x)

    def refine(self, points: Iterable[float]) -> Piecewise:
        """The same function with `points`, sorted and a superset of its own, as breakpoints."""
        points = tuple(points)
        if points == self.points:
            return self
        forms = tuple(self.forms[bisect_right(self.points, x)] for x in (-math.inf, *points))
        known = dict(zip(self.points, self.values, strict=True))
        values = tuple(known[x] if x in known else float(f(x)) for x, f in zip(points, forms[1:], strict=True))
        return Piecewise(points, forms, values)

    def derivative(self) -> Piecewise:
        """The derivative of every piece; at the breakpoints the mean of both sides."""
        forms = tuple(f.derivative() for f in self.forms)
        sides = zip(forms[:-1], forms[1:], self.points, strict=True)
        return Piecewise(self.points, forms, tuple(float(f(x) + g(x)) / 2 for f, g, x in sides))

    def __call__(self, x: Any) -> np.ndarray:
        """The values at an array of numbers."""
        x = np.asarray(x, np.float64)
        edges = np.array(self.points)
        piece = np.searchsorted(edges, x, side="right")
        result = np.full(x.shape, np.nan)
        for i, f in enumerate(self.forms):
            result = np.where(piece == i, f(x), result)
        for point, value in zip(self.points, self.values, strict=True):
            result = np.where(x == point, value, result)
        return result

    def at(self, point: float) -> float:
        """The value at one point."""
        i = bisect_left(self.points, point)
        return self.values[i] if point in self.points else float(self.forms[i](point))


def common(*functions: Piecewise) -> list[Piecewise]:
    """The same functions with the same breakpoints."""
    if len({f.points for f in functions}) == 1:
        return list(functions)
    points = sorted({x for f in functions for x in f.points})
    return [f.refine(points) for f in functions]


def lift(of_forms: Callable[..., Form], of_values: Callable[..., Any], *functions: Piecewise) -> Piecewise:
    """Piece by piece and value by value; a piece on which it is not known how becomes NaN."""
    functions = tuple(common(*functions))

    def piece(*forms: Form) -> Form:
        try:
            return of_forms(*forms)
        except (NotAForm, OverflowError):
            return NAN

    forms = tuple(map(piece, *(f.forms for f in functions)))
    values = tuple(float(of_values(*v)) for v in zip(*(f.values for f in functions), strict=True))
    return Piecewise(functions[0].points, forms, values)


def constant(value: float) -> Piecewise:
    """The constant function."""
    return Piecewise((), (constant_form(value),), ())


IDENTITY = Piecewise((), (form({ONE: (0.0, 1.0)}),), ())
