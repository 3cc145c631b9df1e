"""Kernels of positively homogeneous functions: relu, leaky relu, abs, step, sign.

`phi(x) = a x` for x < 0 and `b x` for x > 0 (degree 1), or `a` for x < 0, `b` for x > 0 and `at_zero` at 0
(degree 0). The derivative `phi'` is given separately, as a function of degree 0, because it is whatever
`jax.grad` makes of the user's function: a straight-through estimator has the values of sign and slope 1.
For `(u, v) ~ N(0, [[q11, q12], [q12, q22]])` and `rho = q12 / sqrt(q11 q22)`, writing `phi` as
`(a+b)/2 x + (b-a)/2 |x|`, or `(a+b)/2 + (b-a)/2 sign(x)`, the mixed terms vanish by symmetry, and

    degree 1:  E phi(u) phi(v) = ((a+b)/2)^2 q12 + ((b-a)/2)^2 (2/pi) (sqrt(q11 q22 - q12^2) + q12 asin rho)
    degree 0:  E phi(u) phi(v) = ((a+b)/2)^2     + ((b-a)/2)^2 (2/pi) asin rho

These are the arc-cosine kernels of order 1 and 0: Y. Cho, L. Saul, "Kernel methods for deep learning",
NeurIPS 2009, section 2 (there twice E relu relu and twice E step step, in the angle acos rho).

Domain: q11, q22 >= 0 and |q12| <= sqrt(q11 q22); rounding errors beyond it are clipped, NaN is not.
At zero variance u = 0, so `E phi'(u) phi'(v) = phi'(0) E phi'(v)`, and K = 0 for degree 1.
At |rho| = 1 the kernel of degree 1 has one-sided first derivatives of degree-0 type that are unbounded one
order later; all unbounded derivatives, at |rho| = 1 and at zero variance, are 0 here: the symmetric ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from infnet.primitives.angles import root_and_angle, safe_inverse
from infnet.primitives.define import define

Values = tuple[int, float, float, float]
"""`(degree, a, b, phi(0))`."""
Slope = tuple[float, float, float]
"""`phi'` as `(alpha for x < 0, beta for x > 0, phi'(0))`."""


def _mean(q: jax.Array, a: float, b: float, at_zero: float) -> jax.Array:
    """E phi for degree 0, at the variance q of one example."""
    return jnp.where(q <= 0, jnp.asarray(at_zero, q.dtype), jnp.asarray((a + b) / 2, q.dtype))


def _kernel(
    q12: jax.Array, q11: jax.Array, q22: jax.Array, *, values: Values, slope: Slope, derivative: bool, barrier: bool
) -> tuple[jax.Array, ...]:
    k = _second_moment(q12, q11, q22, values)
    if not derivative:
        return (k,)
    # The angle is computed twice on purpose. XLA on CPU would share it by writing intermediate arrays to memory;
    # behind the barrier, both kernels are single fused loops: 3.5 instead of 10 ns per element.
    q12 = jax.lax.optimization_barrier(q12) if barrier else q12
    return k, _second_moment(q12, q11, q22, (0, *slope))


def _second_moment(q12: jax.Array, q11: jax.Array, q22: jax.Array, values: Values) -> jax.Array:
    q12, root_det, angle = root_and_angle(q12, q11, q22)
    degree, a, b, at_zero = values
    kink = ((b - a) / 2) ** 2
    if degree == 1:
        return ((a + b) / 2) ** 2 * q12 + kink * ((2 / math.pi) * root_det + q12 * angle)
    # The angle vanishes at zero variance, so the product of means is right there as well.
    return _mean(q11, a, b, at_zero) * _mean(q22, a, b, at_zero) + kink * angle


def _jvp(
    primals: Sequence[jax.Array],
    tangents: Sequence[jax.Array],
    *,
    values: Values,
    slope: Slope,
    derivative: bool,
    barrier: bool,
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    # Without the barrier of `_kernel`: with it, XLA of jax 0.10 on CPU got second derivatives wrong in the 4th digit.
    params: dict[str, Any] = {"values": values, "slope": slope, "derivative": derivative, "barrier": False}
    outputs = tuple(homogeneous_p.bind(*primals, **params))
    q12, root_det, _ = root_and_angle(*primals)
    dq12, *dq = tangents
    # The relative change of q11 q22, and (degree 0) the change of asin(rho).
    relative = sum(safe_inverse(q) * d for q, d in zip(primals[1:], dq, strict=True))
    dangle = safe_inverse(root_det) * (dq12 - q12 * relative / 2)

    degree, a, b, _ = values
    if degree == 0:
        dk = (b - a) ** 2 / (2 * math.pi) * dangle
    else:
        # Price: dK/dq12 = E phi' phi'. Euler: q11 dK/dq11 = (K - q12 dK/dq12) / 2.
        step: dict[str, Any] = {**params, "values": (0, a, b, (a + b) / 2), "derivative": False}
        (kdot,) = homogeneous_p.bind(*primals, **step)
        dk = kdot * dq12 + (b - a) ** 2 / (4 * math.pi) * root_det * relative
    alpha, beta, _ = slope
    dkdot = (beta - alpha) ** 2 / (2 * math.pi) * dangle
    return outputs, (dk, dkdot) if derivative else (dk,)


homogeneous_p = define("relu_kernel", _kernel, jvp=_jvp)


def homogeneous(
    q12: jax.Array,
    q11: jax.Array,
    q22: jax.Array,
    *,
    values: Values,
    slope: Slope,
    derivative: bool,
) -> tuple[jax.Array, ...]:
    """`(E phi(u) phi(v),)`, and `E phi'(u) phi'(v)` if `derivative`.

    Args:
        q12: covariance of u and v; like the variances, of any rank, axes of size 1 broadcasting.
        q11: variance of u.
        q22: variance of v.
        values: `(degree, a, b, phi(0))`.
        slope: `(alpha, beta, phi'(0))`.
        derivative: whether the second kernel is wanted.
    """
    return tuple(homogeneous_p.bind(q12, q11, q22, values=values, slope=slope, derivative=derivative, barrier=True))
