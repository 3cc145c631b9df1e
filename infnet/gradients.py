"""The derivatives of a linear node in the trained scales that multiply it, as nodes.

A channel u_c = sum_k L_k(gamma_c h_kc) of linear maps of features depends on element c of the scale alone, by
du_c / dgamma_c = sum_k L_k h_kc. That is random, other than the tangent kernels of weights, and correlated with u_c.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from infnet.errors import Where
from infnet.nodes import Aggregation, IndexLinear, Node, Scaled, ScaleGradient, Sum, Term

N = TypeVar("N", bound=Node)


class Maker(Protocol):
    """What makes nodes: a `Reader`."""

    def sum(self, terms: Sequence[Term], sizes: tuple[int, ...], where: Where) -> Node:
        """The node of a linear combination."""

    def with_operand(self, node: N, operand: Node) -> N:
        """The node of the same linear map of another operand."""


def scale_gradients(reader: Maker, node: Node) -> tuple[ScaleGradient, ...] | None:
    """The gradient of `node` in each trained scale that reaches it; None if one does so other than linearly."""
    found: dict[int, list[ScaleGradient]] = {}
    for part in _linear_parts(node):
        if not isinstance(part, Sum | IndexLinear | Aggregation | Scaled):
            return None
        found[part.index] = _gradients(reader, part, found)
    return tuple(found.get(node.index, ()))


def _linear_parts(node: Node) -> list[Node]:
    """The nodes that `node` is a linear function of and that contain scales, itself last."""
    parts, waiting = {}, [node]
    while waiting:
        part = waiting.pop()
        if part.scales and part.index not in parts:
            parts[part.index] = part
            waiting.extend(_operands(part))
    return [parts[index] for index in sorted(parts)]


def _operands(node: Node) -> list[Node]:
    if isinstance(node, Sum):
        return [term.node for term in node.terms]
    return [node.operand] if isinstance(node, IndexLinear | Aggregation | Scaled) else []


def _gradients(reader: Maker, node: Node, found: dict[int, list[ScaleGradient]]) -> list[ScaleGradient]:
    if isinstance(node, Scaled):
        own = _shifted(reader, node.operand, node.start)
        below = [
            ScaleGradient(g.scale, g.channel + node.start, reader.with_operand(node, g.node))
            for g in found.get(node.operand.index, ())
        ]
        return [ScaleGradient(node, 0, own), *below]
    if isinstance(node, IndexLinear | Aggregation):
        return [
            ScaleGradient(g.scale, g.channel, reader.with_operand(node, g.node))
            for g in found.get(node.operand.index, ())
        ]
    assert isinstance(node, Sum)
    return _of_sum(reader, node, found)


def _of_sum(reader: Maker, node: Sum, found: dict[int, list[ScaleGradient]]) -> list[ScaleGradient]:
    grouped: dict[tuple[object, int], tuple[Scaled, list[Term]]] = {}
    for term in node.terms:
        for g in found.get(term.node.index, ()):
            channel = g.channel + term.start
            _, terms = grouped.setdefault((g.scale.param, channel), (g.scale, []))
            terms.append(Term(term.coefficient, g.node, term.start, term.axes))
    return [
        ScaleGradient(scale, channel, reader.sum(terms, node.sizes, node.where))
        for (_, channel), (scale, terms) in grouped.items()
    ]


def _shifted(reader: Maker, node: Node, start: int) -> Node:
    return reader.sum([Term(1.0, node, start, tuple(range(len(node.sizes))))], node.sizes, node.where)
