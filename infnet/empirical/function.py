"""Empirical kernels as functions that users call: what is compiled for them, and which implementation is chosen."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.arguments import NAMES, names_of
from infnet.empirical.choice import Choice, choose

PyTree = Any
Get = str | tuple[str, ...]


class EmpiricalKernelFn:
    """The kernels of a network with given parameters, as a function; `infnet.empirical_kernel_fn` makes it."""

    def __init__(self, compute: Callable[..., PyTree], implementations: Sequence[str], memory_limit: int):
        """A function for these computations.

        Args:
            compute: `(implementation, get, kwargs, x1, x2, params) -> kernels`.
            implementations: the names of those to choose from.
            memory_limit: bytes that the one which is chosen should stay within.
        """
        self._compute, self._implementations, self._memory_limit = compute, tuple(implementations), memory_limit
        self._programs: dict[Hashable, dict[str, Any]] = {}
        self._choices: dict[Hashable, Choice] = {}

    def __call__(self, x1: PyTree, x2: PyTree | None, get: Any, params: PyTree, **kwargs: Any) -> PyTree:
        """The kernels of x1 and x2; see `infnet.empirical_kernel_fn`."""
        programs, arguments = self._prepared(x1, x2, get, params, kwargs)
        if len(programs) > 1:
            return programs[self._choice(get, programs, arguments).implementation](*arguments)
        (program,) = programs.values()
        return program(*arguments)

    def explain(self, x1: PyTree, x2: PyTree | None, get: Any, params: PyTree, **kwargs: Any) -> Choice:
        """The implementation that a call with these arguments uses, and what it costs, to print; nothing is run."""
        return self._choice(get, *self._prepared(x1, x2, get, params, kwargs))

    def _prepared(
        self, x1: PyTree, x2: PyTree | None, get: Any, params: PyTree, kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """A jitted function for each implementation, and its arguments."""
        names = _names(get)
        arrays, static = _split(kwargs)

        def compute(name: str, x1: PyTree, x2: PyTree, params: PyTree, arrays: list[Any]) -> PyTree:
            return self._compute(name, names, static.joined(arrays), x1, x2, params)

        key = (names, static.key)
        programs = self._programs.get(key) if static.hashable else None
        if programs is None:
            programs = {name: jax.jit(partial(compute, name)) for name in self._implementations}
            if static.hashable:  # what is not is compiled again at each call
                self._programs[key] = programs
        return programs, (x1, x2, params, arrays)

    def _choice(self, get: Any, programs: Mapping[str, Any], arguments: Sequence[Any]) -> Choice:
        leaves, tree = jax.tree.flatten(tuple(arguments))
        key = (_names(get), tree, tuple((jnp.shape(x), getattr(x, "dtype", type(x))) for x in leaves))
        if key not in self._choices:
            self._choices[key] = choose(programs, arguments, self._memory_limit)
        return self._choices[key]


class OfOneKind:
    """One of the kernels of a network, as a function `(x1, x2, params, **kwargs)`."""

    def __init__(self, kernel_fn: EmpiricalKernelFn, get: str):
        self._kernel_fn, self._get = kernel_fn, get

    def __call__(self, x1: PyTree, x2: PyTree | None, params: PyTree, **kwargs: Any) -> PyTree:
        """The kernel of x1 and x2; see `infnet.empirical_kernel_fn`."""
        return self._kernel_fn(x1, x2, self._get, params, **kwargs)

    def explain(self, x1: PyTree, x2: PyTree | None, params: PyTree, **kwargs: Any) -> Choice:
        """As `EmpiricalKernelFn.explain`."""
        return self._kernel_fn.explain(x1, x2, self._get, params, **kwargs)


def _names(get: Any) -> Get:
    return get if isinstance(get, str) else names_of(NAMES if get is None else get)


class _Static:
    """Keyword arguments without their arrays."""

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

    def joined(self, arrays: Sequence[Any]) -> Mapping[str, Any]:
        """The keyword arguments with these arrays."""
        waiting = iter(arrays)
        return jax.tree.unflatten(self._tree, [next(waiting) if x is _ARRAY else x for x in self._rest])


_ARRAY = object()


def _split(kwargs: Mapping[str, Any]) -> tuple[list[Any], _Static]:
    """Arrays, which are traced, and everything else, which is not."""
    leaves, tree = jax.tree.flatten(dict(kwargs))
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    arrays = [leaf for leaf, found in zip(leaves, is_array, strict=True) if found]
    rest = [_ARRAY if found else leaf for leaf, found in zip(leaves, is_array, strict=True)]
    return arrays, _Static(rest, tree)
