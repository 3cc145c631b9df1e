"""Kernel functions that were made before, by the model, the options and the shapes of the inputs.

A model that is asked for its kernel again and again should not be read again, nor compiled: a kernel function keeps
what it has compiled.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from infnet.batching.batched import TILE_OPTIONS
from infnet.kernel import Kernel

PyTree = Any
T = TypeVar("T")
KEPT = 64


def remembered_kernel_fn(make: Callable[..., Any], model: Any, x: PyTree, options: Mapping[str, Any]) -> Any:
    """`make(model, example, **options)`, or what it returned for such a model, inputs and options before.

    Args:
        make: `(model, example, **options) -> KernelFn`, as `infnet_flax.kernel_fn`.
        model: what it takes.
        x: inputs `(n, ...)`, a tuple of several, or a `Kernel`. Shapes without n, and dtypes count.
        options: of `make`.
    """

    def one(leaf: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((1, *jnp.shape(leaf)[1:]), jnp.result_type(leaf))

    return remembered(make, model, jax.tree.map(_shape if isinstance(x, Kernel) else one, x), **options)


def remembered_kernel(
    make: Callable[..., Any], model: Any, x1: PyTree, x2: PyTree, get: Any, options: Mapping[str, Any]
) -> Any:
    """The kernels of a model, by a kernel function that is remembered.

    Args:
        make, model: as of `remembered_kernel_fn`.
        x1, x2, get: arguments of the kernel function.
        options: of `make`, and of `infnet.batch`.
    """
    tile_options = {name: value for name, value in options.items() if name in TILE_OPTIONS}
    others = {name: value for name, value in options.items() if name not in TILE_OPTIONS}
    return remembered_kernel_fn(make, model, x1, others)(x1, x2, get, **tile_options)


def remembered_monte_carlo_kernel(
    make: Callable[..., Any],
    model: Any,
    key: jax.Array,
    x1: PyTree,
    x2: PyTree,
    n_samples: Any,
    get: Any,
    options: Mapping[str, Any],
) -> Any:
    """The mean kernels of random networks of a model, by a function that is remembered.

    Args:
        make: `(model, example, **options) -> MonteCarloKernelFn`, of any key and number of networks.
        model: what it takes.
        key, x1, x2, get: as of `infnet.monte_carlo_kernel_fn`.
        n_samples: likewise; None is 100, unless there is a target error.
        options: of `make`; and `target_error` and `progress` of `infnet.monte_carlo_kernel_fn`.
    """
    of_samples = {name: value for name, value in options.items() if name in ("target_error", "progress")}
    others = {name: value for name, value in options.items() if name not in of_samples}
    if n_samples is None and of_samples.get("target_error") is None:
        n_samples = 100
    return remembered_kernel_fn(make, model, x1, others).with_samples(key, n_samples, **of_samples)(x1, x2, get)


def remembered(make: Callable[..., T], *args: Any, **options: Any) -> T:
    """`make(*args, **options)`, or what it returned for such arguments before.

    The last results are kept. Arguments are compared by their values; where they cannot be (arrays, mutable models)
    nothing is remembered.
    """
    try:
        key = _comparable((make, args, options))
        hash(key)
    except TypeError:
        return make(*args, **options)
    return _made(_Wanted(key, lambda: make(*args, **options)))


class _Wanted:
    """What is equal to others with the same key."""

    def __init__(self, key: Hashable, make: Callable[[], Any]):
        self.key, self.make = key, make

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Wanted) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


@functools.lru_cache(maxsize=KEPT)
def _made(wanted: _Wanted) -> Any:
    return wanted.make()


def _comparable(x: Any) -> Hashable:
    """A value as one that can be hashed; numbers of different types are different."""
    if isinstance(x, Mapping):
        return type(x), tuple((name, _comparable(value)) for name, value in x.items())
    if isinstance(x, tuple | list):
        return type(x), tuple(map(_comparable, x))
    if isinstance(x, Kernel | jax.ShapeDtypeStruct):
        leaves, tree = jax.tree.flatten(x)
        return tree, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)
    return type(x), x


def _shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
