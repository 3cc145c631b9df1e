"""Compile what a kernel function needs, run it, and check the results.

A series has as many terms as the examples need; what is compiled is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from infnet.accuracy import largest_variances, raise_not_finite, series_nodes, settled
from infnet.arguments import BY_PARAM, NAMES, InputKind
from infnet.batching.blocks import OneStage, in_parts
from infnet.computation import Computation
from infnet.context import Weights
from infnet.errors import InputError, NumericalError
from infnet.execute import Given
from infnet.float64 import in_float64
from infnet.model import Model
from infnet.propagation import error_bounds
from infnet.sampling.points import Replicate, Sampling
from infnet.sampling.replicates import over_replicates

# The variances of other examples may be larger than those of the ones at hand.
MARGIN = 2.0


@dataclass(frozen=True)
class Options:
    """How kernels are computed; see `kernel_fn`."""

    parameterization: str
    precision: str
    tol: float
    q_max: float | None
    sampling: Sampling | None = None


class OwnTask(Protocol):
    """What is computed, and compiled for it: anything that can be compared and hashed, and makes a function."""

    @property
    def names(self) -> tuple[str, ...]:
        """The kernels that it is about."""

    def function(self, computation: Computation) -> Callable[..., Any]:
        """A function of the weights and the inputs; it returns a dict, with `error` and `finite` in it."""


@dataclass(frozen=True)
class Task:
    """What is computed, and compiled for it.

    Attributes:
        kind: "matrix" of pairs, "composed" of those of another model's outputs, "diagonal" of each example with itself,
            or "single": what else a `Kernel` holds of these.
        names: of the kernels.
        symmetric: x2 is x1.
        sharded: examples may be spread over devices.
    """

    kind: str
    names: tuple[str, ...]
    symmetric: bool = False
    sharded: bool = False

    def function(self, computation: Computation) -> Callable[..., Any]:
        """The function of the weights and the inputs."""
        names = tuple(dict.fromkeys("ntk" if n == BY_PARAM else n for n in self.names))
        makers: dict[str, Callable[[], Callable[..., Any]]] = {
            "matrix": partial(computation.matrix, names, symmetric=self.symmetric, sharded=self.sharded),
            "composed": partial(computation.composed, names, symmetric=self.symmetric),
            "diagonal": partial(computation.diagonal, names),
            "single": computation.of_single_examples,
        }
        made = makers[self.kind]()
        return computation.by_param(made) if BY_PARAM in self.names else made


class Runner:
    """Computes the kernels of a model, for any laws of its parameters."""

    def __init__(self, model: Model, options: Options):
        self._model, self._options = model, options
        self._computations: dict[InputKind, Computation] = {}
        self._variances: dict[InputKind, dict[int, float]] = {}
        self._compiled: dict[Any, Any] = {}

    def run(
        self, task: OwnTask, weights: Weights, kind: InputKind, *inputs: Given, extra: tuple[Any, ...] = ()
    ) -> dict[str, Any]:
        """Compile, compute, and check what outside of `jit` can be checked.

        Args:
            task: what.
            weights: laws of the parameters.
            kind: of the inputs.
            inputs: x1, x2, and the pairs of them if the input is random itself.
            extra: further arguments.
        """
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((weights, inputs, extra)))
        if not traced:
            self._settle_at_first(weights, kind, inputs[0])
        values = self.compute(task, weights, kind, *inputs, *extra)
        if not traced and float(values["error"]) > self._options.tol:
            for x in inputs[:2]:
                self.settle(weights, kind, x)
            values = self.compute(task, weights, kind, *inputs, *extra)
            self.check_error(float(values["error"]))
        finite = values.pop("finite")
        if not traced and not finite:
            self._raise_not_finite(values, weights, kind, inputs)
        return values

    def compute(self, task: OwnTask, weights: Weights, kind: InputKind, *inputs: Any) -> dict[str, Any]:
        """Compile and compute, with series as they are."""
        return dict(self.function(task, kind)(weights, *inputs))

    def function(self, task: OwnTask, kind: InputKind) -> Any:
        """The compiled function of the weights and the inputs."""
        computation = self.computation(kind)
        key = (kind, task, computation.variant)
        if key not in self._compiled:
            with self.float64(kind):
                function = self._made(task, computation)
            self._compiled[key] = jax.jit(in_float64(function) if self._widens(kind) else function)
        return self._compiled[key]

    def _made(self, task: OwnTask, computation: Computation) -> Callable[..., Any]:
        sampling = self._options.sampling
        return task.function(computation) if sampling is None else over_replicates(task.function, computation, sampling)

    def computation(self, kind: InputKind) -> Computation:
        """Of inputs of this kind, with as many terms in its series as examples have needed."""
        if kind not in self._computations:
            with self.float64(kind):
                program = self._model.program(kind, self._widens(kind), self._options.sampling is not None)
                # Sums of products of half-precision inputs are formed in float32.
                dtype = jnp.promote_types(program.trace.avals[program.trace.outputs[0]].dtype, jnp.float32)
            ntk_units, sampling = self._options.parameterization == "ntk", self._options.sampling
            replicate = None if sampling is None else Replicate(sampling, 0)
            self._computations[kind] = Computation(program, ntk_units, dtype, replicate=replicate)
        return self._computations[kind]

    def _widens(self, kind: InputKind) -> bool:
        return self._options.precision == "highest" and jnp.float64 not in kind.dtypes

    def float64(self, kind: InputKind) -> AbstractContextManager[Any]:
        """The context in which inputs of this kind are computed with: that of float64, where it is asked for."""
        return jax.enable_x64(True) if self._widens(kind) else nullcontext()

    def widened(self, kind: InputKind, x: Any) -> Any:
        """Inputs, or their shapes, in the dtype in which they are computed with; to be called in that context."""
        if not self._widens(kind):
            return x

        def wide(leaf: Any) -> Any:
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                return leaf
            if isinstance(leaf, jax.ShapeDtypeStruct):
                return jax.ShapeDtypeStruct(leaf.shape, jnp.float64)
            return leaf.astype(jnp.float64)

        return jax.tree.map(wide, x)

    def error_bounds(
        self, names: Sequence[str], weights: Weights, kind: InputKind, x1: Given, x2: Given
    ) -> tuple[dict[str, Any], dict[Any, jax.Array]]:
        """Bounds on the errors that series make, of the outputs and of single steps; see `propagation.error_bounds`.

        Raises:
            InputError: the kernels are sampled.
        """
        plan = self.computation(kind).plan(names, (1, 2))
        if any(step.sampled for step in plan.steps):
            raise InputError("kernels that are sampled have standard errors, as they are returned, and no bounds")
        self.run(Task("matrix", tuple(names)), weights, kind, x1, x2)  # gives series the terms that these examples need
        computation = self.computation(kind)
        plan = computation.plan(names, (1, 2))
        with self.float64(kind):
            found = error_bounds(computation, plan, names, weights, *(self.widened(kind, x) for x in (x1, x2)))
            return jax.tree.map(np.asarray, found)

    # Series

    def _settle_at_first(self, weights: Weights, kind: InputKind, x: Given) -> None:
        if kind not in self._variances:
            given = None if kind.law else self._model.inputs.values
            self.settle(weights, kind, x if given is None else given)

    def settle(self, weights: Weights, kind: InputKind, x: Given) -> None:
        """Give the series as many terms as the examples `x` need, and at least as many as they had."""
        computation, known = self.computation(kind), self._variances.get(kind, {})
        plan = computation.plan(("nngp",), (1, 2))
        if not series_nodes(plan):
            self._variances[kind] = {}
            return
        with self.float64(kind):
            found = largest_variances(computation, plan, weights, x)
        given = self._options.q_max
        largest = {i: max(known.get(i, 0.0), q if given is None else given) for i, q in found.items()}
        activations, slow = settled(computation, plan, self._options.tol, largest, MARGIN if given is None else 1.0)
        self._computations[kind] = replace(computation, activations=activations, too_slow=slow)
        self._variances[kind] = largest

    def check_error(self, error: float) -> None:
        """Raise if a bound on the relative error of a layer is above the tolerance."""
        if error > self._options.tol:
            raise NumericalError(
                f"the kernel of a layer has a relative error of up to {error:.2g}, above tol={self._options.tol:g}\n"
                "  why:    a series has too few terms for the variances of these examples (with q_max= below them), or "
                "rounding errors are this large (a bounded piecewise activation at large variances)\n"
                '  remedy: precision="highest", a larger q_max=, smaller weights, or a larger tol=; with that, '
                "explain(x) shows the error of each layer"
            )

    def _raise_not_finite(
        self, values: Mapping[str, Any], weights: Weights, kind: InputKind, inputs: Sequence[Given]
    ) -> None:
        kernels = [k for n in NAMES for k in jax.tree.leaves(values.get(n)) if not bool(jnp.isfinite(k).all())]
        first = np.argwhere(~np.isfinite(np.asarray(kernels[0])))[0]
        x1, x2, *pairs = inputs if len(inputs) > 1 else (*inputs, *inputs)
        i, j = int(first[0]), int(first[min(1, len(inputs) - 1)])
        places = [(1, i, x1), (2, j, x2), *((0, (i, j), x) for x in pairs)]
        examples = {side: jax.tree.map(itemgetter(place), x) for side, place, x in places}
        with self.float64(kind):
            computation = self.computation(kind)
            raise_not_finite(computation, computation.plan(NAMES, (1, 2)), weights, examples)

    def anew(self) -> Runner:
        """A runner of the same model that knows of no examples, so that its series depend on the next ones alone."""
        return Runner(self._model, self._options) if any(self._variances.values()) else self

    # Blocks

    def stages(self, names: tuple[str, ...], weights: Weights, kind: InputKind, x1: Given, x2: Given | None) -> Stages:
        """What is known of the examples x1 and x2 (None for x1), and how blocks of kernels are computed from it.

        Of shapes in place of examples, the shapes of what is known.
        """
        abstract = isinstance(jax.tree.leaves(x1)[0], jax.ShapeDtypeStruct)
        traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((weights, x1, x2)))
        for x in (x1, x2):
            if x is not None and not abstract and not traced:
                in_parts(lambda part: self.settle(weights, kind, part), x)
        # These stand around the whole computation.
        if BY_PARAM in names or self._widens(kind) or self._options.sampling:
            pair, own = (self.function(Task("matrix", names, symmetric), kind) for symmetric in (False, True))
            block = OneStage(names, pair, own)
            return Stages(x1, x1 if x2 is None else x2, block, block.own)
        key = (kind, "staged", names, self.computation(kind).variant)
        if key not in self._compiled:
            of_examples, *blocks = self.computation(kind).staged(names)
            self._compiled[key] = (jax.jit(of_examples, static_argnums=2), *blocks)
        of_examples, block, own_block = self._compiled[key]

        def known(x: Given, sides: tuple[int, ...]) -> Any:
            def of_part(part: Given) -> Any:
                return of_examples(weights, part, sides)

            return jax.eval_shape(of_part, x) if abstract else in_parts(of_part, x)

        one = known(x1, (1, 2) if x2 is None else (1,))
        return Stages(one, one if x2 is None else known(x2, (2,)), block, own_block)

    def check(
        self, notes: Mapping[str, Any], names: tuple[str, ...], weights: Weights, kind: InputKind, *x: Given
    ) -> None:
        """Raise if a block of the kernels of two sets of examples is not to be trusted."""
        self.check_error(float(notes["error"]))
        if notes["failed"]:  # computed once more, without examples that are not finite, it says where
            self.run(Task("matrix", names), weights, kind, *map(_finite, x))


class Stages(NamedTuple):
    """What is known of each example of x1 and of x2, and the functions of it; see `Blocks`."""

    one: Any
    two: Any
    block: Callable[..., Any]
    own_block: Callable[..., Any]


def _finite(x: Any) -> list[jax.Array]:
    """The examples that are finite."""
    good = np.logical_and.reduce([np.isfinite(a).reshape(len(a), -1).all(1) for a in x])
    return [a[good] for a in x]
