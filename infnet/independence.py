"""Proof that the model treats every example alike, and no operation mixes examples.

A kernel is a function of two examples, so the output for one example must not depend on the others. Comparing the
traces at batch sizes 2 and 3 shows which axis of each array counts examples; every operation that touches it must
provably leave it alone. What is not known is refused: training-mode BatchNorm on a single example would otherwise give
a kernel that is zero, in silence.

What is proved is the model as it acts on two and more examples. At batch size 1 it may be written otherwise
(`jnp.matmul` drops axes of size 1), so it is not traced there: the program of one example is half of that of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from infnet._jax import ClosedJaxpr, JaxprEqn, Primitive, split_p, tile_p
from infnet._jax import lax_primitives as lax_p
from infnet.errors import RefusalError, Where
from infnet.errors.programs import (
    EXAMPLES_MIXED,
    EXAMPLES_NOT_KNOWN_TO_BE_SEPARATE,
    EXAMPLES_NOT_ON_ONE_AXIS,
    EXAMPLES_TREATED_DIFFERENTLY,
)
from infnet.flatten import BATCH_SIZES, flatten
from infnet.numpy_rules import CALLS, called_jaxpr
from infnet.separation import RULES, same_axis
from infnet.trace import Equation, Flat, Trace, constant_value, is_elementwise

# Static parameters that are sizes of the result: they may grow with the batch. All others must not.
SIZES: dict[Primitive, str] = {
    lax_p.broadcast_in_dim_p: "shape",
    lax_p.iota_p: "shape",
    lax_p.reshape_p: "new_sizes",
    lax_p.slice_p: "limit_indices",
    lax_p.dynamic_slice_p: "slice_sizes",
    lax_p.gather_p: "slice_sizes",
    split_p: "sizes",
    tile_p: "reps",
    lax_p.random_bits_p: "shape",
}


def one_example(flats: Sequence[Flat], n_params: int, where: Where | None = None) -> Trace:
    """The program of one example, from the traces at `BATCH_SIZES`.

    Args:
        flats: the same program at the two batch sizes.
        n_params: how many of its inputs are parameters.
        where: the operation that it is the body of, if it is one.

    Raises:
        BatchAxisError: an operation depends on the number of examples, mixes them, or is not known to keep them apart.
    """
    _same_structure(flats, where or Where())
    two, three = flats
    axes = [_batch_axis(flats, number) for number in range(len(two.avals))]
    trace = Trace([], two.avals, two.constants, two.inputs, two.outputs, axes, n_params)
    differing: set[int] = set()  # constants that are not the same for each example, at both batch sizes
    for pair in zip(two.equations, three.equations, strict=True):
        trace.equations.append(replace(pair[0], params=_sizes_of_one(*pair)))
        if not _uses_example_numbers(trace, three, pair[0], differing):
            _check_separate(trace, *pair)
            _check_constants(trace, three, pair[0], differing)
    if differing.intersection(trace.outputs):
        raise _differs(two.equations[-1])
    return trace


def _check_separate(trace: Trace, two: Equation, three: Equation) -> None:
    applied = list(zip(bodies(two.source), bodies(three.source), strict=True))
    for body in applied:
        one_example([flatten(closed, 0, two.where) for closed in body], 0, two.where)
    inputs = [trace.batch_axis[v] for v in two.inputs]
    outputs = [trace.batch_axis[v] for v in two.outputs]
    if all(axis is None for axis in (*inputs, *outputs)):
        return
    if applied:
        # Shapes tell which axis counts examples, inside of a body as outside, so the proof for the bodies is enough. A
        # scan cannot run over the examples: it would have another length for each number of them.
        return
    rule = same_axis if is_elementwise(two.source) else RULES.get(two.primitive)
    if rule is None:
        raise EXAMPLES_NOT_KNOWN_TO_BE_SEPARATE.of(two)
    kept = rule(trace, two, inputs)
    if kept is None or any(axis != kept for axis in outputs) or not _keeps_rows(trace, two):
        raise EXAMPLES_MIXED.of(two)


def _keeps_rows(trace: Trace, equation: Equation) -> bool:
    """Whether each example has as many rows after an operation as before."""
    if equation.primitive is lax_p.reshape_p:
        return True
    axes = [(v, trace.batch_axis[v]) for v in (*equation.inputs, *equation.outputs)]
    return len({trace.shape(v)[axis] for v, axis in axes if axis is not None}) == 1


CONTROL_FLOW: dict[Primitive, tuple[str, ...]] = {
    lax_p.scan_p: ("jaxpr",),
    lax_p.while_p: ("cond_jaxpr", "body_jaxpr"),
    lax_p.cond_p: ("branches",),
}


def bodies(equation: JaxprEqn) -> list[ClosedJaxpr]:
    """The jaxprs that an operation applies."""
    if equation.primitive in CALLS:
        return [called_jaxpr(equation)]
    found = [equation.params[name] for name in CONTROL_FLOW.get(equation.primitive, ())]
    return [body for item in found for body in (item if isinstance(item, tuple) else (item,))]


def _same_structure(flats: Sequence[Flat], where: Where) -> None:
    for same in zip(*(f.equations for f in flats), strict=False):
        if len({(e.primitive, e.inputs, e.outputs, len(bodies(e.source))) for e in same}) > 1:
            raise _differs(same[0])
    if len({(len(f.equations), len(f.avals), tuple(f.outputs)) for f in flats}) > 1:
        equations = max((f.equations for f in flats), key=len)
        if not equations:
            raise EXAMPLES_TREATED_DIFFERENTLY.at(where, what="the model")
        raise _differs(equations[-1])


def _differs(equation: Equation) -> RefusalError:
    return EXAMPLES_TREATED_DIFFERENTLY.at(equation.where, what=f"`{equation.primitive.name}`")


def _sizes_of_one(two: Equation, three: Equation) -> dict[str, Any]:
    """The static parameters for one example."""
    params = {}
    for name, value in two.params.items():
        other: Any = three.params.get(name)
        if name == SIZES.get(two.primitive):
            params[name] = tuple(_of_one(two, a, b) for a, b in zip(value, other, strict=True))
        elif _equal(value, other):
            params[name] = value
        else:
            raise _differs(two)
    return params


def _of_one(equation: Equation, two: int, three: int) -> int:
    if two == three:
        return two
    if not _is_proportional(two, three):
        raise _differs(equation)
    return two // BATCH_SIZES[0]


def _is_proportional(two: int, three: int) -> bool:
    """Whether two sizes count examples: whether they are the same multiple of the batch sizes, and not zero."""
    return two > 0 and two % BATCH_SIZES[0] == 0 and two * BATCH_SIZES[1] == three * BATCH_SIZES[0]


def _equal(two: Any, three: Any) -> bool:
    """Whether a static parameter is the same at both batch sizes."""
    if isinstance(two, tuple | list):
        return len(two) == len(three) and all(_equal(*p) for p in zip(two, three, strict=True))
    if isinstance(two, int | float | str | bool | None | np.generic | np.dtype):
        return bool(two == three or (two != two and three != three))
    # Jaxprs, which `one_example` compares, and functions. What else applies them is refused if it touches a batch axis.
    return True


def _check_constants(trace: Trace, three: Flat, equation: Equation, differing: set[int]) -> None:
    """Refuse constants that depend on the batch size, but only where they meet data: an index may be normalised."""
    for var in equation.inputs:
        if var in trace.constants and not _agree(trace, var, trace.constants[var], three.constants[var]):
            differing.add(var)
    if not differing.intersection(equation.inputs):
        return
    for var in equation.outputs:
        values = constant_value(trace, var), constant_value(three, var)
        if any(v is None for v in values):
            raise _differs(equation)
        if not _agree(trace, var, *values):
            differing.add(var)


def _uses_example_numbers(trace: Trace, three: Flat, equation: Equation, differing: set[int]) -> bool:
    """Whether an equation belongs to `x[arange(n), i]`, which takes from each example's own row; marks its indices."""
    axes = [trace.batch_axis[v] for v in (*equation.inputs, *equation.outputs)]
    if equation.primitive is lax_p.iota_p and equation.params["dimension"] == axes[0]:
        differing.update(equation.outputs)
        return True
    if not differing.intersection(equation.inputs):
        return False
    if equation.primitive is lax_p.concatenate_p and equation.params["dimension"] != axes[0]:
        differing.update(equation.outputs)
        return len(set(axes)) == 1
    return equation.primitive is lax_p.gather_p and _takes_own_row(trace, three, equation)


def _takes_own_row(trace: Trace, three: Flat, equation: Equation) -> bool:
    numbers, (x, indices) = equation.params["dimension_numbers"], equation.inputs
    axis, index_axis, out_axis = (trace.batch_axis[v] for v in (x, indices, *equation.outputs))
    parts = next((e.inputs for e in trace.equations if indices in e.outputs), ())
    if (
        axis not in numbers.collapsed_slice_dims
        or axis not in numbers.start_index_map
        or None in (index_axis, out_axis)
    ):
        return False
    columns = [v for v in parts for _ in range(trace.shape(v)[-1])]
    column = columns[numbers.start_index_map.index(axis)] if len(columns) == len(numbers.start_index_map) else indices
    for flat in (trace, three):
        value = constant_value(flat, column)
        if value is None or value.shape[-1] != 1:
            return False
        count = [-1 if d == index_axis else 1 for d in range(value.ndim)]
        if not np.array_equal(value, np.broadcast_to(np.arange(value.shape[index_axis]).reshape(count), value.shape)):
            return False
    rows = [d for d in range(len(trace.shape(*equation.outputs))) if d not in numbers.offset_dims]
    return out_axis in rows and rows.index(out_axis) == index_axis


def _agree(trace: Trace, var: int, two: Any, three: Any) -> bool:
    """Whether a constant holds the same values for each example, at both batch sizes."""
    if isinstance(two, jax.core.Tracer):
        return True
    one = trace.rows_of_one(var, _array(two))
    for value in map(_array, (two, three)):
        repeats = [m // n if n else 1 for m, n in zip(value.shape, one.shape, strict=True)]
        if not np.array_equal(np.tile(one, repeats), value, equal_nan=one.dtype.kind == "f"):
            return False
    return True


def _array(value: Any) -> np.ndarray:
    is_key = jax.dtypes.issubdtype(getattr(value, "dtype", None), jax.dtypes.prng_key)
    with jax.ensure_compile_time_eval():  # a key that a traced function has closed over is known all the same
        return np.asarray(jax.random.key_data(value) if is_key else value)


def _batch_axis(flats: Sequence[Flat], number: int) -> int | None:
    """The axis of a variable whose size is proportional to the batch size."""
    avals = [f.avals[number] for f in flats]
    if not all(hasattr(a, "shape") for a in avals):
        return None
    two, three = (a.shape for a in avals)
    if len(two) != len(three):
        raise _shape_differs(flats[0], number, f"its rank is {len(two)} and {len(three)}")
    growing = [axis for axis, (a, b) in enumerate(zip(two, three, strict=True)) if a != b]
    for axis in growing:
        if not _is_proportional(two[axis], three[axis]):
            raise _shape_differs(flats[0], number, f"axis {axis} has sizes {two[axis]} and {three[axis]}")
    if len(growing) > 1:
        raise _shape_differs(flats[0], number, f"axes {growing} all grow")
    return growing[0] if growing else None


def _shape_differs(flat: Flat, number: int, how: str) -> RefusalError:
    equation = next((e for e in flat.equations if number in e.outputs), None)
    name, where = (f"the result of `{equation.primitive.name}`", equation.where) if equation else ("an input", Where())
    return EXAMPLES_NOT_ON_ONE_AXIS.at(where, name=name, how=how)
