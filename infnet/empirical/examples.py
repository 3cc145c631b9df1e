"""Whether a model treats every example of a batch by itself, so that its Jacobian is that of one example after another.

It is proved for the model's jaxpr, as it is for infinite-width kernels (`infnet.independence`). Where it cannot be
proved (BatchNorm in training mode mixes examples), the batch is one whole, which is always right. The proof is of
values, not of the backward rules that `jax.custom_vjp` gives: where there is one, the batch is one whole too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from infnet._jax import JaxprEqn
from infnet._jax import lax_primitives as lax_p
from infnet.errors import BatchAxisError, InputError, Where
from infnet.errors.programs import EXAMPLES_IN_ONE_JACOBIAN
from infnet.flatten import BATCH_SIZES, trace_at_batch_sizes
from infnet.independence import bodies, one_example
from infnet.trace import Flat

PyTree = Any
RESHAPING = frozenset({lax_p.broadcast_in_dim_p, lax_p.reshape_p, lax_p.squeeze_p, lax_p.transpose_p})
VmapAxes = Literal["auto", 0] | None
Function = Callable[[PyTree, PyTree], list[jax.Array]]


def of_one_example(f: Function, params: PyTree, x: PyTree, vmap_axes: VmapAxes) -> Function | None:
    """The model as a function of one example, or None if the batch is to be treated as a whole.

    Args:
        f: `(params, x) -> leaves`, each leaf with a leading batch axis.
        params: its parameters.
        x: its input, every leaf with a leading batch axis.
        vmap_axes: "auto", 0 to insist, or None for the whole.

    Raises:
        BatchAxisError: `vmap_axes` is 0, and the examples are not proved to be separate.
        InputError: `vmap_axes` is 0, and there is no batch axis.
    """
    if vmap_axes is None:
        return None
    try:
        copies = _copies(f, params, x)
    except (BatchAxisError, InputError) as error:
        if vmap_axes == "auto":
            return None
        if isinstance(error, BatchAxisError):
            raise EXAMPLES_IN_ONE_JACOBIAN.at(error.where, what=error.what) from error
        raise

    def one(params: PyTree, example: PyTree) -> list[jax.Array]:
        batch = jax.tree.map(lambda leaf: jnp.stack([leaf] * copies), example)
        return [y[0] for y in f(params, batch)]

    return one


def _copies(f: Function, params: PyTree, x: PyTree) -> int:
    """How many times a batch has to hold an example so that the proof covers it.

    The proof is about two and more examples: what a model does for a single one may be something else. It is not if
    it is the same operations, but for changes of shape.
    """
    leaves = jax.tree.leaves(x)
    if not leaves or any(jnp.ndim(leaf) == 0 for leaf in leaves) or len({len(leaf) for leaf in leaves}) > 1:
        raise InputError("vmap_axes=0 takes inputs whose leaves all have a leading axis of the same size, the examples")
    example = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), x)
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)), params)
    two, three = trace_at_batch_sizes(f, structs, (example,), unroll=False)
    trace = one_example([two, three], 0)
    _check_draws(two, three)
    _check_backward_rules(two)
    for number, var in enumerate(trace.outputs):
        if trace.batch_axis[var] != 0:
            what = f"output {number} has no leading axis that counts examples"
            raise EXAMPLES_IN_ONE_JACOBIAN.at(Where(), what=what)
    try:
        (one,) = trace_at_batch_sizes(f, structs, (example,), sizes=(1,), unroll=False)
    except InputError:
        return BATCH_SIZES[0]
    shapes = [(1, *trace.shape(v)[1:]) for v in trace.outputs]
    same = _operations(one) == _operations(two) and [one.avals[v].shape for v in one.outputs] == shapes
    return 1 if same else BATCH_SIZES[0]


def _operations(flat: Flat) -> list[Any]:
    """What a program does, in order, without what it does to shapes."""
    return [e.primitive for e in _equations([e.source for e in flat.equations]) if e.primitive not in RESHAPING]


def _check_draws(two: Flat, three: Flat) -> None:
    """Raise if random numbers are drawn for every example: another batch size draws others."""
    pairs = zip(*(_equations([e.source for e in flat.equations]) for flat in (two, three)), strict=True)
    for one, other in pairs:
        drawn = one.primitive is lax_p.random_bits_p and one.outvars[0].aval.shape != other.outvars[0].aval.shape
        if drawn:
            where = next((e.where for e in two.equations if e.source is one), Where())
            what = f"`{one.primitive.name}` draws random numbers for each example of a batch"
            raise EXAMPLES_IN_ONE_JACOBIAN.at(where, what=what)


def _check_backward_rules(flat: Flat) -> None:
    """Raise if a gradient is what a user says: it may depend on the whole batch where the value does not."""
    sources = {id(e.source): e.where for e in flat.equations}
    for equation in _equations([e.source for e in flat.equations]):
        if equation.primitive is lax_p.custom_vjp_call_p:
            where, what = sources.get(id(equation), Where()), "`jax.custom_vjp` has a backward rule of its own"
            raise EXAMPLES_IN_ONE_JACOBIAN.at(where, what=what)


def _equations(waiting: Sequence[JaxprEqn]) -> Iterator[JaxprEqn]:
    """Equations and those of the jaxprs that they apply, in order."""
    stack = list(reversed(waiting))
    while stack:
        equation = stack.pop()
        yield equation
        stack.extend(inner for body in reversed(bodies(equation)) for inner in reversed(body.jaxpr.eqns))
