"""Where signals end up in deep random networks: fixed points of variances and correlations, and how far away they are.

In a fully connected network of infinite width with weights N(0, s_w^2 / fan-in) and biases N(0, s_b^2), the variance q
of an argument and the correlation c of two of them go from layer to layer by (Poole et al. 2016, arXiv:1606.05340,
section 2)

    q' = V(q) = s_w^2 E phi(sqrt(q) z)^2 + s_b^2,        c' = C(c) = (s_w^2 E phi(u1) phi(u2) + s_b^2) / q*,

with z ~ N(0, 1) and (u1, u2) ~ N(0, q* [[1, c], [c, 1]]) at the fixed point q* of V. The slopes of the maps are
(Poole et al., section 2; Schoenholz et al. 2017, arXiv:1611.01232, section 3)

    V'(q*) = s_w^2 (E phi'(u)^2 + E phi''(u) phi(u)),    C'(c) = s_w^2 E phi'(u1) phi'(u2),    chi_1 = C'(1),

and differences shrink as exp(-layers / xi) with the depth scales xi_q = -1 / log |V'(q*)| and xi_c = -1 / log C'(c*).

All expectations are those of `infnet.activations`, V' is the derivative of V by JAX. Fixed points are found by Newton's
method, in float64:

- Of V, from the variance q0 of the first layer. Where V' >= 1, q is moved by at least a factor of 2 in the direction of
  V(q), elsewhere by Newton's step, at most by a factor of 16. It diverges if it comes to `q_max` and V(q_max) > q_max.
  It cannot oscillate: V'(q*) >= -1/2 for every activation, since with the density p of N(0, q)

      q d/dq E phi(u)^2 = E phi(u)^2 (u^2 / 2q - 1/2) >= -E phi(u)^2 / 2,       as  q dp/dq = p (u^2 / 2q - 1/2).

- Of C. It is a power series with coefficients that are not negative (Daniely et al. 2016, NeurIPS), and so convex on
  [0, 1]: if chi_1 <= 1, the only fixed point is c* = 1; otherwise 1 is unstable, there is exactly one more, and
  Newton's steps from c = 0 never pass it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from infnet.activations import Activation, recognise
from infnet.activations.series import ORDERS, SeriesActivation
from infnet.errors import InputError, Where

Array = jax.Array

# How far variances are followed; and up to which one counts as zero, where slopes are those of a variance this small.
Q_MAX, Q_MIN = 1e10, 1e-12
# Newton's method: relative error of a fixed point, and steps at most. At a double root a step halves the distance.
CLOSE, STEPS = 1e-13, 200
# How close to 1 a slope is 1; and which error of 1 - C'(c*) a series of correlations may cause.
MARGINAL, SERIES_ERROR = 1e-10, 1e-3
# Points that are computed at once.
CHUNK = 256


class FixedPoints(NamedTuple):
    """Of one (s_w, s_b), or of many: arrays of JAX or NumPy.

    Attributes:
        q: the last variance of Newton's method.
        converged: whether it is a fixed point.
        chi_1: the slope of C at c = 1.
        variance_slope: that of V.
        c: the stable fixed point of C; NaN where the series of the activation is not accurate there.
        correlation_slope: of C at c, likewise.
    """

    q: Any
    converged: Any
    chi_1: Any
    variance_slope: Any
    c: Any
    correlation_slope: Any


def activation_of(function: Callable[[Array], Array]) -> tuple[Activation, float]:
    """What infnet knows of an elementwise function, and up to which variance; to be called in float64.

    Raises:
        InputError: it is not a function of an array, or its derivative by `jax.grad` is not that of its values: then
            correlations and gradients have different slopes.
        UnsupportedError: its kernels are not known, or it is not elementwise.
    """
    if not callable(function):
        raise InputError(f"activation must be an elementwise function, such as jax.nn.relu, not {function!r}")
    shape = jax.ShapeDtypeStruct((2,), jnp.float64)
    traced = jax.make_jaxpr(function)(shape)
    if [aval.shape for aval in traced.out_avals] != [(2,)]:
        raise InputError(f"activation must map an array to an array of the same shape, elementwise, not {function!r}")
    found: Any = recognise(traced, Where(line=getattr(function, "__name__", "")))
    largest = Q_MAX
    if isinstance(found, SeriesActivation):
        order, nodes, largest = ORDERS[-1], 16 * ORDERS[-1], 1.0
        while largest < Q_MAX and found.nodes_for(order, 4 * largest) == nodes:
            largest *= 4
        found = dataclasses.replace(found, order=order, nodes=nodes)

    one = jnp.ones(())
    (_, by_grad), (by_values, _) = jax.jvp(lambda q12: found.kernel(q12, one, one, True), (one / 2,), (one,))
    if not jnp.allclose(by_grad, by_values, rtol=1e-6, atol=1e-12):
        raise InputError(
            f"the derivative of {found.name} by `jax.grad` is not that of its values, as with jumps or derivatives of "
            "one's own: the slope of correlations is then not that of gradients, and chi_1 is not defined"
        )
    return found, largest


def fixed_points(activation: Activation, w_std: np.ndarray, b_std: np.ndarray, q0: float, q_max: float) -> FixedPoints:
    """The fixed points of arrays `(n,)` of standard deviations, as NumPy arrays; to be called in float64."""
    chunks = []
    for start in range(0, len(w_std), CHUNK):
        parts = [std[start : start + CHUNK] for std in (w_std, b_std)]
        size = len(parts[0])  # all chunks have one size, that of what is compiled
        found = _fixed_points(activation, *(np.pad(part, (0, CHUNK - size), "edge") for part in parts), q0, q_max)
        chunks.append([np.asarray(array)[:size] for array in found])
    return FixedPoints(*(np.concatenate(arrays) for arrays in zip(*chunks, strict=True)))


@functools.partial(jax.jit, static_argnums=0)
def _fixed_points(activation: Activation, w_std: Array, b_std: Array, q0: Array, q_max: Array) -> FixedPoints:
    def one(w_std: Array, b_std: Array) -> FixedPoints:
        w2, b2 = w_std**2, b_std**2
        q, converged, variance_slope = _variance(activation, w2, b2, q0, q_max)
        chi_1 = w2 * activation.squares(jnp.maximum(q, Q_MIN))[1]
        c, slope = _correlation(activation, w2, b2, q, chi_1, converged & (q > Q_MIN))
        return FixedPoints(q, converged, chi_1, variance_slope, c, slope)

    return jax.vmap(one)(w_std, b_std)


def _variance(activation: Activation, w2: Array, b2: Array, q0: Array, q_max: Array) -> tuple[Array, Array, Array]:
    """Of V: the last variance, whether it is a fixed point, and the slope there."""

    def at(q: Array) -> tuple[Array, Array]:
        value, slope = jax.jvp(lambda q: w2 * activation.squares(q)[0] + b2, (q,), (jnp.ones_like(q),))
        return value, slope

    def found(q: Array, value: Array) -> Array:
        return jnp.abs(value - q) <= CLOSE * q

    def goes_on(state: Any) -> Array:
        count, q, value, _ = state
        return (count < STEPS) & ~found(q, value) & (q > Q_MIN**2) & ((q < q_max) | (value < q))

    def step(state: Any) -> Any:
        count, q, value, slope = state
        newton = q + (value - q) / jnp.where(slope < 1, 1 - slope, 1)
        doubled = jnp.where(value > q, jnp.maximum(value, 2 * q), jnp.minimum(value, q / 2))
        q = jnp.clip(jnp.where(slope < 1, newton, doubled), q / 16, jnp.minimum(16 * q, q_max))
        return count + 1, q, *at(q)

    _, q, value, _ = lax.while_loop(goes_on, step, (jnp.zeros((), int), q0, *at(q0)))
    return q, (found(q, value) | (q <= Q_MIN)) & (q < q_max), at(jnp.maximum(q, Q_MIN))[1]


def _correlation(
    activation: Activation, w2: Array, b2: Array, q: Array, chi_1: Array, valid: Array
) -> tuple[Array, Array]:
    """Of C: the stable fixed point in [0, 1] and the slope there."""
    chaotic = valid & (chi_1 > 1 + MARGINAL)
    q = jnp.where(chaotic, q, 1.0)

    def at(c: Array) -> tuple[Array, Array, Array]:
        if isinstance(activation, SeriesActivation):
            (k, slope), bounds = activation.kernel_and_bound(c * q, q, q, True)
            error = jnp.maximum(*bounds)
        else:
            (k, slope), error = activation.kernel(c * q, q, q, True), jnp.zeros(())
        return (w2 * k + b2) / q, w2 * slope, error

    def goes_on(state: Any) -> Array:
        count, c, value, slope, _ = state
        return chaotic & (count < STEPS) & (value - c > CLOSE) & (slope < 1)

    def step(state: Any) -> Any:
        count, c, value, slope, _ = state
        c = jnp.minimum(c + (value - c) / (1 - slope), 1.0)
        return count + 1, c, *at(c)

    first = jnp.zeros_like(q)
    _, c, _, slope, error = lax.while_loop(goes_on, step, (jnp.zeros((), int), first, *at(first)))
    # An error of C moves c* by error / (1 - C'), and with it C', whose own error is of the same size.
    inaccurate = ~valid | (chaotic & ~(chi_1 * error <= SERIES_ERROR * (1 - slope) ** 2))
    c, slope = (jnp.where(chaotic, a, b) for a, b in ((c, 1.0), (slope, chi_1)))
    return jnp.where(inaccurate, jnp.nan, c), jnp.where(inaccurate, jnp.nan, slope)
