"""Proof that the model treats every example alike, and no operation mixes examples.

A kernel is a function of two examples, so the output for one example must not depend on the others. Comparing the
traces at batch sizes 1, 2 and 3 shows which axis of each array counts examples; every operation that touches it must
provably leave it alone. What is not known is refused: training-mode BatchNorm traced at batch size 1 would otherwise
give a kernel that is zero, in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import jax
import numpy as np

from infnet._jax import lax_primitives as lax_p
from infnet._jax import optimization_barrier_p, split_p, stack_p, tile_p
from infnet.custom import custom_kernel_p
from infnet.errors import MONTE_CARLO, BatchAxisError, Where
from infnet.registry import Rules
from infnet.trace import Equation, Flat, is_elementwise


@dataclass(eq=False)
class Trace(Flat):
    """The flat program of one example: `batch_axis[v]` is the axis of variable v that counts examples, if any."""

    batch_axis: list[int | None] = field(default_factory=list)
    n_params: int = 0

    @property
    def param_inputs(self) -> list[int]:
        """The variables that hold the parameters."""
        return self.inputs[: self.n_params]

    @property
    def data_inputs(self) -> list[int]:
        """The variables that hold the data."""
        return self.inputs[self.n_params :]

    def shape(self, var: int) -> tuple[int, ...]:
        """The shape of variable `var` at batch size 1."""
        return tuple(self.avals[var].shape)


# (trace, equation, batch axis of each input) -> the batch axis of the outputs, or None if examples are mixed.
Rule = Callable[[Trace, Equation, list[int | None]], int | None]
RULES: Rules[Rule] = Rules()


def one_example(flats: Sequence[Flat], n_params: int) -> Trace:
    """The program of one example, from the traces at batch sizes 1, 2 and 3.

    Raises:
        BatchAxisError: an operation depends on the number of examples, mixes them, or is not known to keep them apart.
    """
    _same_structure(flats)
    one = flats[0]
    axes = [_batch_axis(flats, number) for number in range(len(one.avals))]
    trace = Trace(one.equations, one.avals, one.constants, one.inputs, one.outputs, axes, n_params)
    for same in zip(*(f.equations for f in flats), strict=True):
        _check_separate(trace, same[0])
        if not (_parameters_grow(same) and _constants_agree(flats, same[0])):
            _refuse_difference(same[0])
    return trace


def _check_separate(trace: Trace, equation: Equation) -> None:
    inputs = [trace.batch_axis[v] for v in equation.inputs]
    outputs = [trace.batch_axis[v] for v in equation.outputs]
    if all(axis is None for axis in (*inputs, *outputs)):
        return
    rule = _same_axis if is_elementwise(equation.source) else RULES.get(equation.primitive)
    if rule is None:
        _refuse(equation, "is not known to treat the examples of a batch separately")
    kept = rule(trace, equation, inputs)
    if kept is None or any(axis != kept for axis in outputs):
        _refuse(equation, "mixes the examples of a batch")


def _same_structure(flats: Sequence[Flat]) -> None:
    for same in zip(*(f.equations for f in flats), strict=False):
        if len({(e.primitive, e.inputs, e.outputs) for e in same}) > 1:
            _refuse_difference(same[0])
    if len({(len(f.equations), len(f.avals)) for f in flats}) > 1:
        _refuse_difference(flats[0].equations[-1])


def _refuse_difference(equation: Equation) -> NoReturn:
    raise BatchAxisError(
        f"`{equation.primitive.name}` is not the same operation at batch sizes 1, 2 and 3",
        where=equation.where,
        why="a kernel is a function of two examples, so the model must treat every example in the same way, "
        "whatever the size of the batch",
        remedy="name the axes the operation acts on, for example `x.squeeze(axis=-1)` instead of `x.squeeze()`, "
        "and keep the batch size out of the arithmetic",
    )


def _refuse(equation: Equation, how: str) -> NoReturn:
    raise BatchAxisError(
        f"`{equation.primitive.name}` {how}",
        where=equation.where,
        why="a kernel is a function of two examples, so the output for one example must not depend on the others "
        "(BatchNorm in training mode does; on a single example it would return zero)",
        remedy="use BatchNorm with running statistics (`use_running_average=True`), or act on each example "
        f"separately; {MONTE_CARLO}",
    )


def _parameters_grow(equations: Sequence[Equation]) -> bool:
    keys = equations[0].params.keys()
    return all(_grows_alike(*(e.params.get(k) for e in equations)) for k in keys)


def _grows_alike(one: Any, two: Any, three: Any) -> bool:
    """Whether a static parameter is equal at the three batch sizes, or in proportion to them."""
    if isinstance(one, tuple | list):
        return len(one) == len(two) == len(three) and all(_grows_alike(*p) for p in zip(one, two, three, strict=True))
    if isinstance(one, int | np.integer) and not isinstance(one, bool):
        return one == two == three or (two, three) == (2 * one, 3 * one)
    if isinstance(one, float | str | bool | None | np.dtype):
        return one == two == three or (one != one and two != two and three != three)
    # Jaxprs, functions and dimension-number records: those of elementwise calls hold nothing that counts
    # examples, those of other calls are refused by `independence` as soon as they touch a batch axis.
    return True


def _constants_agree(flats: Sequence[Flat], equation: Equation) -> bool:
    for number in equation.inputs:
        values = [f.constants.get(number) for f in flats]
        if any(isinstance(v, jax.core.Tracer) for v in values) or values[0] is None:
            continue
        one, *larger = (np.asarray(v) for v in values)
        for value in larger:
            if value.ndim != one.ndim or not np.array_equal(
                np.broadcast_to(one, value.shape) if _broadcasts(one, value) else one,
                value,
                equal_nan=one.dtype.kind == "f",
            ):
                return False
    return True


def _broadcasts(one: np.ndarray, value: np.ndarray) -> bool:
    return all(a in (1, b) for a, b in zip(one.shape, value.shape, strict=True))


def _batch_axis(flats: Sequence[Flat], number: int) -> int | None:
    """The axis of a variable whose size is proportional to the batch size."""
    avals = [f.avals[number] for f in flats]
    if not all(hasattr(a, "shape") for a in avals):
        return None
    if len({len(v.shape) for v in avals}) > 1:
        _refuse_shape(flats[0], number, f"its rank is {', '.join(str(len(v.shape)) for v in avals)}")
    growing = []
    for axis, (a, b, c) in enumerate(zip(*(v.shape for v in avals), strict=True)):
        if (b, c) == (2 * a, 3 * a) and a > 0:
            growing.append(axis)
        elif not a == b == c:
            _refuse_shape(flats[0], number, f"axis {axis} has sizes {a}, {b}, {c}")
    if len(growing) > 1:
        _refuse_shape(flats[0], number, f"axes {growing} all grow")
    return growing[0] if growing else None


def _refuse_shape(flat: Flat, number: int, what: str) -> NoReturn:
    equation = next((e for e in flat.equations if number in e.outputs), None)
    raise BatchAxisError(
        f"the result of `{equation.primitive.name if equation else 'an input'}` does not have one row per example: "
        f"{what} at batch sizes 1, 2, 3",
        where=equation.where if equation else Where(),
        why="a kernel is a function of two examples, so every array must hold the examples along one axis or none",
        remedy="name the axes the operation acts on, for example `x.squeeze(axis=-1)` instead of `x.squeeze()`, so "
        "that it acts on each example separately",
    )


@RULES.register(optimization_barrier_p, custom_kernel_p, lax_p.real_p, lax_p.imag_p, lax_p.conj_p)
def _same_axis(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    found = {axis for axis in axes if axis is not None}
    return found.pop() if len(found) == 1 else None


@RULES.register(
    lax_p.reduce_sum_p,
    lax_p.reduce_max_p,
    lax_p.reduce_min_p,
    lax_p.reduce_prod_p,
    lax_p.reduce_and_p,
    lax_p.reduce_or_p,
    lax_p.argmax_p,
    lax_p.argmin_p,
)
def _reduction(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    (axis,) = axes
    reduced = equation.params["axes"]
    return None if axis is None or axis in reduced else axis - sum(a < axis for a in reduced)


@RULES.register(lax_p.cumsum_p, lax_p.cumprod_p, lax_p.cummax_p, lax_p.cummin_p, lax_p.cumlogsumexp_p)
def _cumulative(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    return _avoids(axes[0], (equation.params["axis"],))


@RULES.register(lax_p.rev_p)
def _rev(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    return _avoids(axes[0], equation.params["dimensions"])


@RULES.register(lax_p.sort_p, lax_p.concatenate_p)
def _along_dimension(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    if None in axes:  # some rows belong to examples and some to none
        return None
    return _avoids(_same_axis(trace, equation, axes), (equation.params["dimension"],))


@RULES.register(stack_p)
def _stack(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    axis = None if None in axes else _same_axis(trace, equation, axes)
    return axis if axis is None or axis < equation.params["axis"] else axis + 1


@RULES.register(split_p)
def _split(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    return _avoids(axes[0], (equation.params["axis"],))


def _avoids(axis: int | None, touched: tuple[int, ...]) -> int | None:
    return None if axis in touched else axis


@RULES.register(lax_p.reshape_p)
def _reshape(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    # Examples stay apart exactly if they are cut at the same place of the row-major order.
    before, after = trace.shape(equation.inputs[0]), trace.shape(equation.outputs[0])
    axis, out = axes[0], trace.batch_axis[equation.outputs[0]]
    if axis is None or out is None or equation.params.get("dimensions") is not None:
        return None
    return out if math.prod(before[:axis]) == math.prod(after[:out]) else None


@RULES.register(lax_p.transpose_p)
def _transpose(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    return None if axes[0] is None else tuple(equation.params["permutation"]).index(axes[0])


@RULES.register(lax_p.squeeze_p)
def _squeeze(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    axis, dropped = axes[0], equation.params["dimensions"]
    return None if axis is None or axis in dropped else axis - sum(a < axis for a in dropped)


@RULES.register(lax_p.broadcast_in_dim_p)
def _broadcast(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    if axes[0] is None:  # the same value for every example
        return trace.batch_axis[equation.outputs[0]]
    return int(equation.params["broadcast_dimensions"][axes[0]])


@RULES.register(tile_p)
def _tile(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    if axes[0] is None:  # the same value for every example
        return trace.batch_axis[equation.outputs[0]]
    return axes[0] if equation.params["reps"][axes[0]] == 1 else None


@RULES.register(lax_p.fft_p)
def _fft(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    rank = len(trace.shape(equation.inputs[0]))
    return _avoids(axes[0], tuple(range(rank - len(equation.params["fft_lengths"]), rank)))


@RULES.register(lax_p.slice_p)
def _slice(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    # A slice along the batch axis has a size that does not grow, or starts at an index that does.
    axis, params = axes[0], equation.params
    strides = params["strides"] or (1,) * len(params["start_indices"])
    if axis is None or params["start_indices"][axis] or strides[axis] != 1:
        return None
    return axis


@RULES.register(lax_p.dynamic_slice_p, lax_p.dynamic_update_slice_p)
def _dynamic_slice(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    return axes[0] if all(a is None for a in axes[1:]) else None


@RULES.register(lax_p.pad_p)
def _pad(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    axis = axes[0]
    if axis is None or axes[1] is not None:
        return None
    return axis if tuple(equation.params["padding_config"][axis]) == (0, 0, 0) else None


@RULES.register(lax_p.dot_general_p)
def _dot_general(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    contracted, batched = equation.params["dimension_numbers"]
    left, right = axes
    if left in contracted[0] or right in contracted[1]:
        return None
    if left in batched[0] or right in batched[1]:
        position = batched[0].index(left) if left in batched[0] else batched[1].index(right)
        return position if (left, right) == (batched[0][position], batched[1][position]) else None
    if left is not None and right is not None:
        return None
    n_left = len(trace.shape(equation.inputs[0])) - len(contracted[0]) - len(batched[0])
    side, axis = (0, left) if left is not None else (1, right)
    if axis is None:
        return None
    gone = (*contracted[side], *batched[side])
    offset = len(batched[0]) + (0 if side == 0 else n_left)
    return offset + axis - sum(a < axis for a in gone)


@RULES.register(lax_p.conv_general_dilated_p)
def _conv(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    numbers = equation.params["dimension_numbers"]
    separate = equation.params["batch_group_count"] == 1 and axes[1] is None
    return numbers.out_spec[0] if separate and axes[0] == numbers.lhs_spec[0] else None


@RULES.register(lax_p.reduce_window_sum_p, lax_p.reduce_window_max_p, lax_p.reduce_window_min_p)
def _reduce_window(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    axis, params = axes[0], equation.params
    if axis is None or params["window_dimensions"][axis] != 1:
        return None
    still = params["window_strides"][axis] == 1 and tuple(params["padding"][axis]) == (0, 0)
    return axis if still else None


@RULES.register(lax_p.gather_p)
def _gather(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    numbers, (operand, indices) = equation.params["dimension_numbers"], axes
    out_rank = len(trace.shape(equation.outputs[0]))
    if operand is not None and indices is None:
        touched = (*numbers.collapsed_slice_dims, *numbers.start_index_map)
        if operand in touched:
            return None
        offset = [a for a in range(len(trace.shape(equation.inputs[0]))) if a not in touched]
        return numbers.offset_dims[offset.index(operand)]
    if operand is None and indices is not None:
        rows = [a for a in range(out_rank) if a not in numbers.offset_dims]
        return rows[indices] if indices < len(rows) else None
    return None
