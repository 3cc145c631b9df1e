"""What the steps of a plan read: the laws of the parameters, and the known variables of the examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from infnet.activations import Activation
from infnet.errors import UnsupportedError
from infnet.nodes import Elementwise, Field, Param
from infnet.sampling.points import Replicate
from infnet.trace import Trace, needed_equations

Indexed = Sequence[Any] | Mapping[int, Any]  # by the number of the parameter


@dataclass(frozen=True)
class Weights:
    """What a kernel depends on besides the data, per parameter: arrays, so that kernels are differentiable in them.

    Attributes:
        mean, std: the prior of each parameter, scalars or arrays that broadcast to it.
        learning_rate: the relative learning rate of each parameter, 0 where it is not trained.
    """

    mean: Indexed
    std: Indexed
    learning_rate: Indexed


jax.tree_util.register_dataclass(Weights, ["mean", "std", "learning_rate"], [])


@dataclass(frozen=True)
class Context:
    """What the steps of a plan read.

    Attributes:
        weights: the laws of the parameters.
        ntk_units: whether gradients are with respect to weights written as std * theta.
        dtype: in which moments are computed.
        activations: stand in for those of some nodes: series whose number of terms was chosen.
        examples: the inputs of the examples, by side, and all that is computed from them.
        inputs: of an input that is random itself, its moments: by side, and of the pair (0).
        known: the Known variables that the step reads, by variable and side.
        errors: bounds on relative errors that steps reported.
        replicate: at which points integrals are sampled, where they are.
    """

    weights: Weights
    ntk_units: bool
    dtype: Any
    activations: Mapping[int, Activation] = dataclasses.field(default_factory=dict)
    examples: Mapping[int, KnownValues] = dataclasses.field(default_factory=dict)
    inputs: Mapping[int, InputMoments] = dataclasses.field(default_factory=dict)
    known: Mapping[tuple[int, int], jax.Array] = dataclasses.field(default_factory=dict)
    errors: list[jax.Array] = dataclasses.field(default_factory=list)
    replicate: Replicate | None = None

    def normals(self, dimension: int) -> jax.Array:
        """Points of the standard normal law, `[points, dimension]`."""
        assert self.replicate is not None
        return self.replicate.normals(dimension).astype(self.dtype)

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
        value = jnp.asarray(self.known[field.var, side])
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


@dataclass(frozen=True)
class InputMoments:
    """The moments of an input that is random itself: of an example, or of a pair of examples.

    Attributes:
        s: second moment between all positions, `(h, h', w, w', ...)`, the first of the left example.
        t: tangent kernel, likewise; None where only second moments of one example are known.
        mean: of an example, `(h, w, ...)`; None where it is zero or not known.
    """

    s: jax.Array
    t: jax.Array | None = None
    mean: jax.Array | None = None


jax.tree_util.register_dataclass(InputMoments, ["s", "t", "mean"], [])


class KnownValues(Mapping[int, Any]):
    """Known variables of one example that depend on its inputs alone, computed by JAX when they are first asked for.

    `inputs`: leaves, without the batch axis; none where the input is random itself.
    """

    def __init__(self, trace: Trace, inputs: Sequence[Any]):
        self._trace = trace
        twice = (jnp.broadcast_to(x, (2, *x.shape)) for x in inputs)
        self._env = {**trace.constants, **dict(zip(trace.data_inputs, twice, strict=bool(inputs)))}

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
