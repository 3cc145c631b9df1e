"""Features multiplied by a trained parameter: the scale of a normalisation layer, layer scale, gates at initialisation.

For u_c = gamma_c h_c with gamma_c of mean mu and standard deviation s, and the same gamma in u' = gamma h',

    S_uu' = (mu^2 + s^2) S_hh'        T_uu' = (mu^2 + s^2) T_hh' + g^2 S_hh'

by the product rule. With s = 0 a Gaussian field stays Gaussian. Its derivative in gamma_c, which is h_c, is random and
correlated with u_c; so behind a nonlinearity

    T_phi(u)psi(u') = E[phi'(u) psi'(u')] T_uu' + g^2 Cov(h h', phi'(u) psi'(u'))

and, h, h', u and u' being jointly Gaussian, the covariance is the derivative of K' = E[phi' psi'] in the direction

    dq12 = C_hu C_h'u' + C_hu' C_h'u       dq11 = 2 C_hu C_h'u       dq22 = 2 C_hu' C_h'u'
    dm1 = m_h C_h'u + m_h' C_hu            dm2 = m_h C_h'u' + m_h' C_hu'

with covariances C and means m (Price 1958's theorem for the second derivatives of the integrand, Stein's lemma for the
first ones).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infnet.errors import RefusalError
from infnet.errors.parameters import (
    NTK_OF_REUSED_SCALE,
    NTK_OF_SCALE_BEHIND_NONLINEARITY,
    NTK_OF_SCALE_NOT_PER_CHANNEL,
    NTK_OF_SHARED_SCALE,
    RANDOM_SCALE_REUSED,
    SCALE_SHARED_BY_SOME_CHANNELS,
)
from infnet.layout import Layout, coincident, spread_left, spread_right
from infnet.nodes import Elementwise, Param, ParamKey, Scaled, ScaleGradient, Term, shifted
from infnet.plan import Ask, AskMean, Moments, Request, Step, ask
from infnet.program import Feature, ScaledParam, Segment
from infnet.reader import Reader
from infnet.rules.sums import Template, aligned, common_template, index_sizes, scaled, starts, with_template
from infnet.trace import Equation


def read_scaled(reader: Reader, equation: Equation) -> None:
    """A feature times a parameter, or times a parameter and Known arrays."""
    feature, param = sorted(equation.inputs, key=lambda v: not isinstance(reader.values[v], Feature))
    value, (out,) = reader.values[param], equation.outputs
    known = value.factors if isinstance(value, ScaledParam) else ()
    for var, power in known:
        part = reader.variable_like(out, equation)
        scaled(reader, replace(equation, outputs=(part,)), feature, var, power)
        feature = part
    leaf = reader.param(value.param if isinstance(value, ScaledParam) else param)
    template = common_template(reader, equation, [feature])
    axes, segments = aligned(reader, equation, feature, template)
    pieces = []
    for piece, position in zip(segments, starts(segments), strict=True):
        operand = reader.sum([Term(1.0, piece.node, 0, axes)], index_sizes(template), equation.where)
        node = _scaled(reader, equation, leaf, template, Segment(operand, piece.start, piece.width), position)
        pieces.append(Segment(node, 0, piece.width))
    reader.values[out] = with_template(template, pieces, out)


def _scaled(
    reader: Reader, equation: Equation, param: Param, template: Template, piece: Segment, position: int
) -> Scaled:
    axes, width = _own_axes(template, param)
    total = math.prod(n for factors in template for is_channel, n in factors if is_channel)
    if width not in (1, total):
        raise SCALE_SHARED_BY_SOME_CHANNELS.of(equation)
    key = param.key
    if (position, position + piece.width) != (0, total) and width > 1:
        key = ParamKey(key.leaf, (*key.slices, (-1, position, position + piece.width)))
    reader.use_param(equation, key, ("scale", param.factors))
    reader.check_uniform(equation, param, ())
    fixed, node = key.leaf in reader.priors.constant, piece.node
    if fixed:
        reader.fixed_scales.add(key.leaf)
    leaves = shifted(node.leaves, piece.start)
    return reader.new(
        Scaled,
        sizes=node.sizes,
        where=equation.where,
        leaves=leaves if fixed else leaves | {(key, 0)},
        gaussian=node.gaussian and fixed,
        zero_mean=node.zero_mean or not (param.offset or key.leaf in reader.priors.nonzero_mean),
        uniform=node.uniform,
        scales=node.scales | {key},
        operand=node,
        param=replace(param, key=key),
        start=piece.start,
        axes=axes,
        shared=width == 1 < total,
    )


def _own_axes(template: Template, param: Param) -> tuple[tuple[int, ...], int]:
    """The index axes that a parameter has elements along, and the number of its channels."""
    axes, number, width = [], 0, 1
    scalar = ((),) * (len(template) - len(param.factors))
    for factors, own in zip(template, (*scalar, *param.factors), strict=True):
        present = math.prod(n for _, n in own) > 1
        for is_channel, n in factors:
            if is_channel:
                width *= n if present else 1
            elif present:
                axes.append(number)
            number += not is_channel
    return tuple(axes), width


# Moments


def scaled_step(request: Ask) -> Step:
    """A scaled feature with itself, or with anything that does not contain the same scale."""
    u, v = request.u, request.v
    if isinstance(u, Scaled) and isinstance(v, Scaled) and u.param == v.param and request.shift == 0:
        return _same_scale(request, u, v)
    if isinstance(u, Scaled) and (not isinstance(v, Scaled) or u.index >= v.index):
        node, other, shift = u, v, request.shift - u.start
        need = ask(u.operand, v, shift, request.side, request.layout, request.ntk)
    else:
        assert isinstance(v, Scaled)
        node, other, shift = v, u, request.shift + v.start
        need = ask(u, v.operand, shift, request.side, request.layout, request.ntk)
    if node.param.key in other.scales and (_is_random(node) or request.ntk):
        raise _reused(node)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        mean = context.mean(node.param)
        return Moments(*(None if m is None else mean * m for m in results[0] or Moments(None)))

    return Step(request, "trained scale", node.where, (need,), evaluate)


def _same_scale(request: Ask, u: Scaled, v: Scaled) -> Step:
    need = ask(u.operand, v.operand, v.start - u.start, request.side, request.layout, request.ntk)
    if request.ntk and u.shared:
        raise NTK_OF_SHARED_SCALE.at(u.where)
    if u.param.key in u.operand.scales | v.operand.scales and (_is_random(u) or request.ntk):
        raise _reused(u)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        s, t = results[0] or Moments(None)
        if s is None and t is None:
            return Moments(None)
        variance, gradient = (_where_same(request.layout, u, f) for f in context.weight_factors(u.param, ()))
        square = context.mean(u.param) ** 2 + variance
        new_t = None if t is None else square * t
        if request.ntk and s is not None:
            new_t = gradient * s if new_t is None else new_t + gradient * s
        return Moments(None if s is None else square * s, new_t)

    return Step(request, "trained scale", u.where, (need,), evaluate)


def _where_same(layout: Layout, node: Scaled, factor: jax.Array) -> jax.Array:
    """A factor at the positions that have the same element of the scale, else 0."""
    if not node.axes:
        return factor
    return jnp.where(coincident(layout, node.axes), factor, 0)


def _is_random(node: Scaled) -> bool:
    """Whether the scale is random at initialisation, and not a constant."""
    return any(key == node.param.key for key, _ in node.leaves)


def _reused(node: Scaled) -> RefusalError:
    return (RANDOM_SCALE_REUSED if _is_random(node) else NTK_OF_REUSED_SCALE).at(node.where)


def mean_of_scaled(request: AskMean, node: Scaled) -> Step:
    """mu times the mean of the operand."""
    need = AskMean(node.operand, request.side)
    return Step(request, "mean", node.where, (need,), lambda context, results: context.mean(node.param) * results[0])


# Behind a nonlinearity


class Direction(NamedTuple):
    """A direction in which K' is differentiated, on the axes of a block; see the top of this file."""

    weight: jax.Array  # g^2
    q12: jax.Array
    q11: jax.Array
    q22: jax.Array
    mean1: jax.Array
    mean2: jax.Array


class ScaleShares:
    """The NTK's share of trained scales through a nonlinearity of the features that they multiply."""

    def __init__(self, request: Ask, u: Elementwise, v: Elementwise):
        self._request, self._arguments = request, (u.operand, v.operand)
        wanted = request.ntk and bool(u.operand.scales & v.operand.scales)
        if wanted and (u.gradients is None or v.gradients is None):
            raise NTK_OF_SCALE_BEHIND_NONLINEARITY.at(u.where)
        pairs = [(g, h) for g in u.gradients or () for h in v.gradients or ()] if wanted else []
        self._pairs = [(g, h) for g, h in pairs if self._is_same(g, h)]
        for g, _ in self._pairs:
            if g.scale.axes or g.scale.shared:
                raise NTK_OF_SCALE_NOT_PER_CHANNEL.at(g.scale.where)

    def _is_same(self, g: ScaleGradient, h: ScaleGradient) -> bool:
        return g.scale.param == h.scale.param and g.channel == h.channel + self._request.shift

    @property
    def has_means(self) -> bool:
        """Whether a gradient has a mean, so that K' is differentiated in the means too."""
        return any(not node.zero_mean for g, h in self._pairs for node in (g.node, h.node))

    @property
    def needs(self) -> tuple[Request | None, ...]:
        """Six requests for each scale: moments of the gradients h and h' with u and u', and their means."""
        request, (side, other), (u, v) = self._request, self._request.side, self._arguments
        needs: list[Request | None] = []
        for g, h in self._pairs:
            needs += [
                ask(g.node, u, 0, (side, side), Layout.diagonal(u.sizes)),
                ask(h.node, v, 0, (other, other), Layout.diagonal(v.sizes)),
                ask(g.node, v, request.shift, request.side, request.layout),
                ask(u, h.node, request.shift, request.side, request.layout),
                None if g.node.zero_mean else AskMean(g.node, side),
                None if h.node.zero_mean else AskMean(h.node, other),
            ]
        return tuple(needs)

    def directions(
        self, context: Any, results: Sequence[Any], means: tuple[jax.Array, jax.Array] | None
    ) -> Iterator[Direction]:
        """One direction for each scale.

        Args:
            context: of the run.
            results: of `needs`.
            means: of u and u', on the axes of the block; None where both vanish.
        """
        layout, zero = self._request.layout, jnp.zeros((1,) * (2 * len(self._request.layout.offsets)), context.dtype)
        m1, m2 = means or (zero, zero)
        for number, (g, _) in enumerate(self._pairs):
            hu, kv, hv, uk, mean_h, mean_k = results[6 * number : 6 * number + 6]
            mh = zero if mean_h is None else spread_left(layout, mean_h)
            mk = zero if mean_k is None else spread_right(layout, mean_k)
            hu = (zero if _is_zero(hu) else spread_left(layout, hu.s.reshape(g.node.sizes))) - mh * m1
            kv = (zero if _is_zero(kv) else spread_right(layout, kv.s.reshape(g.node.sizes))) - mk * m2
            hv = (zero if _is_zero(hv) else hv.s) - mh * m2
            uk = (zero if _is_zero(uk) else uk.s) - m1 * mk
            weight = context.weight_factors(g.scale.param, ())[1]
            yield Direction(weight, hu * kv + hv * uk, 2 * hu * uk, 2 * hv * kv, mh * uk + mk * hu, mh * kv + mk * hv)


def _is_zero(moments: Moments | None) -> bool:
    return moments is None or moments.s is None


def derivative(
    function: Callable[..., jax.Array], points: Sequence[jax.Array], along: Sequence[jax.Array]
) -> jax.Array:
    """The derivative of a function of arrays of broadcasting shapes along a direction."""
    shape = jnp.broadcast_shapes(*(jnp.shape(x) for x in (*points, *along)))
    primals, tangents = (tuple(jnp.broadcast_to(x, shape) for x in xs) for xs in (points, along))
    return jax.jvp(function, primals, tangents)[1]
