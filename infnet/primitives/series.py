"""Kernels of smooth functions by their Hermite series, with a bound of the error.

For `(u, v) ~ N((m1, m2), [[q11, q12], [q12, q22]])` and `rho = q12 / sqrt(q11 q22)`, Mehler's formula gives

    E phi(u) psi(v) = sum_n a_n b_n rho^n,    a_n = E phi(m1 + sqrt(q11) z) h_n(z),  b_n alike of psi, m2, q22,

with `z ~ N(0, 1)` and `h_n` the orthonormal probabilists' Hermite polynomials; see A. Daniely, R. Frostig, Y. Singer,
"Toward deeper understanding of neural networks", NeurIPS 2016, on dual activations. The first N terms are computed,
N even. What is cut off of phi is, by Parseval, of the size `R1 = E phi^2 - sum_{n < N} a_n^2 = R1_even + R1_odd`, the
parts of even and odd n, and `R2` alike of psi. Where phi and psi are the same function,

    sqrt(R1_even R2_even) rho^N + sqrt(R1_odd R2_odd) rho^(N+1)

stands for the rest. Each term of the sum is a product of a function of u's side, the same function of v's side and a
power of rho, so the matrix of all pairs is positive semi-definite; at `q11 = q22, m1 = m2, |rho| = 1` it is exact.

Bound (derived here). Of the coefficients cut off, take those of one parity: let N' be N or N + 1, c and d the first
ones, a_N' and b_N', and S1, S2 the sums of squares of the others, so that `R1 = c^2 + S1`. All the others have
n >= N' + 2, so by Cauchy-Schwarz the error is the first of

    sqrt(R1 R2) rho^N' - c d rho^N' - (at most sqrt(S1 S2) |rho|^(N'+2)),     0 - c d rho^N' - (the same),

the second where phi and psi differ and nothing stands for the rest. So it is at most

    |rho|^N' (sqrt(R1 R2) - c d + rho^2 sqrt(S1 S2)),                         |rho|^N' (|c d| + rho^2 sqrt(S1 S2)).

And the first is not much too large: `sqrt(R1 R2) - c d >= sqrt(S1 S2)`, again by Cauchy-Schwarz, so the error is at
least `(1 - rho^2) / (1 + rho^2)` times the bound. The bounds of both parities are added. (For rho < 0 the errors may
cancel.) The bound is returned relative to `sqrt(E phi(u)^2 E psi(v)^2)`, the largest that |K| could be, and is of the
truncation: rounding errors come on top.

The integrals are sums over equidistant nodes in [-12, 12], which for analytic functions converge exponentially in
the number of nodes; outside lies exp(-72) of the normal distribution. The nodes are many more than N: with N nodes
the discrete Parseval equation would make every rest vanish. S is not computed as a difference, which would leave the
rounding errors of E phi^2, but as the norm of `phi - sum_{n <= N + 1} a_n h_n`. That one has a large part outside of
[-12, 12] (`h_n^2` times the normal density extends to 2 sqrt(n)), where phi is nothing: a static quadratic form in a.

Derivatives by Price's theorem: with K_ij the kernel of the derivatives of order i of phi and j of psi,

    dK_ij = K_{i+1,j+1} dq12 + K_{i+2,j} dq11 / 2 + K_{i,j+2} dq22 / 2 + K_{i+1,j} dm1 + K_{i,j+1} dm2,

each a series of its own: not the derivative of the truncated series, but finite and accurate everywhere, also at
|rho| = 1 and at zero variance.

Domain: q11, q22 >= 0 and |q12| <= sqrt(q11 q22); rounding errors beyond it are clipped, NaN is not. At zero variance
u = m1, so K = phi(m1) E psi(v).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infnet.primitives.angles import safe_inverse, safe_sqrt
from infnet.primitives.define import define


@dataclasses.dataclass(frozen=True)
class SmoothFunction:
    """An elementwise function of an array of any shape, and by forward differentiation its derivatives.

    Equal keys say that two are the same function. `parity` is 1 or -1 if the function is, up to a linear function,
    even or odd (which saves half of the terms of its series at mean zero), else 0.
    """

    key: Hashable
    function: Callable[[jax.Array], jax.Array] = dataclasses.field(compare=False, repr=False)
    parity: int = 0

    @functools.cached_property
    def compiled(self) -> Callable[[jax.Array], jax.Array]:
        """The function, of which JAX keeps the trace; without that, tracing the fourth derivative takes seconds."""
        return jax.jit(self.function)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The values at x."""
        return self.compiled(x)

    @functools.cached_property
    def derivative(self) -> SmoothFunction:
        """The derivative; made once, so that its own derivatives are too."""

        def function(x: jax.Array) -> jax.Array:
            return jax.jvp(self.compiled, (x,), (jnp.ones_like(x),))[1]

        return SmoothFunction(("derivative", self.key), function, -self.parity)

    @functools.cached_property
    def square(self) -> SmoothFunction:
        """The square of the values."""
        return SmoothFunction(("square", self.key), lambda x: self(x) ** 2)


Functions = tuple[SmoothFunction, ...]


# The Hermite functions at the nodes.

RANGE = 12.0


class Basis(NamedTuple):
    """Static arrays for the expansion of the even and the odd part of a function on half the real line.

    `z` are the positive nodes and `root` the square roots of their normal weights, times sqrt(2) for the two signs.
    `inside[parity]` holds `root * h_n(z)` for n = 0, 2, ..., N or n = 1, 3, ..., N + 1; `outside[parity]` is a matrix
    whose Gram matrix is that of the same functions outside of the nodes' range.
    """

    z: np.ndarray
    root: np.ndarray
    inside: np.ndarray
    outside: np.ndarray


@functools.cache
def basis(order: int, nodes: int) -> Basis:
    """The arrays for a series of `order` terms, an even number, with `nodes` nodes in [-12, 12]."""
    step = 2 * RANGE / nodes
    end = max(RANGE, 2 * math.sqrt(order + 2) + 8)  # beyond, the last function is below 1e-16
    z = np.arange(0.5, end / step) * step
    root = np.sqrt(2 * step) * np.exp(-(z**2) / 4) / (2 * math.pi) ** 0.25
    columns = [root, root * z]
    for n in range(1, order + 1):
        columns.append((z * columns[n] - math.sqrt(n) * columns[n - 1]) / math.sqrt(n + 1))
    parities = np.stack([np.stack(columns[0::2], 1), np.stack(columns[1::2], 1)])
    count = nodes // 2
    # The triangular factor has the same Gram matrix, and few rows.
    outside = np.stack([np.asarray(np.linalg.qr(x[count:], mode="r")) for x in parities])
    return Basis(z[:count], root[:count], parities[:, :count], outside)


def _signs(values: Any) -> np.ndarray:
    return np.array([1, -1], values.dtype).reshape(2, *(1,) * (values.ndim - 1))


def arguments(radius: Any) -> Any:
    """The arguments of both signs, `[2, ...]`; numpy or JAX."""
    return _signs(radius[None]) * radius


def halves(values: Any, root: Any) -> Any:
    """The even and the odd part, weighted, of the values at `arguments`; numpy or JAX."""
    return root / 2 * (_signs(values) * values + values[::-1])


def expand(f: Any, b: Basis, einsum: Callable[..., Any]) -> tuple[Any, Any]:
    """Of f, `[2, ..., nodes]`, the coefficients, and the square of what they leave of it; numpy or JAX."""
    a = einsum("p...m,pmk->p...k", f, b.inside)
    rest = f - einsum("p...k,pmk->p...m", a, b.inside)
    rest_outside = einsum("p...k,plk->p...l", a, b.outside)
    return a, (rest * rest).sum(-1) + (rest_outside * rest_outside).sum(-1)


class _Side(NamedTuple):
    """One function at the shape of its own operands; the first axis is the parity, even then odd.

    `terms` are the coefficients, along the second axis, with sqrt(R) last, in the place of N'. Relative to the
    function's root mean square, `first` is c, `rest` is sqrt(R) and `others` is sqrt(S) of the bound.
    """

    terms: jax.Array
    first: jax.Array
    rest: jax.Array
    others: jax.Array


def _side(function: SmoothFunction, q: jax.Array, mean: jax.Array | None, order: int, nodes: int) -> _Side:
    arrays: list[Any] = [jnp.asarray(x, q.dtype) for x in basis(order, nodes)]
    b = Basis(*arrays)
    centre = 0 if mean is None else mean[..., None]
    f = halves(function(centre + arguments(safe_sqrt(q)[..., None] * b.z)), b.root)
    # Accelerators round the operands of a product, unless asked not to.
    a, others = expand(f, b, functools.partial(jnp.einsum, precision="highest"))
    a = jnp.moveaxis(a, -1, 1)
    rest = jnp.sqrt(a[:, -1] ** 2 + others)
    terms = jnp.concatenate([a[:, :-1], rest[:, None]], 1)
    size = jnp.sqrt((terms * terms).sum((0, 1)))
    first, rest, others = (x * safe_inverse(size) for x in (a[:, -1], rest, jnp.sqrt(others)))
    return _Side(terms, first, rest, others)


# The kernel.


def _dot(a: jax.Array, b: jax.Array, x: jax.Array, count: int) -> jax.Array:
    """`sum_{k < count} a_k b_k x^k` by Horner's rule: one loop over the pairs, nothing but its result in memory."""
    total = a[count - 1] * b[count - 1]
    for k in reversed(range(count - 1)):
        total = total * x + a[k] * b[k]
    return total


def _bound(f: _Side, g: _Side, parity: int, rho2: jax.Array, same: bool) -> jax.Array:
    """The bound of one parity, without a factor |rho| for the odd one."""
    first, rest, others = (x[parity] * y[parity] for x, y in zip(f[1:], g[1:], strict=True))
    # Not below the others: only rounding could bring it there.
    at_first = jnp.maximum(rest - first, others) if same else jnp.abs(first)
    return jax.lax.integer_pow(rho2, f.terms.shape[1] - 1) * (at_first + rho2 * others)


def _value_and_bound(
    rho: jax.Array, f: _Side, g: _Side, same: bool, parities: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """One kernel of two functions, `same` or not, whose terms of n > 1 are of these parities only, 0 and 1."""
    rho2 = rho * rho
    count = f.terms.shape[1] - (not same)
    even, odd = (_dot(f.terms[p], g.terms[p], rho2, count if p in parities else 1) for p in (0, 1))
    factors = 1, jnp.abs(rho)
    return even + rho * odd, sum((factors[p] * _bound(f, g, p, rho2, same) for p in parities), 0 * rho)


def _kernel(
    q12: jax.Array,
    q11: jax.Array,
    q22: jax.Array,
    *means: jax.Array,
    left: Functions,
    right: Functions,
    order: int,
    nodes: int,
) -> tuple[jax.Array, ...]:
    m1, m2 = means or (None, None)
    f = {function: _side(function, q11, m1, order, nodes) for function in dict.fromkeys(left)}
    g = {function: _side(function, q22, m2, order, nodes) for function in dict.fromkeys(right)}
    inverse1, inverse2 = safe_inverse(safe_sqrt(q11)), safe_inverse(safe_sqrt(q22))
    rho = jnp.clip((q12 * inverse1) * inverse2, -1, 1)
    values, bounds = [], []
    for one, two in zip(left, right, strict=True):
        known = set() if means else {one.parity, two.parity}
        parities = [parity for parity, opposite in ((0, -1), (1, 1)) if opposite not in known]
        value, bound = _value_and_bound(rho, f[one], g[two], one == two, parities)
        values.append(value)
        bounds.append(bound)
    return (*values, *bounds)


def _jvp(
    primals: Sequence[jax.Array],
    tangents: Sequence[jax.Array],
    *,
    left: Functions,
    right: Functions,
    order: int,
    nodes: int,
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    outputs = tuple(series_p.bind(*primals, left=left, right=right, order=order, nodes=nodes))
    left1, right1 = (tuple(f.derivative for f in side) for side in (left, right))
    left2, right2 = (tuple(f.derivative for f in side) for side in (left1, right1))
    # As the operands: q12, q11, q22, m1, m2.
    pairs = [(left1, right1), (left2, right), (left, right2), (left1, right), (left, right1)][: len(primals)]
    lefts, rights = (sum(side, ()) for side in zip(*pairs, strict=True))
    slopes = series_p.bind(*primals, left=lefts, right=rights, order=order, nodes=nodes)
    bounds = outputs[len(left) :]
    return outputs, (*_changes(slopes[: len(lefts)], (1, 0.5, 0.5, 1, 1), tangents), *map(jnp.zeros_like, bounds))


def _changes(
    slopes: Sequence[jax.Array], factors: Sequence[float], tangents: Sequence[jax.Array]
) -> tuple[jax.Array, ...]:
    """The sums over operands of `factor * slope * tangent`; first come all slopes by the first operand."""
    count = len(slopes) // len(tangents)  # of functions
    steps = [factor * t for factor, t in zip(factors, tangents, strict=False)]
    changes = ((slopes[i * count + k] * step for i, step in enumerate(steps)) for k in range(count))
    return tuple(functools.reduce(jnp.add, terms) for terms in changes)


series_p = define("series_kernel", _kernel, jvp=_jvp)


def series(
    q12: jax.Array,
    q11: jax.Array,
    q22: jax.Array,
    *,
    left: Functions,
    right: Functions,
    order: int,
    nodes: int,
    means: tuple[jax.Array, jax.Array] | None = None,
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    """`E f(u) g(v)` for f, g in `zip(left, right)`, and bounds of the errors relative to `sqrt(E f(u)^2 E g(v)^2)`.

    The bounds have no derivatives.

    Args:
        q12: covariance of u and v; like the other arrays, of any rank, axes of size 1 broadcasting.
        q11: variance of u.
        q22: variance of v.
        left: functions of u.
        right: as many functions of v.
        order: N, even: the number of terms.
        nodes: number of nodes of the one-dimensional integrals, even, and several times `order`.
        means: means of u and v; None for zero.
    """
    outputs = series_p.bind(q12, q11, q22, *(means or ()), left=left, right=right, order=order, nodes=nodes)
    return tuple(outputs[: len(left)]), tuple(outputs[len(left) :])


# Moments of one Gaussian.


def _expectation(q: jax.Array, *mean: jax.Array, functions: Functions, nodes: int) -> tuple[jax.Array, ...]:
    b = basis(2, nodes)
    x = arguments(safe_sqrt(q)[..., None] * jnp.asarray(b.z, q.dtype))
    weights = jnp.asarray(b.root**2 / 2, q.dtype)
    centre = mean[0][..., None] if mean else 0
    return tuple((f(centre + x) * weights).sum((0, -1)) for f in functions)


def _expectation_jvp(
    primals: Sequence[jax.Array], tangents: Sequence[jax.Array], *, functions: Functions, nodes: int
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    outputs = tuple(expectation_p.bind(*primals, functions=functions, nodes=nodes))
    first = tuple(f.derivative for f in functions)
    second = tuple(f.derivative for f in first)
    of_operands = (second, first)[: len(primals)]
    slopes = expectation_p.bind(*primals, functions=sum(of_operands, ()), nodes=nodes)
    return outputs, _changes(slopes, (0.5, 1), tangents)


expectation_p = define("expectation_kernel", _expectation, jvp=_expectation_jvp)


def expectation(
    q: jax.Array, mean: jax.Array | None = None, *, functions: Functions, nodes: int
) -> tuple[jax.Array, ...]:
    """`E f(u)` for every f in `functions`; its derivatives are `E f'' / 2` by q and `E f'` by the mean.

    Args:
        q: variance of u, of any shape.
        mean: mean of u, of the same rank; None for zero.
        functions: functions of u.
        nodes: number of nodes in [-12, 12] standard deviations, even.
    """
    operands = (q,) if mean is None else (q, mean)
    return tuple(expectation_p.bind(*operands, functions=functions, nodes=nodes))
