"""Moments of nonlinear functions of Gaussian fields, by the closed forms of `activations`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from infnet.activations import Activation, joint_kernel
from infnet.errors import MONTE_CARLO, NonGaussianError, UnsupportedError
from infnet.layout import filled, spread_left, spread_right
from infnet.plan import Ask, AskMean, Moments, Step, ask, variance
from infnet.program import Elementwise, IndexLinear, KnownNode, Node, OneNode, Sum


def nonlinear_step(request: Ask, u: Elementwise, v: Elementwise) -> Step:
    """E[phi(g) psi(h)] and E[phi'(g) psi'(h)] T_gh, for jointly Gaussian g and h."""
    activation, other = _checked(u), _checked(v)
    kernel = joint_kernel(activation, other)
    if kernel is None:
        raise UnsupportedError(
            f"the joint moment of two different nonlinearities, {activation.name} and {other.name}",
            where=v.where,
            why="they act on dependent fields, and infnet knows no closed form for these two together",
            remedy=f"use the same activation on both branches; or {MONTE_CARLO}",
        )
    needs = (
        ask(u.operand, v.operand, request.shift, request.side, request.layout, request.ntk),
        variance(u.operand, request.side[0]),
        variance(v.operand, request.side[1]),
    )

    with_itself = u is v and request.shift == 0 and request.side[0] == request.side[1] and request.layout.is_diagonal

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        joint, *variances = results
        s, t = joint or Moments(None)
        if with_itself and s is not None:
            k, kdot = activation.squares(s)
            return Moments(k, None if t is None else kdot * t)
        q1, q2 = (_at_positions(context, q, n.operand) for q, n in zip(variances, (u, v), strict=True))
        q1, q2 = spread_left(request.layout, q1), spread_right(request.layout, q2)
        s = jnp.zeros(request.layout.shape, q1.dtype) if s is None else s
        k, *kdots = kernel(s, q1, q2, derivative=t is not None)
        return Moments(filled(request.layout, k), None if t is None else kdots[0] * t)

    return Step(request, activation.name, u.where, needs, evaluate)


def _at_positions(context: Any, moments: Moments | None, node: Node) -> jax.Array:
    if moments is None or moments.s is None:
        return jnp.zeros(node.sizes, context.dtype)
    return moments.s.reshape(node.sizes)


def _checked(node: Elementwise) -> Activation:
    """The activation of an elementwise node, if its argument allows a closed form."""
    operand = node.operand
    if not operand.gaussian:
        source = _not_gaussian(operand)
        raise NonGaussianError(
            f"a nonlinearity ({_name(node)}) of something that is not Gaussian at infinite width",
            where=node.where,
            why=f"its argument contains {_name(source)} ({source.where}), so its joint law has no closed form",
            remedy=f"put a Dense or Conv layer between the two; or {MONTE_CARLO}",
        )
    if isinstance(node.activation, UnsupportedError):
        raise node.activation
    if not operand.uniform:
        raise UnsupportedError(
            f"a nonlinearity ({_name(node)}) of a feature whose channels are not alike",
            where=node.where,
            why="inputs, or constants that vary along the channels, were added or multiplied, so each channel has a "
            "law of its own",
            remedy=f"put a Dense or Conv layer between the two; or {MONTE_CARLO}",
        )
    if not operand.zero_mean:
        raise UnsupportedError(
            f"a nonlinearity ({_name(node)}) of a feature whose mean is not zero",
            where=node.where,
            why="infnet knows the kernels of this nonlinearity for Gaussian arguments of mean zero only, so far",
            remedy=f"initialise biases with mean zero; or {MONTE_CARLO}",
        )
    return node.activation


def _name(node: Node) -> str:
    if not isinstance(node, Elementwise):
        return type(node).__name__
    return node.activation.what if isinstance(node.activation, UnsupportedError) else node.activation.name


def _not_gaussian(node: Node) -> Node:
    """The node that makes an argument not Gaussian."""
    waiting = [node]
    while waiting:
        node = waiting.pop()
        if isinstance(node, Sum):
            waiting.extend(t.node for t in node.terms if not t.node.gaussian)
        elif isinstance(node, IndexLinear):
            waiting.append(node.operand)
        else:
            return node
    raise AssertionError("a linear map of Gaussian fields is Gaussian")


def mixed_step(request: Ask) -> Step:
    """A nonlinear function with a Gaussian field that it depends on: Stein, E[phi(g) h] = E[phi'(g)] E[g h]."""
    u, v = request.u, request.v
    function, other = (u, v) if isinstance(u, Elementwise) else (v, u)
    if not isinstance(function, Elementwise) or isinstance(other, OneNode | KnownNode):
        raise UnsupportedError(
            f"the joint moment of {_name(u)} and {_name(v)}",
            where=v.where,
            why="infnet has no rule for this pair yet",
            remedy=MONTE_CARLO,
        )
    activation = _checked(function)
    left = function is u
    pair = (function.operand, other) if left else (other, function.operand)
    needs = (
        ask(*pair, request.shift, request.side, request.layout, request.ntk),
        variance(function.operand, request.side[0 if left else 1]),
    )

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        s, t = results[0] or Moments(None)
        q = _at_positions(context, results[1], function.operand)
        spread = spread_left if left else spread_right
        value_slope, slope = (spread(request.layout, m) for m in activation.mean_slopes(q))
        return Moments(None if s is None else value_slope * s, None if t is None else slope * t)

    return Step(request, f"{activation.name} with its argument", function.where, needs, evaluate)


def mean_of_elementwise(request: AskMean, node: Elementwise) -> Step:
    """E phi(g) at every position."""
    activation = _checked(node)

    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        return activation.mean(_at_positions(context, results[0], node.operand))

    return Step(request, f"mean of {activation.name}", node.where, (variance(node.operand, request.side),), evaluate)
