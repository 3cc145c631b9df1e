"""Activations are recognised by what they compute, not by name.

`recognise` takes the jaxpr of an elementwise function and finds its kernels in closed form:

- positively homogeneous functions (relu, leaky relu, abs, step, sign and everything equal to one of
  them) exactly, by abstract interpretation (`piecewise_linear`);
- `A erf(B x)` and `A x Phi(B x)` by fitting A and B to values in float64, and then accepting the
  candidate only if the function and its derivative agree with it in L2(N(0, q)) over 14 decades of q.

The derivative is always what `jax.grad` makes of the user's own function, so a custom derivative or
a straight-through estimator is respected. Everything here is numpy on jaxprs: no value is traced.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from scipy import special

from infnet._jax import ClosedJaxpr
from infnet.activations.chains import derivative, equations, obstacle, operations
from infnet.activations.closed_forms import Activation, Erf, Gelu, Homogeneous
from infnet.activations.piecewise_linear import PiecewiseLinear, interpret
from infnet.errors import MONTE_CARLO, UnsupportedError, Where
from infnet.numpy_rules import NoNumpyRule, evaluate
from infnet.primitives.piecewise import Values

__all__ = ["Activation", "recognise"]

SUPPORTED = (
    "supported are positively homogeneous functions however they are written (relu, leaky_relu, "
    "abs, step, sign), a * erf(b * x), and the exact gelu (a * x * Phi(b * x), `approximate=False`)"
)


def recognise(chain: ClosedJaxpr, where: Where) -> Activation:
    """The kernels of an elementwise function.

    Args:
        chain: jaxpr of one array to one array, made of elementwise primitives, of primitives that
            only move or repeat elements, and of calls, with or without derivatives of their own.
        where: what a refusal points to.

    Raises:
        UnsupportedError: no closed form is known, or the function is not elementwise.
    """
    why_not = obstacle(chain)
    if why_not:
        raise _refusal(chain, where, why_not)
    try:
        slope = derivative(chain)
    except Exception as error:  # a derivative rule of the user's own may raise anything
        raise _refusal(chain, where, f"`jax.grad` of it fails: {error}") from error
    phi = interpret(chain)
    if phi is not None:
        return _homogeneous(chain, phi, interpret(slope), where)
    try:
        candidate = _smooth(chain, slope)
    except NoNumpyRule as error:
        why = f"its derivative by `jax.grad` contains `{error.primitive}`, which is not known here"
        raise _refusal(chain, where, why) from error
    if candidate is None:
        raise _refusal(chain, where, "it was compared with each function whose kernel is known")
    return candidate


# Positively homogeneous functions.


def _homogeneous(chain: ClosedJaxpr, phi: PiecewiseLinear, slope: PiecewiseLinear | None, where: Where) -> Activation:
    values = _values(phi)
    if values is None:
        raise _offsets(chain, phi, where)
    sides = _sides(slope) if slope is not None and slope.is_constant else None
    if sides is None:
        why = "its values are those of a known function, but its derivative by `jax.grad` is not"
        raise _refusal(chain, where, why)
    alpha, beta, at_zero = sides
    return Homogeneous(values, (alpha, beta, at_zero))


def _values(phi: PiecewiseLinear) -> Values | None:
    if not set(phi.points) <= {0.0}:
        return None
    at_zero = float(phi.values[0]) if len(phi.points) else float(phi.intercepts[0])
    if not phi.intercepts.any() and at_zero == 0:
        return (1, float(phi.slopes[0]), float(phi.slopes[-1]), 0.0)
    if phi.is_constant:
        return (0, float(phi.intercepts[0]), float(phi.intercepts[-1]), at_zero)
    return None


def _sides(slope: PiecewiseLinear) -> tuple[float, float, float] | None:
    found = _values(slope)
    if found is None:
        return None
    degree, a, b, at_zero = found
    return (a, b, at_zero) if degree == 0 else (0.0, 0.0, 0.0)


def _offsets(chain: ClosedJaxpr, phi: PiecewiseLinear, where: Where) -> UnsupportedError:
    kinks = ", ".join(f"{x:.6g}" for x in phi.points) or "none"
    lines = ", ".join(f"{s:.6g}*x + {t:.6g}" for s, t in zip(phi.slopes, phi.intercepts, strict=True))
    return UnsupportedError(
        f"the activation `{operations(chain)}` is piecewise linear with offsets",
        where=where,
        why=f"it consists of {lines}, with breakpoints {kinks}: a function with offsets is not supported yet",
        remedy=f"{SUPPORTED}; {MONTE_CARLO}",
    )


# Smooth functions.

# One grid for all variances, uniform in log|x|: every scale from 1e-14 to 1e5 is resolved equally.
_STEP = 0.01
_POSITIVE = np.exp(np.arange(math.log(1e-14), math.log(12.0 * 4.0**6), _STEP))
_GRID = np.concatenate([-_POSITIVE[::-1], _POSITIVE])
_ROOTS = 2.0 ** np.arange(-12, 13)  # standard deviations, for q = 4^-12 ... 4^12
_WEIGHTS = special.softmax(
    np.log(np.abs(_GRID)) - (_GRID / _ROOTS[:, None]) ** 2 / 2, axis=1
)  # of N(0, q), times the dx = |x| d log|x| of the grid
_SCALES = 4.0 ** np.arange(-12, 12.5, 0.5)
_FAR = 1e30


def _smooth(chain: ClosedJaxpr, slope: ClosedJaxpr) -> Activation | None:
    def phi(x: Any) -> np.ndarray:
        return np.broadcast_to(evaluate(chain, x)[0], np.shape(x))

    with np.errstate(all="ignore"):
        y, dy = phi(_GRID), evaluate(slope, _GRID)[0]
        for fit in (_fit_erf, _fit_gelu):
            found = fit(phi)
            if found is None:
                continue
            activation, value, value_slope = found
            tolerance, slope_tolerance = _tolerances(chain)
            agree = _distance(y, value(_GRID)) <= tolerance
            if agree and _distance(dy, value_slope(_GRID)) <= slope_tolerance:
                return activation
    return None


def _distance(y: np.ndarray, candidate: np.ndarray) -> float:
    """The largest relative distance in L2(N(0, q)) over all q; NaN where a value is."""
    error, size = _WEIGHTS @ (y - candidate) ** 2, _WEIGHTS @ candidate**2
    return float(np.sqrt(np.max(error / size)))


def _tolerances(chain: ClosedJaxpr) -> tuple[float, float]:
    """The distances up to which phi and phi' count as equal to the candidate.

    Literals such as sqrt(1/2) were rounded to the dtype of the trace. In phi itself the fit of A
    and B absorbs that; jax.grad adds literals of its own, such as 2/sqrt(pi) in the slope of erf.
    """
    avals: list[Any] = [v.aval for e in equations(chain) for v in (*e.invars, *e.outvars)]
    dtypes = {aval.dtype for aval in avals if jnp.issubdtype(aval.dtype, jnp.floating)}
    eps = max(float(jnp.finfo(dtype).eps) for dtype in dtypes)
    if eps < 1e-15:
        return 1e-10, 1e-10
    return 2e-6, max(2e-6, 2 * eps)


Fit = tuple[Activation, Callable[[Any], Any], Callable[[Any], Any]]


def _fit_erf(phi: Callable[[Any], np.ndarray]) -> Fit | None:
    scale = float(phi(_FAR))
    ratios = phi(_SCALES) / scale
    best = int(np.argmin(np.abs(ratios - 0.5)))
    if not (math.isfinite(scale) and 0.05 < ratios[best] < 0.95):
        return None
    rate = float(special.erfinv(ratios[best]) / _SCALES[best])
    return (
        Erf(scale, rate),
        lambda x: scale * special.erf(rate * x),
        lambda x: scale * rate * 2 / math.sqrt(math.pi) * np.exp(-((rate * x) ** 2)),
    )


def _fit_gelu(phi: Callable[[Any], np.ndarray]) -> Fit | None:
    right, left = float(phi(_FAR)) / _FAR, float(phi(-_FAR)) / -_FAR
    scale = right if right != 0 else left  # left: a negative rate
    ratios = phi(_SCALES) / (scale * _SCALES)
    wanted = 0.8 if right != 0 else 0.2
    best = int(np.argmin(np.abs(ratios - wanted)))
    if not (math.isfinite(scale) and scale != 0 and abs(ratios[best] - wanted) < 0.15):
        return None
    rate = float(special.ndtri(ratios[best]) / _SCALES[best])

    def slope(x: Any) -> Any:
        density = np.exp(-((rate * x) ** 2) / 2) / math.sqrt(2 * math.pi)
        return scale * (special.ndtr(rate * x) + rate * x * density)

    return Gelu(scale, rate), lambda x: scale * x * special.ndtr(rate * x), slope


# Refusals.


def _refusal(chain: ClosedJaxpr, where: Where, why: str) -> UnsupportedError:
    return UnsupportedError(
        f"the activation `{operations(chain)}` has no known closed form yet",
        where=where,
        why=why,
        remedy=f"{SUPPORTED}; {MONTE_CARLO}",
    )
