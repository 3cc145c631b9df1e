"""What function a jaxpr computes, found exactly, without sampling.

`interpret` runs a pointwise jaxpr on an abstract value: the whole function of the argument, as a `Piecewise`. Booleans
are functions with the values 0 and 1. Arithmetic is float64 on the constants of the trace, so relu6 is never taken
for relu, nor `relu(x) + 1e-6`. What is not known is NaN, on one piece or on all: it may turn out not to be used, or be
selected away.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import special

from infnet._jax import ClosedJaxpr, JaxprEqn, Literal, Primitive, Var
from infnet._jax import lax_primitives as lax
from infnet.activations.forms import (
    IDENTITY,
    NAN,
    Exponent,
    Form,
    NotAForm,
    Number,
    Piecewise,
    common,
    constant,
    constant_form,
    exponent,
    form,
    lift,
)
from infnet.activations.signs import sign
from infnet.numpy_rules import CALLS, NUMPY_RULES, SHAPE_ONLY, called_jaxpr, float64
from infnet.registry import Rules

UNKNOWN = constant(math.nan)


def interpret(jaxpr: ClosedJaxpr) -> Piecewise | None:
    """The function that a pointwise jaxpr of one input and one output computes; None if it is not known."""
    with np.errstate(all="ignore"):
        (result,) = _interpret(jaxpr, [IDENTITY])
    return result.simplify() if result.is_finite else None


def _interpret(jaxpr: ClosedJaxpr, arguments: Sequence[Piecewise]) -> list[Piecewise]:
    env: dict[Var, Piecewise] = {}
    env.update(zip(jaxpr.jaxpr.invars, arguments, strict=True))
    env.update(zip(jaxpr.jaxpr.constvars, map(_literal, jaxpr.consts), strict=True))

    def read(atom: Var | Literal) -> Piecewise:
        return _literal(atom.val) if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive in CALLS:
            outputs = _interpret(called_jaxpr(eqn), operands)
        else:
            outputs = [_apply(eqn, operands)] * len(eqn.outvars)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.jaxpr.outvars]


def _literal(value: Any) -> Piecewise:
    """The constant function; an array must hold one value, or its elements are different functions."""
    array = float64(value).reshape(-1)
    integer_too_large = array.dtype.kind in "iu" and (np.abs(array.astype(float)) > 2**53).any()
    if array.dtype.kind not in "biuf" or not array.size or integer_too_large:
        return UNKNOWN
    array = array.astype(np.float64)
    return constant(float(array[0])) if (array == array[0]).all() else UNKNOWN


def _apply(eqn: JaxprEqn, operands: Sequence[Piecewise]) -> Piecewise:
    if len(eqn.outvars) != 1:
        return UNKNOWN
    try:
        if eqn.primitive in SHAPE_ONLY:
            return operands[0]
        if eqn.primitive is lax.select_n_p:
            result = _select(*operands)
        elif eqn.primitive in NUMPY_RULES and all(f.is_constant for f in operands):
            result = _on_constants(eqn, operands)
        elif eqn.primitive in _RULES:
            result = _RULES[eqn.primitive](eqn, *operands)
        else:
            return UNKNOWN
    except (NotAForm, OverflowError):
        return UNKNOWN
    return result.simplify()


def _on_constants(eqn: JaxprEqn, functions: Sequence[Piecewise]) -> Piecewise:
    """Any elementwise primitive of piecewise constants, integers and booleans included."""
    functions = common(*functions)
    avals: list[Any] = [v.aval for v in eqn.invars]
    columns = [np.array([*(g.constant for g in f.forms), *f.values]) for f in functions]
    typed = [_cast(x, aval.dtype) for x, aval in zip(columns, avals, strict=True)]
    results = np.broadcast_to(
        np.asarray(NUMPY_RULES[eqn.primitive](*typed, **eqn.params), np.float64), columns[0].shape
    )
    numbers = np.where(np.isnan(columns).any(axis=0), np.nan, results).tolist()
    pieces = len(functions[0].forms)
    return Piecewise(functions[0].points, tuple(map(constant_form, numbers[:pieces])), tuple(numbers[pieces:]))


def _cast(x: np.ndarray, dtype: Any) -> np.ndarray:
    return x if jnp.issubdtype(dtype, jnp.floating) else x.astype(dtype)


Rule = Callable[..., Piecewise]
# `rule(eqn, *operands)` for operands that are not all piecewise constant.
_RULES: Rules[Rule] = Rules()


# Arithmetic.


@_RULES.register(lax.copy_p, lax.stop_gradient_p, lax.reduce_precision_p, lax.name_p)
def _identity(_: JaxprEqn | None, f: Piecewise) -> Piecewise:
    return f


@_RULES.register(lax.neg_p)
def _neg(_: JaxprEqn | None, f: Piecewise) -> Piecewise:
    return lift(Form.__neg__, float.__neg__, f)


@_RULES.register(lax.add_p, lax.add_jaxvals_p)
def _add(_: JaxprEqn | None, f: Piecewise, g: Piecewise) -> Piecewise:
    return lift(Form.__add__, float.__add__, f, g)


@_RULES.register(lax.sub_p)
def _sub(_: JaxprEqn | None, f: Piecewise, g: Piecewise) -> Piecewise:
    return lift(Form.__sub__, float.__sub__, f, g)


@_RULES.register(lax.mul_p)
def _mul(_: JaxprEqn | None, f: Piecewise, g: Piecewise) -> Piecewise:
    return lift(Form.__mul__, float.__mul__, f, g)


@_RULES.register(lax.div_p)
def _div(_: JaxprEqn | None, f: Piecewise, g: Piecewise) -> Piecewise:
    # Where the divisor is zero, the quotient has a value of its own.
    f, g, side = common(f, g, sign(g))
    return lift(_quotient, lambda v, w, _: np.divide(v, w), f, g, side)


def _quotient(f: Form, g: Form, side: Form) -> Form:
    """`f / g`, where g is a power times an exponential, or f a multiple of g."""
    zero_free = side.constant is not None and abs(side.constant) == 1
    if not (f.is_finite and g.is_finite and zero_free):
        raise NotAForm
    ratio = f.terms[0][1][-1] / g.terms[0][1][-1] if f.terms else 0.0
    if f == g * constant_form(ratio):
        return constant_form(ratio)
    if len(g.terms) > 1:
        raise NotAForm
    ((e, (*zeros, last)),) = g.terms
    if any(zeros) or any(c for _, p in f.terms for c in p[: len(zeros)]):
        raise NotAForm
    return form(
        {
            exponent(d.quadratic - e.quadratic, d.linear - e.linear, d.rate, d.shift): tuple(
                c / last for c in p[len(zeros) :]
            )
            for d, p in f.terms
        }
    )


@_RULES.register(lax.square_p)
def _square(_: JaxprEqn | None, f: Piecewise) -> Piecewise:
    return _power(f, 2)


@_RULES.register(lax.integer_pow_p)
def _integer_pow(eqn: JaxprEqn, f: Piecewise) -> Piecewise:
    n = eqn.params["y"]
    return _power(f, n) if n >= 0 else _div(None, constant(1.0), _power(f, -n))


@_RULES.register(lax.pow_p)
def _pow(_: JaxprEqn | None, f: Piecewise, g: Piecewise) -> Piecewise:
    base, n = _number(f), _number(g)
    if n is not None and abs(n) <= _LARGEST_POWER and n == round(n):
        return _power(f, int(n)) if n >= 0 else _div(None, constant(1.0), _power(f, -int(n)))
    if base is not None and 0 < base < math.inf:
        return _exponential(None, _mul(None, constant(math.log(base)), g))
    raise NotAForm


_LARGEST_POWER = 64  # beyond, moments of ordinary variance overflow


def _power(f: Piecewise, n: int) -> Piecewise:
    if n > _LARGEST_POWER:
        raise NotAForm
    return lift(lambda g: g.power(n), lambda v: np.power(v, n), f)


def _number(f: Piecewise) -> float | None:
    return f.forms[0].constant if not f.points else None


# Exponential functions.


def _exp(f: Form, factor: Number) -> tuple[Exponent, Number]:
    """exp(factor f), which need not be real: its exponent and its coefficient."""
    p = f.polynomial
    if p is None or len(p) > 3 or (isinstance(factor, complex) and not f.is_finite):
        raise NotAForm
    c, b, a = (*(factor * x for x in p), 0.0, 0.0, 0.0)[:3]
    return exponent(a, b), cmath.exp(c) if isinstance(c, complex) else float(np.exp(c))


def _sum_of_exponentials(*parts: tuple[Number, Number]) -> Callable[[Form], Form]:
    """`sum c exp(factor f)` for pairs `(c, factor)`."""

    def of_form(f: Form) -> Form:
        total: dict[Exponent, tuple[Number, ...]] = {}
        for c, factor in parts:
            e, value = _exp(f, factor)
            total[e] = (total.get(e, (0.0,))[0] + c * value,)
        return form(total)

    return of_form


def _elementary(primitive: Primitive, of_values: Callable[[Any], Any], *parts: tuple[Number, Number]) -> Rule:
    of_form = _sum_of_exponentials(*parts)

    @_RULES.register(primitive)
    def rule(_: JaxprEqn | None, f: Piecewise) -> Piecewise:
        return lift(of_form, of_values, f)

    return rule


_exponential = _elementary(lax.exp_p, np.exp, (1.0, 1.0))
_elementary(lax.exp2_p, np.exp2, (1.0, math.log(2.0)))
_elementary(lax.expm1_p, np.expm1, (1.0, 1.0), (-1.0, 0.0))
_elementary(lax.sinh_p, np.sinh, (0.5, 1.0), (-0.5, -1.0))
_elementary(lax.cosh_p, np.cosh, (0.5, 1.0), (0.5, -1.0))
_elementary(lax.cos_p, np.cos, (0.5, 1j), (0.5, -1j))
_elementary(lax.sin_p, np.sin, (-0.5j, 1j), (0.5j, -1j))


@_RULES.register(lax.erf_p)
def _erf(_: JaxprEqn | None, f: Piecewise) -> Piecewise:
    return lift(_erf_form, special.erf, f)


@_RULES.register(lax.erfc_p)
def _erfc(_: JaxprEqn | None, f: Piecewise) -> Piecewise:
    return lift(lambda g: constant_form(1.0) - _erf_form(g), special.erfc, f)


def _erf_form(f: Form) -> Form:
    p = f.polynomial
    if p is None or len(p) > 2 or not f.is_finite:
        raise NotAForm
    shift, rate = (float(x.real) for x in (*p, 0.0, 0.0)[:2])
    if rate == 0:
        return constant_form(math.erf(shift))
    side = math.copysign(1.0, rate)
    return form({Exponent(0.0, 0.0, abs(rate), side * shift + 0.0): (side,)})


# Kinks and jumps.


@_RULES.register(lax.sign_p)
def _sign(_: JaxprEqn | None, f: Piecewise) -> Piecewise:
    return sign(f)


@_RULES.register(lax.abs_p)
def _abs(_: JaxprEqn | None, f: Piecewise) -> Piecewise:
    f, side = common(f, sign(f))
    return lift(Form.__mul__, lambda value, s: 0.0 if s == 0 else abs(value), f, side)


@_RULES.register(lax.sqrt_p)
def _sqrt(_: JaxprEqn | None, f: Piecewise) -> Piecewise:
    root = lift(_root_form, lambda v: math.sqrt(v) if v >= 0 else math.nan, f)
    return _abs(None, root)


def _root_form(f: Form) -> Form:
    """A square root, of either sign, of `c exp(Q)` or `c (x - r)^2 exp(Q)`."""
    if not f.terms:
        return f
    if len(f.terms) > 1:
        raise NotAForm
    ((e, p),) = f.terms
    if e.rate or not e.is_real or not f.is_finite or p[-1].real < 0 or len(p) not in (1, 3):
        raise NotAForm
    top = math.sqrt(p[-1].real)
    half = exponent(e.quadratic / 2, e.linear / 2)
    if len(p) == 1:
        return form({half: (top,)})
    if p[1] * p[1] != 4 * p[0] * p[2]:
        raise NotAForm
    return form({half: (p[1] / (2 * top), top)})


def _select(which: Piecewise, *cases: Piecewise) -> Piecewise:
    def choose(index: float, columns: Sequence[Any], unknown: Any) -> Any:
        return unknown if math.isnan(index) else columns[int(index)]

    def of_forms(index: Form, *forms: Form) -> Form:
        number = index.constant
        return choose(math.nan if number is None else number, forms, NAN)

    return lift(of_forms, lambda index, *values: choose(index, values, math.nan), which, *cases)


def _of_sign(f: Piecewise, holds: Callable[[float], bool]) -> Piecewise:
    def number(s: float | None) -> float:
        return math.nan if s is None or math.isnan(s) else float(holds(s))

    return lift(lambda g: constant_form(number(g.constant)), number, sign(f))


@_RULES.register(lax.max_p)
def _max(_: JaxprEqn | None, f: Piecewise, g: Piecewise) -> Piecewise:
    return _select(_of_sign(_sub(None, f, g), lambda s: s < 0), f, g)


@_RULES.register(lax.min_p)
def _min(_: JaxprEqn | None, f: Piecewise, g: Piecewise) -> Piecewise:
    return _select(_of_sign(_sub(None, f, g), lambda s: s > 0), f, g)


@_RULES.register(lax.clamp_p)
def _clamp(_: JaxprEqn | None, low: Piecewise, f: Piecewise, high: Piecewise) -> Piecewise:
    return _min(None, _max(None, f, low), high)


def _comparison(primitive: Primitive, holds: Callable[[float], bool]) -> None:
    @_RULES.register(primitive)
    def compare(_: JaxprEqn, f: Piecewise, g: Piecewise) -> Piecewise:
        return _of_sign(_sub(None, f, g), holds)


_comparison(lax.lt_p, lambda s: s < 0)
_comparison(lax.le_p, lambda s: s <= 0)
_comparison(lax.gt_p, lambda s: s > 0)
_comparison(lax.ge_p, lambda s: s >= 0)
_comparison(lax.eq_p, lambda s: s == 0)
_comparison(lax.ne_p, lambda s: s != 0)


@_RULES.register(lax.is_finite_p)
def _is_finite(_: JaxprEqn | None, f: Piecewise) -> Piecewise:
    if not f.is_finite:
        raise NotAForm
    return constant(1.0)


@_RULES.register(lax.convert_element_type_p)
def _convert(eqn: JaxprEqn, f: Piecewise) -> Piecewise:
    dtype = eqn.params["new_dtype"]
    if dtype == np.bool_:
        return _of_sign(f, lambda s: s != 0)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise NotAForm
    return f
