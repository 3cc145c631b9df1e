"""Stage 2, the data: a program is a small graph of random fields.

A *feature* is an array that is random over initialisation. Its axes are made of *atoms*: index atoms (space, time,
tokens) and channel atoms (which become infinite). Reshape and transpose only regroup atoms. Along its channels a
feature consists of *segments*; each is a range of channels of one *node*. A node is a field with one law for all its
channels: every moment of a node is a function of index positions alone, which is what makes kernels small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from infnet.activations import Activation
from infnet.custom import custom_kernel
from infnet.errors import UnsupportedError, Where
from infnet.layout import Layout
from infnet.primitives.contraction import Geometry
from infnet.trace import Trace


class Atom(NamedTuple):
    """One factor of an array axis: the index axis or the channel axis `number` of a feature."""

    is_channel: bool
    number: int


@dataclass(frozen=True)
class ParamKey:
    """A parameter array, or a slice of one: different slices are independent parameters."""

    leaf: int
    slices: tuple[tuple[int, int, int], ...] = ()  # (axis, start, stop) of the axes that are cut


@dataclass(frozen=True)
class Known:
    """A variable that depends on inputs and constants only.

    `varies`: the axes along which its values may differ; `constant`: the same for every example.
    """

    var: int
    varies: frozenset[int]
    constant: bool


@dataclass(frozen=True)
class Param:
    """A parameter times the number `scale`: `factors[d]` lists the leaf axes, with sizes, that axis d is made of."""

    key: ParamKey
    factors: tuple[tuple[tuple[Any, int], ...], ...]
    scale: float = 1.0


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
    """

    var: int
    index_axes: tuple[int, ...]
    channel_axes: tuple[int, ...]
    sizes: tuple[int, ...]
    channels: tuple[int, int]
    varies: bool
    varies_along_channels: bool
    power: int = 1


@dataclass(frozen=True, eq=False)
class Node:
    """A random field: what is common to all kinds.

    Attributes:
        index: order of creation, so that a node's operands have smaller numbers.
        sizes: of its index axes.
        where: the operation that made it.
        leaves: the parameters (and the channel offset at which they are read) that make it random, once everything
            below is deterministic. Fields with disjoint leaves are independent at infinite width.
        gaussian: jointly Gaussian with all other Gaussian nodes, at infinite width.
        zero_mean: the mean is zero for every input.
        uniform: all channels have the same law.
    """

    index: int
    sizes: tuple[int, ...]
    where: Where
    leaves: frozenset[tuple[ParamKey, int]] = field(repr=False)
    gaussian: bool
    zero_mean: bool
    uniform: bool = True


@dataclass(frozen=True, eq=False)
class KnownNode(Node):
    """Data, or a function of it."""

    field: Field = field(kw_only=True)


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


@dataclass(frozen=True, eq=False)
class Elementwise(Node):
    """A scalar function of one field: what it was recognised as, or the error that says why it was not."""

    operand: Node = field(kw_only=True)
    activation: Activation | UnsupportedError = field(kw_only=True)


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


class Segment(NamedTuple):
    """Channels [start, start + width) of a node."""

    node: Node
    start: int
    width: int


@dataclass(frozen=True)
class Feature:
    """An array that is random over initialisation.

    Attributes:
        dims: the atoms that each array axis is made of; () for axes of size 1.
        channels: sizes of its channel atoms.
        segments: what its channels are, in order. More than one only where there is one channel atom.
        base: the variable whose value the segments describe. If it is not the feature's own variable, the feature is
            an elementwise function of it that is still being read.
        affine: (a, c) where that function is a x + c; None where it is not affine.
    """

    dims: tuple[tuple[Atom, ...], ...]
    channels: tuple[int, ...]
    segments: tuple[Segment, ...]
    base: int
    affine: tuple[float, float] | None = (1.0, 0.0)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the index atoms."""
        return self.segments[0].node.sizes

    def size(self, atom: Atom) -> int:
        """The size of one atom."""
        return (self.channels if atom.is_channel else self.sizes)[atom.number]


Value = Known | Param | Feature


@dataclass(frozen=True)
class Output:
    """What a kernel is computed of: the segments of the output's channels, averaged over.

    `averaged`: index atoms that were flattened together with the channels, and count as channels.
    """

    segments: tuple[Segment, ...]
    averaged: tuple[int, ...]

    @property
    def layout(self) -> Layout:
        """All pairs of positions; of those that count as channels, each with itself."""
        sizes = self.segments[0].node.sizes
        offsets = tuple((0,) if k in self.averaged else None for k in range(len(sizes)))
        return Layout(sizes, sizes, offsets)

    @property
    def width(self) -> int:
        """The number of channels."""
        positions = [n for k, n in enumerate(self.layout.left) if k in self.averaged]
        return sum(s.width for s in self.segments) * math.prod(positions)


@dataclass(frozen=True, eq=False)
class Program:
    """What a model computes, ready to be planned: the trace and its output."""

    trace: Trace
    output: Output
