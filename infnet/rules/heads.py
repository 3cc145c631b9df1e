"""Products of two features contracted over positions, or over the channels of a head: heads count as channels.

Attention of scores that are divided by sqrt(d), and go through no softmax, is

    a_h[t, s] = d^(-1/2) sum_c q_hc[t] k_hc[s],        y_hc[t] = sum_s f(a_h[t, s]) v_hc[s].

If queries and keys are independent and have mean zero, then as d grows the scores become Gaussian fields over pairs of
positions, independent of each other and of the values for all heads h (the central limit theorem; Hron et al. 2020,
arXiv:2006.10540, section 3), with the moments of one product:

    S_aa[(t, s), (t', s')] = S_qq[t, t'] S_kk[s, s'],        T_aa = T_qq S_kk + S_qq T_kk.

The sum over s is a product (`products`) and a linear map. All channels of a head share its scores, so y is a random
mixture: only contracted over infinitely many heads does it become Gaussian again. The blocks of the scores hold T^4
numbers for T positions; those of f(a) = a, times numbers, are never formed.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from infnet.errors.features import DEPENDENT_HEAD_SUMS, DEPENDENT_HEADS, SUM_OVER_CHANNELS
from infnet.errors.functions import PRODUCT_OF_UNLIKE_CHANNELS
from infnet.index_maps import Total
from infnet.nodes import GroupSum, Node, Product, Repeated, Sum, Term, meet, shifted
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


class _Placed(NamedTuple):
    """`factor` times every `stride`-th channel of a segment, on these axes of all positions of a product."""

    factor: float
    segment: Segment
    axes: tuple[int, ...]
    stride: int = 1


def read_by_heads(reader: Reader, equation: Equation, product: Contracted) -> None:
    """Set the result of an equation to a product by heads, a feature.

    Raises:
        UnsupportedError: of features that are concatenated, or whose channels are not alike.
    """
    (out,), places = equation.outputs, product.places()
    sizes: dict[int, int] = {}
    factors = []
    for feature, own in zip(product.factors, places, strict=True):
        if len(feature.segments) > 1 or not feature.segments[0].node.uniform:
            raise PRODUCT_OF_UNLIKE_CHANNELS.of(equation)
        sizes.update(zip(own, feature.sizes, strict=True))
        factors.append(_Placed(1.0, feature.segments[0], own))
    channels = max((f.channels for f in product.factors), key=math.prod)
    summed = {x.number for x, _ in product.summed if not x.is_channel}
    multiply = _Multiply(reader, equation, sizes, math.prod(channels))
    node = multiply.reassociated(factors, summed) or multiply(factors, summed)
    if product.count > 1:
        channels = channels[: product.heads]
        node = _group_sum(reader, equation, node, product.count)
    kept = [k for k in sorted(sizes) if k not in summed]
    dims = tuple(
        tuple(a if a.is_channel else Atom(False, kept.index(places[number][a.number])) for a in dim)
        for number, dim in product.dims
    )
    reader.values[out] = Feature(dims, channels, (Segment(node, 0, math.prod(channels)),), out)


@dataclass(frozen=True)
class _Multiply:
    """Makes the nodes of products whose positions have these `sizes`, and that have `width` channels."""

    reader: Reader
    equation: Equation
    sizes: dict[int, int]
    width: int

    def __call__(self, factors: Sequence[_Placed], summed: Collection[int]) -> Node:
        """The product of two factors, summed over positions."""
        axes = sorted({k for factor in factors for k in factor.axes})
        one, two = (self._spread(factor, axes) for factor in factors)
        node: Node = product_of(self.reader, self.equation, one, two)
        total = tuple(axes.index(k) for k in sorted(summed) if k in axes)
        if not total:
            return node
        mapping = Total(node.sizes, total)
        rule = "sum over positions"
        return index_linear(self.reader, node, mapping, mapping.shape, self.equation.where, rule)

    def reassociated(self, factors: Sequence[_Placed], summed: set[int]) -> Node | None:
        """Linear attention, y = q (k^T v): None if the factors are not scores and values.

        The second moments of the sum over the channels of a head are those of one of them, times their number; so
        blocks of T^2 numbers are enough.
        """
        for scores, values in (factors, factors[::-1]):
            for query, key in _parts_of_scores(scores):
                inner = {*key.axes, *values.axes}
                apart = summed and summed <= inner and summed.isdisjoint(query.axes)
                if apart and {*inner, *query.axes} == set(self.sizes) and self._fit(query) and self._fit(key):
                    context = self([key, values], summed)
                    left = tuple(k for k in sorted(inner) if k not in summed)
                    return self([query, _Placed(1.0, Segment(context, 0, self.width), left)], ())
        return None

    def _fit(self, placed: _Placed) -> bool:
        """Whether a factor has all positions of its axes, rather than one for all."""
        return placed.segment.node.sizes == tuple(self.sizes[k] for k in placed.axes)

    def _spread(self, placed: _Placed, axes: list[int]) -> Segment:
        reader, where = self.reader, self.equation.where
        node, start, width = placed.segment
        stride = placed.stride
        own = tuple(axes.index(k) for k in placed.axes)
        sizes = tuple(self.sizes[k] for k in axes)
        node = reader.sum([Term(placed.factor, node, 0, own)], sizes, where)
        times = self.width * stride // width
        if (times, stride) == (1, 1):
            return Segment(node, start, width)
        repeated = reader.new(
            Repeated,
            sizes=node.sizes,
            where=where,
            leaves=_any_channel(node),
            gaussian=node.gaussian,
            zero_mean=node.zero_mean,
            scales=node.scales,
            operand=node,
            start=start,
            stride=stride,
            times=times,
            groups=width // stride,
        )
        return Segment(repeated, 0, self.width)


def _parts_of_scores(scores: _Placed) -> Sequence[tuple[_Placed, _Placed]]:
    """Queries and keys, in both orders, one channel of each head of them; nothing if these are not scores alone."""
    factor, (node, start, heads) = scores.factor, scores.segment
    while (term := _only_term(node)) and term.axes == tuple(range(len(node.sizes))):
        factor, node, start = factor * _number(term), term.node, start + term.start
    if not isinstance(node, GroupSum) or not isinstance(node.operand, Product):
        return ()
    parts = []
    for one, first in zip(node.operand.factors, node.operand.starts, strict=True):
        coefficient, axes = 1.0, tuple(range(len(one.sizes)))
        if term := _only_term(one):
            coefficient, one, first, axes = _number(term), term.node, first + term.start, term.axes
        segment = Segment(one, first + start * node.count, heads * node.count)
        parts.append(_Placed(coefficient, segment, tuple(scores.axes[k] for k in axes), node.count))
    first_part, second_part = parts[0]._replace(factor=parts[0].factor * factor * math.sqrt(node.count)), parts[1]
    return (first_part, second_part), (second_part, first_part)


def _number(term: Term) -> float:
    assert isinstance(term.coefficient, float)
    return term.coefficient


def _only_term(node: Node) -> Term | None:
    """The summand of a sum that is a number times one field."""
    if isinstance(node, Sum) and len(node.terms) == 1 and isinstance(node.terms[0].coefficient, float):
        return node.terms[0]
    return None


def _group_sum(reader: Reader, equation: Equation, node: Node, count: int) -> Node:
    if not node.zero_mean:
        raise SUM_OVER_CHANNELS.of(equation)
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
        raise DEPENDENT_HEAD_SUMS.at(_later(u, v).where)
    need = ask(u.operand, v.operand, first, request.side, request.layout, request.ntk)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        return Moments(*(None if m is None else u.count * m for m in results[0] or Moments(None)))

    return Step(request, "sum over a head", u.where, (need,), evaluate)


def repeated_step(request: Ask, u: Repeated, v: Repeated) -> Step:
    """The moment of the channels that are repeated."""
    if (u.stride, u.times) != (v.stride, v.times) or request.shift % u.times:
        raise DEPENDENT_HEADS.at(_later(u, v).where)
    shift = v.start - u.start + u.stride * (request.shift // u.times)
    need = ask(u.operand, v.operand, shift, request.side, request.layout, request.ntk)
    return Step(request, "spread over a head", u.where, (need,), lambda context, results: results[0] or Moments(None))


def mean_of_repeated(request: AskMean, node: Repeated) -> Step:
    """The mean of what is repeated."""
    need = AskMean(node.operand, request.side)
    return Step(request, "mean", node.where, (need,), lambda context, results: results[0])


def _later(u: Node, v: Node) -> Node:
    return max(u, v, key=lambda node: node.index)
