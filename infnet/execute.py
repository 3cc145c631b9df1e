"""Stage 4: run a plan, for single examples and then for one pair of them.

`jax.vmap` makes it a kernel matrix (`tiling`): what depends on one example alone is computed once per example.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from infnet.activations import Activation
from infnet.errors import UnsupportedError
from infnet.layout import restrict
from infnet.nodes import ChannelSum, Elementwise, Field, Param
from infnet.plan import Ask, AskMean, Moments, Plan, Request, Step, fields, sided
from infnet.trace import Trace, needed_equations


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
    """What the steps of a plan read: the known variables of each example, and the laws of the parameters.

    `activations` stand in for those of some nodes: series whose number of terms was chosen.
    """

    def __init__(
        self, weights: Weights, ntk_units: bool, dtype: Any, activations: Mapping[int, Activation] | None = None
    ):
        self.weights = weights
        self.ntk_units = ntk_units
        self.dtype = dtype
        self.activations = activations or {}
        self.known: Mapping[int, Mapping[int, jax.Array]] = {}
        self.errors: list[jax.Array] = []

    def with_known(self, known: Mapping[int, Mapping[int, jax.Array]]) -> Context:
        """The same, for examples with these known variables, by side; no errors reported yet."""
        context = Context(self.weights, self.ntk_units, self.dtype, self.activations)
        context.known = known
        return context

    def activation(self, node: Elementwise) -> Activation:
        """The activation of a node, a series with as many terms as these examples need."""
        assert not isinstance(node.activation, UnsupportedError)
        return self.activations.get(node.index, node.activation)

    def report(self, bound: jax.Array) -> None:
        """Note a bound on the relative error of a moment."""
        self.errors.append(bound.max(initial=0))

    def read(self, field: Field, side: int) -> jax.Array:
        """A Known variable as an array `[*sizes, channels]`, with size 1 where it does not vary."""
        value = self._arranged(field, side).astype(self.dtype)
        return value if field.power == 1 else 1 / value

    def indices(self, field: Field, side: int) -> jax.Array:
        """A Known variable of integers as an array `[*sizes]`, with size 1 where it does not vary."""
        return self._arranged(field, side)[..., 0]

    def _arranged(self, field: Field, side: int) -> jax.Array:
        value = jnp.asarray(self.known[side][field.var])
        order = (*field.index_axes, *field.channel_axes)
        rest = [axis for axis in range(value.ndim) if axis not in order]
        value = jnp.transpose(value, [*rest, *order])
        value = value.reshape(value.shape[len(rest) :])
        if not field.varies:
            value = value[(slice(0, 1),) * len(field.index_axes)]
        sizes = field.sizes if field.varies else (1,) * len(field.sizes)
        value = value.reshape((*sizes, -1))
        return value[..., field.channels[0] : field.channels[1]] if field.varies_along_channels else value[..., :1]

    def weight_factors(self, param: Param, axes: Sequence[int | None]) -> tuple[jax.Array, jax.Array]:
        """Effective variance and gradient factor of a parameter, with one axis for each of `axes` of its array."""
        leaf = param.key.leaf
        std = jnp.asarray(self.weights.std[leaf], self.dtype)
        scale = jnp.full((1,) * len(axes), param.scale, self.dtype)
        if param.mask is not None:
            scale = scale * _along(jnp.asarray(param.mask.array, self.dtype), axes)
        variance = jnp.square(scale * _along(std, axes))
        rate = jnp.asarray(self.weights.learning_rate[leaf], self.dtype)
        return variance, rate * (variance if self.ntk_units else jnp.square(scale))

    def mean(self, param: Param) -> jax.Array:
        """The mean of the elements of a parameter."""
        return param.scale * jnp.asarray(self.weights.mean[param.key.leaf], self.dtype) + param.offset

    def zeros_like(self, block: jax.Array) -> jax.Array:
        """A block of zeros; a NaN of the other moment stays one."""
        return 0 * block


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


class KnownValues(Mapping[int, Any]):
    """Known variables of one example, computed by ordinary JAX when they are first asked for.

    `inputs`: leaves, without the batch axis. Sums over channels are not computed here, but set by steps of a plan.
    """

    def __init__(self, trace: Trace, inputs: Sequence[Any]):
        self._trace = trace
        twice = (jnp.broadcast_to(x, (2, *x.shape)) for x in inputs)
        self._env = {**trace.constants, **dict(zip(trace.data_inputs, twice, strict=True))}

    def __getitem__(self, var: int) -> Any:
        if var not in self._env:
            for equation in needed_equations(self._trace, [var], self._env):
                values = equation.evaluate([self._env[v] for v in equation.inputs])
                self._env.update(zip(equation.outputs, values, strict=True))
        return self._trace.rows_of_one(var, self._env[var])

    def __iter__(self) -> Iterator[int]:
        return iter(self._env)

    def __len__(self) -> int:
        return len(self._env)

    def set_sum(self, node: ChannelSum, value: jax.Array) -> None:
        """Set the variable that is a sum over channels."""
        shape, dtype = self._trace.shape(node.var), self._trace.avals[node.var].dtype
        axis, one = self._trace.batch_axis[node.var], jnp.broadcast_to(value, shape).astype(dtype)
        self._env[node.var] = one if axis is None else jnp.concatenate([one, one], axis)


def example_values(plan: Plan, trace: Trace, context: Context, side: int, inputs: Sequence[Any]) -> Values:
    """What the plan needs of one example by itself: known variables, variances and means.

    Args:
        plan: steps for pairs of examples, and for single ones.
        trace: where the known variables are computed.
        context: of this computation.
        side: 1 for an example of x1, 2 for one of x2.
        inputs: leaves of the example, without the batch axis.
    """
    values = Values(KnownValues(trace, inputs), {}, [])
    for step in plan.steps:
        if _sides(step.request) == {side}:
            _run(step, plan, context, {side: values}, values)
    read = {f.var for step in plan.steps if _home(step.request) == 0 for f, k in fields(step.request) if k == side}
    known = {var: values.known[var] for var in sorted(read)}
    return Values(known, {key: values.results[key] for key in _kept(plan, side)}, values.errors)


def pair_moments(plan: Plan, context: Context, values: Mapping[int, Values]) -> tuple[list[Moments], jax.Array | None]:
    """The moments that the plan's outputs ask for, of one pair of examples (or one example with itself).

    Returns:
        the moments, and the largest bound on the relative error if any step reported one.
    """
    pair = Values({}, {}, [])
    found = {**values, 0: pair}
    for step in plan.steps:
        if len(_sides(step.request)) == 2:
            _run(step, plan, context, found, pair)
    errors = [e for v in found.values() for e in v.errors]
    worst = jnp.stack(errors).max() if errors else None
    return [_get(ask, plan, found) or Moments(None) for ask in plan.outputs], worst


def steps_one_by_one(
    plan: Plan, trace: Trace, context: Context, inputs: Mapping[int, Sequence[Any]]
) -> Iterator[tuple[Step, Any]]:
    """Each step of a plan with its result, for one pair of examples; to find out where something goes wrong."""
    values = {side: Values(KnownValues(trace, x), {}, []) for side, x in inputs.items()}
    values[0] = Values({}, {}, [])
    for step in plan.steps:
        home = _home(step.request)
        _run(step, plan, context, values, values[home])
        yield step, values[home].results[step.request.key]


@dataclass(frozen=True)
class Values:
    """Known variables, results of steps and the error bounds these reported, of one example or of a pair."""

    known: Mapping[int, Any]
    results: dict[Any, Any]
    errors: list[jax.Array]


jax.tree_util.register_dataclass(Values, ["known", "results", "errors"], [])


def _sides(request: Request) -> set[int]:
    return {side for _, side in sided(request)}


def _home(request: Request) -> int:
    sides = _sides(request)
    return sides.pop() if len(sides) == 1 else 0


def _kept(plan: Plan, side: int) -> list[Any]:
    """The results for single examples that pairs, or the outputs, need."""
    needs = [n for step in plan.steps if _home(step.request) == 0 for n in step.needs if n is not None]
    needs.extend(ask for ask in plan.outputs if ask is not None)
    return list(dict.fromkeys(n.key for n in needs if _home(n) == side))


def _run(step: Step, plan: Plan, context: Context, values: Mapping[int, Values], home: Values) -> None:
    context = context.with_known({side: v.known for side, v in values.items()})
    result = step.evaluate(context, [_get(need, plan, values) for need in step.needs])
    home.results[step.request.key] = result
    if isinstance(step.request.u, ChannelSum):
        assert isinstance(home.known, KnownValues)
        home.known.set_sum(step.request.u, result)
    home.errors.extend(context.errors)


def _get(request: Request | None, plan: Plan, values: Mapping[int, Values]) -> Any:
    if request is None:
        return None
    value = values[_home(request)].results[request.key]
    if isinstance(request, AskMean) or value is None:
        return value
    done = plan.by_key[request.key]
    assert isinstance(done, Ask)
    s, t = (None if m is None else restrict(m, done.layout, request.layout) for m in value)
    return Moments(s, t if request.ntk else None)
