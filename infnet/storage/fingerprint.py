"""What tells computations apart, the same in every process and on every machine: hashes of a program and of data."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from infnet.arguments import split_arguments
from infnet.batching.blocks import blocks_of

PyTree = Any
DIGITS = 32


def program_hash(
    kernel_fn: Callable[..., PyTree], x1: PyTree, x2: PyTree, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> str:
    """Of the program, in StableHLO, that computes the kernel of such examples from the data.

    It holds the model, its hyperparameters, all options and constants, and no name or address of this process. Arrays
    in `args` and `kwargs` are arguments of it. It is lowered for one platform, whatever the devices here are.
    """
    arrays, static = split_arguments((tuple(args), dict(kwargs)))

    def kernels(one: PyTree, two: PyTree, arrays: Sequence[Any]) -> PyTree:
        args, kwargs = static.joined(arrays)
        blocks = blocks_of(kernel_fn, one, two, *args, **kwargs)
        matrices, _ = blocks.block(blocks.shared, blocks.one, blocks.two)
        own = None if blocks.own_block is None else blocks.own_block(blocks.shared, blocks.one)[0]
        return matrices, own

    traced = jax.jit(kernels).trace(*jax.tree.map(_shape, (x1, x2, arrays)))
    try:
        lowered = traced.lower(lowering_platforms=("cpu",))
    except NotImplementedError:  # an operation that other platforms alone have
        lowered = traced.lower()
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()[:DIGITS]


def data_hash(x: PyTree) -> str:
    """Of a pytree of arrays, in the dtypes in which JAX sees them."""
    found = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(x):
        array = _values(leaf)
        found.update(f"{jax.tree_util.keystr(path)} {array.dtype.name} {array.shape}".encode())
        found.update(as_bytes(array))
    return found.hexdigest()[:DIGITS]


def as_bytes(array: np.ndarray) -> memoryview:
    """The bytes of an array, in the order of its entries."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def _values(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    array = np.asarray(leaf)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    if isinstance(leaf, jax.Array):
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
    array = np.asarray(leaf)
    return jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype))
