"""Kernels of `phi(x) = A x Phi(B x)`, Phi the normal distribution function: the exact GELU and its scalings.

For `(u, v) ~ N(0, [[q11, q12], [q12, q22]])`, with `n_i^2 = 1 + B^2 q_ii`, `z = B^2 q12 / (n1 n2)` and
`D = n1^2 n2^2 (1 - z^2)`,

    E phi(u) phi(v)   = A^2 { q12 (1/4 + asin(z)/2pi)
                              + B^2/(2pi sqrt(D)) [q11 q22 - q12^2 + q12^2 (1/n1^2 + 1/n2^2)] }
    E phi'(u) phi'(v) = A^2 { 1/4 + asin(z)/2pi + B^2 q12/(2pi sqrt(D)) [1/n1^2 + 1/n2^2 + 1/D] }

The first is, for A = B = 1, R. Tsuchida, T. Pearce, C. van der Heide, F. Roosta, M. Gallagher, "Avoiding
kernel fixed points", AAAI 2021 (arXiv:2002.08517), here in a form that shows the symmetry; q -> B^2 q and a
factor A^2/B^2 give the rest. The second is its derivative by q12 (Price's theorem), in which
`B^4 [...] / D = 1 - 1/n1^2 - 1/n2^2 + 1/D` was used.

Domain: q11, q22 >= 0 and |q12| <= sqrt(q11 q22). |z| < 1 always, so all derivatives exist, also at
|rho| = 1; at zero variance K = 0 and `Kdot = phi'(0) E phi'(v) = A^2/4`.
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
    c = rate**2
    s = smoothed(q12, q11, q22, c)
    root = jnp.sqrt(s.one_minus_z2)
    i1, i2 = s.inverse1**2, s.inverse2**2
    both_positive = 1 / 4 + jnp.arctan2(s.z, root) / (2 * math.pi)  # P(Bu + noise, Bv + noise > 0)
    bracket = s.det + (q12 * s.inverse1) * (q12 * s.inverse2) * (i1 + i2)
    k = scale**2 * (q12 * both_positive + c / (2 * math.pi) * bracket / root)
    if not derivative:
        return (k,)
    bracket = i1 + i2 + i1 * i2 / s.one_minus_z2
    return k, scale**2 * (both_positive + s.z / (2 * math.pi) * bracket / root)


gelu_p = define("gelu_kernel", _kernel)  # smooth: autodiff of the reference is right everywhere


def gelu(
    q12: jax.Array,
    q11: jax.Array,
    q22: jax.Array,
    *,
    scale: float,
    rate: float,
    derivative: bool,
) -> tuple[jax.Array, ...]:
    """`(E phi(u) phi(v),)`, and `E phi'(u) phi'(v)` if `derivative`, for `phi(x) = scale * x * Phi(rate * x)`.

    Args:
        q12: covariance of u and v; like the variances, of any rank, axes of size 1 broadcasting.
        q11: variance of u.
        q22: variance of v.
        scale: A.
        rate: B.
        derivative: whether the second kernel is wanted.
    """
    return tuple(gelu_p.bind(q12, q11, q22, scale=scale, rate=rate, derivative=derivative))
