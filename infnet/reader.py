"""Stage 2, the work: read the equations of a trace, in order, into the graph of random fields.

What depends on inputs alone stays Known and is left to ordinary JAX. Every other equation is read by the rule that
`rules/` registers for its primitive; what has no rule is refused.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from infnet._jax import ClosedJaxpr, Primitive
from infnet._jax import lax_primitives as lax_p
from infnet.activations import Activation
from infnet.errors import Refusal, RefusalError, UnsupportedError, Where
from infnet.errors.features import SUM_OVER_CHANNELS
from infnet.errors.functions import MAXIMUM_OVER_AXIS
from infnet.errors.parameters import (
    REPEATED_PARAMETER_USED,
    SLICE_OF_VARYING_WEIGHT,
    WEIGHT_MASKED_ALONG_CHANNELS,
    WEIGHT_PLUS_NUMBER,
    WEIGHT_REUSED_OTHERWISE,
    WEIGHT_VARYING_ALONG_CHANNELS,
)
from infnet.errors.programs import (
    FOURIER_TRANSFORM,
    LOOP_OF_UNKNOWN_LENGTH,
    LOOP_WITHOUT_STEPS,
    OWN_DERIVATIVE,
    UNKNOWN_BRANCH,
    UNKNOWN_OPERATION,
)
from infnet.flatten import add_function
from infnet.functions import Functions
from infnet.gradients import scale_gradients
from infnet.kernel import Law
from infnet.nodes import Elementwise, Field, InputFeature, Node, OneNode, Param, ParamKey, Sum, Term, shifted
from infnet.program import Atom, Feature, Known, Segment, Value
from infnet.registry import Rules
from infnet.trace import Equation, Trace, constant_value
from infnet.variation import long_axes, varying_axes

Rule = Callable[["Reader", Equation], None]
# How equations are read: the rule sets `reader.values` of each output. Called if an input is a Param or a Feature.
READS: Rules[Rule] = Rules()
N = TypeVar("N", bound=Node)
NO_PARAM = ParamKey(-1)  # stands for all that makes an input random
INHERITED = ("leaves", "gaussian", "zero_mean", "uniform", "scales")  # by linear maps of positions


class PriorFacts(NamedTuple):
    """What reading depends on of the priors, by the number of the parameter.

    Attributes:
        nonzero_mean: the parameters whose prior has a mean.
        varying: the shape of the prior's standard deviation, for parameters where it is an array.
        constant: the parameters that are not random at initialisation.
        largest_std: the largest standard deviation of the elements of each parameter.
        kurtosis: the excess kurtosis of the elements of each; None where they differ.
    """

    nonzero_mean: frozenset[int]
    varying: Mapping[int, tuple[int, ...]]
    constant: frozenset[int]
    largest_std: tuple[float, ...]
    kurtosis: tuple[float | None, ...]


class Reader:
    """The state of reading one trace: the value of each variable, and what was made so far."""

    def __init__(
        self,
        trace: Trace,
        priors: PriorFacts,
        law: Law | None = None,
        sampling: bool = False,
    ):
        self.trace = trace
        self.sampling = sampling  # whether what has no closed form is read too
        self.priors = priors
        self.fixed_scales: set[int] = set()
        self.remarks: list[str] = []
        self.zero_scores: dict[Equation, None] = {}  # products summed over channels that count as zero
        self.noise_roots: frozenset[bytes] = frozenset()  # the keys of the random numbers that were used
        self.read_apart: set[int] = set()  # features whose segments nothing reads across
        self.values: dict[int, Value] = {}
        self.producer: dict[int, Equation] = {}
        self.param_uses: dict[int, dict[ParamKey, Any]] = {}
        self._functions = Functions(trace, self.values, self.producer, self.constant)
        self._settled: dict[int, Feature] = {}
        self._elementwise: dict[tuple[int, int, int], Elementwise] = {}
        self._constants: dict[int, np.ndarray | None] = {}
        self._count = 0
        self.one = self.new(OneNode, sizes=(), where=Where(), leaves=frozenset(), gaussian=True, zero_mean=False)
        for var in trace.data_inputs:
            of_data = Known(var, long_axes(trace.shape(var)), constant=False)
            self.values[var] = of_data if law is None else self._random_input(var, law)
        for var, value in trace.constants.items():
            varies = _axes_of_constant(value).intersection(long_axes(trace.shape(var)))
            self.values[var] = Known(var, varies, constant=True)
        for leaf, var in enumerate(trace.param_inputs):
            factors = tuple(((d, n),) if n > 1 else () for d, n in enumerate(trace.shape(var)))
            self.values[var] = Param(ParamKey(leaf), factors, kurtosis=priors.kurtosis[leaf])

    def _random_input(self, var: int, law: Law) -> Feature:
        """What another model returns, its channels on the last axis."""
        *positions, width = self.shape(var)
        long = [d for d, n in enumerate(positions) if n > 1]
        node = self.new(
            InputFeature,
            sizes=tuple(positions[d] for d in long),
            where=Where("input"),
            leaves=frozenset({(NO_PARAM, 0)}),
            **law._asdict(),
        )
        dims = [(Atom(False, long.index(d)),) if d in long else () for d in range(len(positions))]
        has_channels = width > 1
        channel = (Atom(True, 0),) if has_channels else ()
        return Feature((*dims, channel), (width,) * has_channels, (Segment(node, 0, width),), var)

    def new(self, kind: type[N], **fields: Any) -> N:
        """Make a node, numbered after all that exist."""
        self._count += 1
        return kind(index=self._count - 1, **fields)

    def shape(self, var: int) -> tuple[int, ...]:
        """The shape of a variable, for one example."""
        return self.trace.shape(var)

    # Known variables

    def read_known(self, equation: Equation) -> None:
        """Note along which axes a function of Known variables may vary, and the sums over channels it contains."""
        inputs = [k for k in map(self.values.get, equation.inputs) if isinstance(k, Known)]
        constant = all(k.constant for k in inputs)
        sums = frozenset(one for k in inputs for one in k.sums)
        varies = varying_axes(equation.source, [k.varies for k in inputs])
        for var, axes in zip(equation.outputs, varies, strict=True):
            self.values[var] = Known(var, axes & long_axes(self.shape(var)), constant, sums)

    def known(
        self, equation: Equation, function: Callable[..., jax.Array], variables: Sequence[int], batch_axis: int | None
    ) -> int:
        """A new Known variable: a function of others that acts on each example by itself.

        `batch_axis` is that of the result, and of all that the function computes on the way and that has its rank.
        """
        if any(isinstance(k, Known) and k.excess for k in map(self.values.get, variables)):
            raise SUM_OVER_CHANNELS.of(equation)
        trace, first, before = self.trace, len(self.trace.avals), len(self.trace.equations)
        out = add_function(trace, function, variables, equation.where)
        like = trace.avals[out].shape
        for var in range(first, len(trace.avals)):
            shape = trace.avals[var].shape
            has_examples = batch_axis is not None and len(shape) == len(like) and shape[batch_axis] == like[batch_axis]
            trace.batch_axis.append(batch_axis if has_examples else None)
            if var in trace.constants:
                self.values[var] = Known(var, _axes_of_constant(trace.constants[var]), constant=True)
        for step in trace.equations[before:]:
            self.producer.update(dict.fromkeys(step.outputs, step))
            self.read_known(step)
        return out

    def variable_like(self, var: int, equation: Equation) -> int:
        """A new variable of the shape of another, for a part of what `equation` computes."""
        self.trace.batch_axis.append(self.trace.batch_axis[var])
        part = self.trace.new(self.trace.avals[var])
        self.producer[part] = equation
        return part

    def constant(self, var: int) -> float | None:
        """The value of a Known variable that is one number, the same for every example; None if it is not that."""
        known = self.values[var]
        if not isinstance(known, Known) or known.varies:
            return None
        array = self.constant_array(var)
        return None if array is None else float(array.flat[0])

    def constant_array(self, var: int) -> np.ndarray | None:
        """The value of a Known variable that is the same for every example; None if it is not, or is being traced."""
        known = self.values[var]
        if not isinstance(known, Known) or not known.constant or known.excess:
            return None
        if var not in self._constants:
            value = constant_value(self.trace, var)
            self._constants[var] = None if value is None else np.asarray(self.trace.rows_of_one(var, value))
        return self._constants[var]

    def set_zero(self, var: int, excess: float, *, vanishing: bool) -> None:
        """Set a variable to zeros, the mean of a sum over channels that vanishes by structure; see `Known`."""
        aval = self.trace.avals[var]
        self.trace.constants[var] = np.zeros(aval.shape, aval.dtype)
        self.values[var] = Known(var, frozenset(), constant=True, excess=excess, vanishing=vanishing)

    def field(
        self,
        var: int,
        dims: Sequence[Sequence[int]],
        channel_dims: Sequence[int],
        channels: tuple[int, int],
        power: int = 1,
    ) -> Field:
        """Read a Known variable with the given sizes of index factors per axis, and these axes as channels."""
        known, shape = self.values[var], self.shape(var)
        assert isinstance(known, Known)
        index_dims = [d for d in range(len(shape)) if d not in channel_dims and len(dims[d])]
        varies = any(d in known.varies for d in index_dims)
        sizes = tuple(n if shape[d] > 1 else 1 for d in index_dims for n in dims[d])
        along = any(d in known.varies for d in channel_dims)
        return Field(var, tuple(index_dims), tuple(channel_dims), sizes, channels, varies, along, power, known.sums)

    # Features

    def settled(self, var: int) -> Feature:
        """The feature `var`, described by nodes of its own rather than as a function of another variable."""
        feature = self.values[var]
        assert isinstance(feature, Feature)
        if feature.base == var:
            return feature
        if var not in self._settled:
            segments = tuple(Segment(self._apply(feature, s.node, var), s.start, s.width) for s in feature.segments)
            self._settled[var] = Feature(feature.dims, feature.channels, segments, var)
        return self._settled[var]

    def _apply(self, feature: Feature, node: Node, var: int) -> Node:
        """The node of a function that is affine or elementwise, applied to `node`."""
        where = self.producer[var].where
        if feature.affine == (1.0, 0.0):
            return node
        axes = tuple(range(len(node.sizes)))
        if feature.affine is not None:
            slope, intercept = feature.affine
            constant = [Term(intercept, self.one, 0, ())] if intercept else []
            return self.sum([Term(slope, node, 0, axes), *constant], node.sizes, where)
        key = (node.index, feature.base, var)
        if key not in self._elementwise:
            self._elementwise[key] = self._new_elementwise(feature.base, node, var)
        return self._elementwise[key]

    def _new_elementwise(self, base: int, node: Node, var: int) -> Elementwise:
        where = self._functions.where(base, var)
        activation: Activation | UnsupportedError
        try:
            activation = self._functions.recognised(base, var, where)
        except UnsupportedError as error:
            activation = error
        return self.elementwise(node, activation, self._functions.chain(base, var), where)

    def elementwise(
        self, node: Node, activation: Activation | UnsupportedError, chain: ClosedJaxpr, where: Where
    ) -> Elementwise:
        """The node of a scalar function of `node`."""
        odd = not isinstance(activation, UnsupportedError) and activation.odd and node.zero_mean
        return self.new(
            Elementwise,
            sizes=node.sizes,
            where=where,
            leaves=node.leaves,
            gaussian=False,
            zero_mean=odd,
            uniform=node.uniform,
            scales=node.scales,
            operand=node,
            activation=activation,
            chain=chain,
            gradients=scale_gradients(self, node),
        )

    def sum(self, terms: Sequence[Term], sizes: tuple[int, ...], where: Where) -> Node:
        """The node of a linear combination."""
        same_axes = tuple(range(len(sizes)))
        if len(terms) == 1 and terms[0][0] == 1.0 and terms[0].start == 0 and terms[0].axes == same_axes:
            return terms[0].node
        varying = any(isinstance(t.coefficient, Field) and t.coefficient.varies_along_channels for t in terms)
        return self.new(
            Sum,
            sizes=sizes,
            where=where,
            leaves=frozenset(leaf for t in terms for leaf in shifted(t.node.leaves, t.start)),
            gaussian=all(t.node.gaussian for t in terms),
            zero_mean=all(t.node.zero_mean for t in terms),
            uniform=not varying and all(t.node.uniform for t in terms),
            scales=frozenset(key for t in terms for key in t.node.scales),
            terms=tuple(terms),
        )

    def with_operand(self, node: N, operand: Node) -> N:
        """The node of the same linear map of another operand."""
        own = {f.name: getattr(node, f.name) for f in dataclasses.fields(node)}
        for name in ("index", "operand", *INHERITED):
            own.pop(name)
        return self.new_map(type(node), operand, **own)

    def new_map(self, kind: type[N], operand: Node, **fields: Any) -> N:
        """Make a node that is a linear map of another, whose law it inherits."""
        inherited = {name: getattr(operand, name) for name in INHERITED}
        return self.new(kind, operand=operand, **inherited, **fields)

    def replace_nodes(self, feature: Feature, make: Callable[[Node], Node], var: int) -> tuple[Segment, ...]:
        """The segments of a feature with every node replaced by `make(node)`, once per node."""
        made = {s.node.index: make(s.node) for s in feature.segments}
        return tuple(Segment(made[s.node.index], s.start, s.width) for s in feature.segments)

    def use_param(self, equation: Equation, key: ParamKey, roles: Any) -> None:
        """Note how a parameter is used; a second use must be of the same kind, or of another slice.

        Raises:
            UnsupportedError: contracted and free axes are exchanged (`W.T`), or slices overlap.
        """
        used = self.param_uses.setdefault(key.leaf, {})
        if key in used:
            alike = used[key] == roles
        else:
            alike = all(_disjoint(key, other) for other in used)
            used[key] = roles
        if not alike:
            raise WEIGHT_REUSED_OTHERWISE.of(equation)

    def param(self, var: int) -> Param:
        """The parameter that a variable is."""
        param = self.values[var]
        assert isinstance(param, Param)
        return param

    def whole_param(self, equation: Equation, var: int) -> Param:
        """The parameter that a variable is, which must hold each of its elements once."""
        param = self.param(var)
        if any(math.prod(n for _, n in own) != size for own, size in zip(param.factors, self.shape(var), strict=True)):
            raise REPEATED_PARAMETER_USED.of(equation)
        return param

    def weight(self, equation: Equation, var: int) -> Param:
        """The parameter that a variable is, which must also have the mean of its own law."""
        param = self.whole_param(equation, var)
        if param.offset:
            raise WEIGHT_PLUS_NUMBER.of(equation)
        return param

    def check_uniform(self, equation: Equation, param: Param, axes: Sequence[int | None]) -> None:
        """Raise unless the prior of a parameter, and its mask, vary along these axes of its array at most."""
        if param.mask and any(n > 1 and axis not in axes for axis, n in enumerate(param.mask.shape)):
            raise WEIGHT_MASKED_ALONG_CHANNELS.of(equation)
        shape = self.priors.varying.get(param.key.leaf, param.mask.shape if param.mask else ())
        if shape and param.key.slices:
            raise SLICE_OF_VARYING_WEIGHT.of(equation)
        if any(n > 1 and axis not in axes for axis, n in enumerate(shape)):
            raise WEIGHT_VARYING_ALONG_CHANNELS.of(equation)

    def unknown_operation(self, equation: Equation) -> RefusalError:
        """The refusal of an operation that no rule reads."""
        operands = ", ".join(f"{type(self.values[v]).__name__.lower()} {self.shape(v)}" for v in equation.inputs)
        return NO_RULE.get(equation.primitive, UNKNOWN_OPERATION).of(equation, operands=operands)


NO_RULE: dict[Primitive, Refusal] = {
    lax_p.while_p: LOOP_OF_UNKNOWN_LENGTH,
    lax_p.cond_p: UNKNOWN_BRANCH,
    lax_p.custom_jvp_call_p: OWN_DERIVATIVE,
    lax_p.custom_vjp_call_p: OWN_DERIVATIVE,
    lax_p.scan_p: LOOP_WITHOUT_STEPS,
    lax_p.reduce_max_p: MAXIMUM_OVER_AXIS,
    lax_p.fft_p: FOURIER_TRANSFORM,
}


def _disjoint(one: ParamKey, two: ParamKey) -> bool:
    """Whether two slices of one parameter have no element in common."""
    cuts = {axis: (start, stop) for axis, start, stop in one.slices}
    return any(axis in cuts and (stop <= cuts[axis][0] or cuts[axis][1] <= start) for axis, start, stop in two.slices)


def _axes_of_constant(value: Any) -> frozenset[int]:
    shape = np.shape(value)
    if (
        isinstance(value, jax.core.Tracer)
        or math.prod(shape) <= 1
        or jax.dtypes.issubdtype(value.dtype, jax.dtypes.extended)
    ):
        return long_axes(shape)
    array = np.asarray(value)
    varying = (
        axis for axis in long_axes(shape) if not np.array_equal(array, np.broadcast_to(array.take([0], axis), shape))
    )
    return frozenset(varying)
