"""Piecewise exponential polynomials: how they are described, and their algebra, in float64 on static numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

from numpy.polynomial import Polynomial

_NOTHING = 1e-14
"""Sums that cancel up to this, relative to their terms, are zero."""


class Atom(NamedTuple):
    """`coefficient * (side*(x-point))^power * exp(rate*x) * [side*(x-point) > 0]`; side 0: everywhere, point 0."""

    side: int
    """+1: right of the point; -1: left of it; 0: `coefficient * x^power * exp(rate*x)` on the whole line."""
    point: float
    power: int
    """-1: the delta function at `point` (side ignored, rate as a factor), -2 its derivative (rate 0), and so on."""
    rate: float
    coefficient: float


class Shape(NamedTuple):
    """A sum of atoms, with its values at the breakpoints."""

    atoms: tuple[Atom, ...]
    at: tuple[tuple[float, float], ...]
    """`(point, value)`: the values exactly at breakpoints, which matter at zero variance only."""
    smoothing: float = 0.0
    """The variance of a Gaussian with which the sum of atoms is convolved."""


class Side(NamedTuple):
    """`exp(rate*x)` right (+1) or left (-1) of a point, or everywhere (0)."""

    side: int
    point: float
    rate: float


Powers = tuple[tuple[int, float], ...]
"""`(k, coefficient of theta_k)`, where `theta_k = t^k / k!`, t > 0 the distance to the point, and its derivatives:
`theta_-1` is the delta function."""
Parts = tuple[tuple[Side, Powers], ...]


def _collect(terms: Iterable[tuple[tuple[Side, int], float]]) -> dict[tuple[Side, int], float]:
    """The sums of the coefficients of equal terms, without those that cancel."""
    lists: dict[tuple[Side, int], list[float]] = {}
    for key, c in terms:
        lists.setdefault(key, []).append(c)
    sums = {key: _sum(c) for key, c in lists.items()}
    return {key: total for key, total in sums.items() if total}


def _sum(terms: Sequence[float]) -> float:
    """The sum, 0 if what is left is rounding errors."""
    total = math.fsum(terms)
    return total if abs(total) > _NOTHING * math.fsum(map(abs, terms)) else 0.0


def _expanded(atom: Atom, side: int, point: float) -> list[tuple[tuple[Side, int], float]]:
    """The formula of an atom, on another half-line: powers of the distance to its point."""
    sign = side or 1
    own = atom.side or 1
    base = Polynomial([own * (point - atom.point), own * sign])
    coefficients = (base**atom.power).coef
    return [
        ((Side(side, point, atom.rate), j), atom.coefficient * float(c) * math.factorial(j))
        for j, c in enumerate(coefficients)
        if c
    ]


def _terms(atom: Atom, flip: bool) -> list[tuple[tuple[Side, int], float]]:
    if atom.power < 0:
        # Deltas belong to the side that does not contain 0, like the other parts; theta_k is reflected with it.
        side = -1 if atom.point < 0 else 1
        weight = atom.coefficient * math.exp(atom.rate * atom.point) * side ** (-1 - atom.power)
        return [((Side(side, atom.point, 0.0), atom.power), weight)]
    if flip:
        other = atom._replace(side=-atom.side, coefficient=-atom.coefficient * (-1) ** atom.power)
        return _expanded(atom, 0, 0.0) + _expanded(other, other.side, other.point)
    return _expanded(atom, atom.side, atom.point if atom.side else 0.0)


def _parts(terms: dict[tuple[Side, int], float]) -> Parts:
    sides: dict[Side, list[tuple[int, float]]] = {}
    for (side, k), c in sorted(terms.items()):
        sides.setdefault(side, []).append((k, c))
    return tuple((side, tuple(powers)) for side, powers in sides.items())


@cache
def outward(atoms: tuple[Atom, ...]) -> Parts:
    """The atoms as the function around 0, and what is added left of negative and right of positive points.

    At small variance the additions are then small, and cancel nothing. Exponentials stay on the side on which they
    are given: on the other they may grow.
    """
    terms = _collect(term for a in atoms for term in _terms(a, a.power >= 0 and a.rate == 0 and a.side * a.point < 0))
    if any(side.side and side.point == 0 and k >= 0 for side, k in terms):
        polynomial = [(key, c) for key, c in terms.items() if key[0] == Side(0, 0.0, 0.0)]
        halves = [((Side(s, 0.0, 0.0), k), c * s**k) for (_, k), c in polynomial for s in (1, -1)]
        terms = _collect([*((key, c) for key, c in terms.items() if key[0] != Side(0, 0.0, 0.0)), *halves])
    return _parts(terms)


@cache
def summands(shape: Shape) -> tuple[Shape, ...]:
    """The functions as whose sum the kernels of a shape are computed."""
    return tuple(
        Shape((_atom(side, k, c),), (), shape.smoothing) for side, powers in outward(shape.atoms) for k, c in powers
    )


def _atom(s: Side, k: int, c: float) -> Atom:
    return Atom(s.side, s.point, k, s.rate, c / math.factorial(max(k, 0)) * (s.side or 1) ** (-1 - k if k < 0 else 0))


@cache
def near_points(parts: Parts, degree: int) -> tuple[Parts, float, tuple[float, ...]] | None:
    """The Taylor polynomials of exponentials at their points, the largest of their rates, and the points.

    For parts in which the exponentials cancel the rest at the point, like `exp(x) - 1`. None if there is none.
    """
    rate, points = 0.0, []
    terms: list[tuple[tuple[Side, int], float]] = []
    for side, point in dict.fromkeys((s.side, s.point) for s, _ in parts):
        here = [(s, powers) for s, powers in parts if (s.side, s.point) == (side, point)]
        taylor = _taylor(here, degree)
        lowest = min(k for _, powers in here for k, _ in powers)
        if lowest < min((k for _, k in taylor), default=lowest):
            rate = max(rate, *(abs(s.rate) for s, _ in here))
            points.append(point)
            terms.extend(taylor.items())
        else:
            terms.extend(((s, k), c) for s, powers in here for k, c in powers)
    return (_parts(_collect(terms)), rate, tuple(points)) if rate else None


def _taylor(parts: Sequence[tuple[Side, Powers]], degree: int) -> dict[tuple[Side, int], float]:
    # exp(r x) t^k / k! = exp(r point) sum_n (r sign)^n t^(n+k) / (n! k!), and t^(n+k) = (n+k)! theta_(n+k)
    terms = []
    for s, powers in parts:
        plain, r = s._replace(rate=0.0), s.rate * (s.side or 1)
        for k, c in powers:
            orders = range(degree + 1 - k) if r and k >= 0 else [0]
            scale = c * math.exp(s.rate * s.point)
            terms += [((plain, k + n), scale * r**n * math.comb(n + k, n) if n else scale) for n in orders]
    return _collect(terms)


def value(shape: Shape, x: float) -> float:
    """The value at x, without deltas and without smoothing."""
    at = dict(shape.at)
    return at[x] if x in at else one_sided(shape.atoms, x, 0)


def one_sided(atoms: Iterable[Atom], x: float, side: int) -> float:
    """The limit at x from the left (-1), from the right (+1), or what the atoms say at x (0)."""
    total = []
    for a in atoms:
        t = x - a.point if a.side == 0 else a.side * (x - a.point)
        if a.power >= 0 and (a.side == 0 or t > 0 or (t == 0 and side == a.side)):
            total.append(a.coefficient * t**a.power * math.exp(a.rate * x))
    return math.fsum(total)


@cache
def derivative(shape: Shape) -> Shape:
    """The derivative as a distribution; at breakpoints the mean of both sides, and 0 for deltas."""
    atoms: list[Atom] = []
    for a in shape.atoms:
        if a.power < 0:
            weight = a.coefficient * math.exp(a.rate * a.point)
            atoms.append(Atom(0, a.point, a.power - 1, 0.0, weight))
            continue
        if a.power > 0:
            atoms.append(a._replace(power=a.power - 1, coefficient=a.coefficient * a.power * (a.side or 1)))
        elif a.side:
            atoms.append(Atom(0, a.point, -1, 0.0, a.side * a.coefficient * math.exp(a.rate * a.point)))
        if a.rate:
            atoms.append(a._replace(coefficient=a.coefficient * a.rate))
    atoms = _merged(atoms)
    points = sorted({p for p, _ in shape.at} | {a.point for a in shape.atoms if a.side and a.power >= 0})
    at = tuple((p, (one_sided(atoms, p, -1) + one_sided(atoms, p, 1)) / 2) for p in points)
    return Shape(tuple(atoms), at, shape.smoothing)


def _merged(atoms: Iterable[Atom]) -> list[Atom]:
    """Equal atoms added: the deltas of a continuous function cancel."""
    lists: dict[Atom, list[float]] = {}
    for a in atoms:
        lists.setdefault(a._replace(coefficient=0.0), []).append(a.coefficient)
    sums = {a: _sum(c) for a, c in lists.items()}
    return [a._replace(coefficient=c) for a, c in sums.items() if c]


@cache
def square(shape: Shape) -> Shape:
    """The square of a shape without deltas and without smoothing."""
    atoms = [atom for a in shape.atoms for b in shape.atoms for atom in _product(a, b)]
    points = sorted({p for p, _ in shape.at} | {a.point for a in shape.atoms if a.side})
    return Shape(tuple(atoms), tuple((p, value(shape, p) ** 2) for p in points))


def _product(a: Atom, b: Atom) -> list[Atom]:
    if a.side == 0 and b.side == 0:
        return [Atom(0, 0.0, a.power + b.power, a.rate + b.rate, a.coefficient * b.coefficient)]
    if a.side == 0 or (b.side and a.side * a.point < b.side * b.point and a.side == b.side):
        a, b = b, a
    if a.side * b.side >= 0:
        return _on_side(a, b, a.side, a.point, 1.0)
    right, left = (a, b) if a.side > 0 else (b, a)
    if right.point >= left.point:
        return []
    # An interval is the difference of two half-lines, on which an exponential should not grow.
    if a.rate + b.rate <= 0:
        ends = (1, right.point, 1.0), (1, left.point, -1.0)
    else:
        ends = (-1, left.point, 1.0), (-1, right.point, -1.0)
    return [atom for end in ends for atom in _on_side(a, b, *end)]


def _on_side(a: Atom, b: Atom, side: int, point: float, sign: float) -> list[Atom]:
    """The product of the formulas of two atoms, on a half-line."""
    total = Polynomial([sign * a.coefficient * b.coefficient])
    for atom in (a, b):
        own = atom.side or 1
        total *= Polynomial([own * (point - atom.point), own * side]) ** atom.power
    return [Atom(side, point, j, a.rate + b.rate, float(c)) for j, c in enumerate(total.coef) if c]


@cache
def is_odd(shape: Shape) -> bool:
    """Whether `f(-x) = -f(x)` everywhere, breakpoints included."""
    reflected = [
        Atom(-a.side, -a.point, a.power, -a.rate, a.coefficient * ((-1) ** a.power if a.side == 0 else 1))
        for a in shape.atoms
    ]
    # Everything on the right of its point, which is unique.
    terms = (term for a in (*shape.atoms, *reflected) for term in _terms(a, a.side < 0 and a.power >= 0))
    points = {0.0} | {p for p, _ in shape.at} | {-p for p, _ in shape.at}
    values = ((value(shape, p), value(shape, -p)) for p in points)
    return not _collect(terms) and all(abs(x + y) <= _NOTHING * (abs(x) + abs(y)) for x, y in values)
