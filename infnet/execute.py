"""Stage 4: run a plan for one pair of examples. `jax.vmap` over both makes it a kernel matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from infnet.independence import Trace
from infnet.layout import Layout, restrict
from infnet.plan import Ask, AskMean, Moments, Plan, Request
from infnet.program import Field, Param
from infnet.reader import needed_equations


@dataclass(frozen=True)
class Weights:
    """What a kernel depends on besides the data, per parameter: arrays, so that kernels are differentiable in them.

    Attributes:
        mean, std: the prior of each parameter, scalars or arrays that broadcast to it.
        learning_rate: the relative learning rate of each parameter, 0 where it is not trained.
    """

    mean: Sequence[Any]
    std: Sequence[Any]
    learning_rate: Sequence[Any]


jax.tree_util.register_dataclass(Weights, ["mean", "std", "learning_rate"], [])


class Context:
    """What the steps of a plan read: the known variables of each example, and the laws of the parameters."""

    def __init__(self, known: Mapping[int, Mapping[int, jax.Array]], weights: Weights, ntk_units: bool, dtype: Any):
        self.known = known
        self.weights = weights
        self.ntk_units = ntk_units
        self.dtype = dtype

    def read(self, field: Field, side: int) -> jax.Array:
        """A Known variable as an array `[*sizes, channels]`, with size 1 where it does not vary."""
        value = jnp.asarray(self.known[side][field.var]).astype(self.dtype)
        rest = [axis for axis in range(value.ndim) if axis not in field.axes]
        value = jnp.transpose(value, [*rest, *field.axes])
        value = value.reshape(value.shape[len(rest) :])
        n_index = _count_index_axes(value.shape, field)
        if not field.varies:
            value = value[(slice(0, 1),) * n_index]
        sizes = field.sizes if field.varies else (1,) * len(field.sizes)
        value = value.reshape((*sizes, -1))
        value = value[..., field.channels[0] : field.channels[1]] if field.varies_along_channels else value[..., :1]
        return value if field.power == 1 else 1 / value

    def weight_factors(self, param: Param, axes: Sequence[int | None]) -> tuple[jax.Array, jax.Array]:
        """Effective variance and gradient factor of a parameter, with one axis for each of `axes` of its array."""
        leaf = param.key.leaf
        std = jnp.asarray(self.weights.std[leaf], self.dtype)
        variance = param.scale**2 * jnp.square(_along(std, axes))
        rate = jnp.asarray(self.weights.learning_rate[leaf], self.dtype)
        if self.ntk_units:
            return variance, rate * variance
        return variance, jnp.full((1,) * len(axes), param.scale**2, self.dtype) * rate

    def mean(self, param: Param) -> jax.Array:
        """The mean of the elements of a parameter."""
        return param.scale * jnp.asarray(self.weights.mean[param.key.leaf], self.dtype)

    def zeros_like(self, block: jax.Array) -> jax.Array:
        """A block of zeros; a NaN of the other moment stays one."""
        return 0 * block


def _count_index_axes(shape: Sequence[int], field: Field) -> int:
    total, count = 1, 0
    for size in field.sizes:
        total *= size
    product = 1
    while count < len(shape) and (product < total or shape[count] == 1) and count < len(field.axes):
        product *= shape[count]
        count += 1
    return count


def _along(std: jax.Array, axes: Sequence[int | None]) -> jax.Array:
    """The standard deviations with one axis for each of `axes` (size 1 for None)."""
    if std.ndim == 0:
        return std.reshape((1,) * len(axes))
    kept = [axis for axis in axes if axis is not None and axis >= 0]
    rest = [axis for axis in range(std.ndim) if axis not in kept]
    std = jnp.transpose(std, [*rest, *kept])
    std = std.reshape(std.shape[len(rest) :])
    present = [None if axis is None or axis < 0 else std.shape[kept.index(axis)] for axis in axes]
    return std.reshape([1 if size is None else size for size in present])


def known_values(trace: Trace, variables: Sequence[int], inputs: Sequence[Any]) -> dict[int, Any]:
    """Known variables of one example, by ordinary JAX. `inputs`: leaves, without the batch axis."""
    env = dict(trace.constants)
    env.update((var, x[None]) for var, x in zip(trace.data_inputs, inputs, strict=True))
    for equation in needed_equations(trace, variables):
        values = equation.evaluate([env[v] for v in equation.inputs])
        env.update(zip(equation.outputs, values, strict=True))
    return {v: env[v] for v in variables}


def execute(plan: Plan, context: Context) -> list[Moments]:
    """Run the steps in order; the results are in the order of `plan.outputs`."""
    results: dict[Any, tuple[Request, Any]] = {}

    def get(request: Request | None) -> Any:
        if request is None:
            return None
        done, value = results[request.key]
        if isinstance(request, AskMean) or value is None:
            return value
        assert isinstance(done, Ask)
        return _restrict(value, done.layout, request)

    for step in plan.steps:
        results[step.request.key] = step.request, step.evaluate(context, [get(need) for need in step.needs])
    return [get(ask) or Moments(None) for ask in plan.outputs]


def _restrict(moments: Moments, have: Layout, request: Ask) -> Moments:
    s, t = (None if m is None else restrict(m, have, request.layout) for m in moments)
    return Moments(s, t if request.ntk else None)


def read_fields(plan: Plan) -> set[tuple[int, int]]:
    """The (variable, side) pairs that the steps of a plan read."""
    from infnet.program import KnownNode, Sum

    found = set()
    for step in plan.steps:
        request = step.request
        nodes = [(request.u, request.side)] if isinstance(request, AskMean) else list(
            zip((request.u, request.v), request.side, strict=True)
        )
        for node, side in nodes:
            if isinstance(node, KnownNode):
                found.add((node.field.var, side))
            elif isinstance(node, Sum):
                found.update((t.coefficient.var, side) for t in node.terms if isinstance(t.coefficient, Field))
    return found
