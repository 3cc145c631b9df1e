"""Products of two features, channel by channel: gated linear units, gating, bilinear layers; their maximum.

For u = a b and v = c d, where the pair (a, c) is independent of (b, d),

    S_uv = S_ac S_bd        T_uv = T_ac S_bd + S_ac T_bd

whatever the laws; and where a, b, c, d are jointly Gaussian with means m (Isserlis 1918)

    S_uv = S_ab S_cd + S_ac S_bd + S_ad S_bc - 2 m_a m_b m_c m_d
    T_uv = S_bd T_ac + S_bc T_ad + S_ad T_bc + S_ac T_bd

with S_ab on one example. With a single field v instead, (a, v) independent of b gives S = S_av m_b, T = T_av m_b, and
Gaussian fields S = S_ab m_v + S_av m_b + S_bv m_a - 2 m_a m_b m_v, T = m_b T_av + m_a T_bv.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infnet._jax import lax_primitives as lax_p
from infnet.activations import recognise
from infnet.errors import UnsupportedError, Where
from infnet.errors.functions import DEPENDENT_FACTORS, FUNCTION_OF_TWO_FEATURES, NO_CLOSED_FORM, UNLIKE_FACTORS
from infnet.errors.parameters import NTK_OF_SCALE_IN_PRODUCT
from infnet.layout import Layout, filled, spread_left, spread_right
from infnet.nodes import Elementwise, IndexLinear, Leaf, Node, Product, Sum, Term, meet, shifted
from infnet.plan import Ask, AskMean, Moments, Request, Step, ask
from infnet.program import Feature, Segment
from infnet.reader import Reader
from infnet.rules.sums import aligned, combine, common_template, cuts, index_sizes, segment_at, with_template
from infnet.trace import Equation


def read_product(reader: Reader, equation: Equation) -> None:
    """Two features multiplied element by element."""
    left, right = equation.inputs
    template = common_template(reader, equation, [left, right])
    sizes = index_sizes(template)
    placed = [aligned(reader, equation, var, template) for var in (left, right)]
    pieces = []
    for start, stop in cuts([segments for _, segments in placed]):
        factors = []
        for axes, segments in placed:
            segment, offset = segment_at(segments, start)
            node = reader.sum([Term(1.0, segment.node, 0, axes)], sizes, equation.where)
            factors.append(Segment(node, segment.start + offset, stop - start))
        pieces.append(Segment(product_of(reader, equation, *factors), 0, stop - start))
    reader.values[equation.outputs[0]] = with_template(template, pieces, equation.outputs[0])


def product_of(reader: Reader, equation: Equation, left: Segment, right: Segment) -> Product:
    """The node of a product of two ranges of channels, with equal positions."""
    a, b = Factor(left.node, left.start), Factor(right.node, right.start)
    apart = not meet(a.leaves, b.leaves)
    return reader.new(
        Product,
        sizes=left.node.sizes,
        where=equation.where,
        leaves=a.leaves | b.leaves,
        gaussian=False,
        zero_mean=apart and (a.node.zero_mean or b.node.zero_mean),
        uniform=a.node.uniform and b.node.uniform,
        scales=a.node.scales | b.node.scales,
        factors=(a.node, b.node),
        starts=(a.start, b.start),
    )


def read_maximum(reader: Reader, equation: Equation) -> None:
    """max(u, w) = (u + w)/2 + |u - w|/2, min with a minus sign; where they are equal, JAX takes half of each slope."""
    (left, right), where = equation.inputs, equation.where
    difference, size = (reader.variable_like(equation.outputs[0], equation) for _ in range(2))
    combine(reader, replace(equation, outputs=(difference,)), [(1.0, left), (-1.0, right)])
    feature = reader.values[difference]
    assert isinstance(feature, Feature)
    chain = jax.make_jaxpr(jnp.abs)(jax.ShapeDtypeStruct((2,), jnp.float32))
    absolute = recognise(chain, where)
    segments = reader.replace_nodes(feature, lambda node: reader.elementwise(node, absolute, chain, where), size)
    reader.values[size] = Feature(feature.dims, feature.channels, segments, size)
    sign = 0.5 if equation.primitive is lax_p.max_p else -0.5
    combine(reader, equation, [(0.5, left), (0.5, right), (sign, size)])


def read_quotient(reader: Reader, equation: Equation) -> None:
    """A feature over a sum of exponentials of features, as a softmax has it: the moments of both are sampled."""
    (left, right), where = equation.inputs, equation.where
    inverse = reader.variable_like(right, equation)
    feature = reader.settled(right)
    if not reader.sampling or not all(_is_sum_of_exponentials(s.node) for s in feature.segments):
        raise FUNCTION_OF_TWO_FEATURES.of(equation)
    chain = jax.make_jaxpr(jnp.reciprocal)(jax.ShapeDtypeStruct((2,), jnp.float32))
    unknown = NO_CLOSED_FORM.at(where, name="1 / x", why="it is infinite at zero")
    assert isinstance(unknown, UnsupportedError)
    segments = reader.replace_nodes(feature, lambda node: reader.elementwise(node, unknown, chain, where), inverse)
    reader.values[inverse] = Feature(feature.dims, feature.channels, segments, inverse)
    read_product(reader, replace(equation, inputs=(left, inverse)))


def _is_sum_of_exponentials(node: Node) -> bool:
    """Whether a node is positive, and its reciprocal has moments."""
    while isinstance(node, IndexLinear | Sum):
        if isinstance(node, IndexLinear):
            node = node.operand
        elif len(node.terms) == 1 and node.terms[0].coefficient == 1.0:
            node = node.terms[0].node
        else:
            return False
    return isinstance(node, Elementwise) and node.chain.jaxpr.eqns[-1].primitive is lax_p.exp_p


# Moments


class Factor(NamedTuple):
    """Channel c + start of a node."""

    node: Node
    start: int

    @property
    def leaves(self) -> frozenset[Leaf]:
        """The parameters that make it random, at the channels where they are read."""
        return shifted(self.node.leaves, self.start)


MaybeFactor = Factor | None  # None stands for the number 1


def product_step(request: Ask) -> Step:
    """A product with a product, or with one field."""
    a, b = _factors(request.u, 0)
    c, d = _factors(request.v, request.shift)
    present = [f for f in (a, b, c, d) if f is not None]
    if not all(f.node.uniform for f in present):
        raise UNLIKE_FACTORS.at(_where(request))
    if request.ntk and request.u.scales & request.v.scales:
        raise NTK_OF_SCALE_IN_PRODUCT.at(request.u.where)
    for first, second in (((a, c), (b, d)), ((a, d), (b, c))):
        if not meet(_leaves(first), _leaves(second)):
            return _independent_step(request, first, second)
    if all(f.node.gaussian for f in present):
        return _gaussian_step(request, (a, b), (c, d))
    raise DEPENDENT_FACTORS.at(_where(request))


def _factors(node: Node, shift: int) -> tuple[Factor, MaybeFactor]:
    if not isinstance(node, Product):
        return Factor(node, shift), None
    first, second = (Factor(n, start + shift) for n, start in zip(node.factors, node.starts, strict=True))
    return first, second


def _leaves(factors: Sequence[MaybeFactor]) -> frozenset[Leaf]:
    return frozenset().union(*(f.leaves for f in factors if f is not None))


class _Quantity(NamedTuple):
    """A moment of factors: what it needs, and its value and tangent kernel (None for zero) on the axes of a block."""

    need: Request | None
    read: Callable[[Any, Any], Moments]


def _joint(request: Ask, left: MaybeFactor, right: MaybeFactor) -> _Quantity:
    """E[x y] of a factor on the left and one on the right."""
    if left is None or right is None:
        return _mean(request, left, 0) if right is None else _mean(request, right, 1)
    need = ask(left.node, right.node, right.start - left.start, request.side, request.layout, request.ntk)
    return _Quantity(need, lambda context, result: result or Moments(None))


def _own(request: Ask, factors: tuple[MaybeFactor, MaybeFactor], number: int) -> _Quantity:
    """E[x y] of two factors on the left (number 0), or on the right (1)."""
    one, two = factors
    if one is None or two is None:
        return _mean(request, one or two, number)
    side, sizes = request.side[number], one.node.sizes
    need = ask(one.node, two.node, two.start - one.start, (side, side), Layout.diagonal(sizes))

    def read(context: Any, result: Moments | None) -> Moments:
        if result is None or result.s is None:
            return Moments(None)
        return Moments((spread_left, spread_right)[number](request.layout, result.s.reshape(sizes)))

    return _Quantity(need, read)


def _mean(request: Ask, factor: MaybeFactor, number: int) -> _Quantity:
    """E[x] of a factor on the left (number 0), or on the right (1)."""
    if factor is None:
        return _Quantity(None, lambda context, result: Moments(jnp.ones((), context.dtype)))
    if factor.node.zero_mean:
        return _Quantity(None, lambda context, result: Moments(None))
    spread = (spread_left, spread_right)[number]
    need = AskMean(factor.node, request.side[number])
    return _Quantity(need, lambda context, result: Moments(spread(request.layout, result)))


def _times(one: jax.Array | None, two: jax.Array | None) -> jax.Array | None:
    return None if one is None or two is None else one * two


def _plus(*terms: jax.Array | None) -> jax.Array | None:
    present = [t for t in terms if t is not None]
    return sum(present[1:], present[0]) if present else None


def _step(
    request: Ask, quantities: Sequence[_Quantity], combine_moments: Callable[[Sequence[Moments]], Moments]
) -> Step:
    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        values = [q.read(context, result) for q, result in zip(quantities, results, strict=True)]
        return Moments(*(None if m is None else filled(request.layout, m) for m in combine_moments(values)))

    where = request.u.where if isinstance(request.u, Product) else request.v.where
    return Step(request, "product", where, tuple(q.need for q in quantities), evaluate)


def _independent_step(
    request: Ask, first: tuple[MaybeFactor, MaybeFactor], second: tuple[MaybeFactor, MaybeFactor]
) -> Step:
    def product(values: Sequence[Moments]) -> Moments:
        one, two = values
        return Moments(_times(one.s, two.s), _plus(_times(one.t, two.s), _times(one.s, two.t)))

    return _step(request, [_joint(request, *first), _joint(request, *second)], product)


def _gaussian_step(request: Ask, left: tuple[MaybeFactor, MaybeFactor], right: tuple[MaybeFactor, MaybeFactor]) -> Step:
    (a, b), (c, d) = left, right
    joint = [_joint(request, *pair) for pair in ((a, c), (b, d), (a, d), (b, c))]
    means = [_mean(request, f, number) for number, pair in enumerate((left, right)) for f in pair]

    def isserlis(values: Sequence[Moments]) -> Moments:
        (ac, bd, ad, bc), (ab, cd), own_means = values[:4], values[4:6], values[6:]
        of_means = functools.reduce(_times, (m.s for m in own_means))
        extra = None if of_means is None else -2 * of_means
        s = _plus(_times(ab.s, cd.s), _times(ac.s, bd.s), _times(ad.s, bc.s), extra)
        t = _plus(_times(ac.t, bd.s), _times(ad.t, bc.s), _times(bc.t, ad.s), _times(bd.t, ac.s))
        return Moments(s, t)

    return _step(request, [*joint, _own(request, left, 0), _own(request, right, 1), *means], isserlis)


def mean_of_product(request: AskMean, node: Product) -> Step:
    """E[a b], at every position."""
    (a, b), (start, other) = node.factors, node.starts
    need = ask(a, b, other - start, (request.side, request.side), Layout.diagonal(node.sizes))

    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        (moments,) = results
        if moments is None or moments.s is None:
            return jnp.zeros(node.sizes, context.dtype)
        return moments.s.reshape(node.sizes)

    return Step(request, "mean of a product", node.where, (need,), evaluate)


def _where(request: Ask) -> Where:
    """The product that is asked for."""
    return request.u.where if isinstance(request.u, Product) else request.v.where
