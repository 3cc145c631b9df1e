"""Which function is it? Activations are recognised by what they compute, not by name.

`recognise` takes the jaxpr of an elementwise function. If `interpret` can follow it, and its derivative, the kernels
have a closed form, in this order:

- positively homogeneous functions: relu, leaky relu, abs, step, sign (`Homogeneous`);
- `A erf(B x)` and `A x Phi(B x)`, whose kernels are cheap (`Erf`, `Gelu`);
- without breakpoints, polynomials times exponentials, sines and cosines (`ExponentialActivation`);
- piecewise, polynomials times real exponentials (`PiecewiseActivation`);
- these smoothed by a Gaussian: polynomials times erf(B x + C), and their derivatives (`PiecewiseActivation`).

Every other smooth function is integrated numerically, with an error bound (`SeriesActivation`).

The derivative is always what `jax.grad` makes of the user's own function, so a custom derivative or
a straight-through estimator is respected. Everything here is numpy on jaxprs: no value is traced.
"""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import special

from infnet._jax import ClosedJaxpr
from infnet.activations import names
from infnet.activations.chains import derivative, equations, obstacle, operations
from infnet.activations.closed_forms import Erf, Gelu, Homogeneous
from infnet.activations.describe import equal, to_shape, to_smoothed_shape, to_terms
from infnet.activations.exponential import ExponentialActivation
from infnet.activations.forms import ONE, Exponent, Piecewise
from infnet.activations.interpret import interpret
from infnet.activations.piecewise import PiecewiseActivation
from infnet.activations.protocol import Activation
from infnet.activations.series import series_activation
from infnet.errors import Where
from infnet.errors.functions import NO_CLOSED_FORM
from infnet.numpy_rules import NoNumpyRule, evaluate
from infnet.primitives.homogeneous import Slope, Values

__all__ = ["Activation", "recognise"]


def recognise(chain: ClosedJaxpr, where: Where) -> Activation:
    """The kernels of an elementwise function.

    Args:
        chain: jaxpr of one array to one array, made of elementwise primitives, of primitives that
            only move or repeat elements, and of calls, with or without derivatives of their own.
        where: what a refusal points to.

    Raises:
        UnsupportedError: the kernels are not known, or the function is not elementwise.
    """
    why_not = obstacle(chain)
    if why_not:
        raise NO_CLOSED_FORM.at(where, name=operations(chain), why=why_not)
    try:
        slope_chain = derivative(chain)
    except Exception as error:  # a derivative rule of the user's own may raise anything
        raise NO_CLOSED_FORM.at(where, name=operations(chain), why=f"`jax.grad` of it fails: {error}") from error
    phi = interpret(chain)
    try:
        slope = None if phi is None else interpret(slope_chain) or _confirmed(phi.derivative(), slope_chain)
        if phi is not None and slope is not None:
            found = _closed_form(phi, slope, chain)
            if found is not None:
                return found
        if phi is None or (not phi.points and (slope is None or not slope.points)):
            return series_activation(chain, slope_chain, where)
    except NoNumpyRule as error:
        why = f"its derivative by `jax.grad` contains `{error.primitive}`, which is not known here"
        raise NO_CLOSED_FORM.at(where, name=operations(chain), why=why) from error
    raise NO_CLOSED_FORM.at(where, name=operations(chain), why=_why_not_closed(phi, slope))


def _closed_form(phi: Piecewise, slope: Piecewise, chain: ClosedJaxpr) -> Activation | None:
    eps = _precision(chain)
    try:
        return (
            _homogeneous(phi, slope)
            or _erf_or_gelu(phi, slope, eps)
            or _exponential(phi, slope)
            or _piecewise(phi, slope)
            or _smoothed(phi, slope, eps)
        )
    except OverflowError:  # of constants that no model has: relu(x - 1e200)**2
        return None


# Positively homogeneous functions.


def _homogeneous(phi: Piecewise, slope: Piecewise) -> Homogeneous | None:
    values, sides = _values(phi), _sides(slope)
    return None if values is None or sides is None else Homogeneous(values, sides)


def _values(phi: Piecewise) -> Values | None:
    if not set(phi.points) <= {0.0} or not phi.is_linear:
        return None
    (c, a), (d, b) = (
        ([float(x.real) for x in f.polynomial or ()] + [0.0, 0.0])[:2] for f in (phi.forms[0], phi.forms[-1])
    )
    at_zero = phi.at(0.0)
    if c == d == at_zero == 0:
        return (1, a, b, 0.0)
    return (0, c, d, at_zero) if a == b == 0 else None


def _sides(slope: Piecewise) -> Slope | None:
    found = _values(slope)
    if found is None:
        return None
    degree, a, b, at_zero = found
    if degree == 1:
        return (0.0, 0.0, 0.0) if a == b == 0 else None
    return (a, b, at_zero)


# Error functions.


def _erf_or_gelu(phi: Piecewise, slope: Piecewise, eps: float) -> Erf | Gelu | None:
    if phi.points or slope.points or not equal(slope.forms[0], phi.forms[0].derivative(), _tolerance(eps)):
        return None
    terms = dict(phi.forms[0].terms)
    plain = terms.pop(ONE, ())
    if len(terms) != 1:
        return None
    ((e, gate),) = terms.items()
    if e != Exponent(rate=e.rate) or not e.rate:
        return None
    if not plain and len(gate) == 1:
        return Erf(float(gate[0].real), e.rate)
    if len(plain) != 2 or len(gate) != 2 or plain[0] or gate[0] or not math.isclose(*map(abs, (plain[1], gate[1]))):
        return None
    scale, side = 2 * float(plain[1].real), math.copysign(1.0, (plain[1] * gate[1]).real)
    return Gelu(scale, side * math.sqrt(2.0) * e.rate)


def _smoothed(phi: Piecewise, slope: Piecewise, eps: float) -> PiecewiseActivation | None:
    if phi.points or slope.points:
        return None
    gates = [e for f in (phi.forms[0], slope.forms[0]) for e, _ in f.terms if e.rate]
    if not gates:
        return None
    # Only in float32 are constants that should be equal often not: 1/sqrt(2) in erf, 1/2 in the normal density.
    tolerance = 4 * eps if eps < 1e-6 else 1e-14
    values, of_slope = (to_smoothed_shape(f.forms[0], gates[0], tolerance) for f in (phi, slope))
    if values is None or of_slope is None:
        return None
    return PiecewiseActivation(values, of_slope, names.name(phi, slope))


def _precision(chain: ClosedJaxpr) -> float:
    """The rounding error of the constants, such as sqrt(1/2): that of the coarsest dtype of the trace."""
    avals: list[Any] = [v.aval for e in equations(chain) for v in (*e.invars, *e.outvars)]
    dtypes = {aval.dtype for aval in (*avals, *chain.in_avals) if jnp.issubdtype(aval.dtype, jnp.floating)}
    return max(float(jnp.finfo(dtype).eps) for dtype in dtypes)


def _tolerance(eps: float) -> float:
    """Up to which difference a derivative is that of the function; `jax.grad` adds constants, such as 2/sqrt(pi)."""
    return 1e-10 if eps < 1e-15 else max(2e-6, 2 * eps)


# The families.


def _exponential(phi: Piecewise, slope: Piecewise) -> ExponentialActivation | None:
    if phi.points or slope.points:
        return None
    values, of_slope = to_terms(phi.forms[0]), to_terms(slope.forms[0])
    if values is None or of_slope is None:
        return None
    return ExponentialActivation(values, of_slope, names.name(phi, slope))


def _piecewise(phi: Piecewise, slope: Piecewise) -> PiecewiseActivation | None:
    values, of_slope = to_shape(phi), to_shape(slope)
    if values is None or of_slope is None:
        return None
    return PiecewiseActivation(values, of_slope, names.name(phi, slope))


# A derivative that cannot be followed: jax 0.12 takes the bits of x apart in the derivative of erf.

# One grid for all variances, uniform in log|x|: every scale from 1e-14 to 1e5 is resolved equally.
_STEP = 0.01
_POSITIVE = np.exp(np.arange(math.log(1e-14), math.log(12.0 * 4.0**6), _STEP))
_GRID = np.concatenate([-_POSITIVE[::-1], _POSITIVE])
_ROOTS = 2.0 ** np.arange(-12, 13)  # standard deviations, for q = 4^-12 ... 4^12
_WEIGHTS = special.softmax(
    np.log(np.abs(_GRID)) - (_GRID / _ROOTS[:, None]) ** 2 / 2, axis=1
)  # of N(0, q), times the dx = |x| d log|x| of the grid


def _confirmed(expected: Piecewise, slope: ClosedJaxpr) -> Piecewise | None:
    """The derivative that is expected, if `jax.grad` gives the same in L2(N(0, q)) over 14 decades of q."""
    with np.errstate(all="ignore"):
        y, candidate = evaluate(slope, _GRID)[0], expected(_GRID)
        error, size = _WEIGHTS @ (y - candidate) ** 2, _WEIGHTS @ candidate**2
        at_points = [float(evaluate(slope, x)[0]) for x in expected.points]
        agree = bool((error <= _tolerance(_precision(slope)) ** 2 * size).all())
    found = Piecewise(expected.points, expected.forms, tuple(at_points))
    return found if agree and found.is_finite else None


# Refusals.


def _why_not_closed(phi: Piecewise, slope: Piecewise | None) -> str:
    if slope is None:
        return "its values are those of a known function, but its derivative by `jax.grad` is not"
    unknown, what = (phi, "it") if to_shape(phi) is None else (slope, "its derivative by `jax.grad`")
    points = ", ".join(f"{x:.6g}" for x in unknown.points) or "none"
    pieces = "; ".join(names.formula(f) for f in unknown.forms)
    return f"{what} has breakpoints ({points}) between pieces that are not powers times real exponentials: {pieces}"
