"""One channel of a node as a function of Gaussian fields.

From the node backwards: sums, products, nonlinearities and maps of positions are followed, each with the positions at
which it is needed, until Gaussian fields are reached. These are the *slots* of the function. Positions that depend on
the same Gaussian variables, as those of a softmax over tokens, are a *group*: they are computed together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
from infnet.rules.words import in_words
from infnet.sampling.positions import distinct, of_taps, of_term, taken, taps_of_map, taps_of_windows
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
        once, columns = distinct(positions)
        key = (node.index, channel, once.tobytes())
        if key not in self._numbers:
            line = self._line(node, channel, once)
            self._numbers[key] = len(self._lines)
            self._lines.append(line)
        number = self._numbers[key]
        return lambda values: taken(values.lines[number], columns)

    def _settled(self) -> tuple[list[Slot], dict[tuple[Node | Weight, int], list[np.ndarray]]]:
        """The slots, and in which columns of all their values each line that reads one finds what it needs."""
        slots: list[Slot] = []
        columns = {}
        for (source, channel), parts in self._read_at.items():
            once, found = distinct(np.concatenate(parts, 1))
            start = sum(slot.width for slot in slots)
            slots.append(Slot(source, channel, once))
            columns[source, channel] = np.split(start + found, np.cumsum([part.shape[1] for part in parts])[:-1], 1)
        return slots, columns

    def _line(self, node: Node, channel: int, positions: np.ndarray) -> Line:
        if isinstance(node, OneNode):
            return lambda values: jnp.ones(positions.shape, values.slots.dtype)
        if node.gaussian and not node.scales and not _has_constants(node, positions):
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
        return lambda values: taken(values.slots, self._columns[source, channel][number])

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
        terms = [self._at(t.node, channel + t.start, of_term(node, t, positions)) for t in node.terms]

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
        taps, inside = taps_of_windows(node, windows, positions)
        operand = self._at(node.operand, channel + node.start, taps.reshape(self.groups, -1))
        filters = Weight(node.param, node.weight_axes, tuple(window.size for window in windows))
        weights = self._weight(node, filters, channel)
        return lambda values: (
            jnp.where(inside, of_taps(operand(values), taps), 0) * weights(values)[..., None, :]
        ).sum(-1)

    def _index_linear(self, node: IndexLinear, channel: int, positions: np.ndarray) -> Line:
        taps, weights = taps_of_map(node, positions)
        operand = self._at(node.operand, channel, taps.reshape(self.groups, -1))

        def line(values: Values) -> jax.Array:
            parts = of_taps(operand(values), taps) * weights.astype(values.slots.dtype)
            return jnp.where(weights != 0, parts, 0).sum(-1)  # what is not read may be -inf

        return line

    def _window_max(self, node: WindowMax, channel: int, positions: np.ndarray) -> Line:
        taps, inside = taps_of_windows(node, node.windows, positions)
        operand = self._at(node.operand, channel, taps.reshape(self.groups, -1))
        return lambda values: jnp.where(inside, of_taps(operand(values), taps), -jnp.inf).max(-1)


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


def _has_constants(node: Node, positions: np.ndarray) -> bool:
    """Whether a Gaussian node is followed, so that what is constant in it is not a part of a field.

    The variance of a sum with a large constant, as a mask of -1e9, would be lost in the rounding of its second moment.
    """
    if node.zero_mean:
        return False
    if isinstance(node, IndexLinear):  # a mean over positions is fewer numbers than these
        return taps_of_map(node, positions)[0].shape[-1] == 1
    return isinstance(node, Sum | KnownNode)
