"""What users pass to a kernel function, checked and brought into one form."""

from __future__ import annotations

import fnmatch
import math
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from numbers import Real
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infnet.context import InputMoments
from infnet.errors import InputError
from infnet.kernel import Kernel, Law

PyTree = Any
NAMES = ("nngp", "ntk")
BY_PARAM = "ntk_by_param"


def names_of(get: Any) -> tuple[str, ...]:
    """The kernels that `get` asks for."""
    if get is None:
        return (*NAMES, "cov1", "cov2", "mean1", "mean2")
    names = (get,) if isinstance(get, str) else tuple(get) if isinstance(get, tuple | list) else ()
    if not names or any(n not in (*NAMES, BY_PARAM) for n in names) or len(set(names)) < len(names):
        raise InputError(
            f'get must be "nngp", "ntk", "ntk_by_param", a tuple of them, or None for a Kernel, not {get!r}'
        )
    return names


@cache
def named_kernels(names: tuple[str, ...]) -> Callable[..., Any]:
    """The namedtuple of the kernels that a tuple `get` asks for."""
    return namedtuple("Kernels", names)


def one_of(name: str, value: Any, allowed: Sequence[str]) -> None:
    """Raise unless `value` is one of the words `allowed`."""
    if value not in allowed:
        choices = " or ".join(f'"{word}"' for word in allowed)
        raise InputError(f"{name} must be {choices}, not {value!r}")


def as_axes(axes: Any) -> tuple[Any, ...]:
    """An axis or several as a tuple; of None, if they are neither."""
    if isinstance(axes, int | np.integer):
        return (axes,)
    return tuple(axes) if isinstance(axes, Sequence) and not isinstance(axes, str) else (None,)


def axis_numbers(axes: Any, rank: int, argument: str, name: str) -> tuple[int, ...]:
    """The numbers of axes that may be counted from the end, in ascending order.

    Args:
        axes: an axis or a sequence of them.
        rank: the number of axes there are.
        argument, name: what passes them, and what has these axes, for errors.

    Raises:
        InputError: there is no such axis, or it is named twice.
    """
    given = as_axes(axes)
    if any(isinstance(k, bool) or not isinstance(k, int | np.integer) for k in given):
        raise InputError(f"{argument} must be an axis of {name} or a sequence of them, not {axes!r}")
    if any(not -rank <= k < rank for k in given):
        raise InputError(f"{argument}={axes!r}, but {name} has {rank} axes")
    numbers = tuple(sorted({int(k) % rank for k in given}))
    if len(numbers) != len(given):
        raise InputError(f"{argument}={axes!r} names an axis of {name} twice")
    return numbers


def positive(name: str, value: Any) -> float:
    """`value` as a number above zero."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise InputError(f"{name} must be a positive number, not {value!r}")
    return float(value)


def example_args(example_inputs: PyTree) -> tuple[PyTree, ...]:
    """The arguments of a model, after its parameters, of which its example inputs are an example.

    Args:
        example_inputs: one input, a tuple of several, or the `Kernel` of another model, whose output is the input.
    """
    if isinstance(example_inputs, Kernel):
        return (example_inputs.example,)
    return example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)


def law_of(kernel: Kernel) -> Law:
    """The law of an output that is the input of another model.

    Raises:
        InputError: it is not known.
    """
    if kernel.law is None:
        raise InputError(
            "this kernel does not say what law its output has (`law=None`), as the covariance of two different "
            "outputs has none: give a model the kernel that another kernel function returned"
        )
    return kernel.law


class InputKind(NamedTuple):
    """What a program depends on besides the model.

    Attributes:
        dtypes: of the leaves of an example.
        law: of an input that is random itself, as the output of another model is; None for data.
    """

    dtypes: tuple[Any, ...]
    law: Law | None = None


class Inputs:
    """The structure and shapes that a kernel function was made for."""

    def __init__(self, example_inputs: PyTree, batch_axis: int):
        self.batch_axis = batch_axis
        self.several = isinstance(example_inputs, tuple)
        self.law = None
        given = example_args(example_inputs)
        if isinstance(example_inputs, Kernel):
            self.law, self.batch_axis = law_of(example_inputs), 0
        self.example = jax.tree.map(self._without_batch, given)
        leaves = jax.tree.leaves(given)
        concrete = leaves and not any(isinstance(x, jax.ShapeDtypeStruct | jax.core.Tracer) for x in leaves)
        self.values = self.read(example_inputs, "the example input") if concrete else None

    @property
    def kind(self) -> InputKind:
        """Of the example."""
        return kind_of(jax.tree.leaves(self.example), self.law)

    @property
    def batch_of_one(self) -> PyTree:
        """The shapes and dtypes of an input with one example."""

        def batched(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            axis = self.batch_axis % (len(leaf.shape) + 1)
            return jax.ShapeDtypeStruct((*leaf.shape[:axis], 1, *leaf.shape[axis:]), leaf.dtype)

        inputs = jax.tree.map(batched, self.example)
        return inputs if self.several else inputs[0]

    def read(self, x: PyTree, name: str) -> list[jax.Array]:
        """The leaves of an input, examples first; or their shapes, if these are given.

        Raises:
            InputError: the structure or a shape is not that of the example.
        """
        if isinstance(x, Kernel):
            raise InputError(f"{name} is a Kernel; call k(kernel) to compose models, with nothing else beside it")
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(x)):
            shapes: list[Any] = jax.eval_shape(lambda arrays: self.read(arrays, name), x)
            return shapes
        inputs = x if self.several else (x,)
        if not _same_structure(inputs, self.example):
            raise InputError(
                f"{name} must have the structure of the example input, {jax.tree.structure(self.example)}, "
                f"not {jax.tree.structure(inputs)}"
            )
        leaves = [_batch_first(jnp.asarray(a), self.batch_axis) for a in jax.tree.leaves(inputs)]
        for leaf, example in zip(leaves, jax.tree.leaves(self.example), strict=True):
            if leaf.shape[1:] != example.shape or leaf.ndim != len(example.shape) + 1:
                expected = str(("n", *example.shape)).replace("'", "")
                raise InputError(
                    f"{name} has shape {leaf.shape}, but the model was traced for {expected}, where n is any number of "
                    "examples; for other shapes make another kernel function"
                )
        sizes = {leaf.shape[0] for leaf in leaves}
        if len(sizes) != 1:
            raise InputError(f"the inputs in {name} hold different numbers of examples: {sorted(sizes)}")
        return leaves

    def moments(
        self, kernel: Kernel, parameterization: str
    ) -> tuple[InputKind, tuple[InputMoments, InputMoments, InputMoments]]:
        """The moments of an input that another model returns: of the examples x1, of x2, and of the pairs.

        Raises:
            InputError: it is not an input of this model.
        """
        leaves = jax.tree.leaves(self.example)
        expected = leaves[0].shape if len(leaves) == 1 else ()
        long = tuple(n for n in expected[:-1] if n > 1)
        if not expected or (long, expected[-1]) != (kernel.positions, kernel.width):
            shapes = ", ".join(str(leaf.shape) for leaf in leaves)
            raise InputError(
                f"the kernel is that of an output with positions {kernel.positions} and {kernel.width} channels, but "
                f"an example of this model's input has the shape {shapes}, channels last"
            )
        if kernel.parameterization != parameterization:
            raise InputError(
                f'the kernel is of the {kernel.parameterization} parameterization, the model of "{parameterization}": '
                "their tangent kernels cannot be added"
            )
        i = jnp.arange(len(kernel.ntk))
        own = kernel.ntk[i, i] if kernel.symmetric else None
        one = InputMoments(kernel.cov1, own, kernel.mean1)
        two = InputMoments(kernel.cov2, own, kernel.mean2)
        return kind_of([kernel.nngp], law_of(kernel)), (one, two, InputMoments(kernel.nngp, kernel.ntk))

    def _without_batch(self, x: Any) -> jax.ShapeDtypeStruct:
        if not hasattr(x, "shape") or not hasattr(x, "dtype"):
            raise InputError(f"example inputs must be arrays or jax.ShapeDtypeStruct, not {x!r}")
        if not -len(x.shape) <= self.batch_axis < len(x.shape):
            raise InputError(f"example inputs must have a batch axis {self.batch_axis}, but one has shape {x.shape}")
        axis = self.batch_axis % len(x.shape)
        return jax.ShapeDtypeStruct((*x.shape[:axis], *x.shape[axis + 1 :]), jax.dtypes.canonicalize_dtype(x.dtype))


def kind_of(leaves: Sequence[Any], law: Law | None = None) -> InputKind:
    """Of inputs with these leaves."""
    return InputKind(tuple(x.dtype for x in leaves), law)


def _same_structure(one: PyTree, two: PyTree) -> bool:
    structures: list[Any] = [jax.tree.structure(one), jax.tree.structure(two)]
    return structures[0] == structures[1]


def _batch_first(x: jax.Array, batch_axis: int) -> jax.Array:
    return jnp.moveaxis(x, batch_axis, 0) if -x.ndim <= batch_axis < x.ndim else x


def learning_rates(paths: Sequence[str], tree: Any, trainable: Any, lr_scale: Any) -> list[float]:
    """The relative learning rate of each parameter: 0 where it is frozen."""
    predicate = (lambda path: bool(trainable(path))) if callable(trainable) else trainable
    trained = _by_path(paths, tree, predicate, "trainable", True)
    scales = _by_path(paths, tree, lr_scale, "lr_scale", 1.0)
    for path, t, s in zip(paths, trained, scales, strict=True):
        if not isinstance(_number(t), bool):
            raise InputError(f"trainable must be True or False for each parameter, but for {path!r} it is {t!r}")
        if not isinstance(_number(s), Real) or not 0 <= float(s) < math.inf:
            raise InputError(f"lr_scale must be a number for each parameter, 0 or above; for {path!r} it is {s!r}")
    return [float(s) if t else 0.0 for t, s in zip(trained, scales, strict=True)]


def _number(x: Any) -> Any:  # of NumPy's and JAX's scalars
    return x.item() if np.size(x) == 1 and hasattr(x, "item") else x


def _by_path(paths: Sequence[str], tree: Any, choice: Any, name: str, default: Any) -> list[Any]:
    if choice is None:
        return [default] * len(paths)
    if callable(choice):
        return [choice(path) for path in paths]
    if jax.tree.structure(choice) == tree:
        return jax.tree.leaves(choice)
    if not isinstance(choice, Mapping):
        raise InputError(f"{name} must be a predicate on parameter paths, a mapping from glob to value, or a pytree")
    values = [default] * len(paths)
    # Nested mappings, as the masks of optax are, are mappings from path to value: a path is a glob that matches itself,
    # and all that is below it.
    for pattern, value in _flat(choice):
        found = [i for i, path in enumerate(paths) if _matches(path, pattern)]
        if not found:
            raise InputError(f"{name}: no parameter matches {pattern!r}; the parameters are {', '.join(paths)}")
        for i in found:
            values[i] = value
    return values


def _flat(choice: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in choice.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def _matches(path: str, pattern: str) -> bool:
    short = pattern.removeprefix("params/")
    patterns = [pattern, f"{pattern}/*", short, f"{short}/*"]
    return any(fnmatch.fnmatchcase(p, q) for p in (path, path.removeprefix("params/")) for q in patterns)


class StaticArguments:
    """A pytree of arguments without its arrays, which are traced where these are not."""

    def __init__(self, rest: list[Any], tree: Any):
        self._rest, self._tree = rest, tree
        self.key = (tuple(rest), tree)

    @property
    def hashable(self) -> bool:
        """Whether they can be the key of what was compiled for them."""
        try:
            hash(self.key)
        except TypeError:
            return False
        return True

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StaticArguments) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def joined(self, arrays: Sequence[Any]) -> Any:
        """The arguments with these arrays."""
        waiting = iter(arrays)
        return jax.tree.unflatten(self._tree, [next(waiting) if x is _ARRAY else x for x in self._rest])


_ARRAY = object()


def split_arguments(arguments: PyTree) -> tuple[list[Any], StaticArguments]:
    """The arrays of a pytree, which are traced, and everything else, which is not."""
    leaves, tree = jax.tree.flatten(arguments)
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    arrays = [leaf for leaf, found in zip(leaves, is_array, strict=True) if found]
    rest = [_ARRAY if found else leaf for leaf, found in zip(leaves, is_array, strict=True)]
    return arrays, StaticArguments(rest, tree)
