"""Kernels of `phi(x) = A erf(B x)`.

For `(u, v) ~ N(0, [[q11, q12], [q12, q22]])`, with `n_i^2 = 1 + 2 B^2 q_ii` and `z = 2 B^2 q12 / (n1 n2)`,

    E phi(u) phi(v)   = A^2 (2/pi) asin z
    E phi'(u) phi'(v) = A^2 B^2 (4/pi) / sqrt(n1^2 n2^2 - (2 B^2 q12)^2)

the first by C. Williams, "Computing with infinite networks", NeurIPS 1996, section 3.1 (sigmoidal transfer
function); the second is its derivative by q12 (Price's theorem).

Domain: q11, q22 >= 0 and |q12| <= sqrt(q11 q22). |z| < 1 always, so all derivatives exist, also at
|rho| = 1; at zero variance K = 0 and Kdot is finite.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from infnet.primitives.angles import smoothed
from infnet.primitives.define import define


def _kernel(
    q12: jax.Array, q11: jax.Array, q22: jax.Array, *, scale: float, rate: float, derivative: bool
) -> tuple[jax.Array, ...]:
    s = smoothed(q12, q11, q22, 2 * rate**2)
    root = jnp.sqrt(s.one_minus_z2)
    k = scale**2 * (2 / math.pi) * jnp.arctan2(s.z, root)
    if not derivative:
        return (k,)
    return k, (scale * rate) ** 2 * (4 / math.pi) * s.inverse1 * s.inverse2 / root


erf_p = define("erf_kernel", _kernel)  # smooth: autodiff of the reference is right everywhere


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
