"""Kernels of `phi(x) = A erf(B x)`.

For `(u, v) ~ N(0, [[q11, q12], [q12, q22]])`, with `n_i^2 = 1 + 2 B^2 q_ii` and `z = 2 B^2 q12 / (n1 n2)`,

    E phi(u) phi(v)   = A^2 (2/pi) asin z
    E phi'(u) phi'(v) = A^2 B^2 (4/pi) / sqrt(n1^2 n2^2 - (2 B^2 q12)^2)

the first by C. Williams, "Computing with infinite networks", NeurIPS 1996, section 3.1 (sigmoidal transfer
function); the second is its derivative by q12 (Price's theorem).

With `w = 1 - z^2` and `D = n1^2 n2^2 w`, of which `d log D = 2 B^2 (n2^2 dq11 + n1^2 dq22 - 4 B^2 q12 dq12) / D`,
the derivatives are `A^2 (2/pi) dz / sqrt(w)` and `-Kdot d log(D) / 2`: given, because autodiff of the kernels would
overflow at large variances, where both are representable.

Domain: q11, q22 >= 0 and |q12| <= sqrt(q11 q22). |z| < 1 always, so all derivatives exist, also at
|rho| = 1; at zero variance K = 0 and Kdot is finite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from infnet.primitives.angles import arcsine, smoothed
from infnet.primitives.define import define


def _kernel(
    q12: jax.Array, q11: jax.Array, q22: jax.Array, *, scale: float, rate: float, derivative: bool
) -> tuple[jax.Array, ...]:
    s = smoothed(q12, q11, q22, 2 * rate**2)
    k = scale**2 * (2 / math.pi) * arcsine(s.z, jnp.sqrt(s.one_minus_z2))
    if not derivative:
        return (k,)
    # Behind the barrier both kernels are single fused loops, as in `homogeneous`.
    s = smoothed(jax.lax.optimization_barrier(q12), q11, q22, 2 * rate**2)
    # XLA makes rsqrt of a quotient by a root, which is slow in float64 on CPU: 11 instead of 7 ns per element.
    inverse_root = jnp.sqrt(s.one_minus_z2) / s.one_minus_z2
    return k, (scale * rate) ** 2 * (4 / math.pi) * s.inverse1 * s.inverse2 * inverse_root


def _jvp(
    primals: Sequence[jax.Array], tangents: Sequence[jax.Array], *, scale: float, rate: float, derivative: bool
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    outputs = tuple(erf_p.bind(*primals, scale=scale, rate=rate, derivative=derivative))
    c = 2 * rate**2
    q12, q11, q22 = primals
    s = smoothed(q12, q11, q22, c)
    dq12, dq11, dq22 = tangents
    i1, i2 = s.inverse1**2, s.inverse2**2
    dz = c * s.inverse1 * s.inverse2 * dq12 - s.z * (c * i1 * dq11 + c * i2 * dq22) / 2
    dk = scale**2 * (2 / math.pi) * dz / jnp.sqrt(s.one_minus_z2)
    if not derivative:
        return outputs, (dk,)
    cross = s.z * s.inverse1 * s.inverse2
    dlog = (c * i1 * dq11 + c * i2 * dq22 - 2 * c * cross * dq12) / s.one_minus_z2
    return outputs, (dk, -outputs[1] * dlog / 2)


erf_p = define("erf_kernel", _kernel, jvp=_jvp)


def erf(
    q12: jax.Array,
    q11: jax.Array,
    q22: jax.Array,
    *,
    scale: float,
    rate: float,
    derivative: bool,
) -> tuple[jax.Array, ...]:
    """`(E phi(u) phi(v),)`, and `E phi'(u) phi'(v)` if `derivative`, for `phi(x) = scale * erf(rate * x)`.

    Args:
        q12: covariance of u and v; like the variances, of any rank, axes of size 1 broadcasting.
        q11: variance of u.
        q22: variance of v.
        scale: A.
        rate: B.
        derivative: whether the second kernel is wanted.
    """
    return tuple(erf_p.bind(q12, q11, q22, scale=scale, rate=rate, derivative=derivative))
