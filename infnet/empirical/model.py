"""A model as its empirical kernels see it: outputs as functions of the trained parameters alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from infnet._jax import ClosedJaxpr
from infnet._jax import lax_primitives as lax_p
from infnet.arguments import learning_rates
from infnet.empirical.examples import VmapAxes, of_one_example
from infnet.empirical.side import Leaves, Side
from infnet.errors import BatchAxisError, InputError
from infnet.errors.programs import EXAMPLES_IN_TILES
from infnet.flatten import flatten
from infnet.independence import bodies
from infnet.priors import path_name

PyTree = Any


class Model:
    """A model with its parameters.

    Attributes:
        tree: the structure of the parameters.
        trained: which of their leaves are trained: floating-point or complex, with a learning rate that is not zero.
        leaves: these.
        rates: their relative learning rates.
    """

    def __init__(
        self,
        f: Callable[..., PyTree],
        params: PyTree,
        kwargs: Mapping[str, Any],
        trainable: Any = None,
        lr_scale: Any = None,
    ):
        self._f, self._kwargs = f, kwargs
        with_paths, self.tree = jax.tree_util.tree_flatten_with_path(params)
        self._all = [jnp.asarray(leaf) for _, leaf in with_paths]
        rates = learning_rates([path_name(path) for path, _ in with_paths], self.tree, trainable, lr_scale)
        self.trained = [
            k
            for k, (leaf, rate) in enumerate(zip(self._all, rates, strict=True))
            if jnp.issubdtype(leaf.dtype, jnp.inexact) and rate
        ]
        self.leaves = [self._all[k] for k in self.trained]
        self.rates = [rates[k] for k in self.trained]

    def outputs(self, leaves: Leaves, x: PyTree) -> list[jax.Array]:
        """The leaves of the outputs, with these in place of the trained parameters."""
        return jax.tree.leaves(self._call(leaves, x))

    def params_with(self, leaves: Leaves) -> PyTree:
        """The parameters with these in place of the trained ones."""
        values = list(self._all)
        for k, leaf in zip(self.trained, leaves, strict=True):
            values[k] = leaf
        return jax.tree.unflatten(self.tree, values)

    def structs(self, x: PyTree) -> tuple[list[jax.ShapeDtypeStruct], Any]:
        """The shapes and dtypes of the outputs, and their structure.

        Raises:
            InputError: an output is not floating-point or complex; the model is not holomorphic in its parameters.
        """
        found = jax.eval_shape(lambda p, x: self._call(p, x), self.leaves, x)
        structs, tree = jax.tree.flatten(found)
        for k, struct in enumerate(structs):
            if not jnp.issubdtype(struct.dtype, jnp.inexact):
                raise InputError(f"output {k} of the model has dtype {struct.dtype}, which has no derivatives")
        if any(map(jnp.iscomplexobj, self.leaves)):
            self._check_holomorphic(x)
        return structs, tree

    def sides(self, x: PyTree, structs: Sequence[jax.ShapeDtypeStruct], vmap_axes: VmapAxes) -> list[Side]:
        """Every output, as `structs` has them, for these examples."""
        one = of_one_example(self.outputs, self.leaves, x, vmap_axes)

        def side(k: int, struct: jax.ShapeDtypeStruct) -> Side:
            of_one = None if one is None else lambda leaves, example: one(leaves, example)[k]
            return Side(self.leaves, lambda leaves: self.outputs(leaves, x)[k], of_one, x, struct.shape, struct.dtype)

        return [side(k, struct) for k, struct in enumerate(structs)]

    def require_separate(self, x: PyTree) -> None:
        """Raise unless the examples are proved not to depend on each other.

        Raises:
            BatchAxisError: they are not.
        """
        try:
            of_one_example(self.outputs, self.leaves, x, 0)
        except BatchAxisError as error:
            raise EXAMPLES_IN_TILES.at(error.where, what=error.what) from error

    @property
    def places(self) -> list[list[int]]:
        """The place of each parameter among the trained ones, of those that are constants none."""
        return [[self.trained.index(k)] if k in self.trained else [] for k in range(len(self._all))]

    # All outputs, one after the other, as a vector

    def concatenated(self, x: PyTree) -> Side:
        """All outputs as one vector, for these examples as a whole."""
        structs, _ = self.structs(x)

        def whole(leaves: Leaves) -> jax.Array:
            return jnp.concatenate([y.ravel() for y in self.outputs(leaves, x)])

        size, dtype = sum(math.prod(s.shape) for s in structs), jnp.result_type(*(s.dtype for s in structs))
        return Side(self.leaves, whole, None, x, (size,), dtype)

    def concatenate(self, vector: PyTree, x: PyTree) -> jax.Array:
        """A pytree like the outputs for these examples, as one vector; raises as `leaves_like_outputs`."""
        return jnp.concatenate([leaf.ravel() for leaf in self.leaves_like_outputs("the vector", vector, x)])

    def leaves_like_outputs(self, name: str, values: PyTree, x: PyTree) -> list[jax.Array]:
        """The leaves of a pytree like the outputs for these examples.

        Raises:
            InputError: it has another structure or other shapes; it is called `name`.
        """
        structs, tree = self.structs(x)
        leaves, found = jax.tree.flatten(values)
        if found != tree:
            raise InputError(f"{name} must have the structure of the outputs, {tree}, not {found}")
        shapes = [jnp.shape(leaf) for leaf in leaves]
        if shapes != [s.shape for s in structs]:
            raise InputError(f"{name} must have the shapes of the outputs, {[s.shape for s in structs]}, not {shapes}")
        return [jnp.asarray(leaf) for leaf in leaves]

    def split(self, vector: jax.Array, x: PyTree) -> PyTree:
        """The inverse of `concatenate`."""
        structs, tree = self.structs(x)
        ends = [sum(math.prod(s.shape) for s in structs[: k + 1]) for k in range(len(structs))]
        parts = jnp.split(vector, ends[:-1])
        # A real output may have a complex product, if another one is complex.
        kept = [p if jnp.iscomplexobj(p) else p.astype(s.dtype) for p, s in zip(parts, structs, strict=True)]
        return jax.tree.unflatten(tree, [p.reshape(s.shape) for p, s in zip(kept, structs, strict=True)])

    def _call(self, leaves: Leaves, x: PyTree) -> PyTree:
        return self._f(self.params_with(leaves), x, **self._kwargs)

    def _check_holomorphic(self, x: PyTree) -> None:
        def push(tangents: Leaves) -> list[jax.Array]:
            return jax.jvp(lambda leaves: self.outputs(leaves, x), (self.leaves,), (tangents,))[1]

        closed = jax.make_jaxpr(push)(self.leaves)
        if not _is_complex_linear(closed, [jnp.iscomplexobj(leaf) for leaf in self.leaves]):
            raise InputError(
                "the model is not proved to be holomorphic in its complex parameters\n"
                "  why:    a real part, an absolute value or a conjugate has no complex derivative, so that J Jᴴ is "
                "not defined\n"
                "  remedy: make the real and imaginary parts parameters of their own, which are real; or freeze the "
                "complex ones with trainable="
            )


def _is_complex_linear(closed: ClosedJaxpr, moving: list[bool]) -> bool:
    """Whether a function that is real-linear in some complex inputs is complex-linear in them.

    It is if none of its operations takes a conjugate, or makes what depends on them real.
    """
    flat = flatten(closed, 0)
    depends = {v for v, moves in zip(flat.inputs, moving, strict=True) if moves}
    for equation in flat.equations:
        if depends.isdisjoint(equation.inputs):
            continue
        results = [v for v in equation.outputs if _is_complex(flat.avals[v])]
        applied = bodies(equation.source)
        # What a loop carries may depend on them only after a step: it is read as if all of it did.
        if not all(_is_complex_linear(body, [_is_complex(a) for a in body.in_avals]) for body in applied):
            return False
        if not applied and (equation.primitive is lax_p.conj_p or len(results) < len(equation.outputs)):
            return False
        depends.update(results)
    return True


def _is_complex(aval: Any) -> bool:
    return bool(jnp.issubdtype(aval.dtype, jnp.complexfloating))
