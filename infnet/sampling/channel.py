"""One channel of a node as a function of Gaussian fields.

From the node backwards: sums, products, nonlinearities and maps of positions are followed, each with the positions at
which it is needed, until Gaussian fields are reached. These are the *slots* of the function. Positions that depend on
the same Gaussian variables, as those of a softmax over tokens, are a *group*: they are computed together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infnet.activations.chains import obstacle
from infnet.activations.pointwise import callable_of
from infnet.errors import RefusalError, UnsupportedError
from infnet.errors.functions import NOT_SAMPLED, OWN_WEIGHT_OF_UNKNOWN_LAW
from infnet.nodes import (
    Elementwise,
    Field,
    GroupedConvolution,
    IndexLinear,
    KnownNode,
    Node,
    OneNode,
    Product,
    Scaled,
    Sum,
    Term,
    WindowMax,
)
from infnet.primitives.contraction import Window
from infnet.rules.words import in_words
from infnet.sampling.weights import Weight, is_known

Read = Callable[[Field], jax.Array]  # a Known variable as an array [*sizes, channels]


class Values(NamedTuple):
    """What a line of the function is computed from: Known variables, the slots, and the lines before.

    Attributes:
        read: Known variables.
        slots: `[..., groups, width]`.
        lines: `[..., groups, positions]` each.
    """

    read: Read
    slots: jax.Array
    lines: list[jax.Array]


Line = Callable[[Values], jax.Array]


@dataclass(frozen=True)
class Slot:
    """A Gaussian field at some positions: for group m at `positions[m]`, flat indices in ascending order.

    A group with fewer of them than another repeats the last. `channel`: of the field, relative to the channel of the
    function. Or elements of a channel's own weights, at their flat indices.
    """

    source: Node | Weight
    channel: int
    positions: np.ndarray

    @property
    def width(self) -> int:
        """The number of positions for each group."""
        return self.positions.shape[1]


class Channel:
    """Channel `channel` of a node, at some positions for each of several groups.

    Attributes:
        groups: their number.
        slots: what it is a function of.
        fields: the Known variables that it reads.
    """

    def __init__(self, node: Node, channel: int, positions: np.ndarray, refusal: UnsupportedError):
        """Follow the node back to Gaussian fields; what cannot be followed raises `refusal`.

        Args:
            node: whose channel it is.
            channel: which, relative to that of the request.
            positions: of each group, flat indices `[groups, k]`.
            refusal: why there is no closed form.
        """
        self.fields: dict[Field, None] = {}
        self.groups = len(positions)
        self._refusal = refusal
        self._lines: list[Line] = []
        self._numbers: dict[tuple[int, int, bytes], int] = {}
        # The positions of a slot, for each line that reads it.
        self._read_at: dict[tuple[Node | Weight, int], list[np.ndarray]] = {}
        self._result = self._at(node, channel, positions)
        self.slots, self._columns = self._settled()

    @property
    def width(self) -> int:
        """The number of values that it is a function of."""
        return sum(slot.width for slot in self.slots)

    def __call__(self, read: Read, slots: jax.Array) -> jax.Array:
        """Its values `[..., groups, k]`, from those of the slots, `[..., groups, width]`."""
        values = Values(read, slots, [])
        for line in self._lines:
            values.lines.append(line(values))
        return self._result(values)

    def _at(self, node: Node, channel: int, positions: np.ndarray) -> Line:
        """The values of a node at `positions[groups, k]`: each is computed once, however often it stands there."""
        distinct, columns = _distinct(positions)
        key = (node.index, channel, distinct.tobytes())
        if key not in self._numbers:
            line = self._line(node, channel, distinct)
            self._numbers[key] = len(self._lines)
            self._lines.append(line)
        number = self._numbers[key]
        return lambda values: _taken(values.lines[number], columns)

    def _settled(self) -> tuple[list[Slot], dict[tuple[Node | Weight, int], list[np.ndarray]]]:
        """The slots, and in which columns of all their values each line that reads one finds what it needs."""
        slots: list[Slot] = []
        columns = {}
        for (source, channel), parts in self._read_at.items():
            distinct, found = _distinct(np.concatenate(parts, 1))
            start = sum(slot.width for slot in slots)
            slots.append(Slot(source, channel, distinct))
            columns[source, channel] = np.split(start + found, np.cumsum([part.shape[1] for part in parts])[:-1], 1)
        return slots, columns

    def _line(self, node: Node, channel: int, positions: np.ndarray) -> Line:
        if isinstance(node, OneNode):
            return lambda values: jnp.ones(positions.shape, values.slots.dtype)
        # The variance of a sum with a large constant, as a mask of -1e9, is lost in the rounding of its second moment.
        follow = node.scales or (not node.zero_mean and type(node) in FOLLOWED)
        if node.gaussian and not follow:
            return self._slot(node, channel, positions)
        if not node.uniform or type(node) not in FOLLOWED:
            raise self._refused(node)
        return FOLLOWED[type(node)](self, node, channel, positions)

    def _refused(self, node: Node) -> RefusalError:
        """The error for a node that is no function of single channels."""
        first = self._refusal
        return NOT_SAMPLED.at(first.where, what=first.what, why=first.why, node=in_words(node), place=node.where)

    def _slot(self, source: Node | Weight, channel: int, positions: np.ndarray) -> Line:
        parts = self._read_at.setdefault((source, channel), [])
        number = len(parts)
        parts.append(positions)
        return lambda values: _taken(values.slots, self._columns[source, channel][number])

    def _weight(self, node: Node, weight: Weight, channel: int) -> Line:
        """All elements of the weight that belongs to a channel, `[..., groups, elements]`."""
        param, first = weight.param, self._refusal
        if param.mask is not None:
            raise self._refused(node)
        if not is_known(param.kurtosis):
            kurtosis = "different for each element" if param.kurtosis is None else f"{param.kurtosis:.3g}"
            raise OWN_WEIGHT_OF_UNKNOWN_LAW.at(
                first.where, what=first.what, why=first.why, place=node.where, kurtosis=kurtosis
            )
        elements = np.arange(math.prod(weight.sizes))
        drawn = replace(weight, param=replace(param, scale=1.0, offset=0.0))
        slot = self._slot(drawn, channel, np.broadcast_to(elements, (self.groups, len(elements))))
        return lambda values: param.scale * slot(values) + param.offset

    def _elementwise(self, node: Elementwise, channel: int, positions: np.ndarray) -> Line:
        if obstacle(node.chain) is not None:
            raise self._refused(node)
        function, operand = callable_of(node.chain, custom_rules=True), self._at(node.operand, channel, positions)
        return lambda values: function(operand(values))

    def _sum(self, node: Sum, channel: int, positions: np.ndarray) -> Line:
        factors = [self._coefficient(node, term, positions) for term in node.terms]
        terms = [self._at(t.node, channel + t.start, _of_term(node, t, positions)) for t in node.terms]

        def line(values: Values) -> jax.Array:
            parts = (factor(values.read) * term(values) for factor, term in zip(factors, terms, strict=True))
            return sum(parts, jnp.zeros((), values.slots.dtype))

        return line

    def _coefficient(self, node: Sum, term: Term, positions: np.ndarray) -> Callable[[Read], jax.Array | float]:
        coefficient = term.coefficient
        if not isinstance(coefficient, Field):
            return lambda read: coefficient
        return self._constant(coefficient, node.sizes, positions)

    def _constant(self, field: Field, sizes: tuple[int, ...], positions: np.ndarray) -> Callable[[Read], jax.Array]:
        """A Known variable, the same for all channels, at positions of a node of these sizes."""
        self.fields[field] = None

        def read_at(read: Read) -> jax.Array:
            found = read(field).mean(-1)
            found = found.reshape((*found.shape, *(1,) * (len(sizes) - found.ndim)))
            return jnp.broadcast_to(found, sizes).reshape(-1)[positions]

        return read_at

    def _known(self, node: KnownNode, channel: int, positions: np.ndarray) -> Line:
        found = self._constant(node.field, node.sizes, positions)
        return lambda values: found(values.read)

    def _product(self, node: Product, channel: int, positions: np.ndarray) -> Line:
        one, two = (self._at(n, channel + c, positions) for n, c in zip(node.factors, node.starts, strict=True))
        return lambda values: one(values) * two(values)

    def _scaled(self, node: Scaled, channel: int, positions: np.ndarray) -> Line:
        if node.axes or node.shared:
            raise self._refused(node)
        operand = self._at(node.operand, channel + node.start, positions)
        scale = self._weight(node, Weight(node.param), channel)
        return lambda values: scale(values) * operand(values)

    def _depthwise(self, node: GroupedConvolution, channel: int, positions: np.ndarray) -> Line:
        if (node.channels, node.filters) != (1, 1):
            raise self._refused(node)
        windows = [window for window in node.geometry if window is not None]
        taps, inside = _windows(node, windows, positions)
        operand = self._at(node.operand, channel + node.start, taps.reshape(self.groups, -1))
        filters = Weight(node.param, node.weight_axes, tuple(window.size for window in windows))
        weights = self._weight(node, filters, channel)
        return lambda values: (
            jnp.where(inside, _of_taps(operand(values), taps), 0) * weights(values)[..., None, :]
        ).sum(-1)

    def _index_linear(self, node: IndexLinear, channel: int, positions: np.ndarray) -> Line:
        taps, weights = _rows(node, positions)
        operand = self._at(node.operand, channel, taps.reshape(self.groups, -1))
        return lambda values: (_of_taps(operand(values), taps) * weights.astype(values.slots.dtype)).sum(-1)

    def _window_max(self, node: WindowMax, channel: int, positions: np.ndarray) -> Line:
        taps, inside = _windows(node, node.windows, positions)
        operand = self._at(node.operand, channel, taps.reshape(self.groups, -1))
        return lambda values: jnp.where(inside, _of_taps(operand(values), taps), -jnp.inf).max(-1)


FOLLOWED: dict[type[Node], Callable[..., Line]] = {
    Elementwise: Channel._elementwise,
    Sum: Channel._sum,
    Product: Channel._product,
    Scaled: Channel._scaled,
    IndexLinear: Channel._index_linear,
    WindowMax: Channel._window_max,
    GroupedConvolution: Channel._depthwise,
    KnownNode: Channel._known,
}


def _distinct(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What stands in each row, once and in ascending order, and in which column everything is found now.

    Args:
        positions: `[groups, k]`.

    Returns:
        distinct: `[groups, d]`; rows with fewer than d different elements repeat the last.
        columns: `[groups, k]`, so that `take_along_axis(distinct, columns, 1)` is `positions`.
    """
    order = np.argsort(positions, axis=1, kind="stable")
    ascending = np.take_along_axis(positions, order, 1)
    rank = np.cumsum(np.diff(ascending, axis=1, prepend=ascending[:, :1]) != 0, axis=1)
    distinct = np.repeat(ascending[:, -1:], rank.max(initial=0) + 1, 1)
    columns = np.empty_like(rank)
    np.put_along_axis(distinct, rank, ascending, 1)
    np.put_along_axis(columns, order, rank, 1)
    return distinct, columns


def _taken(values: jax.Array, columns: np.ndarray) -> jax.Array:
    """The elements `[..., groups, columns]` of values `[..., groups, k]`."""
    first, k = columns[0], columns.shape[1]
    if (columns != first).any():
        return jnp.take_along_axis(values, jnp.asarray(columns).reshape((1,) * (values.ndim - 2) + columns.shape), -1)
    if (first == np.arange(first[0], first[0] + k)).all():
        return values[..., first[0] : first[0] + k]
    return values[..., first]


def _of_taps(found: jax.Array, taps: np.ndarray) -> jax.Array:
    """Values at `taps.reshape(groups, -1)` on the axes of the taps."""
    return found.reshape((*found.shape[:-1], *taps.shape[1:]))


def coordinates(positions: np.ndarray, sizes: tuple[int, ...]) -> list[np.ndarray]:
    """Flat indices as one array for each axis."""
    return list(np.unravel_index(positions, sizes)) if sizes else []


def _of_term(node: Sum, term: Term, positions: np.ndarray) -> np.ndarray:
    """The positions of a term at positions of the sum."""
    own = coordinates(positions, node.sizes)
    found = np.zeros_like(positions)
    for axis, size in zip(term.axes, term.node.sizes, strict=True):
        found = found * size + (own[axis] if size > 1 else 0)
    return found


def _rows(node: IndexLinear, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions of the operand that a map reads, and their weights: `[groups, k, taps]`, some of weight 0."""
    wanted, place = np.unique(positions, return_inverse=True)
    n = int(np.prod(node.operand.sizes))
    with jax.ensure_compile_time_eval():
        every = node.map.side(jnp.eye(n).reshape((*node.operand.sizes, n)))
    rows = np.asarray(every).reshape(-1, n)[wanted]
    taps = max(int((rows != 0).sum(-1).max(initial=0)), 1)
    found = np.argsort(rows == 0, axis=-1, kind="stable")[:, :taps]
    weights = np.take_along_axis(rows, found, -1)
    place = place.reshape(positions.shape)
    return found[place], weights[place]


def _windows(
    node: WindowMax | GroupedConvolution, windows: Sequence[Window], positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The positions of each window, and which of them exist: `[groups, k, taps]`."""
    sizes = node.operand.sizes
    found, inside = np.zeros((*positions.shape, 1), int), np.ones((*positions.shape, 1), bool)
    for window, size, place in zip(windows, sizes, coordinates(positions, node.sizes), strict=True):
        taps = window.stride * place[..., None] - window.low + window.dilation * np.arange(window.size)
        exists = (taps >= 0) & (taps < size)
        taps = np.clip(taps, 0, size - 1)
        found = (found[..., :, None] * size + taps[..., None, :]).reshape((*positions.shape, -1))
        inside = (inside[..., :, None] & exists[..., None, :]).reshape((*positions.shape, -1))
    return found, inside
