"""Products of two features contracted over positions, or over the channels of a head: heads count as channels.

Attention of scores that are divided by sqrt(d), and go through no softmax, is

    a_h[t, s] = d^(-1/2) sum_c q_hc[t] k_hc[s],        y_hc[t] = sum_s f(a_h[t, s]) v_hc[s].

If queries and keys are independent and have mean zero, then as d grows the scores become Gaussian fields over pairs of
positions, independent of each other and of the values for all heads h (the central limit theorem; Hron et al. 2020,
arXiv:2006.10540, section 3), with the moments of one product:

    S_aa[(t, s), (t', s')] = S_qq[t, t'] S_kk[s, s'],        T_aa = T_qq S_kk + S_qq T_kk.

The sum over s is a product (`products`) and a linear map. All channels of a head share its scores, so y is a random
mixture: only contracted over infinitely many heads does it become Gaussian again. The blocks of the scores hold T^4
numbers for T positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infnet.errors import MONTE_CARLO, UnsupportedError
from infnet.index_maps import Total
from infnet.nodes import GroupSum, Node, Repeated, Term, meet, shifted
from infnet.plan import Ask, AskMean, Moments, Step, ask
from infnet.program import Atom, Feature, Segment
from infnet.reader import Reader
from infnet.rules.channel_sums import check_independent
from infnet.rules.maps import index_linear
from infnet.rules.products import product_of
from infnet.trace import Equation

Pairs = list[tuple[Atom, Atom]]


@dataclass(frozen=True)
class Contracted:
    """A product of two features: their atoms are summed together, run along with each other, or are free.

    Attributes:
        factors: the features, in the order of their array axes.
        summed, along: atoms of the first with those of the second.
        dims: of the result, each with the number of the factor that it belongs to.
    """

    factors: tuple[Feature, Feature]
    summed: Pairs
    along: Pairs
    dims: list[tuple[int, tuple[Atom, ...]]]

    @property
    def count(self) -> int:
        """How many channels are summed."""
        return math.prod(self.factors[0].size(x) for x, _ in self.summed if x.is_channel)

    @property
    def channel_by_channel(self) -> bool:
        """Whether every channel of either factor meets its own in the other."""
        channels = sorted(pair for pair in (*self.summed, *self.along) if pair[0].is_channel)
        return all(channels == [(Atom(True, k),) * 2 for k in range(len(f.channels))] for f in self.factors)

    @property
    def heads(self) -> int:
        """How many leading channel atoms run along with each other."""
        return sum(x.is_channel for x, _ in self.along)

    @property
    def by_heads(self) -> bool:
        """Whether heads run along, and after them come channels of one factor, or channels that are summed."""
        leading = [(Atom(True, k),) * 2 for k in range(self.heads)]
        one, two = (len(f.channels) - self.heads for f in self.factors)
        summed = sum(x.is_channel for x, _ in self.summed)
        alike = self.channel_by_channel if summed else not (one and two)
        return self.heads > 0 and alike and sorted(p for p in self.along if p[0].is_channel) == leading

    def places(self) -> tuple[tuple[int, ...], ...]:
        """The axes of all positions at which those of each factor are; the first factor's come first."""
        count = len(self.factors[0].sizes)
        of_first = {y.number: x.number for x, y in (*self.summed, *self.along) if not x.is_channel}
        new = [k for k in range(len(self.factors[1].sizes)) if k not in of_first]
        second = (of_first[k] if k in of_first else count + new.index(k) for k in range(len(self.factors[1].sizes)))
        return tuple(range(count)), tuple(second)


def read_by_heads(reader: Reader, equation: Equation, product: Contracted) -> None:
    """Set the result of an equation to a product by heads, a feature.

    Raises:
        UnsupportedError: of features that are concatenated, or whose channels are not alike.
    """
    (out,), places = equation.outputs, product.places()
    sizes = [1] * (1 + max(k for own in places for k in own)) if any(places) else []
    for feature, own in zip(product.factors, places, strict=True):
        for place, size in zip(own, feature.sizes, strict=True):
            sizes[place] = size
    widths = [math.prod(f.channels) for f in product.factors]
    factors = []
    for feature, own, width in zip(product.factors, places, widths, strict=True):
        if len(feature.segments) > 1 or not feature.segments[0].node.uniform:
            reader.refuse(equation, "products of features whose channels are not alike", "infnet has no rule for this")
        (segment,) = feature.segments
        node = reader.sum([Term(1.0, segment.node, 0, own)], tuple(sizes), equation.where)
        factors.append(_repeated(reader, equation, Segment(node, segment.start, width), max(widths) // width))
    node = product_of(reader, equation, *factors)
    summed = tuple(sorted(x.number for x, _ in product.summed if not x.is_channel))
    total: Node = node
    if summed:
        mapping = Total(node.sizes, summed)
        total = index_linear(reader, node, mapping, mapping.shape, equation.where, "sum over positions")
    channels = max((f.channels for f in product.factors), key=math.prod)
    if product.count > 1:
        channels = channels[: product.heads]
        total = _group_sum(reader, equation, total, product.count)
    kept = [k for k in range(len(sizes)) if k not in summed]
    dims = tuple(
        tuple(a if a.is_channel else Atom(False, kept.index(places[number][a.number])) for a in dim)
        for number, dim in product.dims
    )
    reader.values[out] = Feature(dims, channels, (Segment(total, 0, math.prod(channels)),), out)


def _repeated(reader: Reader, equation: Equation, segment: Segment, times: int) -> Segment:
    if times == 1:
        return segment
    node = segment.node
    repeated = reader.new(
        Repeated,
        sizes=node.sizes,
        where=equation.where,
        leaves=_any_channel(node),
        gaussian=node.gaussian,
        zero_mean=node.zero_mean,
        scales=node.scales,
        operand=node,
        start=segment.start,
        times=times,
        groups=segment.width,
    )
    return Segment(repeated, 0, segment.width * times)


def _group_sum(reader: Reader, equation: Equation, node: Node, count: int) -> Node:
    if not node.zero_mean:
        reader.refuse_fluctuating(equation)
    check_independent(reader, equation, [node])
    return reader.new(
        GroupSum,
        sizes=node.sizes,
        where=equation.where,
        leaves=_any_channel(node),
        gaussian=True,
        zero_mean=True,
        scales=node.scales,
        operand=node,
        count=count,
    )


def _any_channel(node: Node) -> frozenset[Any]:
    return frozenset((key, None) for key, _ in node.leaves)


# Moments


def group_sum_step(request: Ask, u: GroupSum, v: GroupSum) -> Step:
    """Channels of mean zero that are independent of all others but their own: the sum of their moments."""
    first = request.shift * u.count
    others = (first + sign * k for k in range(1, u.count) for sign in (1, -1))
    if u.count != v.count or any(meet(u.operand.leaves, shifted(v.operand.leaves, k)) for k in others):
        _refuse(request, "sums over channels that depend on several channels of each other")
    need = ask(u.operand, v.operand, first, request.side, request.layout, request.ntk)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        return Moments(*(None if m is None else u.count * m for m in results[0] or Moments(None)))

    return Step(request, "sum over a head", u.where, (need,), evaluate)


def repeated_step(request: Ask, u: Repeated, v: Repeated) -> Step:
    """The moment of the channels that are repeated."""
    if u.times != v.times or request.shift % u.times:
        _refuse(request, "features of a head that are spread over other channels")
    shift = v.start - u.start + request.shift // u.times
    need = ask(u.operand, v.operand, shift, request.side, request.layout, request.ntk)
    return Step(request, "spread over a head", u.where, (need,), lambda context, results: results[0] or Moments(None))


def mean_of_repeated(request: AskMean, node: Repeated) -> Step:
    """The mean of what is repeated."""
    need = AskMean(node.operand, request.side)
    return Step(request, "mean", node.where, (need,), lambda context, results: results[0])


def _refuse(request: Ask, what: str) -> None:
    raise UnsupportedError(
        f"the joint moment of {what}",
        where=max(request.u, request.v, key=lambda node: node.index).where,
        why="infnet has a rule for channels that depend on their own in the other alone",
        remedy=f"use weights of their own for different heads; or {MONTE_CARLO}",
    )
