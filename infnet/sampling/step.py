"""The steps that sample: E[f(g) f'(g')], and the tangent kernel, path by path.

With u = f(g), v = f'(g') functions of jointly Gaussian g_a, g'_b that each channel has copies of,

    S_uv = E[f(g) f'(g')]        T_uv = sum_ab E[d_a f(g) d_b f'(g')] T_ab

where T_ab, the tangent kernels of the Gaussian fields, are not random at infinite width, and those of different
channels vanish: the tangent kernel of any program is such a sum over paths (Yang 2020, arXiv:2006.14548).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from infnet.errors import UnsupportedError, Where
from infnet.errors.functions import DERIVATIVE_OF_SAMPLES, TOO_MANY_POSITIONS
from infnet.nodes import Elementwise, Node, WindowMax
from infnet.plan import SAMPLED, Ask, AskKnown, AskMean, Moments, Request, Step
from infnet.primitives.stored import stored
from infnet.rules import rule
from infnet.rules.linear import LINEAR
from infnet.sampling.channel import Channel, Read
from infnet.sampling.groups import Block, block_of, grouped
from infnet.sampling.law import JointLaw
from infnet.sampling.positions import positions_of
from infnet.trace import Trace

AT_ONCE = 32  # points that are held in memory at a time, or fewer, if they take more than
COMFORTABLE = 2**28  # bytes for one pair of examples;
LIMIT = 2**31  # and if one point takes more than this, there is an error


def rule_or_sample(trace: Trace, too_slow: Mapping[int, UnsupportedError], request: Request) -> Step:
    """The step that computes what is requested: by its rule, or if that refuses, by sampling.

    Args:
        trace: as of `rule`.
        too_slow: nonlinearities that are sampled though there is a rule, and why.
        request: what is to be computed.

    Raises:
        UnsupportedError: the rule's, or that a single channel is no function of Gaussian fields either.
    """
    try:
        _check_series(too_slow, request)
        return rule(trace, request)
    except UnsupportedError as error:
        if isinstance(request, AskKnown) or not error.refusal.sampled:
            raise
        return _mean_step(request, error) if isinstance(request, AskMean) else _moment_step(request, error)


def _check_series(too_slow: Mapping[int, UnsupportedError], request: Request) -> None:
    """Raise if a rule would use a series that does not converge."""
    nodes = {AskMean: ("u",), Ask: ("u", "v")}.get(type(request), ())
    found = [getattr(request, name) for name in nodes]
    if isinstance(request, Ask) and (request.independent or any(isinstance(node, LINEAR) for node in found)):
        return  # follows from moments that are requested next
    for node in found:
        if node.index in too_slow:
            raise too_slow[node.index]


def _moment_step(request: Ask, refusal: UnsupportedError) -> Step:
    block = _block(request, refusal)
    u = Channel(request.u, 0, block.left, refusal)
    channels, sides = [u], list(request.side)
    if _with_itself(request) and len(set(request.side)) == 1 and block.same:
        sides = sides[:1]
    else:
        channels.append(Channel(request.v, request.shift, block.right, refusal))
    work = _Work.of(channels, (block.left.shape[1], block.right.shape[1]), request.ntk, refusal)
    law, fixed = JointLaw(channels, sides, request.ntk), _without_derivatives(request.u.where)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        tangents = law.tangents(context, results) if request.ntk else None
        mean, covariance = map(fixed, law.read(context, results))
        reads: list[Read] = [partial(context.read, side=side) for side in sides]
        products = partial(_products, channels, reads, tangents)
        found = work.average(products, law.values(mean, covariance), context.normals(law.width))
        entries = (None if m is None else m.reshape(-1)[block.entries].reshape(request.layout.shape) for m in found)
        return Moments(*(None if m is None else stored(m) for m in entries))

    return _step(request, law, channels, sides, evaluate, work)


def _block(request: Ask, refusal: UnsupportedError) -> Block:
    entries = math.prod(request.layout.shape)
    _check_memory(refusal, entries, 2, 16 * entries)  # the least that there can be
    left, right = positions_of(request.layout)
    if _with_itself(request):
        both = grouped(request.u, 0, np.concatenate([left, right]), refusal)
        return block_of(request.layout, both, both)
    one, two = grouped(request.u, 0, left, refusal), grouped(request.v, request.shift, right, refusal)
    return block_of(request.layout, one, two)


def _with_itself(request: Ask) -> bool:
    return request.u is request.v and not request.shift


def _mean_step(request: AskMean, refusal: UnsupportedError) -> Step:
    node = request.u
    groups = grouped(node, 0, np.arange(math.prod(node.sizes)), refusal)
    channel = Channel(node, 0, groups.positions, refusal)
    work = _Work.of([channel], groups.positions.shape[1:], False, refusal)
    law, fixed = JointLaw([channel], (request.side,), False), _without_derivatives(node.where)

    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        mean, covariance = map(fixed, law.read(context, results))

        def average(values: jax.Array) -> jax.Array:
            return channel(partial(context.read, side=request.side), values).mean(0)

        found = work.average(average, law.values(mean, covariance), context.normals(law.width))
        return found[groups.group, groups.column].reshape(node.sizes)

    return _step(request, law, [channel], (request.side,), evaluate, work)


def _step(
    request: Ask | AskMean,
    law: JointLaw,
    channels: Sequence[Channel],
    sides: Sequence[int],
    evaluate: Any,
    work: _Work,
) -> Step:
    reads = [AskKnown(f.var, side, f.sums) for c, side in zip(channels, sides, strict=True) for f in c.fields]
    node = request.u
    name = f"sampled {_name(node)}"
    return Step(
        request, name, node.where, law.needs, evaluate, SAMPLED, tuple(dict.fromkeys(reads)), numbers=work.numbers
    )


def _name(node: Node) -> str:
    if isinstance(node, Elementwise) and not isinstance(node.activation, UnsupportedError):
        return node.activation.name
    return "maximum" if isinstance(node, WindowMax) else type(node).__name__.lower()


@dataclass(frozen=True)
class _Work:
    """How an integral is computed.

    Attributes:
        at_once: points that are held in memory at a time.
        numbers: what is held at a time for each pair of examples.
    """

    at_once: int
    numbers: int

    @classmethod
    def of(cls, channels: Sequence[Channel], sizes: Sequence[int], ntk: bool, refusal: UnsupportedError) -> _Work:
        """Of channels whose groups have these sizes; raises if there is too little memory for a single point."""
        groups, width = channels[0].groups, sum(channel.width for channel in channels)
        point = width + sum(sizes)  # the variables and the functions of them,
        if ntk:  # and their derivatives, also times the tangent kernel
            point += width * (sizes[0] + max(sizes))
        constant = 4 * width**2 + 2 * math.prod(sizes)  # the covariance, how it is put together and its factor
        at_once = AT_ONCE
        while at_once > 1 and 4 * groups * at_once * point > COMFORTABLE:
            at_once //= 2
        numbers = groups * (constant + at_once * point)
        _check_memory(refusal, groups, width, numbers)
        return cls(at_once, numbers)

    def average(
        self, of: Callable[[jax.Array], Any], values: Callable[[jax.Array], jax.Array], points: jax.Array
    ) -> Any:
        """The mean over all points of what `of` returns of `values(points)`."""

        def add(total: Any, some: jax.Array) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, of(values(some))), None

        parts = points.reshape((-1, min(len(points), self.at_once), points.shape[1]))
        shapes = jax.eval_shape(lambda some: of(values(some)), parts[0])
        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = lax.scan(add, zero, parts)
        return jax.tree.map(lambda x: x / len(parts), total)


def _check_memory(error: UnsupportedError, groups: int, width: int, numbers: int) -> None:
    if 4 * numbers > LIMIT:
        size = 4 * numbers / 2**30
        raise TOO_MANY_POSITIONS.at(
            error.where, what=error.what, why=error.why, groups=groups, width=width, size=size
        ) from error


def _products(
    channels: Sequence[Channel], reads: Sequence[Read], tangents: jax.Array | None, values: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """The means of f f' and, with tangent kernels `[groups, a, b]`, of the sum of d_a f T_ab d_b f'.

    Both are `[groups, k, l]`, for all pairs of functions f and f' of a group.
    """
    found: list[tuple[jax.Array, jax.Array | None]] = []
    stop = 0
    for channel, read in zip(channels, reads, strict=True):
        start, stop = stop, stop + channel.width
        function, own = partial(channel, read), values[..., start:stop]
        found.append((function(own), None) if tangents is None else _with_derivatives(function, own))
    (f, df), (g, dg) = found[0], found[-1]
    product = partial(jnp.einsum, precision=lax.Precision.HIGHEST)
    s = product("nmk,nml->mkl", f, g) / len(values)
    if tangents is None or df is None or dg is None:
        return s, None
    weighted = product("nmka,mab->nmkb", df, tangents)
    return s, product("nmkb,nmlb->mkl", weighted, dg) / len(values)


def _with_derivatives(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The functions of each group `[..., k]`, and their derivatives in its variables, `[..., k, width]`."""
    f, backward = jax.vjp(function, x)
    each = jnp.eye(f.shape[-1], dtype=f.dtype)
    derivatives = jax.vmap(lambda one: backward(jnp.broadcast_to(one, f.shape))[0], out_axes=-2)(each)
    return f, derivatives


def _without_derivatives(where: Where) -> Callable[[jax.Array], jax.Array]:
    """The identity; whoever differentiates it gets an error that names this place."""

    @jax.custom_jvp
    def same(x: jax.Array) -> jax.Array:
        return x

    @same.defjvp
    def refuse(primals: Any, tangents: Any) -> NoReturn:
        raise DERIVATIVE_OF_SAMPLES.at(where)

    return same
