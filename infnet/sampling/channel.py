"""One channel of a node as a function of Gaussian fields.

From the node backwards: sums, products, nonlinearities and maps of positions are followed, each with the positions at
which it is needed, until Gaussian fields are reached. These are the *slots* of the function.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from infnet.activations.chains import obstacle
from infnet.activations.pointwise import callable_of
from infnet.errors import UnsupportedError
from infnet.errors.functions import NOT_SAMPLED
from infnet.nodes import Elementwise, Field, IndexLinear, Node, OneNode, ParamKey, Product, Scaled, Sum, Term, WindowMax

Read = Callable[[Field], jax.Array]  # a Known variable as an array [*sizes, channels]
# Values of the slots, `[..., entries, width]`, to values of the channel at the positions that were asked for.
Function = Callable[[Read, jax.Array], jax.Array]


@dataclass(frozen=True)
class Slot:
    """A Gaussian field at some positions: for entry m of a block at `positions[m]`, flat indices.

    `channel`: of the field, relative to the channel of the function. The node of a trained scale stands for the scale.
    """

    node: Node
    channel: int
    positions: np.ndarray

    @property
    def scale(self) -> ParamKey | None:
        """Which trained scale it is, if it is one: a constant, which is in the NTK."""
        return self.node.param.key if isinstance(self.node, Scaled) else None

    @property
    def width(self) -> int:
        """The number of positions for each entry."""
        return self.positions.shape[1]


class Channel:
    """Channel `channel` of a node, at one position for each entry of a block.

    Attributes:
        slots: what it is a function of.
        fields: the Known variables that it reads.
    """

    def __init__(self, node: Node, channel: int, positions: np.ndarray, refusal: UnsupportedError):
        """Follow the node back to Gaussian fields; what cannot be followed raises `refusal`.

        Args:
            node: whose channel it is.
            channel: which, relative to that of the request.
            positions: of each entry, flat indices `[entries]`.
            refusal: why there is no closed form.
        """
        self.slots: list[Slot] = []
        self.fields: dict[Field, None] = {}
        self._refusal = refusal
        self._function = self._of(node, channel, positions[:, None])

    @property
    def width(self) -> int:
        """The number of values that it is a function of."""
        return sum(slot.width for slot in self.slots)

    def __call__(self, read: Read, values: jax.Array) -> jax.Array:
        """Its values `[..., entries]`, from those of the slots, `[..., entries, width]`."""
        return self._function(read, values)[..., 0]

    def _of(self, node: Node, channel: int, positions: np.ndarray) -> Function:
        """The function that computes a node at `positions[entries, k]`."""
        if isinstance(node, OneNode):
            return lambda read, values: jnp.ones(positions.shape, values.dtype)
        if node.gaussian and not node.scales:
            return self._slot(Slot(node, channel, positions))
        if not node.uniform or type(node) not in FOLLOWED:
            raise self._refused(node)
        return FOLLOWED[type(node)](self, node, channel, positions)

    def _refused(self, node: Node) -> UnsupportedError:
        """The error for a node that is no function of single channels."""
        first = self._refusal
        return NOT_SAMPLED.at(first.where, what=first.what, why=first.why, node=type(node).__name__, place=node.where)

    def _slot(self, slot: Slot) -> Function:
        start = 0
        for other in self.slots:
            same = (other.node, other.channel) == (slot.node, slot.channel)
            if same and np.array_equal(other.positions, slot.positions):
                break
            start += other.width
        else:
            self.slots.append(slot)
        return lambda read, values: values[..., start : start + slot.width]

    def _elementwise(self, node: Elementwise, channel: int, positions: np.ndarray) -> Function:
        if obstacle(node.chain) is not None:
            raise self._refused(node)
        function, operand = callable_of(node.chain, custom_rules=True), self._of(node.operand, channel, positions)
        return lambda read, values: function(operand(read, values))

    def _sum(self, node: Sum, channel: int, positions: np.ndarray) -> Function:
        parts = [
            (self._coefficient(node, term, positions), self._of(term.node, channel + term.start, where))
            for term in node.terms
            for where in [_of_term(node, term, positions)]
        ]

        def function(read: Read, values: jax.Array) -> jax.Array:
            return sum((factor(read) * part(read, values) for factor, part in parts), jnp.zeros((), values.dtype))

        return function

    def _coefficient(self, node: Sum, term: Term, positions: np.ndarray) -> Callable[[Read], jax.Array | float]:
        coefficient = term.coefficient
        if not isinstance(coefficient, Field):
            return lambda read: coefficient
        self.fields[coefficient] = None

        def read_at(read: Read) -> jax.Array:
            values = read(coefficient).mean(-1)
            values = values.reshape((*values.shape, *(1,) * (len(node.sizes) - values.ndim)))
            return jnp.broadcast_to(values, node.sizes).reshape(-1)[positions]

        return read_at

    def _product(self, node: Product, channel: int, positions: np.ndarray) -> Function:
        one, two = (self._of(n, channel + c, positions) for n, c in zip(node.factors, node.starts, strict=True))
        return lambda read, values: one(read, values) * two(read, values)

    def _scaled(self, node: Scaled, channel: int, positions: np.ndarray) -> Function:
        if node.axes or node.shared or any(key == node.param.key for key, _ in node.leaves):
            raise self._refused(node)
        scale = self._slot(Slot(node, channel, np.zeros((len(positions), 1), int)))
        operand = self._of(node.operand, channel + node.start, positions)
        return lambda read, values: scale(read, values) * operand(read, values)

    def _index_linear(self, node: IndexLinear, channel: int, positions: np.ndarray) -> Function:
        taps, weights = _rows(node, positions)
        operand = self._of(node.operand, channel, taps.reshape(len(taps), -1))

        def function(read: Read, values: jax.Array) -> jax.Array:
            found = operand(read, values)
            found = found.reshape((*found.shape[:-1], *taps.shape[1:]))
            return (found * jnp.asarray(weights, found.dtype)).sum(-1)

        return function

    def _window_max(self, node: WindowMax, channel: int, positions: np.ndarray) -> Function:
        taps, inside = _windows(node, positions)
        operand = self._of(node.operand, channel, taps.reshape(len(taps), -1))

        def function(read: Read, values: jax.Array) -> jax.Array:
            found = operand(read, values)
            found = found.reshape((*found.shape[:-1], *taps.shape[1:]))
            return jnp.where(inside, found, -jnp.inf).max(-1)

        return function


FOLLOWED: dict[type[Node], Callable[..., Function]] = {
    Elementwise: Channel._elementwise,
    Sum: Channel._sum,
    Product: Channel._product,
    Scaled: Channel._scaled,
    IndexLinear: Channel._index_linear,
    WindowMax: Channel._window_max,
}


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
    """The positions of the operand that a map reads, and their weights: `[entries, k, taps]`, some of weight 0."""
    n = int(np.prod(node.operand.sizes))
    with jax.ensure_compile_time_eval():
        every = node.map.side(jnp.eye(n).reshape((*node.operand.sizes, n)))
    rows = np.asarray(every).reshape(-1, n)[positions]
    taps = max(int((rows != 0).sum(-1).max(initial=0)), 1)
    found = np.argsort(rows == 0, axis=-1, kind="stable")[..., :taps]
    return found, np.take_along_axis(rows, found, -1)


def _windows(node: WindowMax, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The positions of each window, and which of them exist: `[entries, k, taps]`."""
    sizes = node.operand.sizes
    found, inside = np.zeros((*positions.shape, 1), int), np.ones((*positions.shape, 1), bool)
    for window, size, place in zip(node.windows, sizes, coordinates(positions, node.sizes), strict=True):
        taps = window.stride * place[..., None] - window.low + window.dilation * np.arange(window.size)
        exists = (taps >= 0) & (taps < size)
        taps = np.clip(taps, 0, size - 1)
        found = (found[..., :, None] * size + taps[..., None, :]).reshape((*positions.shape, -1))
        inside = (inside[..., :, None] & exists[..., None, :]).reshape((*positions.shape, -1))
    return found, inside
