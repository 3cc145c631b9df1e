"""Operations whose kernel rule their author gave: `infnet.custom_kernel`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from infnet.custom import Weight, custom_kernel_p
from infnet.errors import InputError
from infnet.errors.functions import (
    CUSTOM_ARGUMENTS,
    CUSTOM_CHANNELS,
    CUSTOM_OF_NON_GAUSSIAN,
    CUSTOM_OF_UNLIKE_CHANNELS,
    CUSTOM_PARAMETERS,
    CUSTOM_SHAPE,
    CUSTOM_WITHOUT_RULE,
)
from infnet.errors.parameters import NTK_OF_SCALE_BEFORE_CUSTOM
from infnet.kernel import Kernel
from infnet.layout import filled, spread_left, spread_right
from infnet.nodes import Custom, Node, Param
from infnet.plan import Ask, Moments, Step, ask, variance
from infnet.primitives.stored import stored
from infnet.program import Feature, Segment
from infnet.reader import READS, Reader
from infnet.rules.contraction import input_feature
from infnet.rules.rearrange import in_dim_order, new_channels
from infnet.trace import Equation


@READS.register(custom_kernel_p)
def read_custom(reader: Reader, equation: Equation) -> None:
    """One feature, in the first argument, and any number of parameters."""
    operation, (x, *rest), (out,) = equation.params["operation"], equation.inputs, equation.outputs
    if operation.rule is None:
        raise CUSTOM_WITHOUT_RULE.of(equation, operation=operation)
    if isinstance(reader.values[x], Param) or not all(isinstance(reader.values[v], Param) for v in rest):
        raise CUSTOM_ARGUMENTS.of(equation, operation=operation)
    shape = reader.shape(x)
    if reader.shape(out)[:-1] != shape[:-1] or (not rest and reader.shape(out) != shape):
        raise CUSTOM_SHAPE.of(equation, operation=operation, before=shape, after=reader.shape(out))
    feature = _operand(reader, equation, x)
    params = tuple(reader.weight(equation, v) for v in rest)
    for param in params:
        reader.check_uniform(equation, param, ())
        reader.use_param(equation, param.key, ("custom", operation, param.factors))
    if params and (len(feature.segments) > 1 or any(p.key.leaf in reader.priors.nonzero_mean for p in params)):
        raise CUSTOM_PARAMETERS.of(equation, operation=operation)

    def applied(segment: Segment) -> Segment:
        node = segment.node
        made = reader.new(
            Custom,
            sizes=node.sizes,
            where=equation.where,
            leaves=frozenset((p.key, 0) for p in params) or node.leaves,
            gaussian=bool(params),
            zero_mean=bool(params),
            uniform=bool(params) or node.uniform,
            scales=frozenset() if params else node.scales,
            operand=node,
            operation=operation,
            params=params,
            channels=segment.width,
        )
        return Segment(made, 0, reader.shape(out)[-1]) if params else Segment(made, segment.start, segment.width)

    (last,), channels = new_channels([reader.shape(out)[-1]])
    segments = tuple(map(applied, feature.segments))
    reader.values[out] = Feature((*feature.dims[:-1], last), channels, segments, out)


def _operand(reader: Reader, equation: Equation, var: int) -> Feature:
    shape = reader.shape(var)
    if not isinstance(reader.values[var], Feature):
        index = [d for d in range(len(shape) - 1) if shape[d] > 1]
        return input_feature(reader, equation, var, index, [len(shape) - 1] if shape[-1] > 1 else [])
    feature = in_dim_order(reader, reader.settled(var), var)
    sizes = [feature.size(a) for a in feature.dims[-1]]
    if any(not a.is_channel for a in feature.dims[-1]) or math.prod(sizes) != math.prod(feature.channels):
        raise CUSTOM_CHANNELS.of(equation, operation=equation.params["operation"])
    return feature


def custom_step(request: Ask, u: Custom, v: Custom) -> Step:
    """The moments of one operation on two features, by its rule."""
    for node in (u, v):
        _check_argument(node)
    if request.ntk and not u.params and u.operand.scales & v.operand.scales:
        raise NTK_OF_SCALE_BEFORE_CUSTOM.at(u.where, operation=u.operation)
    needs = (
        ask(u.operand, v.operand, 0 if u.params else request.shift, request.side, request.layout, request.ntk),
        variance(u.operand, request.side[0]),
        variance(v.operand, request.side[1]),
    )

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        s, t = results[0] or Moments(None)
        zeros = jnp.zeros(request.layout.shape, context.dtype)
        kernel = Kernel(
            nngp=zeros if s is None else s,
            ntk=zeros if t is None else t,
            cov1=spread_left(request.layout, _values(context, results[1], u.operand)),
            cov2=spread_right(request.layout, _values(context, results[2], v.operand)),
            error=jnp.zeros((), context.dtype),
            width=u.channels,
            parameterization="ntk" if context.ntk_units else "as_model",
        )
        weights = [Weight(*context.weight_factors(p, ())) for p in u.params]
        assert u.operation.rule is not None
        mapped = u.operation.rule(kernel, *weights)
        _check_result(u, mapped, request.layout.shape)
        kernels = mapped.nngp, mapped.ntk if request.ntk else None
        return Moments(*(None if k is None else stored(filled(request.layout, k)) for k in kernels))

    return Step(request, repr(u.operation), u.where, needs, evaluate, "as its author says")


def _values(context: Any, moments: Moments | None, node: Node) -> jax.Array:
    if moments is None or moments.s is None:
        return jnp.zeros(node.sizes, context.dtype)
    return moments.s.reshape(node.sizes)


def _check_argument(node: Custom) -> None:
    operand = node.operand
    if node.params or (operand.gaussian and operand.zero_mean and operand.uniform):
        return
    refusal = CUSTOM_OF_UNLIKE_CHANNELS if operand.gaussian else CUSTOM_OF_NON_GAUSSIAN
    raise refusal.at(node.where, operation=node.operation)


def _check_result(node: Custom, kernel: Any, shape: tuple[int, ...]) -> None:
    if not isinstance(kernel, Kernel):
        raise InputError(f"the kernel rule of {node.operation!r} must return a Kernel, not {type(kernel).__name__}")
    for name in ("nngp", "ntk"):
        found = jnp.shape(getattr(kernel, name))
        if jnp.broadcast_shapes(found, shape) != shape:
            raise InputError(f"the kernel rule of {node.operation!r} returns {name} of shape {found} for {shape}")
