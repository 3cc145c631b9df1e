"""A model as a kernel function sees it: its apply function, the laws of its parameters, the shapes of its inputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.arguments import InputKind, Inputs
from infnet.context import Weights
from infnet.errors import InputError
from infnet.errors.programs import DRAWS_OF_DEFAULT_DTYPE
from infnet.flatten import trace_at_batch_sizes
from infnet.independence import bodies, one_example
from infnet.priors import Prior, Unreadable, check_readable, path_name
from infnet.program import Program
from infnet.reader import PriorFacts
from infnet.rules import read
from infnet.trace import Equation, Trace, needed_equations

PyTree = Any


class Model:
    """What is traced into a program.

    Attributes:
        inputs: the structure and shapes of the inputs.
        paths, priors: of the parameters, in the order of the leaves of their pytree.
        tree: the structure of that pytree.
        cross: whether covariances between different outputs are computed too.
        output_tree: the structure of the kernels, once the model was traced.
    """

    def __init__(self, apply_fn: Callable[..., PyTree], priors: PyTree, inputs: Inputs, output: Any, cross: bool):
        check_readable(priors)
        self.inputs = inputs
        self.cross = cross
        self.output_tree: Any = None
        self._apply_fn = apply_fn
        self._output = output
        leaves, self.tree = jax.tree_util.tree_flatten_with_path(priors, is_leaf=_is_prior)
        self.paths = [path_name(path) for path, _ in leaves]
        self.priors: list[Prior] = [prior for _, prior in leaves]
        for path, prior in zip(self.paths, self.priors, strict=True):
            if not isinstance(prior, Prior) or prior.shape is None:
                raise InputError(
                    f"priors must be a pytree of infnet.Prior with shapes, but {path!r} is {prior!r}: "
                    "use infnet.infer_priors(init_fn, ...), or give Prior(mean, std, shape=..., dtype=...)"
                )

    def of(self, apply_fn: Callable[..., PyTree], priors: PyTree) -> Model:
        """Another model for the same inputs, of which the same is computed.

        Raises:
            InputError: its parameters have another structure.
            PriorError: the law of one is not known.
        """
        other = Model(apply_fn, priors, self.inputs, self._output, self.cross)
        trees: list[Any] = [self.tree, other.tree]
        if trees[0] != trees[1]:
            raise InputError(f"the other model has the parameters {trees[1]}, not {trees[0]}")
        return other

    def weights(self, rates: Sequence[Any]) -> Weights:
        """The laws of the parameters, with their relative learning rates."""
        return Weights([p.mean for p in self.priors], [p.std for p in self.priors], rates)

    def picked(self, result: PyTree) -> PyTree:
        """The outputs of which there are kernels, of what the model returns."""
        return self._output(result) if self._output else result

    def program(self, kind: InputKind, float64: bool, sampling: bool = False) -> Program:
        """The program of one example of this kind.

        Args:
            kind: of the inputs.
            float64: all leaves of the example and the parameters are float64.
            sampling: moments without a closed form are sampled.
        """

        def struct(shape: Any, dtype: Any) -> jax.ShapeDtypeStruct:
            wide = float64 and jnp.issubdtype(dtype, jnp.floating)
            return jax.ShapeDtypeStruct(shape, jnp.float64 if wide else dtype)

        leaves, tree = jax.tree.flatten(self.inputs.example)
        inputs = jax.tree.unflatten(tree, [struct(x.shape, d) for x, d in zip(leaves, kind.dtypes, strict=True)])
        params = jax.tree.unflatten(self.tree, [struct(p.shape, p.dtype) for p in self.priors])
        traced = one_example(trace_at_batch_sizes(self._outputs, params, inputs), len(self.priors))
        if float64:
            _check_draws(traced)
        return read(traced, self._facts(), cross=self.cross, law=kind.law, sampling=sampling)

    def _facts(self) -> PriorFacts:
        return PriorFacts(
            nonzero_mean=frozenset(i for i, p in enumerate(self.priors) if np.any(np.asarray(p.mean))),
            varying={i: np.shape(p.std) for i, p in enumerate(self.priors) if np.size(p.std) > 1},
            constant=frozenset(i for i, p in enumerate(self.priors) if not np.any(np.asarray(p.std))),
            largest_std=tuple(float(np.max(np.asarray(p.std), initial=0)) for p in self.priors),
            kurtosis=tuple(float(p.kurtosis) if np.ndim(p.kurtosis) == 0 else None for p in self.priors),
        )

    def _outputs(self, params: PyTree, *inputs: PyTree) -> list[jax.Array]:
        batch_axis = self.inputs.batch_axis
        result = self._apply_fn(params, *jax.tree.map(lambda x: jnp.moveaxis(x, 0, batch_axis), inputs))
        picked = self.picked(result)
        leaves, tree = jax.tree.flatten(picked)
        if not leaves:
            raise InputError("the model returns no array")
        self.output_tree = jax.tree.structure(jax.tree.map(lambda _: picked, picked)) if self.cross else tree
        return leaves


def _check_draws(trace: Trace) -> None:
    """Raise if random numbers of the model itself, at a fixed key, are others in float64 than in its own precision."""
    # Numbers that are drawn for every example (dropout) are followed by their law, whatever they are.
    fixed = (e for e in needed_equations(trace, trace.outputs) if trace.batch_axis[e.outputs[0]] is None)
    waiting: list[tuple[Any, Equation]] = [(equation.source, equation) for equation in fixed]
    while waiting:
        one, equation = waiting.pop()
        applied = bodies(one)
        waiting.extend((inner, equation) for body in applied for inner in body.jaxpr.eqns)
        drawn = one.outvars if not applied and any(_is_key(v.aval) for v in one.invars) else ()
        if any(not _is_key(v.aval) and v.aval.dtype.itemsize == 8 for v in drawn):
            raise DRAWS_OF_DEFAULT_DTYPE.at(equation.where, name=one.primitive.name)


def _is_key(aval: Any) -> bool:
    return jnp.issubdtype(aval.dtype, jax.dtypes.prng_key)


def _is_prior(leaf: Any) -> bool:
    return isinstance(leaf, Prior | Unreadable)
