"""Laws of the elements of a random array, in float64: what `init` computes, without drawing it.

Every draw of an array is an array of independent U(0, 1) elements (`Draw`). What is made of it is

* `Pointwise`: an elementwise function of one draw. Affine functions of a uniform or (truncated)
  normal draw keep their closed form; any other is an `Expression`, integrated numerically.
* `Moments`: only the first four cumulants of each element: of several draws, or a mosaic of laws.

Cumulants κ₁ … κ₄ (mean, variance, third central moment, μ₄ − 3κ₂²) of independent terms add, and
κₙ(a x + b) = aⁿ κₙ(x) + b [n = 1]; the excess kurtosis is κ₄/κ₂². Raw moments of independent
factors multiply. Closed forms:

* U(0, 1): κ = (1/2, 1/12, 0, −1/120).
* standard normal truncated to [a, b], Z = Φ(b) − Φ(a): by parts,
  E zᵏ = (k−1) E zᵏ⁻² + (aᵏ⁻¹ φ(a) − bᵏ⁻¹ φ(b)) / Z (Johnson, Kotz & Balakrishnan, Continuous
  Univariate Distributions vol. 1, §13.10).
* an entry q of a Haar-distributed orthogonal n × n matrix is a coordinate of a uniform unit vector:
  E q = E q³ = 0, E q² = 1/n, E q⁴ = 3/(n(n+2)) (integrate xᵢ⁴ over the sphere), so
  κ₄ = −6/(n²(n+2)).

Arrays that hold one number per element are kept *compressed*: an axis along which nothing varies
has size 1, and an array that varies along none is 0-dimensional, so the law of 8192 × 8192 equal
elements is a handful of floats.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import special

Shape = tuple[int, ...]

MAX_DISTINCT = 1024
"""At most so many differently parameterised elements of one array are integrated numerically."""


class NoLaw(Exception):
    """Why a law cannot be given."""


def compress(array: Any) -> np.ndarray:
    """Size 1 along every axis where nothing varies; 0-dimensional if nothing varies at all."""
    array = np.asarray(array)
    for axis, size in enumerate(array.shape):
        first = array[(slice(None),) * axis + (slice(0, 1),)]
        if size > 1 and (array == first).all():
            array = first
    return array.reshape(()) if array.size == 1 else array


# Cumulants.


@dataclass(frozen=True)
class Cumulants:
    """κ₁ … κ₄ of each element, as compressed arrays."""

    orders: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

    @staticmethod
    def of(*orders: Any) -> Cumulants:
        """From four numbers or arrays of full rank."""
        k1, k2, k3, k4 = (compress(np.asarray(order, np.float64)) for order in orders)
        return Cumulants((k1, k2, k3, k4))

    @staticmethod
    def from_raw(m1: Any, m2: Any, m3: Any, m4: Any) -> Cumulants:
        """From raw moments E xⁿ."""
        return Cumulants.of(
            m1,
            m2 - m1**2,
            m3 - 3 * m2 * m1 + 2 * m1**3,
            m4 - 4 * m3 * m1 - 3 * m2**2 + 12 * m2 * m1**2 - 6 * m1**4,
        )

    def raw(self) -> tuple[Any, Any, Any, Any]:
        """Raw moments E xⁿ."""
        k1, k2, k3, k4 = self.orders
        return (
            k1,
            k2 + k1**2,
            k3 + 3 * k2 * k1 + k1**3,
            k4 + 4 * k3 * k1 + 3 * k2**2 + 6 * k2 * k1**2 + k1**4,
        )

    def affine(self, scale: Any, shift: Any) -> Cumulants:
        """Of scale · x + shift."""
        k1, k2, k3, k4 = self.orders
        return Cumulants.of(scale * k1 + shift, scale**2 * k2, scale**3 * k3, scale**4 * k4)

    def plus(self, other: Cumulants) -> Cumulants:
        """Of the sum with an independent term."""
        return Cumulants.of(*(a + b for a, b in zip(self.orders, other.orders, strict=True)))

    def times(self, other: Cumulants) -> Cumulants:
        """Of the product with an independent factor."""
        pairs = zip(self.raw(), other.raw(), strict=True)
        return Cumulants.from_raw(*(a * b for a, b in pairs))

    def mixed(self, other: Cumulants, probability: Any) -> Cumulants:
        """Of this law with the probability, else of the other."""
        pairs = zip(self.raw(), other.raw(), strict=True)
        return Cumulants.from_raw(*(probability * a + (1 - probability) * b for a, b in pairs))

    def move(self, function: Callable[[np.ndarray], np.ndarray]) -> Cumulants:
        """Of the elements in other places."""
        k1, k2, k3, k4 = (compress(function(order)) for order in self.orders)
        return Cumulants((k1, k2, k3, k4))


def constant_cumulants(value: Any) -> Cumulants:
    """Of a constant."""
    return Cumulants.of(value, 0.0, 0.0, 0.0)


def haar_cumulants(n: int) -> Cumulants:
    """Of one entry of a Haar-distributed orthogonal n × n matrix."""
    return Cumulants.of(0.0, 1 / n, 0.0, -6 / (n**2 * (n + 2)))


# Draws, and expressions of them.


@dataclass(frozen=True)
class Draw:
    """Independent U(0, 1) elements.

    `place` tells apart arrangements of the same elements: two arrays hold the same draw at the same
    position only if their places are equal. `roots` are the keys drawn from.
    """

    place: Hashable
    roots: frozenset[bytes]


@dataclass(frozen=True)
class Truncation:
    """The standard normal on [lower, upper], and the same in terms of erf(z/√2)."""

    lower: float
    upper: float
    erf_lower: float
    erf_upper: float

    @staticmethod
    def of_erf_range(erf_lower: float, erf_upper: float, slack: float) -> Truncation:
        """The law of √2 erf⁻¹(u), u uniform; a range within `slack` of ±1 is not a truncation."""
        erf_lower = -1.0 if erf_lower <= -1 + slack else erf_lower
        erf_upper = 1.0 if erf_upper >= 1 - slack else erf_upper
        lower, upper = (math.sqrt(2) * special.erfinv(e) for e in (erf_lower, erf_upper))
        return Truncation(float(lower), float(upper), erf_lower, erf_upper)

    @property
    def full(self) -> bool:
        """Not truncated at all."""
        return math.isinf(self.lower) and math.isinf(self.upper)

    def to_uniform(self, z: np.ndarray) -> np.ndarray:
        """The U(0, 1) element that z is a function of."""
        erf = special.erf(z / math.sqrt(2))
        return (erf - self.erf_lower) / (self.erf_upper - self.erf_lower)


@dataclass(frozen=True, eq=False)
class Expression:
    """`rule(*operands)`; without operands, one of the two variables below."""

    rule: Callable[..., Any]
    operands: tuple[Expression | np.ndarray, ...] = ()


UNIFORM = Expression(lambda: None)
"""The U(0, 1) element of the draw."""
NORMAL = Expression(lambda: None)
"""The (truncated) normal z that the uniform element was mapped to."""


def _nodes(expression: Expression) -> list[Expression]:
    """Each subexpression once, operands first; without recursion, as chains can be long."""
    order: list[Expression] = []
    done: set[int] = set()
    stack = [expression]
    while stack:
        node = stack[-1]
        inner = [x for x in node.operands if isinstance(x, Expression) and id(x) not in done]
        if inner:
            stack.extend(inner)
            continue
        stack.pop()
        if id(node) not in done:
            done.add(id(node))
            order.append(node)
    return order


@dataclass(frozen=True)
class Affine:
    """scale · x + shift for compressed arrays; a constant has scale None."""

    scale: np.ndarray | None
    shift: np.ndarray


@dataclass(frozen=True)
class Pointwise:
    """An elementwise function of one draw: of its normal variable where `truncation` is given."""

    shape: Shape
    draw: Draw
    truncation: Truncation | None
    expression: Expression
    affine: Affine | None = None

    @staticmethod
    def of_affine(shape: Shape, draw: Draw, cut: Truncation | None, affine: Affine) -> Pointwise:
        """scale · x + shift of the uniform or normal variable."""
        variable = UNIFORM if cut is None else NORMAL
        assert affine.scale is not None
        operands = (variable, affine.scale, affine.shift)
        return Pointwise(shape, draw, cut, Expression(lambda x, a, b: a * x + b, operands), affine)

    @property
    def roots(self) -> frozenset[bytes]:
        """The keys drawn from."""
        return self.draw.roots

    @property
    def uniform_law(self) -> bool:
        """Whether all elements have the same law."""
        nodes = _nodes(self.expression)
        return all(isinstance(x, Expression) or x.ndim == 0 for n in nodes for x in n.operands)

    @functools.cached_property
    def support(self) -> tuple[Any, Any]:
        """The ends of the range of an affine function, per element."""
        assert self.affine is not None
        assert self.affine.scale is not None
        cut = self.truncation
        ends = (0.0, 1.0) if cut is None else (cut.lower, cut.upper)
        with np.errstate(invalid="ignore"):
            low, high = (self.affine.scale * end + self.affine.shift for end in ends)
        return np.minimum(low, high), np.maximum(low, high)

    @functools.cached_property
    def cumulants(self) -> Cumulants:
        """κ₁ … κ₄ of each element."""
        if self.affine is None:
            return _integrated_cumulants(self.expression, self.truncation)
        return standard_cumulants(self.truncation).affine(self.affine.scale, self.affine.shift)


@dataclass(frozen=True)
class Moments:
    """Elements known by their cumulants only."""

    shape: Shape
    cumulants: Cumulants
    roots: frozenset[bytes]
    # the QR factorisation whose Q this is, up to scale and place: signs of its R may multiply it
    factor_of: Hashable = field(default=None)


# Moments.


def standard_cumulants(truncation: Truncation | None) -> Cumulants:
    """Of U(0, 1), or of the truncated standard normal."""
    if truncation is None:
        return Cumulants.of(1 / 2, 1 / 12, 0.0, -1 / 120)
    if truncation.full:
        return Cumulants.of(0.0, 1.0, 0.0, 0.0)
    a, b = truncation.lower, truncation.upper
    if b - a < 1:  # the recursion below cancels
        return _integrated_cumulants(NORMAL, truncation)
    mass = (truncation.erf_upper - truncation.erf_lower) / 2

    def boundary(power: int, end: float) -> float:
        return 0.0 if math.isinf(end) else end**power * math.exp(-(end**2) / 2) / _SQRT_2PI

    raw = [1.0, (boundary(0, a) - boundary(0, b)) / mass]
    for k in (2, 3, 4):
        raw.append((k - 1) * raw[k - 2] + (boundary(k - 1, a) - boundary(k - 1, b)) / mass)
    return Cumulants.from_raw(*raw[1:])


def _integrated_cumulants(expression: Expression, truncation: Truncation | None) -> Cumulants:
    """Numerically, once for each distinct combination of the array constants in the expression."""
    nodes = _nodes(expression)
    arrays = {id(x): x for n in nodes for x in n.operands if isinstance(x, np.ndarray) and x.ndim}
    if not arrays:
        return Cumulants.of(*_integrate_law(nodes, truncation, {}))
    full = np.broadcast_arrays(*arrays.values())
    rows = np.stack([x.reshape(-1).astype(np.float64) for x in full], axis=1)
    distinct, which = np.unique(rows, axis=0, return_inverse=True)
    if len(distinct) > MAX_DISTINCT:
        raise NoLaw(
            f"it is a nonlinear function of a draw with {len(distinct)} different parameters, "
            f"more than the {MAX_DISTINCT} that are integrated"
        )
    scalars = [
        {key: np.asarray(v, x.dtype) for (key, x), v in zip(arrays.items(), row, strict=True)} for row in distinct
    ]
    orders = np.array([_integrate_law(nodes, truncation, constants) for constants in scalars])
    return Cumulants.of(*(order[which].reshape(full[0].shape) for order in orders.T))


def _integrate_law(
    nodes: list[Expression], truncation: Truncation | None, constants: dict[int, np.ndarray]
) -> tuple[float, float, float, float]:
    """κ₁ … κ₄ of the last node; `constants` replace the array constants, by identity."""

    def values(points: np.ndarray) -> np.ndarray:
        known: dict[int, Any] = dict(constants)
        known[id(NORMAL)] = points
        known[id(UNIFORM)] = points if truncation is None else truncation.to_uniform(points)
        for node in nodes:
            if node.operands:
                known[id(node)] = node.rule(*(known.get(id(x), x) for x in node.operands))
        result = np.asarray(known[id(nodes[-1])], np.float64)
        return np.broadcast_to(result, points.shape)

    edges, density = _measure(truncation)

    def first(points: np.ndarray) -> np.ndarray:
        value = values(points)
        return np.stack([value, np.abs(value)]) * density(points)

    mean, size = _integrate(first, edges)

    def central(points: np.ndarray) -> np.ndarray:
        deviation = values(points) - mean
        return np.stack([deviation**2, deviation**3, deviation**4]) * density(points)

    if abs(mean) <= 1e-13 * size:
        mean = 0.0  # of odd functions: exactly
    variance, third, fourth = _integrate(central, edges)
    if variance <= (1e-13 * size) ** 2:
        return float(mean), 0.0, 0.0, 0.0
    return float(mean), float(variance), float(third), float(fourth - 3 * variance**2)


# Integration.

_SQRT_2PI = math.sqrt(2 * math.pi)
_LEGENDRE = np.polynomial.legendre.leggauss(20)
_NODES, _WEIGHTS = (_LEGENDRE[0] + 1) / 2, _LEGENDRE[1] / 2
# The panels start so fine that a rare event (a sparse mask: u < 1e-6) is not missed by all nodes.
_ENDS = 2.0 ** np.arange(-40, -8)
_UNIT = np.unique(np.concatenate([np.linspace(0, 1, 257), _ENDS, 1 - _ENDS]))
_LINE = np.concatenate([np.arange(-38, -10), np.arange(-10, 10, 1 / 8), np.arange(10, 39)])


def _measure(
    truncation: Truncation | None,
) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """The initial panels and the density of the variable (beyond 38 the normal's underflows)."""
    if truncation is None:
        return _UNIT, np.ones_like
    if truncation.full:
        return _LINE, lambda z: np.exp(-(z**2) / 2) / _SQRT_2PI
    lower, upper = max(truncation.lower, -38.0), min(truncation.upper, 38.0)
    mass = (truncation.erf_upper - truncation.erf_lower) / 2
    scaled = lower + (upper - lower) * _UNIT
    return scaled, lambda z: np.exp(-(z**2) / 2) / (_SQRT_2PI * mass)


def _integrate(integrand: Callable[[np.ndarray], np.ndarray], edges: np.ndarray) -> np.ndarray:
    """∫ of several integrands at once: adaptive Gauss-Legendre, all panels of a level together.

    Panels are halved where the halves change the sum: kinks and jumps are closed in on
    geometrically.
    """

    def panels(left: np.ndarray, right: np.ndarray) -> np.ndarray:
        width = right - left
        values = integrand((left[:, None] + width[:, None] * _NODES).reshape(-1))
        if not np.isfinite(values).all():
            raise NoLaw("it takes values that are not finite")
        return (values.reshape(len(values), len(left), -1) @ _WEIGHTS) * width

    left, right = edges[:-1], edges[1:]
    with np.errstate(all="ignore"):
        coarse = panels(left, right)
        total, doubt = np.zeros(len(coarse)), np.zeros(len(coarse))
        scale = np.abs(coarse).sum(axis=1)
        for _ in range(60):
            middle = (left + right) / 2
            halves = panels(left, middle), panels(middle, right)
            fine = halves[0] + halves[1]
            error = np.abs(coarse - fine)
            scale = np.maximum(scale, np.abs(total) + np.abs(fine).sum(axis=1))
            again = (error > 1e-13 * scale[:, None]).any(axis=0)
            # narrower panels than this have no distinct floating point nodes
            wide = right - left > 2.0**-44 * np.maximum(np.abs(left), np.abs(right))
            doubt += error[:, again & ~wide].sum(axis=1)
            again &= wide
            total += fine[:, ~again].sum(axis=1)
            if not again.any() or again.sum() > 10_000:
                break
            left, right = (
                np.concatenate([left[again], middle[again]]),
                np.concatenate([middle[again], right[again]]),
            )
            coarse = np.concatenate([half[:, again] for half in halves], axis=1)
    if again.any():
        doubt += error[:, again].sum(axis=1)
        total += fine[:, again].sum(axis=1)
    if (doubt > 1e-9 * scale).any():
        raise NoLaw("the integrals of its first four moments do not converge")
    return total
