"""Piecewise-linear functions of one variable, found exactly from their jaxpr, without sampling.

`interpret` runs a pointwise jaxpr on an abstract value: the whole function of the argument, as sorted breakpoints,
a line on every open interval between them, and the value at every breakpoint. The values matter: the derivative
of `jnp.maximum(x, 0)` is 1/2 at 0, that of `jax.nn.relu` is 0, and zero-variance inputs see the difference.
Booleans are functions with the values 0 and 1. Arithmetic is float64 on the constants of the trace, so relu6 is
never taken for relu, nor `relu(x) + 1e-6`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from infnet._jax import ClosedJaxpr, JaxprEqn, Literal, Primitive, Var
from infnet._jax import lax_primitives as lax
from infnet.numpy_rules import CALLS, NUMPY_RULES, SHAPE_ONLY, called_jaxpr, float64
from infnet.registry import Rules


@dataclass(frozen=True, eq=False)
class PiecewiseLinear:
    """`slopes[i] x + intercepts[i]` between `points[i-1]` and `points[i]`; `values[i]` at `points[i]`."""

    points: np.ndarray
    slopes: np.ndarray
    intercepts: np.ndarray
    values: np.ndarray

    @property
    def is_constant(self) -> bool:
        """Whether the function is constant on every piece."""
        return not self.slopes.any()

    @property
    def is_finite(self) -> bool:
        """Whether no infinity and no NaN occurs."""
        numbers = (self.slopes, self.intercepts, self.values)
        return all(bool(np.isfinite(x).all()) for x in numbers)

    def simplify(self) -> PiecewiseLinear:
        """Without the breakpoints at which nothing happens."""
        line = self.slopes[:-1] * self.points + self.intercepts[:-1]
        needed = (np.diff(self.slopes) != 0) | (self.values != line)
        needed |= self.intercepts[1:] != self.intercepts[:-1]
        pieces = np.concatenate([[True], needed])
        return PiecewiseLinear(self.points[needed], self.slopes[pieces], self.intercepts[pieces], self.values[needed])

    def refine(self, points: np.ndarray) -> PiecewiseLinear:
        """The same function with `points`, a superset of its own, as breakpoints."""
        piece = np.searchsorted(self.points, np.concatenate([[-np.inf], points]), side="right")
        slopes, intercepts = self.slopes[piece], self.intercepts[piece]
        values = slopes[1:] * points + intercepts[1:]
        values[np.searchsorted(points, self.points)] = self.values
        return PiecewiseLinear(points, slopes, intercepts, values)


IDENTITY = PiecewiseLinear(np.zeros(0), np.ones(1), np.zeros(1), np.zeros(0))


class _NotPiecewiseLinear(Exception):
    """Never leaves this module: the variable concerned becomes unknown."""


def constant(value: Any) -> PiecewiseLinear:
    """The constant function; an array must hold one value, or its elements are different functions."""
    array = float64(value).reshape(-1)
    integer_too_large = array.dtype.kind in "iu" and (np.abs(array.astype(float)) > 2**53).any()
    if array.dtype.kind not in "biuf" or not array.size or integer_too_large:
        raise _NotPiecewiseLinear
    array = array.astype(np.float64)
    if not (array == array[0]).all() and not np.isnan(array).all():
        raise _NotPiecewiseLinear
    return PiecewiseLinear(np.zeros(0), np.zeros(1), array[:1], np.zeros(0))


def interpret(jaxpr: ClosedJaxpr) -> PiecewiseLinear | None:
    """The function that a pointwise jaxpr of one input and one output computes; None if not piecewise linear."""
    with np.errstate(all="ignore"):
        (result,) = _interpret(jaxpr, [IDENTITY])
    return result.simplify() if result is not None and result.is_finite else None


def _interpret(jaxpr: ClosedJaxpr, arguments: Sequence[PiecewiseLinear | None]) -> list[PiecewiseLinear | None]:
    env: dict[Var, PiecewiseLinear | None] = {}
    env.update(zip(jaxpr.jaxpr.invars, arguments, strict=True))
    env.update(zip(jaxpr.jaxpr.constvars, map(_constant_or_none, jaxpr.consts), strict=True))

    def read(atom: Var | Literal) -> PiecewiseLinear | None:
        return _constant_or_none(atom.val) if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive in CALLS:
            outputs = _interpret(called_jaxpr(eqn), operands)
        else:
            # What is unknown may turn out unused: derivatives are traced along with dead values.
            outputs = [_apply(eqn, operands)] * len(eqn.outvars)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.jaxpr.outvars]


def _constant_or_none(value: Any) -> PiecewiseLinear | None:
    try:
        return constant(value)
    except _NotPiecewiseLinear:
        return None


def _apply(eqn: JaxprEqn, operands: Sequence[PiecewiseLinear | None]) -> PiecewiseLinear | None:
    known = [f for f in operands if f is not None]
    if len(known) < len(operands) or len(eqn.outvars) != 1:
        return None
    try:
        if eqn.primitive in SHAPE_ONLY:
            result = known[0]
        elif eqn.primitive in NUMPY_RULES and all(f.is_constant for f in known):
            result = _on_constants(eqn, known)
        elif eqn.primitive in _RULES:
            result = _RULES[eqn.primitive](eqn, *known)
        else:
            return None
    except _NotPiecewiseLinear:
        return None
    return result.simplify()


def _common(*functions: PiecewiseLinear) -> list[PiecewiseLinear]:
    points = np.unique(np.concatenate([f.points for f in functions]))
    return [f.refine(points) for f in functions]


def _on_constants(eqn: JaxprEqn, functions: Sequence[PiecewiseLinear]) -> PiecewiseLinear:
    """Any elementwise primitive of piecewise constants, integers and booleans included."""
    functions = _common(*functions)

    def evaluate(columns: list[np.ndarray]) -> np.ndarray:
        avals: list[Any] = [v.aval for v in eqn.invars]
        typed = [_cast(x, aval.dtype) for x, aval in zip(columns, avals, strict=True)]
        result = NUMPY_RULES[eqn.primitive](*typed, **eqn.params)
        return np.broadcast_to(np.asarray(result, np.float64), columns[0].shape)

    intercepts = evaluate([f.intercepts for f in functions])
    values = evaluate([f.values for f in functions])
    return PiecewiseLinear(functions[0].points, np.zeros_like(intercepts), intercepts, values)


def _cast(x: np.ndarray, dtype: Any) -> np.ndarray:
    return x if jnp.issubdtype(dtype, jnp.floating) else x.astype(dtype)


def _sign(f: PiecewiseLinear) -> PiecewiseLinear:
    """The sign function of f: its breakpoints are those of f and its zeros."""
    if any(np.isnan(x).any() for x in (f.slopes, f.intercepts, f.values)):
        raise _NotPiecewiseLinear
    sloped = f.slopes != 0
    roots = -f.intercepts / np.where(sloped, f.slopes, 1.0) + 0.0  # not -0.0
    low, high = np.concatenate([[-np.inf], f.points]), np.concatenate([f.points, [np.inf]])
    inner = roots[sloped & (low < roots) & (roots < high)]
    # On which side of the zero an interval lies, told by its finite ends: exact, unlike the value of the line.
    points = np.unique(np.concatenate([f.points, inner]))
    fine = f.refine(points)
    fine.values[np.searchsorted(points, inner)] = 0.0
    piece = np.searchsorted(f.points, np.concatenate([[-np.inf], points]), side="right")
    ends = np.concatenate([points, [np.inf]])
    side = np.where(ends <= roots[piece], -1.0, 1.0)
    intercepts = np.where(fine.slopes != 0, side * np.sign(fine.slopes), np.sign(fine.intercepts))
    return PiecewiseLinear(points, np.zeros_like(intercepts), intercepts, np.sign(fine.values)).simplify()


Rule = Callable[..., PiecewiseLinear]
# `rule(eqn, *operands)` for operands that are not all piecewise constant.
_RULES: Rules[Rule] = Rules()


@_RULES.register(lax.copy_p, lax.stop_gradient_p, lax.reduce_precision_p, lax.name_p)
def _identity(_: JaxprEqn | None, f: PiecewiseLinear) -> PiecewiseLinear:
    return f


@_RULES.register(lax.neg_p)
def _neg(_: JaxprEqn | None, f: PiecewiseLinear) -> PiecewiseLinear:
    return PiecewiseLinear(f.points, -f.slopes, -f.intercepts, -f.values)


@_RULES.register(lax.add_p, lax.add_jaxvals_p)
def _add(_: JaxprEqn | None, f: PiecewiseLinear, g: PiecewiseLinear) -> PiecewiseLinear:
    f, g = _common(f, g)
    slopes, intercepts = f.slopes + g.slopes, f.intercepts + g.intercepts
    return PiecewiseLinear(f.points, slopes, intercepts, f.values + g.values)


@_RULES.register(lax.sub_p)
def _sub(eqn: JaxprEqn | None, f: PiecewiseLinear, g: PiecewiseLinear) -> PiecewiseLinear:
    return _add(eqn, f, _neg(eqn, g))


@_RULES.register(lax.mul_p)
def _mul(_: JaxprEqn | None, f: PiecewiseLinear, g: PiecewiseLinear) -> PiecewiseLinear:
    f, g = _common(f, g)
    if (f.slopes * g.slopes).any():
        raise _NotPiecewiseLinear
    slopes = f.slopes * g.intercepts + g.slopes * f.intercepts
    return PiecewiseLinear(f.points, slopes, f.intercepts * g.intercepts, f.values * g.values)


@_RULES.register(lax.div_p)
def _div(_: JaxprEqn | None, f: PiecewiseLinear, g: PiecewiseLinear) -> PiecewiseLinear:
    f, g = _common(f, g)
    if not g.is_constant or not g.intercepts.all() or not g.values.all():
        raise _NotPiecewiseLinear
    slopes, intercepts = f.slopes / g.intercepts, f.intercepts / g.intercepts
    return PiecewiseLinear(f.points, slopes, intercepts, f.values / g.values)


@_RULES.register(lax.sign_p)
def _sign_rule(_: JaxprEqn | None, f: PiecewiseLinear) -> PiecewiseLinear:
    return _sign(f)


@_RULES.register(lax.abs_p)
def _abs(eqn: JaxprEqn | None, f: PiecewiseLinear) -> PiecewiseLinear:
    return _mul(eqn, f, _sign(f))


def _where(which: PiecewiseLinear, cases: Sequence[PiecewiseLinear]) -> PiecewiseLinear:
    which, *cases = _common(which, *cases)

    def choose(index: np.ndarray, columns: list[np.ndarray]) -> np.ndarray:
        return np.select([index == i for i in range(len(columns))], columns, np.nan)

    return PiecewiseLinear(
        which.points,
        choose(which.intercepts, [f.slopes for f in cases]),
        choose(which.intercepts, [f.intercepts for f in cases]),
        choose(which.values, [f.values for f in cases]),
    )


@_RULES.register(lax.select_n_p)
def _select(_: JaxprEqn | None, which: PiecewiseLinear, *cases: PiecewiseLinear) -> PiecewiseLinear:
    return _where(which, cases)


def _map_sign(f: PiecewiseLinear, of_sign: Callable[[np.ndarray], np.ndarray]) -> PiecewiseLinear:
    sign = _sign(f)
    intercepts, values = (of_sign(x).astype(float) for x in (sign.intercepts, sign.values))
    return PiecewiseLinear(sign.points, sign.slopes, intercepts, values)


@_RULES.register(lax.max_p)
def _max(eqn: JaxprEqn | None, f: PiecewiseLinear, g: PiecewiseLinear) -> PiecewiseLinear:
    return _where(_map_sign(_sub(eqn, f, g), lambda s: s < 0), (f, g))


@_RULES.register(lax.min_p)
def _min(eqn: JaxprEqn | None, f: PiecewiseLinear, g: PiecewiseLinear) -> PiecewiseLinear:
    return _where(_map_sign(_sub(eqn, f, g), lambda s: s > 0), (f, g))


@_RULES.register(lax.clamp_p)
def _clamp(eqn: JaxprEqn | None, low: PiecewiseLinear, f: PiecewiseLinear, high: PiecewiseLinear) -> PiecewiseLinear:
    return _min(eqn, _max(eqn, f, low), high)


def _comparison(primitive: Primitive, of_sign: Callable[[np.ndarray], np.ndarray]) -> None:
    @_RULES.register(primitive)
    def compare(eqn: JaxprEqn, f: PiecewiseLinear, g: PiecewiseLinear) -> PiecewiseLinear:
        return _map_sign(_sub(eqn, f, g), of_sign)


_comparison(lax.lt_p, lambda s: s < 0)
_comparison(lax.le_p, lambda s: s <= 0)
_comparison(lax.gt_p, lambda s: s > 0)
_comparison(lax.ge_p, lambda s: s >= 0)
_comparison(lax.eq_p, lambda s: s == 0)
_comparison(lax.ne_p, lambda s: s != 0)


@_RULES.register(lax.is_finite_p)
def _is_finite(_: JaxprEqn | None, f: PiecewiseLinear) -> PiecewiseLinear:
    if not f.is_finite:
        raise _NotPiecewiseLinear
    return constant(True)


@_RULES.register(lax.integer_pow_p)
def _integer_pow(eqn: JaxprEqn, f: PiecewiseLinear) -> PiecewiseLinear:
    if eqn.params["y"] != 1:
        raise _NotPiecewiseLinear
    return f


@_RULES.register(lax.convert_element_type_p)
def _convert(eqn: JaxprEqn, f: PiecewiseLinear) -> PiecewiseLinear:
    dtype = eqn.params["new_dtype"]
    if dtype == np.bool_:
        return _map_sign(f, lambda s: s != 0)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise _NotPiecewiseLinear
    return f
