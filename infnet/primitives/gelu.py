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

Derivatives are by Price's theorem (derived here): n(B u) of `phi'' = A B (2 - B^2 u^2) n(B u)` makes `v ~ N(0, s)`,
`1 + B^2 s = n2^2 (1 - z^2)`, and Stein's lemma does the rest. With `a_i = 1/(n_i^2 (1 - z^2))`, `e = B^2 q12 / D`,
`d = B^2 q12 / n1^2`:

    E phi''(u) phi(v)   = A^2/(2pi sqrt(D)) { (1 + 1/n1^2) B^2 s - d^2 (1 + a2) }
    E phi''(u) phi''(v) = A^2 B^2/(2pi sqrt(D)) { (1 + a1) (1 + a2) + 2 e^2 }
    E phi'''(u) phi'(v) = -A^2 B^2/(2pi sqrt(D)) { (1 + 3/n1^2) (1 + a2) d + (1 + 3 a2) a2 d^3 }

They are given because autodiff of the kernels would overflow at large variances, where these are representable.

Domain: q11, q22 >= 0 and |q12| <= sqrt(q11 q22). |z| < 1 always, so all derivatives exist, also at
|rho| = 1; at zero variance K = 0 and `Kdot = phi'(0) E phi'(v) = A^2/4`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from infnet.primitives.angles import Smoothed, arcsine, smoothed
from infnet.primitives.define import define


def _kernel(
    q12: jax.Array, q11: jax.Array, q22: jax.Array, *, scale: float, rate: float, derivative: bool
) -> tuple[jax.Array, ...]:
    c = rate**2
    s = smoothed(q12, q11, q22, c)
    i1, i2 = s.inverse1**2, s.inverse2**2
    root, both_positive = _root_and_orthant(s)
    bracket = s.det + (q12 * s.inverse1) * (q12 * s.inverse2) * (i1 + i2)
    k = scale**2 * (q12 * both_positive + c / (2 * math.pi) * (bracket / root))
    if not derivative:
        return (k,)
    # Behind the barrier both kernels are single fused loops, as in `homogeneous`.
    s = smoothed(jax.lax.optimization_barrier(q12), q11, q22, c)
    root, both_positive = _root_and_orthant(s)
    bracket = i1 + i2 + i1 * i2 / s.one_minus_z2
    return k, scale**2 * (both_positive + s.z / (2 * math.pi) * (bracket / root))


def _root_and_orthant(s: Smoothed) -> tuple[jax.Array, jax.Array]:
    """sqrt(1 - z^2) and P(B u + noise > 0, B v + noise > 0), the noise standard normal.

    The root is to be shared: of a quotient by a root of its own XLA makes rsqrt, which is slow in float64 on CPU.
    """
    root = jnp.sqrt(s.one_minus_z2)
    return root, 1 / 4 + arcsine(s.z, root) / (2 * math.pi)


def _jvp(
    primals: Sequence[jax.Array], tangents: Sequence[jax.Array], *, scale: float, rate: float, derivative: bool
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    k, kdot = gelu_p.bind(*primals, scale=scale, rate=rate, derivative=True)
    q12, q11, q22 = primals
    dq12, dq11, dq22 = tangents
    c = rate**2
    s = smoothed(q12, q11, q22, c)
    m1, m2 = s.inverse1, s.inverse2
    common = scale**2 / (2 * math.pi) * m1 * m2 / jnp.sqrt(s.one_minus_z2)
    a1, a2 = m1**2 / s.one_minus_z2, m2**2 / s.one_minus_z2
    d1, d2 = c * (q12 * m1) * m1, c * (q12 * m2) * m2
    # s.det * m1 / m2 is (q11 q22 - q12^2) / n1^2.
    variance1 = c * (q11 * m2**2 + c * (s.det * m2) * jnp.sqrt(1 + c * q11))
    variance2 = c * (q22 * m1**2 + c * (s.det * m1) * jnp.sqrt(1 + c * q22))
    second1 = common * ((1 + m1**2) * variance2 - d1**2 * (1 + a2))
    second2 = common * ((1 + m2**2) * variance1 - d2**2 * (1 + a1))
    dk = kdot * dq12 + second1 * dq11 / 2 + second2 * dq22 / 2
    if not derivative:
        return (k,), (dk,)
    both = (1 + a1) * (1 + a2) + 2 * (s.z * m1 * m2 / s.one_minus_z2) ** 2
    third1 = (1 + 3 * m1**2) * (1 + a2) * d1 + (1 + 3 * a2) * a2 * d1**3
    third2 = (1 + 3 * m2**2) * (1 + a1) * d2 + (1 + 3 * a1) * a1 * d2**3
    return (k, kdot), (dk, c * common * (both * dq12 - third1 * dq11 / 2 - third2 * dq22 / 2))


gelu_p = define("gelu_kernel", _kernel, jvp=_jvp)


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
