"""The steps that sample: E[f(g) f'(g')], and the tangent kernel, path by path.

With u = f(g), v = f'(g') functions of jointly Gaussian g_a, g'_b that each channel has copies of,

    S_uv = E[f(g) f'(g')]        T_uv = sum_ab E[d_a f(g) d_b f'(g')] T_ab

where T_ab, the tangent kernels of the Gaussian fields, are not random at infinite width, and those of different
channels vanish: the tangent kernel of any program is such a sum over paths (Yang 2020, arXiv:2006.14548).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from infnet.errors import UnsupportedError, Where
from infnet.errors.functions import DERIVATIVE_OF_SAMPLES, TOO_MANY_POSITIONS
from infnet.layout import Layout
from infnet.nodes import Elementwise, Node, WindowMax
from infnet.plan import SAMPLED, Ask, AskKnown, AskMean, Moments, Request, Step
from infnet.primitives.stored import stored
from infnet.rules import rule
from infnet.rules.linear import LINEAR
from infnet.sampling.channel import Channel, Read
from infnet.sampling.law import JointLaw, factored
from infnet.trace import Trace

AT_ONCE = 32  # points that are held in memory at a time
LIMIT = 2**31  # bytes for one pair of examples


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
    entries = math.prod(request.layout.shape)
    _check_memory(refusal, entries, 2)
    left, right = _positions(request.layout)
    u = Channel(request.u, 0, left, refusal)
    with_itself = request.u is request.v and not request.shift and len(set(request.side)) == 1
    channels, sides = [u], list(request.side)
    if with_itself and request.layout.is_diagonal:
        sides = sides[:1]
    else:
        channels.append(Channel(request.v, request.shift, right, refusal))
    numbers = _check_memory(refusal, entries, sum(channel.width for channel in channels))
    law, fixed = JointLaw(channels, sides, request.ntk), _without_derivatives(request.u.where)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        tangents = law.tangents(context, results) if request.ntk else None
        mean, covariance = map(fixed, law.read(context, results))
        reads: list[Read] = [partial(context.read, side=side) for side in sides]
        average = partial(_products, channels, reads, tangents is not None)
        s, paths = _averages(average, mean, factored(covariance), context.normals(law.width))
        t = None if tangents is None else (paths * tangents).sum((-1, -2))
        return Moments(*(None if m is None else stored(m.reshape(request.layout.shape)) for m in (s, t)))

    return _step(request, law, channels, sides, evaluate, numbers)


def _mean_step(request: AskMean, refusal: UnsupportedError) -> Step:
    node = request.u
    channel = Channel(node, 0, np.arange(math.prod(node.sizes)), refusal)
    numbers = _check_memory(refusal, math.prod(node.sizes), channel.width)
    law, fixed = JointLaw([channel], (request.side,), False), _without_derivatives(node.where)

    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        mean, covariance = map(fixed, law.read(context, results))

        def average(values: jax.Array) -> jax.Array:
            return channel(partial(context.read, side=request.side), values).mean(0)

        return _averages(average, mean, factored(covariance), context.normals(law.width)).reshape(node.sizes)

    return _step(request, law, [channel], (request.side,), evaluate, numbers)


def _step(
    request: Ask | AskMean,
    law: JointLaw,
    channels: Sequence[Channel],
    sides: Sequence[int],
    evaluate: Any,
    numbers: int,
) -> Step:
    reads = [AskKnown(f.var, side, f.sums) for c, side in zip(channels, sides, strict=True) for f in c.fields]
    node = request.u
    name = f"sampled {_name(node)}"
    return Step(request, name, node.where, law.needs, evaluate, SAMPLED, tuple(dict.fromkeys(reads)), numbers=numbers)


def _name(node: Node) -> str:
    if isinstance(node, Elementwise) and not isinstance(node.activation, UnsupportedError):
        return node.activation.name
    return "maximum" if isinstance(node, WindowMax) else type(node).__name__.lower()


def _positions(layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """The flat left and right position of each entry of a block, in row-major order."""
    grid = np.indices(layout.shape).reshape(2 * len(layout.offsets), -1) if layout.shape else np.zeros((0, 1), int)
    left, right = np.zeros(grid.shape[1], int), np.zeros(grid.shape[1], int)
    for axis, (n, m, offsets) in enumerate(layout.axes):
        r, i = grid[2 * axis], grid[2 * axis + 1]
        j = r if offsets is None else np.clip(np.array(offsets)[r] + i, 0, n - 1)
        left, right = left * n + i, right * m + j
    return left, right


def _check_memory(error: UnsupportedError, entries: int, width: int) -> int:
    """The numbers that a step holds at a time for each pair of examples."""
    numbers = entries * width * (AT_ONCE + width)
    if 4 * numbers > LIMIT:
        size = 4 * numbers / 2**30
        raise TOO_MANY_POSITIONS.at(
            error.where, what=error.what, why=error.why, entries=entries, width=width, size=size
        ) from error
    return numbers


def _averages(average: Callable[[jax.Array], Any], mean: jax.Array, factor: jax.Array, points: jax.Array) -> Any:
    """The mean over all points of what `average` returns of some Gaussian vectors, `[points, entries, width]`."""

    def of_some(z: jax.Array) -> Any:
        return average(mean + jnp.einsum("mij,nj->nmi", factor, z, precision=lax.Precision.HIGHEST))

    def add(total: Any, z: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of_some(z)), None

    parts = points.reshape((-1, math.gcd(len(points), AT_ONCE), points.shape[1]))
    zero = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(of_some, parts[0]))
    total, _ = lax.scan(add, zero, parts)
    return jax.tree.map(lambda x: x / len(parts), total)


def _products(
    channels: Sequence[Channel], reads: Sequence[Read], derivatives: bool, values: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """The means of f f' `[entries]`, and with `derivatives` of d_a f d_b f' `[entries, a, b]`."""
    found, stop = [], 0
    for channel, read in zip(channels, reads, strict=True):
        start, stop = stop, stop + channel.width
        own = values[..., start:stop]
        if derivatives:
            f, backward = jax.vjp(partial(channel, read), own)
            found.append((f, backward(jnp.ones_like(f))[0]))
        else:
            found.append((channel(read, own), None))
    (f, df), (g, dg) = found[0], found[-1]
    s = (f * g).mean(0)
    if df is None or dg is None:
        return s, None
    return s, jnp.einsum("nma,nmb->mab", df, dg, precision=lax.Precision.HIGHEST) / len(values)


def _without_derivatives(where: Where) -> Callable[[jax.Array], jax.Array]:
    """The identity; whoever differentiates it gets an error that names this place."""

    @jax.custom_jvp
    def same(x: jax.Array) -> jax.Array:
        return x

    @same.defjvp
    def refuse(primals: Any, tangents: Any) -> NoReturn:
        raise DERIVATIVE_OF_SAMPLES.at(where)

    return same
