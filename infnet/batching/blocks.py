"""A kernel as a function of its blocks: what is computed once per example, and what of pairs of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.arguments import StaticArguments, split_arguments
from infnet.errors import InputError

PyTree = Any
BlockFn = Callable[..., tuple[PyTree, PyTree]]
# Examples of a block whose shapes are looked at: numbers that no other axis has.
ROWS, COLUMNS = 100_003, 100_019
EXAMPLES_AT_ONCE = 1024


@dataclass(frozen=True)
class Blocks:
    """The kernel of two sets of examples, to be computed block by block.

    Attributes:
        shared: arrays that every block needs, a pytree.
        one, two: what is known of each example of x1, and of x2: pytrees with leading axes n1 and n2.
        block: `(shared, rows of one, rows of two) -> matrices, notes`. Matrices are a pytree of arrays
            `(rows, columns, ...)`; notes are a pytree of numbers, of which the largest of all blocks counts.
        own_block: `(shared, rows of one) -> matrices, notes` of examples with themselves; None if x2 is not x1.
        mirror: of the matrices of two sets of examples, those of the sets exchanged; None if they do not follow.
        finish: `(matrices, notes) -> result`, of all examples.
        check: `(notes, rows, columns) -> None`, raises if a block with these examples is not to be trusted.
    """

    shared: PyTree
    one: PyTree
    two: PyTree
    block: BlockFn
    own_block: BlockFn | None
    mirror: Callable[[PyTree], PyTree] | None
    finish: Callable[[PyTree, PyTree], PyTree] = lambda matrices, notes: matrices
    check: Callable[[PyTree, slice, slice], None] = lambda notes, rows, columns: None

    @property
    def sizes(self) -> tuple[int, int]:
        """The numbers of examples, n1 and n2."""
        return length(self.one), length(self.two)

    def shapes(self) -> tuple[PyTree, PyTree]:
        """Matrices and notes of all examples as `jax.ShapeDtypeStruct`; nothing is computed."""
        n1, n2 = self.sizes

        def whole(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((n1, n2, *leaf.shape[2:]), leaf.dtype)

        matrices, notes = _block_shapes(self.block, self.shared, self.one, self.two)
        return jax.tree.map(whole, matrices), notes


def blocks_of(kernel_fn: Callable[..., PyTree], x1: PyTree, x2: PyTree, *args: Any, **kwargs: Any) -> Blocks:
    """The blocks of what `kernel_fn(x1, x2, *args, **kwargs)` computes.

    Kernel functions of infnet have a method `blocks` that says what is computed once per example. Of other functions,
    every block is a call.

    Raises:
        InputError: the inputs are not pytrees of arrays with as many examples each, or the function returns something
            else than arrays `(n1, n2, ...)`.
    """
    if hasattr(kernel_fn, "blocks"):
        blocks: Blocks = kernel_fn.blocks(x1, x2, *args, **kwargs)
        return blocks
    one = as_arrays(x1, "x1")
    two = one if x2 is None else as_arrays(x2, "x2")
    arrays, block, own_block = calls(kernel_fn, *args, **kwargs)
    own = own_block if x2 is None else None
    mirror = _mirror_of(block, arrays, one, two) if own else None
    return Blocks(arrays, one, two, block, own, mirror)


def calls(kernel_fn: Callable[..., PyTree], *args: Any, **kwargs: Any) -> tuple[list[Any], BlockFn, BlockFn]:
    """The arrays in further arguments of a function, and its calls with them as a block and as an own block.

    They are the same functions for the same function and other arguments, so that they are compiled once.
    """
    arrays, static = split_arguments((args, kwargs))
    block, own_block = (_calls if static.hashable else _calls.__wrapped__)(kernel_fn, static)
    return arrays, block, own_block


@lru_cache
def _calls(kernel_fn: Callable[..., PyTree], static: StaticArguments) -> tuple[BlockFn, BlockFn]:
    def block(arrays: Sequence[Any], rows: PyTree, columns: PyTree) -> tuple[PyTree, PyTree]:
        args, kwargs = static.joined(arrays)
        return kernel_fn(rows, columns, *args, **kwargs), ()

    def own_block(arrays: Sequence[Any], rows: PyTree) -> tuple[PyTree, PyTree]:
        return block(arrays, rows, None)

    return block, own_block


def _mirror_of(block: Callable[..., Any], *arguments: PyTree) -> Callable[[PyTree], PyTree] | None:
    """Of a function that is not known: numbers of x1 and x2 are those of x2 and x1; of more axes nobody knows."""
    leaves = jax.tree.leaves(_block_shapes(block, *arguments)[0])
    simple = all(x.ndim == 2 and not jnp.issubdtype(x.dtype, jnp.complexfloating) for x in leaves)
    return transposed if simple else None


@dataclass(frozen=True)
class OneStage:
    """Blocks by functions `(shared, x1, x2) -> dict` that compute everything from the inputs.

    Attributes:
        names: of the matrices in the dict; it also holds `error` and `finite`.
        pair, of_itself: the function for two sets of examples, and that for x2 = x1.
    """

    names: tuple[str, ...]
    pair: Callable[..., Mapping[str, Any]]
    of_itself: Callable[..., Mapping[str, Any]]

    def __call__(self, shared: PyTree, rows: PyTree, columns: PyTree) -> tuple[PyTree, PyTree]:
        """Of two sets of examples."""
        return self._noted(self.pair(shared, rows, columns))

    def own(self, shared: PyTree, rows: PyTree) -> tuple[PyTree, PyTree]:
        """Of examples with themselves."""
        return self._noted(self.of_itself(shared, rows, rows))

    def _noted(self, found: Mapping[str, Any]) -> tuple[PyTree, PyTree]:
        return {name: found[name] for name in self.names}, {"error": found["error"], "failed": ~found["finite"]}


def transposed(matrices: PyTree) -> PyTree:
    """Arrays `(rows, columns)` as `(columns, rows)`."""
    return jax.tree.map(lambda x: x.T, matrices)


def _block_shapes(block: Callable[..., Any], shared: PyTree, one: PyTree, two: PyTree) -> tuple[PyTree, PyTree]:
    """Matrices and notes of a block of ROWS and COLUMNS examples."""

    def some(x: PyTree, n: int) -> PyTree:
        return jax.tree.map(lambda a: jax.ShapeDtypeStruct((n, *a.shape[1:]), a.dtype), x)

    matrices, notes = jax.eval_shape(block, shared, some(one, ROWS), some(two, COLUMNS))
    for path, leaf in jax.tree.leaves_with_path(matrices):
        if leaf.shape[:2] != (ROWS, COLUMNS):
            shape = str(tuple({ROWS: "n1", COLUMNS: "n2"}.get(n, n) for n in leaf.shape)).replace("'", "")
            raise InputError(
                "a kernel that is computed in tiles must have the shape (n1, n2, ...), but "
                f"{jax.tree_util.keystr(path) or 'the result'} has the shape {shape}; ask for arrays, as by "
                'get=("nngp", "ntk"), and leave examples out of diagonal_axes'
            )
    return matrices, notes


def as_arrays(x: PyTree, name: str) -> PyTree:
    """A pytree of arrays, all with as many examples."""
    leaves = jax.tree.leaves(x)
    arrays = jax.tree.map(lambda a: a if isinstance(a, jax.Array | np.ndarray) else jnp.asarray(a), x)
    sizes = {a.shape[0] if a.ndim else None for a in jax.tree.leaves(arrays)}
    if not leaves or len(sizes) != 1 or None in sizes:
        shapes = [a.shape for a in jax.tree.leaves(arrays)]
        raise InputError(f"{name} must be a pytree of arrays with as many examples each, first; it has shapes {shapes}")
    return arrays


def length(x: PyTree) -> int:
    """The number of examples."""
    leaves = jax.tree.leaves(x)
    n: int = leaves[0].shape[0]
    return n


def in_parts(function: Callable[[PyTree], Any], x: PyTree) -> Any:
    """`function(x)`, a pytree of arrays with the examples first, of a part of them at a time: memory does not grow."""
    n = length(x)
    if n <= EXAMPLES_AT_ONCE:
        return function(x)
    starts = range(0, n, EXAMPLES_AT_ONCE)
    parts = [function(jax.tree.map(lambda a, k=k: a[k : k + EXAMPLES_AT_ONCE], x)) for k in starts]
    return jax.tree.map(lambda *arrays: jnp.concatenate(arrays), *parts)
