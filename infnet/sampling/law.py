"""The joint law of the slots of one or two channels, read off the moments of their fields."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from infnet.layout import Layout
from infnet.nodes import Scaled
from infnet.plan import Ask, AskMean, Request, ask
from infnet.sampling.channel import Channel, Slot, coordinates


class _Place(NamedTuple):
    """A slot, the example that it belongs to, the channel (0 or 1) whose slot it is, and where its values stand."""

    slot: Slot
    side: int
    channel: int
    start: int

    @property
    def range(self) -> slice:
        return slice(self.start, self.start + self.slot.width)


class _Pair(NamedTuple):
    """Two slots, the request for their moments, and where a block holds these: indices `[entries, k, l]`."""

    one: _Place
    two: _Place
    request: Ask
    where: tuple[np.ndarray, ...]


class JointLaw:
    """The mean and covariance of all slots of the channels, and the tangent kernels between the first and the last.

    Attributes:
        width: the number of values in all slots.
        needs: the requests whose results are read.
    """

    def __init__(self, channels: Sequence[Channel], sides: Sequence[int], ntk: bool):
        """Of channels on these examples; `ntk`: also tangent kernels of the slots of the first and of the last."""
        self._places: list[_Place] = []
        self.width = 0
        for number, (channel, side) in enumerate(zip(channels, sides, strict=True)):
            for slot in channel.slots:
                self._places.append(_Place(slot, side, number, self.width))
                self.width += slot.width
        self._entries = len(channels[0].slots[0].positions) if self._places else 0
        self._ntk, self._one_channel = ntk, len(channels) == 1
        fields = [p for p in self._places if p.slot.scale is None]
        self._pairs = [
            pair
            for one, two in itertools.combinations_with_replacement(fields, 2)
            if (pair := self._pair(one, two)) is not None
        ]
        self._means = [p for p in fields if not p.slot.node.zero_mean]
        own = [AskMean(p.slot.node, p.side) for p in self._means]
        self.needs: tuple[Request, ...] = (*(pair.request for pair in self._pairs), *own)

    def _pair(self, one: _Place, two: _Place) -> _Pair | None:
        a, b = one.slot, two.slot
        layout = _layout(a, b)
        ntk = self._ntk and self._is_across(one, two)
        request = ask(a.node, b.node, b.channel - a.channel, (one.side, two.side), layout, ntk)
        return None if request is None else _Pair(one, two, request, _where(layout, a, b))

    def _is_across(self, one: _Place, two: _Place) -> bool:
        return self._one_channel or one.channel != two.channel

    def read(self, context: Any, results: Sequence[Any]) -> tuple[jax.Array, jax.Array]:
        """The mean `[entries, width]` and covariance `[entries, width, width]`."""
        shape = (self._entries, self.width)
        mean, covariance = jnp.zeros(shape, context.dtype), jnp.zeros((*shape, self.width), context.dtype)
        for place in self._places:
            if isinstance(place.slot.node, Scaled):
                mean = mean.at[:, place.range].set(context.mean(place.slot.node.param))
        for place, result in zip(self._means, results[len(self._pairs) :], strict=True):
            mean = mean.at[:, place.range].set(result.reshape(-1)[place.slot.positions])
        for (one, two, _, where), result in zip(self._pairs, results, strict=False):
            if result is None or result.s is None:
                continue
            block = _entries(result.s, where)
            # A second moment, less the product of the means.
            block = block - mean[:, one.range, None] * mean[:, None, two.range]
            covariance = covariance.at[:, one.range, two.range].set(block)
            covariance = covariance.at[:, two.range, one.range].set(jnp.swapaxes(block, 1, 2))
        return mean, covariance

    def tangents(self, context: Any, results: Sequence[Any]) -> jax.Array | None:
        """The tangent kernels between slots of the first and of the last channel, `[entries, width, width]`.

        None where all of them vanish.
        """
        found = [
            (p.one, p.two, _entries(r.t, p.where)) for p, r in zip(self._pairs, results, strict=False) if _has_t(r)
        ]
        scales = [p for p in self._places if p.slot.scale is not None]
        for one, two in itertools.combinations_with_replacement(scales, 2):
            same = (one.slot.scale, one.slot.channel) == (two.slot.scale, two.slot.channel)
            if same and self._is_across(one, two):
                assert isinstance(one.slot.node, Scaled)
                found.append((one, two, context.weight_factors(one.slot.node.param, ())[1]))
        if not found:
            return None
        total = jnp.zeros((self._entries, self.width, self.width), context.dtype)
        for one, two, block in found:
            total = total.at[:, one.range, two.range].set(block)
            if self._one_channel:
                total = total.at[:, two.range, one.range].set(jnp.swapaxes(block, -1, -2) if block.ndim else block)
        return total


def _entries(block: jax.Array, index: tuple[np.ndarray, ...]) -> jax.Array:
    return block.reshape(block.shape or (1,))[index]


def _has_t(result: Any) -> bool:
    return result is not None and result.t is not None


def _layout(one: Slot, two: Slot) -> Layout:
    """The smallest layout with all pairs of positions of two slots that meet in an entry."""
    full = Layout.full(one.node.sizes, two.node.sizes)
    offsets = []
    for (n, m, _), i, j in zip(full.axes, *_coordinates(one, two), strict=True):
        d = tuple(int(k) for k in np.unique(j - i))
        offsets.append(d if n == m and (len(d) < n or d == (0,)) else None)
    return Layout(full.left, full.right, tuple(offsets))


def _where(layout: Layout, one: Slot, two: Slot) -> tuple[np.ndarray, ...]:
    """Where a block holds the moments of two slots."""
    index: list[np.ndarray] = []
    for offsets, i, j in zip(layout.offsets, *_coordinates(one, two), strict=True):
        row = j if offsets is None else np.searchsorted(np.array(offsets), j - i)
        index += np.broadcast_arrays(row, i)
    if not index:  # one number for all entries
        return (np.zeros((len(one.positions), one.width, two.width), int),)
    return tuple(index)


def _coordinates(one: Slot, two: Slot) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each pair of axes the positions of both slots, as arrays that broadcast to `[entries, k, l]`."""
    i = coordinates(one.positions[:, :, None], one.node.sizes)
    j = coordinates(two.positions[:, None, :], two.node.sizes)
    longest = max(len(i), len(j))
    zero = np.zeros((1, 1, 1), int)
    return i + [zero] * (longest - len(i)), j + [zero] * (longest - len(j))


def factored(covariance: jax.Array) -> jax.Array:
    """L with L L^T = covariance, `[entries, d, d]`, positive semidefinite: equal examples have equal values.

    Cholesky's factorisation column by column, where a column whose pivot is zero up to rounding is zero.
    """
    d = covariance.shape[-1]
    variances = jnp.diagonal(covariance, axis1=-2, axis2=-1)
    rounding = 8 * d * jnp.finfo(covariance.dtype).eps * variances

    def column(k: Any, factor: jax.Array) -> jax.Array:
        row = factor[:, k]
        rest = covariance[:, :, k] - jnp.einsum("mij,mj->mi", factor, row, precision=lax.Precision.HIGHEST)
        pivot = rest[:, k]
        positive = pivot > rounding[:, k]
        root = jnp.sqrt(jnp.where(positive, pivot, 1))
        below = jnp.where(jnp.arange(d) >= k, rest / root[:, None], 0)
        return factor.at[:, :, k].set(jnp.where(positive[:, None], below, 0))

    return lax.fori_loop(0, d, column, jnp.zeros_like(covariance))
