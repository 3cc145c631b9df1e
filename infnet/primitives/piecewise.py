"""Kernels of piecewise exponential polynomials, with any means: hard tanh, relu6, ELU, hard swish, powers, ...

A function is a sum of atoms `t^k exp(rate x)` on half-lines, t the distance to the end point, `Shape` in `shapes`.
For `(u, v) ~ N((m1, m2), [[q11, q12], [q12, q22]])` the exponentials are a change of measure that moves the means by
the covariances. What remains are truncated moments `M_kl = E theta_k(u - a) theta_l(v - b)`, `theta_k(t) = t^k / k!`
for t > 0 with its derivatives `theta_-1 = delta`, ... For all integers k and l, with mu the mean of u - a,

    k M_kl = mu M_(k-1)l + q11 M_(k-2)l + q12 M_(k-1)(l-1)

(Stein's lemma, as `t theta_(k-1) = k theta_k`; derived here, it contains the formulas of S. Rosenbaum, "Moments of a
truncated bivariate normal distribution", JRSS B 23 (1961)). It is used upwards from the quadrant `M_00` (see
`orthant`), and downwards for deltas. On a half-line that is the whole line there are no deltas.

A function that is convolved with a Gaussian of variance t^2 has the kernel of the function itself at q11 + t^2 or
q22 + t^2 and the same q12: `E f(u + t z)` with z independent of everything.

Derivatives by Price's theorem, `dK = E f'g' dq12 + (E f''g dq11 + E f g'' dq22) / 2 + E f'g dm1 + E f g' dm2`, with
derivatives of distributions: the family is closed, so derivatives of all orders are exact.

Domain: |q12| <= sqrt(q11 q22), rounding errors beyond are clipped, NaN is not. At zero variance u is the constant m1,
and `Shape.at` says what the function is there. Deltas at coincident points (|rho| = 1) are infinite: 0 here.
Exponentials less their own value, like `exp(x) - 1`, are replaced by Taylor polynomials where the arguments are small.
Rounding errors are relative to the terms: for |x| much larger than the end points they are larger than K, by q/a^2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from infnet.primitives.define import define
from infnet.primitives.shapes import Atom as Atom
from infnet.primitives.shapes import Parts, derivative, near_points, outward
from infnet.primitives.shapes import Shape as Shape
from infnet.primitives.truncated import Line, Pair, dot

_TAYLOR = {4: (8, 0.1), 8: (8, 2e-3)}
"""For each precision, the degree of the Taylor polynomials and the `(rate x)^2` up to which they are used."""


def _small(parts: Parts, q: jax.Array, mean: jax.Array | None) -> tuple[Parts, jax.Array] | None:
    """The Taylor polynomials that stand for exponentials, and where they do; None if they never do."""
    degree, limit = _TAYLOR[max(4, q.dtype.itemsize)]
    found = near_points(parts, degree)
    if found is None:
        return None
    polynomials, rate, points = found
    offsets = [dot(*[(p if mean is None else mean - p,) * 2]) for p in points]
    return polynomials, rate**2 * (q + sum(offsets)) <= limit


def takes_taylor(shape: Shape, q: jax.Array, mean: jax.Array | None) -> jax.Array:
    """Where Taylor polynomials stand for the exponentials of a function."""
    found = _small(outward(shape.atoms), q, mean)
    return jnp.zeros(q.shape, bool) if found is None else found[1]


def _select_small(
    inputs: Sequence[tuple[Parts, jax.Array, jax.Array | None]], evaluate: Callable[..., Any]
) -> jax.Array:
    """`evaluate` the parts, one for each input `(parts, variance, mean)`, or their Taylor polynomials where small."""
    found = [_small(*one) for one in inputs]
    exact = evaluate(*(parts for parts, _, _ in inputs))
    conditions = [taylor[1] for taylor in found if taylor is not None]
    if not conditions:
        return exact
    replaced = (one[0] if taylor is None else taylor[0] for one, taylor in zip(inputs, found, strict=True))
    return jnp.where(functools.reduce(jnp.logical_and, conditions), evaluate(*replaced), exact)


def _mean_of(shape: Shape, line: Line, at: Line) -> jax.Array:
    """E f(u): `line` has the variance of the smoothed argument, `at` that of the argument."""

    def evaluate(parts: Parts) -> Any:
        return dot(*[(c, line.moment(side, k)) for side, powers in parts for k, c in powers])

    total = _select_small([(outward(shape.atoms), line.q, line.mean)], evaluate) + line.zero
    return total if shape.smoothing else jnp.where(at.empty, at.value(shape), total)


def _mean(*operands: jax.Array, shapes: tuple[Shape, ...]) -> tuple[jax.Array, ...]:
    q, mean = operands if len(operands) == 2 else (operands[0], None)
    shape = jnp.broadcast_shapes(*(x.shape for x in operands))
    lines = {s.smoothing: Line(q + s.smoothing if s.smoothing else q, mean) for s in shapes}
    outputs = (_mean_of(s, lines[s.smoothing], lines[s.smoothing]) for s in shapes)
    return tuple(jnp.broadcast_to(x, shape).astype(q.dtype) for x in outputs)


def _mean_jvp(
    primals: Sequence[jax.Array], tangents: Sequence[jax.Array], *, shapes: tuple[Shape, ...]
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    n = len(shapes)
    first = tuple(derivative(s) for s in shapes)
    second = tuple(derivative(s) for s in first)
    centred = len(primals) == 1
    values = piecewise_mean_p.bind(*primals, shapes=(*shapes, *second, *(() if centred else first)))
    slopes = [x * (tangents[0] / 2) for x in values[n : 2 * n]]
    if not centred:
        slopes = [s + x * tangents[1] for s, x in zip(slopes, values[2 * n :], strict=True)]
    return tuple(values[:n]), tuple(slopes)


def _kernel(*operands: jax.Array, left: tuple[Shape, ...], right: tuple[Shape, ...]) -> tuple[jax.Array, ...]:
    q12, q11, q22 = operands[:3]
    m1, m2 = operands[3:] if len(operands) == 5 else (None, None)
    shape = jnp.broadcast_shapes(*(x.shape for x in operands))
    pairs: dict[tuple[float, float], Pair] = {}
    for s, t in {(f.smoothing, g.smoothing) for f, g in zip(left, right, strict=True)}:
        pair = pairs[s, t] = Pair(q12, Line(q11 + s if s else q11, m1), Line(q22 + t if t else q22, m2))
        pair.prepare(
            (a, b)
            for f, g in zip(left, right, strict=True)
            if (f.smoothing, g.smoothing) == (s, t)
            for a, ks in outward(f.atoms)
            for b, js in outward(g.atoms)
            if ks[-1][0] >= 0 and js[-1][0] >= 0
        )
    outputs = [_second_moment(pairs[f.smoothing, g.smoothing], f, g) for f, g in zip(left, right, strict=True)]
    return tuple(jnp.broadcast_to(x, shape).astype(q12.dtype) for x in outputs)


def _second_moment(pair: Pair, f: Shape, g: Shape) -> jax.Array:
    def evaluate(left: Parts, right: Parts) -> Any:
        products = ((c * d, pair.moment(s, k, t, j)) for s, ks in left for k, c in ks for t, js in right for j, d in js)
        return dot(*products)

    u, v = pair.lines
    k = _select_small([(outward(f.atoms), u.q, u.mean), (outward(g.atoms), v.q, v.mean)], evaluate) + pair.zero
    if f.smoothing and g.smoothing:
        return k
    return jnp.where(pair.empty, _mean_of(f, u, u) * _mean_of(g, v, v), k)


def _jvp(
    primals: Sequence[jax.Array], tangents: Sequence[jax.Array], *, left: tuple[Shape, ...], right: tuple[Shape, ...]
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    n, centred = len(left), len(primals) == 3
    f, g = (tuple(map(derivative, shapes)) for shapes in (left, right))
    ff, gg = (tuple(map(derivative, shapes)) for shapes in (f, g))
    lefts = [left, f, ff, left, *(() if centred else (f, left))]
    rights = [right, g, right, gg, *(() if centred else (right, g))]
    values = piecewise_p.bind(*primals, left=sum(lefts, ()), right=sum(rights, ()))
    dq12, dq11, dq22, *means = tangents
    steps = (dq12, dq11 / 2, dq22 / 2, *means)
    slopes = tuple(sum(values[(i + 1) * n + k] * d for i, d in enumerate(steps)) for k in range(n))
    return tuple(values[:n]), slopes


piecewise_mean_p = define("piecewise_mean_kernel", _mean, jvp=_mean_jvp)
piecewise_p = define("piecewise_kernel", _kernel, jvp=_jvp)


def piecewise(
    q12: jax.Array,
    q11: jax.Array,
    q22: jax.Array,
    means: tuple[jax.Array, jax.Array] | None = None,
    *,
    left: tuple[Shape, ...],
    right: tuple[Shape, ...],
) -> tuple[jax.Array, ...]:
    """`E left[i](u) right[i](v)` for every i.

    Args:
        q12: covariance of u and v; like all operands, of any rank, axes of size 1 broadcasting.
        q11: variance of u.
        q22: variance of v.
        means: of u and v; None if both are zero.
        left: functions of u.
        right: functions of v, as many.
    """
    return tuple(piecewise_p.bind(q12, q11, q22, *(means or ()), left=left, right=right))


def piecewise_mean(q: jax.Array, mean: jax.Array | None = None, *, shapes: tuple[Shape, ...]) -> tuple[jax.Array, ...]:
    """`E f(u)` for every function f in `shapes`.

    Args:
        q: variance of u.
        mean: of u; None if zero.
        shapes: the functions.
    """
    return tuple(piecewise_mean_p.bind(q, *(() if mean is None else (mean,)), shapes=shapes))
