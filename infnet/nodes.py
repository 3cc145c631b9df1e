"""Stage 2, the random fields: a node is a field with one law for all its channels.

So every moment of a node is a function of index positions alone, which is what makes kernels small.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from infnet._jax import ClosedJaxpr
from infnet.activations import Activation
from infnet.custom import custom_kernel
from infnet.errors import UnsupportedError, Where
from infnet.primitives.contraction import Geometry
from infnet.primitives.windows import Window


class ParamKey(NamedTuple):
    """A parameter array, or a slice of one: different slices are independent parameters."""

    leaf: int
    slices: tuple[tuple[int, int, int], ...] = ()  # (axis, start, stop) of the axes that are cut


Leaf = tuple[ParamKey, int | None]  # and the channel offset at which it is read; None if several channels are read


def shifted(leaves: frozenset[Leaf], shift: int) -> frozenset[Leaf]:
    """The leaves of channel c + shift."""
    if not shift:
        return leaves
    return frozenset((key, None if start is None else start + shift) for key, start in leaves)


def meet(one: frozenset[Leaf], two: frozenset[Leaf]) -> bool:
    """Whether two sets of leaves have an element of a parameter in common."""
    if not one.isdisjoint(two):
        return True
    return _contain(one, _read_at_several(two)) or _contain(two, _read_at_several(one))


def _contain(leaves: frozenset[Leaf], keys: frozenset[ParamKey]) -> bool:
    return bool(keys) and any(key in keys for key, _ in leaves)


@lru_cache(maxsize=2**14)  # deep residual networks have many leaves, and ask for each pair of nodes
def _read_at_several(leaves: frozenset[Leaf]) -> frozenset[ParamKey]:
    return frozenset(key for key, start in leaves if start is None)


@dataclass(frozen=True)
class Mask:
    """Constants that multiply a parameter, with one axis for each of its array: of size 1 where they do not vary.

    `entries`: float64 in row-major order, as bytes: masks with the same numbers are the same.
    """

    shape: tuple[int, ...]
    entries: bytes

    @classmethod
    def of(cls, array: np.ndarray) -> Mask:
        """The mask with these numbers."""
        return cls(array.shape, np.ascontiguousarray(array, np.float64).tobytes())

    @property
    def array(self) -> np.ndarray:
        """The numbers."""
        return np.frombuffer(self.entries).reshape(self.shape)


@dataclass(frozen=True)
class Param:
    """A parameter times the number `scale`, and times the array `mask` if there is one, plus `offset`.

    `factors[d]` lists the leaf axes, with sizes, that axis d is made of: `axis` for a whole axis of the parameter's
    array, `("reversed", axis)` for one that is read backwards, other names for parts of one. An axis of the array that
    is longer than its factors repeats the parameter. `kurtosis`: the excess kurtosis of its elements; None where it is
    not the same for all.
    """

    key: ParamKey
    factors: tuple[tuple[tuple[Any, int], ...], ...]
    scale: float = 1.0
    offset: float = 0.0
    mask: Mask | None = None
    kurtosis: float | None = 0.0

    def ratio(self, other: Param) -> float:
        """The scale of this one, over that of another; 0 if that is 0, as what is multiplied by it is then."""
        return self.scale / other.scale if other.scale else 0.0


@dataclass(frozen=True)
class Field:
    """How a Known variable is read as an array `[*sizes, channels]`; its other axes have size 1.

    Attributes:
        var: the variable.
        index_axes, channel_axes: its axes that hold positions and channels, in order.
        sizes: of the index axes; an axis of the variable may be several of them.
        channels: (start, stop) of the channels that are read.
        varies: whether the values differ along the index axes; where not, the axis has size 1 when read.
        varies_along_channels: the same for the channels.
        power: 1, or -1 for the reciprocal.
        sums: the sums over channels that the variable is computed from.
    """

    var: int
    index_axes: tuple[int, ...]
    channel_axes: tuple[int, ...]
    sizes: tuple[int, ...]
    channels: tuple[int, int]
    varies: bool
    varies_along_channels: bool
    power: int = 1
    sums: frozenset[ChannelSum] = frozenset()


@dataclass(frozen=True, eq=False)
class Node:
    """A random field: what is common to all kinds.

    Attributes:
        index: order of creation, so that a node's operands have smaller numbers.
        sizes: of its index axes.
        where: the operation that made it.
        leaves: the parameters (and the channel offset at which they are read, None if channels are read at several)
            that make it random, once everything below is deterministic. Fields with disjoint leaves are independent
            at infinite width.
        gaussian: jointly Gaussian with all other Gaussian nodes, at infinite width.
        zero_mean: the mean is zero for every input.
        uniform: all channels have the same law.
        scales: the trained scales that multiply it, with no contraction in between: its derivatives in them are random.
    """

    index: int
    sizes: tuple[int, ...]
    where: Where
    leaves: frozenset[Leaf] = field(repr=False)
    gaussian: bool
    zero_mean: bool
    uniform: bool = True
    scales: frozenset[ParamKey] = frozenset()


@dataclass(frozen=True, eq=False)
class KnownNode(Node):
    """Data, or a function of it."""

    field: Field = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class InputFeature(Node):
    """What another model returns: an input that is random itself, of which a `Kernel` gives the moments."""


@dataclass(frozen=True, eq=False)
class OneNode(Node):
    """The constant 1."""


@dataclass(frozen=True, eq=False)
class ParamNode(Node):
    """A parameter that is added: a bias, or learned positions if it has index axes."""

    param: Param = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Contraction(Node):
    """A weight contracted with channels [start, start + channels) of `operand`, over windows of its positions."""

    param: Param = field(kw_only=True)
    operand: Node = field(kw_only=True)
    start: int = field(kw_only=True)
    channels: int = field(kw_only=True)
    geometry: Geometry = field(kw_only=True)
    # The axis of the parameter array behind each index axis of the operand: None if there is none, -1 if it is
    # not one whole axis.
    weight_axes: tuple[int | None, ...] = field(kw_only=True)
    # The index axes of the operand along which every position has a weight of its own.
    own_weights: frozenset[int] = field(kw_only=True, default=frozenset())


@dataclass(frozen=True, eq=False)
class GroupedConvolution(Contraction):
    """A depthwise or grouped convolution: every `channels` channels of `operand`, a group, have weights of their own.

    Groups do not become larger as the network becomes wide, so this is a Gaussian field of random variance.
    `filters`: how many channels are made of each group.
    """

    filters: int = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Unfolded(Node):
    """Channels as positions: the index axes after those of `operand` step through its channels.

    Channel c at the positions p of the new axes is channel `start + sum(steps * p) + stride * c` of `operand`.
    """

    operand: Node = field(kw_only=True)
    start: int = field(kw_only=True)
    steps: tuple[int, ...] = field(kw_only=True)
    stride: int = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Lookup(Node):
    """Rows of a parameter at Known indices: an embedding.

    Attributes:
        param: the table.
        indices: which row is read at each position.
        rows: of the table.
        outside: what the model reads at an index that is not one of a row: the nearest row (None), or this number.
    """

    param: Param = field(kw_only=True)
    indices: Field = field(kw_only=True)
    rows: int = field(kw_only=True)
    outside: float | None = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Elementwise(Node):
    """A scalar function of one field: what it was recognised as, or the error that says why it was not.

    Attributes:
        operand: its argument.
        activation: its kernels.
        chain: the function itself, a jaxpr of one array to one array.
        gradients: of the operand in the trained scales that multiply it; None where infnet has no rule for them.
    """

    operand: Node = field(kw_only=True)
    activation: Activation | UnsupportedError = field(kw_only=True)
    chain: ClosedJaxpr = field(kw_only=True, repr=False)
    gradients: tuple[ScaleGradient, ...] | None = field(kw_only=True, default=())


@dataclass(frozen=True, eq=False)
class Scaled(Node):
    """Channel c is a parameter's element c times channel c + start of `operand`.

    `axes`: the index axes along which the parameter has elements of its own; `shared`: all channels share one.
    """

    operand: Node = field(kw_only=True)
    param: Param = field(kw_only=True)
    start: int = field(kw_only=True)
    axes: tuple[int, ...] = field(kw_only=True)
    shared: bool = field(kw_only=True)


class ScaleGradient(NamedTuple):
    """The derivative of a linear node's channel c in element c + `channel` of a trained scale: channel c of `node`."""

    scale: Scaled
    channel: int
    node: Node


@dataclass(frozen=True, eq=False)
class Dropped(Node):
    """Channel c is channel c + start of `operand` times a random number of every example.

    Attributes:
        operand, start: what is multiplied.
        noise: which numbers these are.
        mean, second: their mean and second moment.
        axes: the index axes along which every position has a number of its own.
    """

    operand: Node = field(kw_only=True)
    start: int = field(kw_only=True)
    noise: ParamKey = field(kw_only=True)
    mean: float = field(kw_only=True)
    second: float = field(kw_only=True)
    axes: tuple[int, ...] = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Product(Node):
    """Channel c is the product of channels c + starts[0] and c + starts[1] of the two factors."""

    factors: tuple[Node, Node] = field(kw_only=True)
    starts: tuple[int, int] = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class GroupSum(Node):
    """Channel c is the sum of `count` channels of `operand` of mean zero, from channel count * c on.

    It is Gaussian, by the central limit theorem.
    """

    operand: Node = field(kw_only=True)
    count: int = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Repeated(Node):
    """Channel c is channel start + stride * (c // times) of `operand`; `groups`: how many of these are read."""

    operand: Node = field(kw_only=True)
    start: int = field(kw_only=True)
    stride: int = field(kw_only=True)
    times: int = field(kw_only=True)
    groups: int = field(kw_only=True)


class SummedPart(NamedTuple):
    """`weight` times the sum over channels of u, or of the product of u and v."""

    weight: float
    u: Node
    v: Node | None = None
    shift: int = 0


@dataclass(frozen=True, eq=False)
class ChannelSum(Node):
    """A sum over channels: of features, their squares, or products of two. At infinite width it is its mean.

    Attributes:
        var: the variable that it is.
        parts: what is summed.
        pairs: products are of all pairs of positions of the two factors; else of equal ones.
        subscripts: for `einsum`, from the positions of the parts to those of the sum.
    """

    var: int = field(kw_only=True)
    parts: tuple[SummedPart, ...] = field(kw_only=True)
    pairs: bool = field(kw_only=True)
    subscripts: str = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Custom(Node):
    """An operation with a kernel rule of its own: of single channels of `operand`, or of all if it has params."""

    operand: Node = field(kw_only=True)
    operation: custom_kernel = field(kw_only=True)
    params: tuple[Param, ...] = field(kw_only=True)
    channels: int = field(kw_only=True)


class Term(NamedTuple):
    """One summand: coefficient times `node`, from channel `start` on; its index axes are `axes` of the sum."""

    coefficient: float | Field
    node: Node
    start: int
    axes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Sum(Node):
    """A linear combination of fields with known coefficients."""

    terms: tuple[Term, ...] = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class IndexLinear(Node):
    """A fixed linear map of the positions of `operand`: slice, pad, flip, pooling, sums, reshape ..."""

    operand: Node = field(kw_only=True)
    map: Any = field(kw_only=True)
    rule: str = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class WindowMax(Node):
    """The largest value of `operand` in windows of its positions, as max-pooling has it."""

    operand: Node = field(kw_only=True)
    windows: tuple[Window, ...] = field(kw_only=True)


@dataclass(frozen=True, eq=False)
class Aggregation(Node):
    """A linear map of the positions of `operand` whose matrix is Known: adjacency, attention weights.

    `subscripts`: for `einsum`, of the matrix and the positions of the operand to those of the result.
    """

    operand: Node = field(kw_only=True)
    matrix: Field = field(kw_only=True)
    subscripts: str = field(kw_only=True)
    rule: str = field(kw_only=True, default="aggregate")
