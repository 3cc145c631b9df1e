"""The joint law of the slots of one or two channels, read off the moments of their fields."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from infnet.layout import Layout
from infnet.nodes import Node
from infnet.plan import Ask, AskMean, Request, ask
from infnet.sampling.channel import Channel, Slot
from infnet.sampling.positions import coordinates
from infnet.sampling.weights import Weight, quantile

ROUNDING = 4  # pivots of so many roundings of a variance are zero; more of them would make near-duplicates equal


class _Place(NamedTuple):
    """A slot, the channel (0 or 1) and the example that it belongs to, and where its values stand."""

    slot: Slot
    channel: int
    side: int
    start: int

    @property
    def node(self) -> Node:
        """The field."""
        assert isinstance(self.slot.source, Node)
        return self.slot.source

    @property
    def weight(self) -> Weight:
        """The channel's own weight."""
        assert isinstance(self.slot.source, Weight)
        return self.slot.source

    @property
    def range(self) -> slice:
        return slice(self.start, self.start + self.slot.width)


class JointLaw:
    """The mean and covariance of all slots of the channels, and the tangent kernels between the first and the last.

    All moments that are needed stand one after the other in a vector, whose first element is zero; an entry of the
    covariance is an element of it.

    Attributes:
        width: the number of values in all slots.
        needs: the requests whose results are read.
    """

    def __init__(self, channels: Sequence[Channel], sides: Sequence[int], ntk: bool):
        """Of channels on these examples; `ntk`: also tangent kernels of the slots of the first and of the last."""
        places, self.width = [], 0
        for number, (channel, side) in enumerate(zip(channels, sides, strict=True)):
            for slot in channel.slots:
                places.append(_Place(slot, number, side, self.width))
                self.width += slot.width
        self._ntk, self._one_channel = ntk, len(channels) == 1
        self._groups, self._split = channels[0].groups, channels[0].width
        self._asks: dict[Ask, int] = {}  # and where its moments start in the vector
        self._length = 1
        self._index = np.zeros((self._groups, self.width, self.width), np.int32)
        self._fields = [place for place in places if isinstance(place.slot.source, Node)]
        self._weights = [place for place in places if isinstance(place.slot.source, Weight)]
        for one, two in itertools.combinations_with_replacement(self._fields, 2):
            self._add(one, two)
        self._means = {AskMean(p.node, p.side): None for p in self._fields if not p.node.zero_mean}
        self.needs: tuple[Request, ...] = (*self._asks, *self._means)

    def _add(self, one: _Place, two: _Place) -> None:
        a, b = one.slot, two.slot
        layout = _layout(one, two)
        across = self._one_channel or one.channel != two.channel
        request = ask(one.node, two.node, b.channel - a.channel, (one.side, two.side), layout, self._ntk and across)
        if request is None:
            return
        if request not in self._asks:
            self._asks[request] = self._length
            self._length += math.prod(layout.shape)
        found = self._asks[request] + _flat_index(layout, one, two)
        self._index[:, one.range, two.range] = found
        self._index[:, two.range, one.range] = np.swapaxes(found, 1, 2)

    def read(self, context: Any, results: Sequence[Any]) -> tuple[jax.Array, jax.Array]:
        """The mean `[groups, width]` and covariance `[groups, width, width]`."""
        mean = self._mean(context, results[len(self._asks) :])
        second = self._vector(context, [None if r is None else r.s for r in results[: len(self._asks)]])[self._index]
        # A second moment, less the product of the means.
        covariance = jnp.where(self._index > 0, second - mean[:, :, None] * mean[:, None, :], 0)
        return mean, self._with_weights(context, covariance, 0, self._weights, self._weights)

    def _mean(self, context: Any, results: Sequence[Any]) -> jax.Array:
        found = dict(zip(self._means, results, strict=True))
        mean = jnp.zeros((self._groups, self.width), context.dtype)
        for place in self._weights:
            mean = mean.at[:, place.range].set(context.mean(place.weight.param))
        for place in self._fields:
            if not place.node.zero_mean:
                own = found[AskMean(place.node, place.side)].reshape(-1)[place.slot.positions]
                mean = mean.at[:, place.range].set(own)
        return mean

    def _with_weights(
        self, context: Any, block: jax.Array, which: int, left: Sequence[_Place], right: Sequence[_Place]
    ) -> jax.Array:
        """With the variances (which = 0) or gradient factors (1) where two slots hold the same element."""
        for one, two in itertools.product(left, right):
            if (one.weight, one.slot.channel) == (two.weight, two.slot.channel):
                same = one.slot.positions[:, :, None] == two.slot.positions[:, None, :]
                factor = one.weight.factors(context)[which][one.slot.positions]
                block = block.at[:, one.range, two.range].set(jnp.where(same, factor[:, :, None], 0))
        return block

    def values(self, mean: jax.Array, covariance: jax.Array) -> Callable[[jax.Array], jax.Array]:
        """The values of all slots, of this mean and covariance, at points of the standard normal law.

        They are Gaussian, but for weights of another law, which has the same mean and variance.

        Args:
            mean: `[groups, width]`.
            covariance: `[groups, width, width]`.

        Returns:
            a function `[points, width] -> [points, groups, width]`.
        """
        factor = _factored(covariance)
        std = jnp.sqrt(jnp.diagonal(covariance, axis1=-2, axis2=-1))
        laws = [(place.range, quantile(place.weight.param.kurtosis)) for place in self._weights]

        def at(points: jax.Array) -> jax.Array:
            found = jnp.einsum("mij,nj->nmi", factor, points, precision=lax.Precision.HIGHEST)
            for own, law in laws:
                if law is not None:
                    z = found[..., own] / jnp.where(std[:, own] > 0, std[:, own], 1)
                    found = found.at[..., own].set(std[:, own] * law(z))
            return mean + found

        return at

    def _vector(self, context: Any, blocks: Sequence[jax.Array | None]) -> jax.Array:
        sizes = (math.prod(request.layout.shape) for request in self._asks)
        zero = jnp.zeros(1, context.dtype)
        flat = [jnp.broadcast_to(zero, n) if b is None else b.reshape(n) for b, n in zip(blocks, sizes, strict=True)]
        return jnp.concatenate([zero, *flat])

    def tangents(self, context: Any, results: Sequence[Any]) -> jax.Array | None:
        """The tangent kernels between slots of the first and of the last channel, `[groups, a, b]`; None for zero."""
        blocks = [None if r is None else r.t for r in results[: len(self._asks)]]
        last = 0 if self._one_channel else 1
        left, right = ([place for place in self._weights if place.channel == k] for k in (0, last))
        if all(b is None for b in blocks) and not (left and right):
            return None
        total = self._with_weights(context, self._vector(context, blocks)[self._index], 1, left, right)
        return total if self._one_channel else total[:, : self._split, self._split :]


def _layout(one: _Place, two: _Place) -> Layout:
    """The smallest layout with all pairs of positions of two slots that meet in a group."""
    full = Layout.full(one.node.sizes, two.node.sizes)
    offsets = []
    for (n, m, _), i, j in zip(full.axes, *_coordinates(one, two), strict=True):
        d = tuple(int(k) for k in np.unique(j - i))
        offsets.append(d if n == m and (len(d) < n or d == (0,)) else None)
    return Layout(full.left, full.right, tuple(offsets))


def _flat_index(layout: Layout, one: _Place, two: _Place) -> np.ndarray:
    """Where a block holds the moments of two slots: indices of its flat elements, `[groups, k, l]`."""
    index = np.zeros((len(one.slot.positions), one.slot.width, two.slot.width), np.int32)
    for k, (offsets, i, j) in enumerate(zip(layout.offsets, *_coordinates(one, two), strict=True)):
        row = j if offsets is None else np.searchsorted(np.array(offsets), j - i)
        rows, columns = layout.shape[2 * k : 2 * k + 2]
        index = (index * rows + row) * columns + i
    return index


def _coordinates(one: _Place, two: _Place) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each pair of axes the positions of both slots, as arrays that broadcast to `[groups, k, l]`."""
    i = coordinates(one.slot.positions[:, :, None], one.node.sizes)
    j = coordinates(two.slot.positions[:, None, :], two.node.sizes)
    longest = max(len(i), len(j))
    zero = np.zeros((1, 1, 1), int)
    return i + [zero] * (longest - len(i)), j + [zero] * (longest - len(j))


def _factored(covariance: jax.Array) -> jax.Array:
    """L with L L^T = covariance, `[groups, d, d]`, positive semidefinite: equal examples have equal values.

    Cholesky's factorisation column by column, where a column whose pivot is zero up to rounding is zero.
    """
    d = covariance.shape[-1]
    variances = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    rounding = ROUNDING * jnp.finfo(covariance.dtype).eps * variances

    def column(k: Any, factor: jax.Array) -> jax.Array:
        row = factor[:, k]
        rest = covariance[:, :, k] - jnp.einsum("mij,mj->mi", factor, row, precision=lax.Precision.HIGHEST)
        pivot = rest[:, k]
        positive = pivot > rounding[:, k]
        root = jnp.sqrt(jnp.where(positive, pivot, 1))
        below = jnp.where(jnp.arange(d) >= k, rest / root[:, None], 0)
        return factor.at[:, :, k].set(jnp.where(positive[:, None], below, 0))

    return lax.fori_loop(0, d, column, jnp.zeros_like(covariance))
