"""What recognised functions are called in explanations: a usual name, else a formula, else a description."""

from __future__ import annotations

import cmath
import math

from infnet.activations.describe import equal
from infnet.activations.forms import ONE, Exponent, Form, Number, Piecewise, Polynomial, exponent, form

_ROUNDING = 1e-6
"""Names are given up to the rounding of constants in float32."""


def _polynomial(*coefficients: float) -> Form:
    return form({ONE: coefficients})


_ZERO, _LINE = _polynomial(), _polynomial(0.0, 1.0)
_USUAL = {
    "hard_sigmoid": ((-3.0, 3.0), (_ZERO, _polynomial(1 / 2, 1 / 6), _polynomial(1.0))),
    "hard_swish": ((-3.0, 3.0), (_ZERO, _polynomial(0.0, 1 / 2, 1 / 6), _LINE)),
    "relu6": ((0.0, 6.0), (_ZERO, _LINE, _polynomial(6.0))),
    "hard_tanh": ((-1.0, 1.0), (_polynomial(-1.0), _LINE, _polynomial(1.0))),
}


def name(f: Piecewise, slope: Piecewise) -> str:
    """The name of a function, and whether its derivative is another one than usual."""
    found = _usual(f) or _elu(f) or _description(f)
    ours, theirs = _pieces(f.derivative()), _pieces(slope)
    if len(ours) == len(theirs) and all(map(_same, ours, theirs)):
        return found
    return f"{found} with a derivative of its own"


def _pieces(f: Piecewise) -> list[Form]:
    """The different pieces: the values at single points, and breakpoints where only they are special, do not count."""
    return [g for i, g in enumerate(f.forms) if i == 0 or g != f.forms[i - 1]]


def _usual(f: Piecewise) -> str | None:
    for usual, (points, forms) in _USUAL.items():
        if f.points == points and all(map(_same, f.forms, forms)):
            return usual
    return None


def _same(f: Form, g: Form) -> bool:
    return equal(f, g, _ROUNDING)


def _elu(f: Piecewise) -> str | None:
    """`s x` for x > 0 and `a (exp(b x) - 1)` for x < 0."""
    if f.points != (0.0,) or len(f.forms[0].terms) != 2 or len(f.forms[1].polynomial or ()) != 2:
        return None
    terms = dict(f.forms[0].terms)
    constants, (rate,) = terms.pop(ONE, ()), [e.linear.real for e in terms][:1]
    left = form({ONE: (-1.0,), exponent(0.0, rate): (1.0,)})
    scale, alpha = (f.forms[1].polynomial or ())[1].real, -(constants or (0.0,))[0].real
    usual = (left * _polynomial(alpha), _polynomial(0.0, scale))
    if not all(map(_same, f.forms, usual)):
        return None
    if rate == 1:
        if abs(scale - 1.0507009873554805) < _ROUNDING and abs(alpha - 1.7580993408473766) < _ROUNDING:
            return "selu"
        if scale == 1:
            return "elu" if alpha == 1 else f"elu({alpha:.6g})"
    if scale == 1 and abs(alpha * rate - 1) < _ROUNDING:
        return f"celu({alpha:.6g})"
    return f"{times(scale)}x for x > 0, {formula(f.forms[0])} for x < 0"


def _description(f: Piecewise) -> str:
    if not f.points:
        return formula(f.forms[0])
    if len(f.points) == 2 and f.is_linear and _same(f.forms[1], _LINE):
        low, high = f.forms[0].constant, f.forms[2].constant
        if (low, high) == f.points:
            return f"clip(x, {low:.6g}, {high:.6g})"
    degree = max((len(p) - 1 for g in f.forms for _, p in g.terms), default=0)
    right = f.forms[1].polynomial
    if f.points == (0.0,) and not f.forms[0].terms and right and not any(right[:-1]):
        return f"{times(right[-1].real)}relu^{degree}"
    kind = "polynomial" if f.is_polynomial else "exponential polynomial"
    where = ", ".join(f"{x:.6g}" for x in f.points)
    return f"piecewise {kind} of degree {degree} with breakpoints {where}"


def formula(f: Form) -> str:
    """The function written out, or its kind if that is long."""
    parts: list[str] = []
    for e, p in f.terms:
        if not e.is_real and e.linear.imag < 0:
            continue  # the conjugate of another term
        wave = None if e.is_real else _wave(e, p)
        factor = _exponential(e)
        parts += [wave] if wave else [_monomial(c, k, factor) for k, c in enumerate(p) if c != 0]
        if wave is None and not e.is_real:
            return f"exponential polynomial of {len(f.terms)} terms"
    if len(parts) > 4:
        return f"polynomial of degree {len(f.polynomial) - 1}" if f.polynomial else f"sum of {len(parts)} terms"
    return " + ".join(parts).replace("+ -", "- ") or "0"


def _wave(e: Exponent, p: Polynomial) -> str | None:
    """`A exp(...) sin(w x + c)` for a pair of conjugate terms with constant coefficients."""
    if len(p) > 1 or isinstance(e.quadratic, complex) or e.rate:
        return None
    size, phase = cmath.polar(2 * p[0])  # of the cosine
    damping = _exponential(Exponent(e.quadratic, e.linear.real))
    kind = "cos" if abs(phase) < 1e-7 or abs(abs(phase) - math.pi) < 1e-7 else "sin"
    if kind == "cos":
        size, phase = math.copysign(size, math.cos(phase)), 0.0
    else:
        phase = math.remainder(phase + math.pi / 2, 2 * math.pi)
        if abs(abs(phase) - math.pi) < 1e-7:
            size, phase = -size, 0.0
    shift = "" if abs(phase) < 1e-7 else f" {'+' if phase > 0 else '-'} {abs(phase):.6g}"
    return "*".join(filter(None, [times(size)[:-1], damping, f"{kind}({times(e.linear.imag)}x{shift})"]))


def _exponential(e: Exponent) -> str:
    square, line = (f"{times(c.real)}{x}" if c.real else "" for c, x in ((e.quadratic, "x^2"), (e.linear, "x")))
    inner = " + ".join(filter(None, [square, line])).replace("+ -", "- ")
    gate = f"erf({times(e.rate)}x{f' + {e.shift:.6g}' if e.shift else ''})" if e.rate else ""
    return "*".join(filter(None, [f"exp({inner})" if inner else "", gate]))


def _monomial(c: Number, k: int, factor: str) -> str:
    power = "" if k == 0 else "x" if k == 1 else f"x^{k}"
    rest = "*".join(filter(None, [power, factor]))
    return f"{times(c.real)}{rest}" if rest else f"{c.real:.6g}"


def times(factor: float) -> str:
    """The factor as it stands in front of something."""
    text = f"{factor:.6g}"
    return {"1": "", "-1": "-"}.get(text, f"{text}*")
