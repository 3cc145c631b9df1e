"""From a program to the feature maps of its nodes: one rule for each kind of node.

With A the map for the NNGP S and B the one for the NTK T, in the notation of `blocks`, for C channels, a weight of
variance s^2 and gradient factor g^2 (see `Context.weight_factors`):

    dense, W h        A = s sqrt(C) A_h in spaces of W           B = (s sqrt(C) B_h, g sqrt(C) A_h)
    bias              A = s * 1                                  B = g * 1
    sum of c_k u_k    A = sum of c_k A_k                         B = sum of c_k B_k
    phi(g)            A = (m, d A_g, z)                          B = (d' B_g, y)

The last row, for a Gaussian field g of mean mu, covariance C_g and variance q, is the part of its Hermite series that
is known exactly (Daniely et al., arXiv:1602.05897, section 4), and random features of what is left:

    m = E phi(g),  d = E phi(g) (g - mu) / q,  d' = E phi'(g)                                   exactly, by Stein
    z_j = (phi(v_j) - m - d (v_j - mu)) / sqrt(m_z)         v_j = mu + <A_g, w_j>,  w_j ~ N(0, I)
    y_j = (R B_g)_j (phi'(v_j) - d')                        R random and orthogonal: `projections.mixed`

so that E <A, A> = m m' + d d' C_g + E[rest rest'] = E[phi phi'] and E <B, B> = d' d' T_g + T_g (E[phi' phi'] - d' d').
Random features of an activation, and a random map of the product T_g K', are those of Zandieh et al. (arXiv:2106.07880,
Algorithm 2), expansions in Hermite polynomials those of Han et al. (arXiv:2209.04121); to take both, and to subtract
what is known, is our own. The largest terms of the kernels are then free of noise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax.numpy as jnp
import numpy as np

from infnet.activations.closed_forms import Homogeneous
from infnet.context import Context
from infnet.errors import InputError, UnsupportedError
from infnet.errors.features import PART_OF_UNLIKE_CHANNELS
from infnet.errors.programs import (
    FEATURES_OF_DEPENDENT_LAYERS,
    FEATURES_OF_NORM,
    FEATURES_OF_OPERATION,
    FEATURES_OF_POSITIONS,
    FEATURES_OF_SCALE,
    FEATURES_OF_SEVERAL_INPUTS,
)
from infnet.nodes import (
    Contraction,
    Elementwise,
    Field,
    GroupedConvolution,
    KnownNode,
    Node,
    OneNode,
    Param,
    ParamNode,
    Sum,
)
from infnet.plan import Ask, Plan
from infnet.program import Output, Program
from infnet.random_features.blocks import ONE, Base, Block, Map, Scalar, Space, added, merged, scaled, width

MOST_BLOCKS = 256
MEAN = "mean"  # the space of what is not random: the same for all channels


@dataclass(frozen=True)
class Maps:
    """The feature maps of a node for S and T."""

    s: Map
    t: Map


@dataclass(frozen=True)
class Sizes:
    """How many columns a base has at most: of random features, of the random map of a product, of inputs.

    `limit`: of the columns of a whole map; wider ones are compressed to it.
    """

    sampled: int
    mixed: int
    known: int
    limit: int


@dataclass(frozen=True)
class Structure:
    """What is known before any number is.

    Attributes:
        output: what features are made of.
        nodes: all that it depends on, in order.
        smooth: the nonlinearities (by index) with d = d'.
        untrained, constant: parameters (by leaf) that are not trained, and that are not random.
        ntk: whether maps for T are wanted.
    """

    output: Output
    nodes: tuple[Node, ...]
    smooth: frozenset[int]
    untrained: frozenset[int]
    constant: frozenset[int]
    ntk: bool

    @property
    def nonlinear(self) -> list[Elementwise]:
        """The nonlinearities, in order."""
        return [node for node in self.nodes if isinstance(node, Elementwise)]

    @cached_property
    def fields(self) -> list[Field]:
        """The known values that are read."""
        found = [node.field for node in self.nodes if isinstance(node, KnownNode)]
        terms = [term for node in self.nodes if isinstance(node, Sum) for term in node.terms]
        return list(dict.fromkeys([*found, *(t.coefficient for t in terms if isinstance(t.coefficient, Field))]))

    def walk(self, context: Context | None, sizes: Sizes) -> Walk:
        """The maps of all nodes; without a context, for their widths alone."""
        walk = Walk(self, context, sizes)
        for node in self.nodes:
            walk.found[node.index] = RULES[type(node)](walk, node)
        return walk


def structure(
    program: Program, plan: Plan, ntk: bool, untrained: frozenset[int], constant: frozenset[int]
) -> Structure:
    """What the features of a program consist of.

    Args:
        program: of one example.
        plan: of its kernel between two examples.
        ntk: whether that is the NTK.
        untrained, constant: parameters (by leaf) that are not trained, and that are not random.

    Raises:
        UnsupportedError: there is no rule for a node.
        InputError: the model has several outputs.
    """
    if len(program.outputs) != 1:
        raise InputError(
            f"features are of one output, but this kernel function has {len(program.outputs)}: choose one with output= "
            "when the kernel function is made"
        )
    output = program.outputs[0].one
    nodes = _needed(s.node for s in output.segments)
    for node in nodes:
        _check(node)
    _check_pairs(plan)
    smooth = frozenset(node.index for node in nodes if isinstance(node, Elementwise) and _is_smooth(node))
    return Structure(output, nodes, smooth, untrained, constant, ntk)


def _needed(outputs: Iterable[Node]) -> tuple[Node, ...]:
    """The nodes that others depend on, in order."""
    waiting, found = list(outputs), dict[int, Node]()
    while waiting:
        node = waiting.pop()
        if node.index not in found:
            found[node.index] = node
            waiting.extend(_operands(node))
    return tuple(found[k] for k in sorted(found))


def _operands(node: Node) -> Sequence[Node]:
    if isinstance(node, Sum):
        return [term.node for term in node.terms]
    return [node.operand] if isinstance(node, Contraction | Elementwise) else []


# What has no rule


def _check(node: Node) -> None:
    kind = type(node).__name__
    if isinstance(node, GroupedConvolution) or type(node) not in RULES:
        raise FEATURES_OF_OPERATION.at(node.where, kind=kind)
    if node.sizes or (isinstance(node, Contraction) and node.operand.sizes):
        sizes = node.sizes or getattr(node, "operand", node).sizes
        raise FEATURES_OF_POSITIONS.at(node.where, sizes=sizes)
    fields = [t.coefficient for t in node.terms] if isinstance(node, Sum) else [getattr(node, "field", None)]
    for known in fields:
        if isinstance(known, Field) and (known.sums or (isinstance(node, Sum) and known.varies_along_channels)):
            raise (FEATURES_OF_NORM if known.sums else FEATURES_OF_SCALE).at(node.where)
    if isinstance(node, Sum) and sum(_varies(t.node) for t in node.terms) > 1:
        raise FEATURES_OF_SEVERAL_INPUTS.at(node.where)
    if isinstance(node, Contraction) and _varies(node.operand) and node.start:
        raise PART_OF_UNLIKE_CHANNELS.at(node.where)


def _varies(node: Node) -> bool:
    """Whether inputs that vary along the channels are in a node, unmixed by a weight."""
    return not node.uniform


def _check_pairs(plan: Plan) -> None:
    """Refuse joint moments of different random features, or of two uses of one weight."""
    for step in plan.steps:
        ask = step.request
        kinds = (Contraction, Elementwise)
        if not isinstance(ask, Ask) or type(ask.u) is not type(ask.v) or not isinstance(ask.u, kinds):
            continue
        if not ask.independent and (ask.u is not ask.v or ask.shift):
            raise FEATURES_OF_DEPENDENT_LAYERS.at(ask.v.where)


def _is_smooth(node: Elementwise) -> bool:
    """Whether d = d': there are no jumps, and `jax.grad` gives the derivative of the values."""
    assert not isinstance(node.activation, UnsupportedError)
    mean = None if node.operand.zero_mean else jnp.full(3, 0.3)
    slopes = node.activation.mean_slopes(jnp.asarray([0.1, 1.0, 3.0]), mean)
    return bool(np.allclose(*slopes, rtol=1e-5))


# The rules


@dataclass
class Walk:
    """The maps of the nodes of a structure.

    Attributes:
        structure, context, sizes: what they follow from.
        found: the maps of each node so far, by index.
        compressed: the blocks that each compressed base is made of.
    """

    structure: Structure
    context: Context | None
    sizes: Sizes
    found: dict[int, Maps] = field(default_factory=dict)
    compressed: dict[Base, list[Block]] = field(default_factory=dict)

    @property
    def output(self) -> list[Block]:
        """The blocks of the output's map for the kernel that is wanted: averaged over channels."""
        blocks: list[Block] = []
        for segment in self.structure.output.segments:
            share = np.sqrt(segment.width / self.structure.output.width)
            found = self.found[segment.node.index]
            blocks.extend(block.times(share) for block in (found.t if self.structure.ntk else found.s).values())
        return blocks

    def columns(self, blocks: Iterable[Block]) -> int:
        """The number of columns of blocks."""
        return width(blocks, self.width)

    def compressed_at(self, node: Node) -> list[Base]:
        """The bases that stand for blocks of the operand of a node."""
        return [base for base in self.compressed if base.which[1] == node.index]

    def width(self, base: Base) -> int:
        """The number of columns of a base."""
        if base == ONE:
            return 1
        if base.kind == "compressed":
            return min(self.sizes.limit, self.columns(self.compressed[base]))
        if base.kind == "known":
            start, stop = base.which.channels
            return min(stop - start, self.sizes.known)
        return self.sizes.sampled if base.kind == "sampled" else self.sizes.mixed

    def factors(self, param: Param) -> tuple[Any, Any]:
        """s and g of a parameter, 0 where they are zero for certain."""
        leaf = param.key.leaf
        squares = (1.0, 1.0) if self.context is None else self.context.weight_factors(param, ())
        s, g = (_root(square) for square in squares)
        no_gradient = leaf in self.structure.untrained or not self.structure.ntk
        return 0 if leaf in self.structure.constant else s, 0 if no_gradient else g

    def mean(self, param: Param) -> Any:
        """The mean of a parameter."""
        return 1.0 if self.context is None else self.context.mean(param).reshape(())

    def known_mean(self, field: Field) -> Scalar:
        """The mean over the channels of known values."""
        return Scalar("known mean", self.structure.fields.index(field))

    def in_new_spaces(self, space: Any, one: Map, node: Node) -> Map:
        """The same map up to rotations, in few blocks: what a weight, or a derivative in it, is multiplied with."""
        blocks = merged(one.values())
        if len(blocks) > MOST_BLOCKS or self.columns(blocks) > self.sizes.limit:
            base = Base("compressed", (space[0], node.index))
            self.compressed[base] = blocks
            blocks = [Block.of(base)]
        return {(*space, number): block for number, block in enumerate(blocks)}


def _root(x: Any) -> Any:
    """The square root of a number, with derivative 0 at 0."""
    if isinstance(x, float):
        return math.sqrt(x)
    return (jnp.sqrt(jnp.where(x > 0, x, 1)) * (x > 0)).reshape(())


def _one(walk: Walk, node: OneNode) -> Maps:
    return Maps({MEAN: Block.of(ONE)}, {})


def _known(walk: Walk, node: KnownNode) -> Maps:
    """The mean over the channels, and the difference from it."""
    blocks: dict[Space, Block] = {MEAN: Block.of(ONE, 1.0, walk.known_mean(node.field))}
    if node.field.varies_along_channels:
        blocks["known", node.field] = Block.of(Base("known", node.field))
    return Maps(blocks, {})


def _bias(walk: Walk, node: ParamNode) -> Maps:
    s, g = walk.factors(node.param)
    space = ("bias", node.param.key)
    mean: Map = {} if node.zero_mean else {MEAN: Block.of(ONE, walk.mean(node.param))}
    return Maps({**mean, **_times({space: Block.of(ONE)}, s)}, _times({space: Block.of(ONE)}, g))


def _dense(walk: Walk, node: Contraction) -> Maps:
    s, g = (f * np.sqrt(node.channels) for f in walk.factors(node.param))
    operand, key = walk.found[node.operand.index], node.param.key
    a = _times(walk.in_new_spaces(("weight", key), operand.s, node), s)
    own = _times(walk.in_new_spaces(("own weight", key), operand.s, node), g)
    before = _times(walk.in_new_spaces(("before", key), operand.t, node), s)
    return Maps(a, {**before, **own})


def _sum(walk: Walk, node: Sum) -> Maps:
    found = []
    for term in node.terms:
        own, factor = walk.found[term.node.index], term.coefficient
        scalars = (walk.known_mean(factor),) if isinstance(factor, Field) else ()
        number = 1.0 if isinstance(factor, Field) else factor
        maps = (scaled(_shifted(m, term.start), number, *scalars) for m in (own.s, own.t))
        found.append(Maps(*maps))
    return Maps(added(m.s for m in found), added(m.t for m in found))


def _elementwise(walk: Walk, node: Elementwise) -> Maps:
    operand = walk.found[node.operand.index]
    mean: Map = {} if node.zero_mean else {MEAN: Block.of(ONE, 1.0, Scalar("mean", node.index))}
    random = {space: block for space, block in operand.s.items() if space != MEAN}
    rest: Map = {("sampled", node.index): Block.of(Base("sampled", node.index))}
    s = {**mean, **_slope(walk, node, "slope", random), **rest}
    if not operand.t:
        return Maps(s, {})
    name = "slope" if node.index in walk.structure.smooth else "gradient"
    mixed: Map = {("mixed", node.index): Block.of(Base("mixed", node.index))}
    return Maps(s, {**_slope(walk, node, name, operand.t), **mixed})


def _slope(walk: Walk, node: Elementwise, name: str, one: Map) -> Map:
    """A map times d or d'; of relu and its like, d = d' is the same number for all examples."""
    activation = node.activation
    if isinstance(activation, Homogeneous) and node.operand.zero_mean and node.index in walk.structure.smooth:
        degree, left, right, _ = activation.values
        return _times(one, (left + right) / 2 if degree == 1 else 0)
    return scaled(one, 1.0, Scalar(name, node.index))


def _times(one: Map, factor: Any) -> Map:
    return {} if isinstance(factor, int | float) and not factor else scaled(one, factor)


def _shifted(one: Map, start: int) -> Map:
    """The map of channel c + start: independent of that of channel c, but for the mean."""
    return {s if s == MEAN else ("shifted", start, s): block for s, block in one.items()} if start else one


RULES: dict[type[Node], Callable[[Walk, Any], Maps]] = {
    OneNode: _one,
    KnownNode: _known,
    ParamNode: _bias,
    Contraction: _dense,
    Sum: _sum,
    Elementwise: _elementwise,
}
