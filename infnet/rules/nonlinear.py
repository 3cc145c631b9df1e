"""Moments of nonlinear functions of Gaussian fields, by the closed forms of `activations`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from infnet.activations import Activation, joint_kernel
from infnet.activations.joint import Report
from infnet.activations.protocol import Means
from infnet.activations.series import SeriesActivation
from infnet.errors import UnsupportedError
from infnet.errors.functions import NON_GAUSSIAN_ARGUMENT, TWO_NONLINEARITIES, UNKNOWN_PAIR, UNLIKE_ARGUMENT
from infnet.errors.parameters import NTK_OF_REUSED_SCALE
from infnet.layout import Layout, filled, spread_left, spread_right
from infnet.nodes import (
    Aggregation,
    Elementwise,
    IndexLinear,
    KnownNode,
    Node,
    OneNode,
    Scaled,
    Sum,
)
from infnet.plan import Ask, AskMean, Moments, Request, Step, ask, variance
from infnet.primitives.stored import stored
from infnet.rules.trained_scales import Direction, ScaleShares, derivative
from infnet.rules.words import in_words, not_gaussian_in_words

Spread = Callable[[Layout, jax.Array], jax.Array]


def nonlinear_step(request: Ask, u: Elementwise, v: Elementwise) -> Step:
    """E[phi(g) psi(h)] and E[phi'(g) psi'(h)] T_gh, for jointly Gaussian g and h."""
    activation, other = _checked(u), _checked(v)
    if joint_kernel(activation, other) is None:
        raise TWO_NONLINEARITIES.at(v.where, one=activation.name, two=other.name)
    left, right = _Argument(u.operand, request.side[0]), _Argument(v.operand, request.side[1])
    shares = ScaleShares(request, u, v)
    needs = (
        ask(u.operand, v.operand, request.shift, request.side, request.layout, request.ntk),
        *left.needs,
        *right.needs,
        *shares.needs,
    )
    with_itself = u is v and request.shift == 0 and request.side[0] == request.side[1] and request.layout.is_diagonal

    def read(context: Any, results: Sequence[Any]) -> tuple[tuple[Any, Any, Any], jax.Array | None, Means]:
        """The second moment and the two variances, the tangent kernel and the means, on the axes of a block."""
        s, t = results[0] or Moments(None)
        q1, mean1 = left.read(context, results[1:3], spread_left, request.layout)
        q2, mean2 = right.read(context, results[3:5], spread_right, request.layout)
        means = None
        if mean1 is not None or mean2 is not None or shares.has_means:
            means = (_or_zero(mean1, q1), _or_zero(mean2, q2))
        s = jnp.zeros(request.layout.shape, q1.dtype) if s is None else s
        return (s, q1, q2), t, means

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        points, t, means = read(context, results)
        if with_itself:
            moments: _Kernels = _Squares(context.activation(u), points[1], means)
        else:
            moments = _Kernel((context.activation(u), context.activation(v)), context.report, *points, means)
        k, *kdots = moments.values(t is not None)
        total = None if t is None else kdots[0] * t
        for direction in shares.directions(context, results[5:], means):
            share = direction.weight * moments.slope_along(direction)
            total = share if total is None else total + share
        layout = request.layout
        return Moments(stored(filled(layout, k)), None if total is None else stored(filled(layout, total)))

    def error(context: Any, results: Sequence[Any]) -> Moments:
        points, t, means = read(context, results)
        found = _errors((context.activation(u), context.activation(v)), points, t, means)
        return Moments(*(None if m is None else filled(request.layout, m) for m in found))

    inexact = isinstance(activation, SeriesActivation) and not with_itself
    return Step(request, activation.name, u.where, needs, evaluate, activation.exact, error=error if inexact else None)


def _errors(
    pair: tuple[Activation, Activation],
    points: tuple[jax.Array, jax.Array, jax.Array],
    t: jax.Array | None,
    means: Means,
) -> Moments:
    """Bounds on the errors of K and K' T: relative ones times the roots of E phi^2 E psi^2, or of phi' and psi'."""
    bounds: list[jax.Array] = []
    _Kernel(pair, bounds.append, *points, means).values(t is not None)
    one = pair[0].squares(points[1], means and means[0])
    two = pair[1].squares(points[2], means and means[1])
    largest = [jnp.sqrt(p * q) for p, q in zip(one, two, strict=True)]
    return Moments(bounds[0] * largest[0], None if t is None else bounds[-1] * largest[1] * jnp.abs(t))


class _Kernels(Protocol):
    """E phi(u) psi(v) and E phi'(u) psi'(v) of one pair of arguments."""

    def values(self, derivative: bool) -> tuple[jax.Array, ...]:
        """The first, and with `derivative` the second."""

    def slope_along(self, direction: Direction) -> jax.Array:
        """The derivative of the second along a direction."""


@dataclass(frozen=True)
class _Squares:
    """Of an argument with itself."""

    activation: Activation
    q: jax.Array
    means: Means

    def values(self, derivative: bool) -> tuple[jax.Array, ...]:
        return self.activation.squares(self.q, None if self.means is None else self.means[0])

    def slope_along(self, direction: Direction) -> jax.Array:
        points, along = [self.q], [direction.q11]
        if self.means is not None:
            points, along = [*points, self.means[0]], [*along, direction.mean1]
        return derivative(lambda *args: self.activation.squares(*args)[1], points, along)


class _Kernel:
    """Of two arguments, whose second moment is s."""

    def __init__(
        self,
        pair: tuple[Activation, Activation],
        report: Report,
        s: jax.Array,
        q1: jax.Array,
        q2: jax.Array,
        means: Means,
    ):
        self._pair, self._report, self._means = pair, report, means
        self._points = (s if means is None else s - means[0] * means[1], q1, q2)

    def values(self, derivative: bool) -> tuple[jax.Array, ...]:
        one, two = self._pair
        kernel = joint_kernel(one, two, self._report)
        assert kernel is not None
        return kernel(*self._points, derivative, self._means)

    def slope_along(self, direction: Direction) -> jax.Array:
        # Of a series, the derivative of its terms: the bound on the error of K' itself is what is reported.
        one, two = self._pair
        kernel = joint_kernel(one, two)
        assert kernel is not None

        def slope(q12: jax.Array, q11: jax.Array, q22: jax.Array, *means: jax.Array) -> jax.Array:
            return kernel(q12, q11, q22, True, (means[0], means[1]) if means else None)[1]

        points = (*self._points, *(self._means or ()))
        return derivative(slope, points, direction[1 : 1 + len(points)])


def _or_zero(mean: jax.Array | None, q: jax.Array) -> jax.Array:
    return jnp.zeros_like(q) if mean is None else mean


@dataclass(frozen=True)
class _Argument:
    """The argument of a nonlinearity on one example: its variance and its mean, at every position."""

    node: Node
    side: int

    @property
    def needs(self) -> tuple[Request | None, Request | None]:
        """The requests whose results `read` takes."""
        return variance(self.node, self.side), None if self.node.zero_mean else AskMean(self.node, self.side)

    def read(
        self, context: Any, results: Sequence[Any], spread: Spread, layout: Layout
    ) -> tuple[jax.Array, jax.Array | None]:
        """The variance, and the mean unless it is zero, on the axes of a block."""
        q, mean = self.values(context, results)
        return spread(layout, q), None if mean is None else spread(layout, mean)

    def values(self, context: Any, results: Sequence[Any]) -> tuple[jax.Array, jax.Array | None]:
        """The same, on the axes of the positions."""
        moments, mean = results
        nothing = moments is None or moments.s is None
        square = jnp.zeros(self.node.sizes, context.dtype) if nothing else moments.s.reshape(self.node.sizes)
        return (square, None) if mean is None else (square - mean * mean, mean)


def _checked(node: Elementwise) -> Activation:
    """The activation of an elementwise node, if its argument allows a closed form."""
    operand = node.operand
    if not operand.gaussian:
        source = _not_gaussian(operand)
        what = not_gaussian_in_words(source)
        raise NON_GAUSSIAN_ARGUMENT.at(node.where, function=in_words(node), source=what, place=source.where)
    if isinstance(node.activation, UnsupportedError):
        raise node.activation
    if not operand.uniform:
        raise UNLIKE_ARGUMENT.at(node.where, function=in_words(node))
    return node.activation


def _not_gaussian(node: Node) -> Node:
    """The node that makes an argument not Gaussian."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Sum):
            waiting.extend(t.node for t in node.terms if not t.node.gaussian)
        elif isinstance(node, IndexLinear | Aggregation) or (isinstance(node, Scaled) and not node.operand.gaussian):
            waiting.append(node.operand)
        else:
            return node
    raise AssertionError("a linear map of Gaussian fields is Gaussian")


def mixed_step(request: Ask) -> Step:
    """A nonlinear function with a Gaussian field that it depends on: Stein, E[phi(g) h] = E[phi'(g)] E[g h]."""
    u, v = request.u, request.v
    function, other = (u, v) if isinstance(u, Elementwise) else (v, u)
    if not isinstance(function, Elementwise) or isinstance(other, OneNode | KnownNode):
        raise UNKNOWN_PAIR.at(v.where, one=in_words(u), two=in_words(v))
    activation = _checked(function)
    if request.ntk and function.scales & other.scales:
        raise NTK_OF_REUSED_SCALE.at(function.where)
    left = function is u
    pair = (function.operand, other) if left else (other, function.operand)
    argument = _Argument(function.operand, request.side[0 if left else 1])
    own_mean = None if other.zero_mean else AskMean(other, request.side[1 if left else 0])
    needs = (
        ask(*pair, request.shift, request.side, request.layout, request.ntk),
        *argument.needs,
        own_mean,
    )

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        joint, *own, other_mean = results
        s, t = joint or Moments(None)
        q, mean = argument.values(context, own)
        spread, spread_other = (spread_left, spread_right) if left else (spread_right, spread_left)
        value_slope, slope = (spread(request.layout, m) for m in activation.mean_slopes(q, mean))
        if other_mean is not None:
            # E phi(g) h = E phi'(g) Cov(g, h) + E phi(g) E h
            other_mean = spread_other(request.layout, other_mean)
            s = jnp.zeros(request.layout.shape, q.dtype) if s is None else s
            covariance = s if mean is None else s - spread(request.layout, mean) * other_mean
            s = value_slope * covariance + spread(request.layout, activation.mean(q, mean)) * other_mean
            s = filled(request.layout, s)
        elif s is not None:
            s = value_slope * s
        return Moments(s, None if t is None else slope * t)

    return Step(request, f"{activation.name} with its argument", function.where, needs, evaluate)


def mean_of_elementwise(request: AskMean, node: Elementwise) -> Step:
    """E phi(g) at every position."""
    activation = _checked(node)
    argument = _Argument(node.operand, request.side)

    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        return activation.mean(*argument.values(context, results))

    return Step(request, f"mean of {activation.name}", node.where, argument.needs, evaluate)
