"""Truncated moments of one and of two Gaussians, tilted by exponentials, by recursion; see `piecewise`.

Sides left of their point are reflected, so that everything is right of a point. Moments are made when they are asked
for, and kept: quadrants that functions share are computed once. The number 0.0 stands for what is zero by structure.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from infnet.primitives.angles import gaps, root_and_angle
from infnet.primitives.orthant import SQRT_2PI, Corner, Exponents, Quadrant, corner, quadrant, scaled_tail
from infnet.primitives.shapes import Shape, Side, value

Number = Any
"""An array, or a number that does not depend on the operands."""


def _vanishes(x: Number) -> bool:
    return isinstance(x, float | int) and x == 0


def dot(*pairs: tuple[Number, Number]) -> Number:
    """The sum of products, without the terms that are zero by structure."""
    total: Number = 0.0
    for x, y in pairs:
        if not _vanishes(x) and not _vanishes(y):
            term = x if isinstance(y, float | int) and y == 1 else y if isinstance(x, float | int) and x == 1 else x * y
            total = term if _vanishes(total) else total + term
    return total


class Line:
    """Moments `E theta_k(t) exp(rate u)` of one Gaussian, t the distance of u to a point."""

    def __init__(self, q: jax.Array, mean: jax.Array | None) -> None:
        self.q, self.mean = q, mean
        self.empty = q <= 0
        self.variance = jnp.where(self.empty, 1, q)
        self.root = jnp.sqrt(self.variance)
        self.zero = jnp.zeros_like(q)
        self._kept: dict[Any, Number] = {}

    def distance(self, side: Side) -> Number:
        """From the mean to the point, reflected if the side is the left."""
        sign = side.side or 1
        return sign * side.point if self.mean is None else sign * (side.point - self.mean)

    def normal(self, distance: Number) -> jax.Array:
        """A distance in standard deviations."""
        return jnp.zeros_like(self.root) if _vanishes(distance) else distance / self.root

    def value(self, shape: Shape) -> jax.Array:
        """The function at the mean."""
        if self.mean is None:
            return jnp.asarray(value(shape, 0.0), self.q.dtype)
        total = jnp.zeros_like(self.mean)
        for a in shape.atoms:
            t = (a.side or 1) * (self.mean - a.point)
            inside = (t > 0) if a.side else True
            if a.power >= 0:
                term = a.coefficient * t**a.power
                total += jnp.where(inside, term * jnp.exp(a.rate * self.mean) if a.rate else term, 0)
        for point, y in shape.at:
            total = jnp.where(self.mean == point, y, total)
        return total

    def moment(self, side: Side, k: int) -> Number:
        """`E theta_k(t) exp(rate u)`, by `k M_k = mu M_(k-1) + q M_(k-2)`."""
        if k < 0 and not side.side:
            return 0.0
        if (side, k) not in self._kept:
            self._kept[side, k] = self._moment(side, k)
        return self._kept[side, k]

    def _moment(self, side: Side, k: int) -> Number:
        if k in (0, -1):
            return self._base(side)[-k]
        rate = side.rate * (side.side or 1)
        mu = dot((-1.0, self.distance(side)), (rate, self.variance))
        if k > 0:
            return dot(
                (mu / k if not _vanishes(mu) else 0.0, self.moment(side, k - 1)),
                (self.variance / k, self.moment(side, k - 2)),
            )
        return (
            dot((k + 2, self.moment(side, k + 2) if k + 2 else 0.0), (dot((-1.0, mu)), self.moment(side, k + 1)))
            / self.variance
        )

    def _base(self, side: Side) -> tuple[Number, Number]:
        """The moments 0 and -1."""
        rate = side.rate * (side.side or 1)
        whole = dot(
            (rate * side.rate * (side.side or 1) / 2, self.variance),
            (side.rate, self.mean if self.mean is not None else 0.0),
        )
        if not side.side:
            return (1.0 if _vanishes(whole) else jnp.exp(whole)), 0.0
        h = self.normal(self.distance(side))
        apex = jnp.exp(side.rate * side.point - h * h / 2)
        shifted = h - rate * self.root if rate else h
        tail = apex * scaled_tail(jnp.abs(shifted))
        return jnp.where(shifted < 0, jnp.exp(whole) - tail, tail), apex / (SQRT_2PI * self.root)


class Pair:
    """Moments `E theta_k(t1) theta_l(t2) exp(rate1 u + rate2 v)` of two Gaussians."""

    def __init__(self, q12: jax.Array, u: Line, v: Line) -> None:
        self.lines = (u, v)
        empty = u.empty | v.empty
        self.empty = empty & (q12 == q12)  # NaN stays NaN
        self.q12, below, above = gaps(jnp.where(empty, 0 * q12, q12), u.variance, v.variance)
        self.gaps = below / u.root / v.root, above / u.root / v.root
        self.zero = 0 * self.q12
        self._corners: dict[Any, Corner] = {}
        self._tables: dict[tuple[Side, Side], Table] = {}

    @property
    def centred(self) -> bool:
        """Whether both means are zero."""
        return self.lines[0].mean is None

    def moment(self, s: Side, k: int, t: Side, j: int) -> Number:
        """The moment of degrees k and j at the sides s and t."""
        # With zero means, reflecting both arguments changes nothing; on a whole line the odd powers change sign.
        reflected = self._reflect(s, t)
        sign = 1 if reflected == (s, t) else (1 if s.side else (-1) ** k) * (1 if t.side else (-1) ** j)
        return dot((sign, self.table(*reflected).moment(k, j)))

    def _reflect(self, s: Side, t: Side) -> tuple[Side, Side]:
        if self.centred and (s.side < 0 or (s.side == 0 and t.side < 0)):
            return Side(-s.side, -s.point, -s.rate), Side(-t.side, -t.point, -t.rate)
        return s, t

    def table(self, s: Side, t: Side) -> Table:
        """All moments at two sides."""
        s, t = self._reflect(s, t)
        if (s, t) not in self._tables:
            self._tables[s, t] = Table(self, s, t)
        return self._tables[s, t]

    def prepare(self, sides: Iterable[tuple[Side, Side]]) -> None:
        """Compute the quadrants at these sides, all by one loop: XLA compiles its body once, and fuses it whole."""
        tables = {id(t): t for t in (self.table(*both).quadrant_source() for both in sides) if t is not None}
        wanted = [t for t in tables.values() if t.quadrant is None]
        if not wanted:
            return
        inputs = [t.loop_input() for t in wanted]
        stacked = [
            jnp.stack([jnp.broadcast_to(jnp.asarray(x, self.q12.dtype), shape) for x in column])
            for column, shape in zip(zip(*inputs, strict=True), self._loop_shapes(), strict=True)
        ]
        tilted = any(rate for t in wanted for rate in t.rates)
        if len(wanted) == 1:
            wanted[0].quadrant = self._quadrant(tilted, [x[0] for x in stacked])
            return
        results = jax.lax.map(partial(self._quadrant, tilted), stacked)
        for i, table in enumerate(wanted):
            table.quadrant = Quadrant(*(x[i] for x in results))

    def _loop_shapes(self) -> list[tuple[int, ...]]:
        one = (1,) * self.q12.ndim
        m, n = (
            line.root.shape if line.mean is None else jnp.broadcast_shapes(line.root.shape, line.mean.shape)
            for line in self.lines
        )
        return [one, m, n, one, one, one, one, m, n]

    def _quadrant(self, tilted: bool, inputs: Sequence[jax.Array]) -> Quadrant:
        """The moments of one quadrant; the inputs are those of `Table.loop_input`."""
        (u, v), (sign, a, b, x, y, at1, at2, mean1, mean2) = self.lines, inputs
        below, above = (jnp.where(sign > 0, g, other) for g, other in (self.gaps, self.gaps[::-1]))
        c = self._corner(a, b, below, above)
        q12 = sign * self.q12
        apex, first, second = -(c.h * c.h + c.a * c.a) / 2, -c.h * c.h / 2, -c.k * c.k / 2
        if not tilted:
            return quadrant(c, Exponents(apex, first, second, 0.0))
        square = c.root * c.root
        step1, step2 = x * u.root, y * v.root
        first = first + at1 + mean2 + y * (q12 / u.root) * c.h + step2 * step2 * square / 2
        second = second + at2 + mean1 + x * (q12 / v.root) * c.k + step1 * step1 * square / 2
        product, near = step1 * step2, above >= below
        spread = jnp.where(product > 0, step1 - step2, step1 + step2)
        whole = mean1 + mean2 + spread * spread / 2 + jnp.abs(product) * jnp.where(product > 0, above, below)
        c = c._replace(
            h=c.h - jnp.where(near, step1 + step2 - step2 * below, step1 - step2 + step2 * above),
            k=c.k - jnp.where(near, step1 + step2 - step1 * below, step2 - step1 + step1 * above),
            a=c.a - step2 * c.root,
            b=c.b - step1 * c.root,
        )
        return quadrant(c, Exponents(apex + at1 + at2, first, second, whole))

    def corner(self, s: Side, t: Side) -> Corner:
        """The geometry of the quadrant at two sides, without their rates."""
        key = (s._replace(rate=0.0), t._replace(rate=0.0))
        if key not in self._corners:
            below, above = self.gaps if (s.side or 1) * (t.side or 1) > 0 else self.gaps[::-1]
            self._corners[key] = self._corner(self.lines[0].distance(s), self.lines[1].distance(t), below, above)
        return self._corners[key]

    def _corner(self, a: Number, b: Number, below: jax.Array, above: jax.Array) -> Corner:
        u, v = self.lines
        h, k = u.normal(a), v.normal(b)
        # The roots differ by this, all digits kept if the variances are nearly equal.
        spread = (u.variance - v.variance) / (u.root + v.root)
        difference, total = (b - a + h * spread) / v.root, (b + a - h * spread) / v.root
        return corner(h, k, difference, total, below, above)


class Table:
    """The moments of a pair at two sides."""

    def __init__(self, pair: Pair, s: Side, t: Side) -> None:
        self.pair, self.sides = pair, (s, t)
        self.signs = (s.side or 1, t.side or 1)
        self.rates = (s.rate * self.signs[0], t.rate * self.signs[1])
        self.q12 = pair.q12 if self.signs[0] * self.signs[1] > 0 else -pair.q12
        self._kept: dict[tuple[int, int], Number] = {}
        self.quadrant: Quadrant | None = None
        """`Pair.prepare` sets it."""

    def moment(self, k: int, j: int) -> Number:
        """The moment of degrees k and j."""
        s, t = self.sides
        if (k < 0 and not s.side) or (j < 0 and not t.side):
            return 0.0
        if (k, j) not in self._kept:
            self._kept[k, j] = self._moment(k, j)
        return self._kept[k, j]

    def _moment(self, k: int, j: int) -> Number:
        (u, v), m = self.pair.lines, self.moment
        if k in (0, -1) and j in (0, -1):
            return self._base(k, j)
        if k == -1 and j > 0:
            return self._along(0, j)
        if j == -1 and k > 0:
            return self._along(1, k)
        if k > 0 and j >= 0:
            terms = (self._mu(0), m(k - 1, j)), (u.variance, m(k - 2, j)), (self.q12, m(k - 1, j - 1))
            return dot((1 / k, dot(*terms)))
        if k == 0 and j > 0:
            terms = (self._mu(1), m(k, j - 1)), (v.variance, m(k, j - 2)), (self.q12, m(k - 1, j - 1))
            return dot((1 / j, dot(*terms)))
        return self._down(k, j)

    def _mu(self, axis: int) -> Number:
        """The mean of the distance to the point, after the tilt."""
        line, other = self.pair.lines[axis], 1 - axis
        own = dot((-1.0, line.distance(self.sides[axis])), (self.rates[axis], line.variance))
        return dot((1.0, own), (self.rates[other], self.q12))

    def _along(self, axis: int, degree: int) -> Number:
        """The moments on the edge at the point of one axis: those of a Gaussian, given the first argument."""
        other = self.pair.lines[1 - axis]
        zero = self._at_origin()
        c = None if zero else self.pair.corner(*self.sides)
        below, above = self.pair.gaps
        variance = other.variance * below * above
        mu = 0.0 if c is None else -other.root * (c.foot_b if axis else c.foot_a)
        mu = dot((1.0, mu), (self.rates[1 - axis], variance))
        one, two = (self.moment(*((d, -1) if axis else (-1, d))) for d in (degree - 1, degree - 2))
        return dot((1 / degree, dot((mu, one), (variance, two))))

    def _down(self, k: int, j: int) -> Number:
        """Derivatives of deltas, by the recursions of both axes solved for the lowest degrees."""
        axis = 0 if k < -1 or (k == 0 and j >= 0) else 1
        line, other = self.pair.lines[axis], self.pair.lines[1 - axis]

        def m(i: int, j: int) -> Number:
            return self.moment(i, j) if axis == 0 else self.moment(j, i)

        if axis:
            k, j = j, k
        if j >= 0:
            terms = (
                (k + 2, m(k + 2, j) if k + 2 else 0.0),
                (dot((-1.0, self._mu(axis))), m(k + 1, j)),
                (self.q12, dot((-1.0, m(k + 1, j - 1)))),
            )
            return dot((1 / line.variance, dot(*terms)))
        below, above = self.pair.gaps
        singular = (below <= 0) | (above <= 0)
        share = jnp.where(singular, 0, 1 / jnp.where(singular, 1, below * above))
        # mu1 - (q12 / q22) mu2, over q11: the shifts by tilts included
        mu = dot((1.0, self._mu(axis)), (dot((-1.0, self._mu(1 - axis))), self.q12 / other.variance))
        first = dot((k + 2, m(k + 2, j) if k + 2 else 0.0), (dot((-1.0, mu)), m(k + 1, j)))
        second = dot((-(j + 1), self.q12 / other.variance * m(k + 1, j + 1))) if j + 1 else 0.0
        return dot((share / line.variance, dot((1.0, first), (1.0, second))))

    def _at_origin(self) -> bool:
        s, t = self.sides
        return self.pair.centred and bool(s.side and t.side) and s.point == t.point == 0

    def _base(self, k: int, j: int) -> Number:
        (u, v), (s, t) = self.pair.lines, self.sides
        if not s.side or not t.side:
            return self._half_line(k, j)
        inside, first, second, apex = self._quadrant()
        if k == 0 and j == 0:
            return inside
        if k == 0 or j == 0:
            return first / (SQRT_2PI * u.root) if k else second / (SQRT_2PI * v.root)
        below, above = self.pair.gaps
        root = jnp.sqrt(below) * jnp.sqrt(above)
        density = jnp.where(root <= 0, 0, 1 / jnp.where(root <= 0, 1, root)) * apex
        return density / (2 * math.pi * u.root * v.root)

    def _whole(self) -> Number:
        """The logarithm of E exp(rate1 u + rate2 v)."""
        (u, v), (x, y) = self.pair.lines, (s.rate for s in self.sides)
        means = dot(*[(r, line.mean) for r, line in ((x, u), (y, v)) if line.mean is not None])
        if not x or not y:
            variances = dot((x * x / 2, u.variance), (y * y / 2, v.variance))
        else:
            below, above = self.pair.gaps
            sign = 1 if x * y > 0 else -1
            square = x * u.root - sign * y * v.root
            variances = square * square / 2 + abs(x * y) * u.root * v.root * (above if sign > 0 else below)
        return dot((1.0, means), (1.0, variances))

    def _edge(self, axis: int) -> Number:
        """The logarithm of the total of the line at the point of one axis, relative to the density there."""
        line, other = self.pair.lines[axis], self.pair.lines[1 - axis]
        side, rate = self.sides[axis], self.sides[1 - axis].rate
        h = line.normal(line.distance(side))
        total = side.rate * side.point - h * h / 2
        if not rate:
            return total
        below, above = self.pair.gaps
        variance = other.variance * below * above
        slope = self.signs[axis] * self.pair.q12 / line.root
        return total + dot(
            (rate, other.mean if other.mean is not None else 0.0), (rate, slope * h), (rate * rate / 2, variance)
        )

    def _half_line(self, k: int, j: int) -> Number:
        """Moments where one side is the whole line."""
        if not self.sides[0].side and not self.sides[1].side:
            whole = self._whole()
            return 1.0 if _vanishes(whole) else jnp.exp(whole)
        axis = 0 if self.sides[0].side else 1
        line = self.pair.lines[axis]
        edge = jnp.exp(self._edge(axis))
        if min(k, j) < 0:
            return edge / (SQRT_2PI * line.root)
        h = line.normal(line.distance(self.sides[axis]))
        h = h - dot((self.rates[axis], line.root), (self.rates[1 - axis], self.q12 / line.root))
        tail = edge * scaled_tail(jnp.abs(h))
        return jnp.where(h < 0, jnp.exp(self._whole()) - tail, tail)

    def _quadrant(self) -> tuple[Number, Number, Number, Number]:
        u, v = self.pair.lines
        source = self.quadrant_source()
        if source is None:
            sign = self.signs[0] * self.signs[1]
            return (1 + sign * root_and_angle(self.pair.q12, u.variance, v.variance)[2]) / 4, 0.5, 0.5, 1.0
        if source.quadrant is None:
            self.pair.prepare([self.sides])
        assert source.quadrant is not None
        if source is self:
            return source.quadrant
        inside, first, second, apex = source.quadrant
        axis = 0 if self.sides[0].rate else 1
        half_plane = self.pair.lines[axis].moment(self.sides[axis], 0)
        line = jnp.exp(self._edge(axis))
        if axis == 0:
            return half_plane - inside, line - first, second, apex
        return half_plane - inside, first, line - second, apex

    def quadrant_source(self) -> Table | None:
        """The table of whose quadrant this one's is made; None if none is needed.

        At the origin, where one argument has no exponential, two quadrants beside each other are a half-plane.
        """
        s, t = self.sides
        if not s.side or not t.side or (self._at_origin() and not s.rate and not t.rate):
            return None
        if self._at_origin() and self.signs[0] * self.signs[1] < 0 and bool(s.rate) != bool(t.rate):
            beside = (s, t._replace(side=-t.side)) if s.rate else (s._replace(side=-s.side), t)
            return self.pair.table(*beside)
        return self

    def loop_input(self) -> tuple[Number, ...]:
        """The sign of the reflections, distances to the points, rates, exponents at the points and at the means."""
        (s, t), lines = self.sides, self.pair.lines
        means = (
            0.0 if line.mean is None else side.rate * line.mean for side, line in zip(self.sides, lines, strict=True)
        )
        distances = (line.distance(side) for side, line in zip(self.sides, lines, strict=True))
        return (self.signs[0] * self.signs[1], *distances, *self.rates, s.rate * s.point, t.rate * t.point, *means)
