"""Stage 2, the data: a program is a small graph of random fields.

A *feature* is an array that is random over initialisation. Its axes are made of *atoms*: index atoms (space, time,
tokens) and channel atoms (which become infinite). Reshape and transpose only regroup atoms. Along its channels a
feature consists of *segments*; each is a range of channels of one *node*. A node is a field with one law for all its
channels: every moment of a node is a function of index positions alone, which is what makes kernels small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from infnet.errors import Where
from infnet.kernel import Law
from infnet.layout import Layout
from infnet.nodes import (
    ChannelSum,
    Node,
    Param,
)
from infnet.trace import Trace


class Atom(NamedTuple):
    """One factor of an array axis: the index axis or the channel axis `number` of a feature."""

    is_channel: bool
    number: int


@dataclass(frozen=True)
class Known:
    """A variable that depends on inputs and constants only, or on sums over channels, which concentrate.

    Attributes:
        var: the variable.
        varies: the axes along which its values may differ.
        constant: the same for every example.
        sums: the sums over channels that it is computed from.
        excess: for a sum of C channels that has not been divided by C yet, times how much it exceeds their mean (it
            fluctuates like this over sqrt(C)); 0 for all that has concentrated.
        squares: a sum of squares, which concentrates relative to its own size too.
        vanishing: a function of scores of mean zero, products summed over channels, that is zero as they are.
    """

    var: int
    varies: frozenset[int]
    constant: bool
    sums: frozenset[ChannelSum] = frozenset()
    excess: float = 0.0
    squares: bool = False
    vanishing: bool = False


@dataclass(frozen=True)
class Noise:
    """A variable of random numbers, drawn for every example; `varies`: the axes with independent numbers."""

    var: int
    varies: frozenset[int]


@dataclass(frozen=True)
class ScaledParam:
    """The parameter variable `param` times Known variables (to the power 1 or -1) of broadcasting shapes."""

    param: int
    factors: tuple[tuple[int, int], ...]


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
        polynomial: (c, b, a) where that function is c + b x + a x^2; None where it is not.
    """

    dims: tuple[tuple[Atom, ...], ...]
    channels: tuple[int, ...]
    segments: tuple[Segment, ...]
    base: int
    polynomial: tuple[float, float, float] | None = (0.0, 1.0, 0.0)

    @property
    def affine(self) -> tuple[float, float] | None:
        """(a, c) where that function is a x + c; None where it is not affine."""
        if self.polynomial is None or self.polynomial[2]:
            return None
        return self.polynomial[1], self.polynomial[0]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the index atoms."""
        return self.segments[0].node.sizes

    def size(self, atom: Atom) -> int:
        """The size of one atom."""
        return (self.channels if atom.is_channel else self.sizes)[atom.number]


Value = Known | Noise | Param | ScaledParam | Feature


@dataclass(frozen=True)
class Output:
    """An array that the model returns: the segments of its channels, averaged over.

    Attributes:
        where: the operation that made it.
        segments: of its channels.
        averaged: index atoms that were flattened together with the channels, and count as channels.
    """

    where: Where
    segments: tuple[Segment, ...]
    averaged: tuple[int, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of its index axes."""
        return self.segments[0].node.sizes

    @property
    def width(self) -> int:
        """The number of channels."""
        positions = [n for k, n in enumerate(self.sizes) if k in self.averaged]
        return sum(s.width for s in self.segments) * math.prod(positions)


class Piece(NamedTuple):
    """Channels of a pair of outputs that belong to one node each."""

    left: Segment
    right: Segment
    share: float  # of all channels


@dataclass(frozen=True)
class OutputPair:
    """What a kernel is computed of: an output with itself, or the covariance of two outputs, channel by channel."""

    one: Output
    two: Output
    pieces: tuple[Piece, ...]

    @property
    def is_cross(self) -> bool:
        """Whether these are two different outputs."""
        return self.one is not self.two

    @property
    def law(self) -> Law | None:
        """What a model that takes this output as its input needs to know; None of two different outputs."""
        if self.is_cross:
            return None
        nodes = [s.node for s in self.one.segments]
        alike = len(nodes) == 1 and not self.one.averaged and nodes[0].uniform
        # The derivative in a trained scale is the feature itself, and so random, until a contraction averages it.
        gaussian = alike and nodes[0].gaussian and not nodes[0].scales
        return Law(gaussian, all(node.zero_mean for node in nodes), alike)

    @property
    def positions(self) -> tuple[int, ...]:
        """The sizes of the axes of positions in the kernel, in any order."""
        kept = (size for k, size in enumerate(self.one.sizes) if k not in self.one.averaged)
        return (*kept, *(size for k, size in enumerate(self.two.sizes) if k not in self.two.averaged))

    @property
    def layout(self) -> Layout:
        """All pairs of positions; of those that count as channels, each with itself."""
        full = Layout.full(self.one.sizes, self.two.sizes)
        offsets = [(0,) if k in self.one.averaged else None for k in range(len(full.offsets))]
        return Layout(self.one.sizes, self.two.sizes, tuple(offsets))


@dataclass(frozen=True, eq=False)
class Program:
    """What a model computes, ready to be planned.

    Attributes:
        trace: the equations.
        outputs: what kernels are computed of.
        remarks: what a reader of `explain()` should know.
        fixed_scales: the parameters (by leaf) that multiply features and were taken for constants at initialisation.
    """

    trace: Trace
    outputs: tuple[OutputPair, ...]
    fixed_scales: frozenset[int] = frozenset()
    remarks: tuple[str, ...] = ()
