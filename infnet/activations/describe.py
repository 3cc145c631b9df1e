"""From forms to the static descriptions that the kernel primitives take.

- `to_terms`: a form without breakpoints as the terms of the `exponential` primitive;
- `to_shape`: a piecewise exponential polynomial as one-sided atoms of the `piecewise` primitive;
- `to_smoothed_shape`: a form with one error function as atoms smoothed by a Gaussian.

Descriptions are exact but for rounding: what remains of coefficients that cancel is left out.
"""

from __future__ import annotations

import math
from itertools import zip_longest
from typing import Any

import numpy as np
from numpy.polynomial import hermite_e
from numpy.polynomial import polynomial as poly

from infnet.activations.forms import ONE, Exponent, Form, Piecewise, Polynomial
from infnet.primitives.exponential import ExpTerm, Function
from infnet.primitives.piecewise import Atom, Shape

_DUST = 16 * float(np.finfo(np.float64).eps)


def to_terms(f: Form) -> Function | None:
    """The terms of a form; None with error functions, sin(x^2) and the like."""
    if any(e.rate or isinstance(e.quadratic, complex) for e, _ in f.terms):
        return None
    return tuple(
        ExpTerm(c, power, e.linear, float(e.quadratic.real)) for e, p in f.terms for power, c in enumerate(p) if c != 0
    )


def to_shape(f: Piecewise) -> Shape | None:
    """One-sided atoms; None unless all pieces are polynomials times exp(b x) with real b."""
    rates: dict[float, list[Polynomial]] = {}
    for i, piece in enumerate(f.forms):
        for e, p in piece.terms:
            if not e.is_real or e.rate or e.quadratic:
                return None
            rates.setdefault(float(e.linear.real), [()] * len(f.forms))[i] = p
    atoms = [atom for rate, pieces in sorted(rates.items()) for atom in _atoms(f.points, pieces, rate)]
    return Shape(tuple(atoms), tuple(zip(f.points, f.values, strict=True)))


def _atoms(points: tuple[float, ...], pieces: list[Polynomial], rate: float) -> list[Atom]:
    """`exp(rate x)` times the polynomial `pieces[i]` between `points[i-1]` and `points[i]`.

    One piece is taken for the whole line, and the rest is made of jumps seen from the other side: that side is chosen
    on which the exponential decreases, so that nothing has to cancel its growth. A growing exponential that the user
    cut off towards zero only has jumps on its own side.
    """
    left, right = pieces[0], pieces[-1]
    grows_right, grows_left = rate > 0, rate < 0
    from_left = (right and not left) if grows_right else not (grows_left and left and not right)
    side, everywhere = (1, left) if from_left else (-1, right)
    atoms = [Atom(0, 0.0, k, rate, float(c.real)) for k, c in enumerate(everywhere) if c != 0]
    for i, point in enumerate(points):
        near, far = (pieces[i], pieces[i + 1]) if side == 1 else (pieces[i + 1], pieces[i])
        jump = enumerate(_jump(near, far, point))
        atoms += [Atom(side, point, k, rate, side**k * c) for k, c in jump if c != 0]
    return atoms


def _jump(near: Any, far: Any, point: float) -> list[float]:
    """`far - near` in powers of `x - point`, without what is only rounding."""
    pairs = list(zip_longest(near, far, fillvalue=0.0))
    difference = _shifted([float((b - a).real) for a, b in pairs], point)
    size = _shifted([abs(a) + abs(b) for a, b in pairs], abs(point))
    return [c if abs(c) > _DUST * s else 0.0 for c, s in zip(difference, size, strict=True)]


def _shifted(p: Any, point: float) -> list[float]:
    """The coefficients of p(point + y) as a polynomial in y."""
    return [
        sum(float(c) * math.comb(j, k) * point ** (j - k) for j, c in enumerate(p) if j >= k) for k in range(len(p))
    ]


def to_smoothed_shape(f: Form, gate: Exponent, tolerance: float) -> Shape | None:
    """Atoms that, convolved with N(0, t^2), are `P(x) + Q(x) erf(r x + s) + R(x) exp(-(r x + s)^2)`.

    With `c = -s/r`, `t^2 = 1/(2 r^2)`, `z = (x - c)/t`, this is `P - Q + 2 Q Phi(z) + sqrt(2 pi) R n(z)`, and the
    convolutions with N(0, t^2) are (by induction, integrating by parts)

        of (x-c)_+^k             t^k M_k(z),  M_0 = Phi, M_1 = z Phi + n, M_k = z M_(k-1) + (k-1) M_(k-2)
        of the j-th d/dx of delta(x-c)        (-1)^j He_j(z) n(z) / t^(j+1)
        of t^k He_k(x/t)                      x^k

    Args:
        f: the form.
        gate: its error function, or the one whose derivative it contains.
        tolerance: the relative difference of the constants r and s up to which they count as equal.
    """
    parts = _parts(f, gate, tolerance)
    if parts is None:
        return None
    plain, erf, bell = parts
    centre, t = -gate.shift / gate.rate + 0.0, 1 / (math.sqrt(2) * gate.rate)
    powers = t ** np.arange(len(plain) + len(erf) + len(bell) + 1)
    gates, bells = (np.array(_shifted(p, centre)) * powers[: len(p)] for p in (2 * erf, math.sqrt(2 * math.pi) * bell))
    atoms, bells = _gates(gates, bells, centre, powers)
    hermite = hermite_e.poly2herme(bells)
    size = _DUST * max(map(abs, (*gates, *bells)), default=0.0)
    atoms += [
        Atom(1, centre, -1 - j, 0.0, float((-1) ** j * c * powers[j + 1]))
        for j, c in enumerate(hermite)
        if abs(c) > size
    ]
    whole = np.array(_jump(erf, plain, 0.0))
    rest = hermite_e.herme2poly(whole * powers[: len(whole)])
    atoms += [Atom(0, 0.0, k, 0.0, float(c / powers[k])) for k, c in enumerate(rest) if c != 0]
    return Shape(tuple(atoms), (), t * t)


def _gates(gates: np.ndarray, bells: np.ndarray, centre: float, powers: np.ndarray) -> tuple[list[Atom], np.ndarray]:
    """`gates(z) Phi(z) + bells(z) n(z)` as truncated powers, and a rest of the form `bells(z) n(z)`."""
    functions = [(np.array([1.0]), np.array([0.0])), (np.array([0.0, 1.0]), np.array([1.0]))]
    for k in range(2, len(gates)):
        one, two = functions[-1], functions[-2]
        functions.append(tuple(poly.polyadd(poly.polymulx(a), (k - 1) * b) for a, b in zip(one, two, strict=True)))
    atoms = []
    for k in reversed(range(len(gates))):
        c, (of_gates, of_bells) = float(gates[k]), functions[k]
        if c == 0:
            continue
        atoms.append(Atom(1, centre, k, 0.0, c / float(powers[k])))
        gates = poly.polysub(gates, c * of_gates)[: k + 1]
        gates = np.pad(gates, (0, k + 1 - len(gates)))
        bells = poly.polysub(bells, c * of_bells)
    return atoms, bells


def _parts(f: Form, gate: Exponent, tolerance: float) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """P, Q and R exp(-s^2) of a form `P + Q erf(r x + s) + R exp(-r^2 x^2 - 2 r s x)`."""
    bell = Exponent(-(gate.rate**2), -2 * gate.rate * gate.shift + 0.0)
    kinds = (ONE, gate, bell)
    totals = [np.zeros(1) for _ in kinds]
    for e, p in f.terms:
        found = [i for i, kind in enumerate(kinds) if close(e, kind, tolerance)]
        if len(found) != 1:
            return None
        totals[found[0]] = poly.polyadd(totals[found[0]], np.real(p))
    if gate.shift**2 > _LARGEST_EXPONENT:
        return None
    return totals[0], totals[1], totals[2] * math.exp(gate.shift**2)


_LARGEST_EXPONENT = 600.0


def close(e: Exponent, f: Exponent, tolerance: float) -> bool:
    """Whether two exponents are equal but for the rounding of constants."""
    return all(abs(a - b) <= tolerance * max(abs(a), abs(b)) for a, b in zip(e, f, strict=True))


def equal(f: Form, g: Form, tolerance: float) -> bool:
    """Whether two forms are equal but for the rounding of constants."""
    if len(f.terms) != len(g.terms):
        return False
    for (e, p), (d, q) in zip(f.terms, g.terms, strict=True):
        largest = max(map(abs, (*p, *q)))
        if not close(e, d, tolerance) or len(p) != len(q):
            return False
        if any(abs(a - b) > tolerance * largest for a, b in zip(p, q, strict=True)):
            return False
    return True
