"""The arctangent on [-1, 1], in which all angles between examples are computed.

The reference is XLA's own. On CPU that is a call for every element; there a polynomial takes its place, which XLA
inlines into the loop around it and vectorises. It interpolates arctan(t) / t in t^2 at Chebyshev nodes, with an error
below 5.8^-degree, which is rounding. `benchmarks/activations.py --lowerings` times both.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from itertools import zip_longest

import jax
import jax.numpy as jnp
import numpy as np

from infnet.primitives.define import define


def _coefficients(degree: int) -> list[float]:
    """Of the powers of t^2, from the constant on."""
    n = degree + 1
    odd = 2 * np.arange(n) + 1
    t = np.cos(odd * np.pi / (4 * n))  # so that t^2 = (1 + cos(odd pi / 2n)) / 2, a Chebyshev node
    turns = np.outer(np.arange(n), odd) % (4 * n)  # whole periods taken off, in integers
    chebyshev = 2 / n * np.cos(turns * np.pi / (2 * n)) @ (np.arctan(t) / t)
    chebyshev[0] /= 2
    # The powers' coefficients of Chebyshev polynomials are huge and cancel: only exact arithmetic keeps the digits.
    total = [Fraction(0)] * (degree + 1)
    one, two = [1], [-1, 2]  # T_0 and T_1 at 2 t^2 - 1
    for c in chebyshev:
        total = [a + Fraction(float(c)) * b for a, b in zip_longest(total, one, fillvalue=0)]
        doubled = zip_longest([-2 * b for b in two], [0, *(4 * b for b in two)], one, fillvalue=0)
        one, two = two, [a + b - d for a, b, d in doubled]
    return [float(a) for a in total]


_COEFFICIENTS = {4: _coefficients(9), 8: _coefficients(21)}  # by the size of a number in bytes


def _reference(t: jax.Array) -> tuple[jax.Array, ...]:
    return (jnp.arctan(t),)


def _polynomial(t: jax.Array) -> tuple[jax.Array, ...]:
    *coefficients, last = _COEFFICIENTS[max(4, t.dtype.itemsize)]
    t2 = t * t
    total = jnp.full_like(t, last)
    for c in reversed(coefficients):
        total = total * t2 + c
    return (total * t,)


def _jvp(primals: Sequence[jax.Array], tangents: Sequence[jax.Array]) -> tuple[tuple[jax.Array], tuple[jax.Array]]:
    (t,), (dt,) = primals, tangents
    return (arctan(t),), (dt / (1 + t * t),)


arctan_p = define("arctan", _reference, jvp=_jvp, lowerings={"cpu": _polynomial})


def arctan(t: jax.Array) -> jax.Array:
    """The arctangent of t, for -1 <= t <= 1."""
    return arctan_p.bind(t)[0]
