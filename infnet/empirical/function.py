"""Empirical kernels as functions that users call: what is compiled for them, and which implementation is chosen."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from infnet.arguments import NAMES, names_of, split_arguments
from infnet.batching.blocks import Blocks, as_arrays, calls
from infnet.empirical.choice import Choice, choose

PyTree = Any
Get = str | tuple[str, ...]
TYPICAL_TILE = 32  # examples


class EmpiricalKernelFn:
    """The kernels of a network with given parameters, as a function; `infnet.empirical_kernel_fn` makes it."""

    def __init__(
        self,
        compute: Callable[..., PyTree],
        mirror_of: Callable[..., Callable[[PyTree], PyTree]],
        implementations: Sequence[str],
        memory_limit: int,
    ):
        """A function for these computations.

        Args:
            compute: `(implementation, get, kwargs, x1, x2, params) -> kernels`.
            mirror_of: `(kwargs, x, params) -> mirror`, which exchanges x1 and x2 in kernels of such examples; raises if
                the examples depend on each other.
            implementations: the names of those to choose from.
            memory_limit: bytes that the one which is chosen should stay within.
        """
        self._compute, self.mirror_of = compute, mirror_of
        self._implementations, self._memory_limit = tuple(implementations), memory_limit
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

    def blocks(self, x1: PyTree, x2: PyTree | None, get: Any, params: PyTree, **kwargs: Any) -> Blocks:
        """The kernels in blocks of examples; see `infnet.batch`.

        Raises:
            BatchAxisError: the examples of a batch are not proved to be independent of each other.
        """
        one = as_arrays(x1, "x1")
        two = one if x2 is None else as_arrays(x2, "x2")
        mirror = self.mirror_of(kwargs, one, params)
        # The choice for all tiles is that for one of them, of an ordinary size.
        some, others = (jax.tree.map(lambda a: a[:TYPICAL_TILE], x) for x in (one, two))
        programs, (_, _, *shared) = self._prepared(some, others, get, params, kwargs)
        chosen = self._choice(get, programs, (some, others, *shared)).implementation if len(programs) > 1 else None
        arrays, block, own_block = calls(programs[chosen] if chosen else next(iter(programs.values())), *shared)
        return Blocks(arrays, one, two, block, *((own_block, mirror) if x2 is None else (None, None)))

    def _prepared(
        self, x1: PyTree, x2: PyTree | None, get: Any, params: PyTree, kwargs: Mapping[str, Any]
    ) -> tuple[dict[str, Any], tuple[Any, ...]]:
        """A jitted function for each implementation, and its arguments."""
        names = _names(get)
        arrays, static = split_arguments(kwargs)

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

    def blocks(self, x1: PyTree, x2: PyTree | None, params: PyTree, **kwargs: Any) -> Blocks:
        """As `EmpiricalKernelFn.blocks`."""
        return self._kernel_fn.blocks(x1, x2, self._get, params, **kwargs)

    def __call__(self, x1: PyTree, x2: PyTree | None, params: PyTree, **kwargs: Any) -> PyTree:
        """The kernel of x1 and x2; see `infnet.empirical_kernel_fn`."""
        return self._kernel_fn(x1, x2, self._get, params, **kwargs)

    def explain(self, x1: PyTree, x2: PyTree | None, params: PyTree, **kwargs: Any) -> Choice:
        """As `EmpiricalKernelFn.explain`."""
        return self._kernel_fn.explain(x1, x2, self._get, params, **kwargs)


def _names(get: Any) -> Get:
    return get if isinstance(get, str) else names_of(NAMES if get is None else get)
