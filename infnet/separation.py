"""Which operations keep the examples of a batch apart, and on which axis of the result: one rule per primitive.

A rule is called where an operand or a result has an axis that counts examples. What has no rule is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from infnet._jax import lax_primitives as lax_p
from infnet._jax import optimization_barrier_p, split_p, stack_p, tile_p, unstack_p
from infnet.custom import custom_kernel_p
from infnet.registry import Rules
from infnet.trace import Equation, Trace

# (trace, equation, batch axis of each input) -> the batch axis of the outputs, or None if examples are mixed.
Rule = Callable[[Trace, Equation, list[int | None]], int | None]
RULES: Rules[Rule] = Rules()


@RULES.register(
    optimization_barrier_p,
    custom_kernel_p,
    lax_p.real_p,
    lax_p.imag_p,
    lax_p.conj_p,
    lax_p.shift_left_p,
    lax_p.shift_right_logical_p,
    lax_p.bitcast_convert_type_p,
)
def same_axis(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    """The one axis that all operands that hold examples hold them on."""
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
    return _avoids(same_axis(trace, equation, axes), (equation.params["dimension"],))


@RULES.register(stack_p)
def _stack(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    axis = None if None in axes else same_axis(trace, equation, axes)
    return axis if axis is None or axis < equation.params["axis"] else axis + 1


@RULES.register(unstack_p)
def _unstack(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    axis, dropped = axes[0], equation.params["axis"]
    return None if axis is None or axis == dropped else axis - (dropped < axis)


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


@RULES.register(lax_p.slice_p)
def _slice(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    # A slice along the batch axis has a size that does not grow, or starts at an index that does.
    axis, params = axes[0], equation.params
    strides = params["strides"] or (1,) * len(params["start_indices"])
    if axis is None or params["start_indices"][axis] or strides[axis] != 1:
        return None
    return axis


@RULES.register(lax_p.dynamic_slice_p)
def _dynamic_slice(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    return axes[0] if all(a is None for a in axes[1:]) else None


@RULES.register(lax_p.dynamic_update_slice_p)
def _dynamic_update_slice(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    return axes[0] if axes[0] == axes[1] and all(a is None for a in axes[2:]) else None


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
    rows = [a for a in range(len(trace.shape(equation.outputs[0]))) if a not in numbers.offset_dims]
    batched, index_batched = numbers.operand_batching_dims, numbers.start_indices_batching_dims
    if operand is None:
        if indices is None or indices >= len(rows) or indices in index_batched:
            return None
        return rows[indices]
    if operand in batched:
        paired = index_batched[batched.index(operand)]
        return rows[paired] if indices == paired else None
    if indices is not None or operand in (*numbers.collapsed_slice_dims, *numbers.start_index_map):
        return None
    gone = (*numbers.collapsed_slice_dims, *batched)
    return numbers.offset_dims[operand - sum(a < operand for a in gone)]


@RULES.register(lax_p.scatter_p, lax_p.scatter_add_p, lax_p.scatter_mul_p, lax_p.scatter_min_p, lax_p.scatter_max_p)
def _scatter(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    numbers, (operand, indices, updates) = equation.params["dimension_numbers"], axes
    if operand is None:
        return None
    window = numbers.update_window_dims
    rows = [a for a in range(len(trace.shape(equation.inputs[2]))) if a not in window]
    batched, index_batched = numbers.operand_batching_dims, numbers.scatter_indices_batching_dims
    if operand in batched:
        paired = index_batched[batched.index(operand)]
        return operand if (indices, updates) == (paired, rows[paired]) else None
    if indices is not None or operand in (*numbers.inserted_window_dims, *numbers.scatter_dims_to_operand_dims):
        return None
    gone = (*numbers.inserted_window_dims, *batched)
    return operand if updates == window[operand - sum(a < operand for a in gone)] else None


@RULES.register(lax_p.iota_p)
def _iota(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    return _avoids(trace.batch_axis[equation.outputs[0]], (equation.params["dimension"],))


@RULES.register(lax_p.random_bits_p)
def _random_bits(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    # Every element is drawn by itself, so every example is, unless the key depends on them.
    return trace.batch_axis[equation.outputs[0]] if all(axis is None for axis in axes) else None


@RULES.register(tile_p)
def _tile(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    if axes[0] is None:  # the same value for every example
        return trace.batch_axis[equation.outputs[0]]
    return axes[0] if equation.params["reps"][axes[0]] == 1 else None


@RULES.register(lax_p.fft_p)
def _fft(trace: Trace, equation: Equation, axes: list[int | None]) -> int | None:
    rank = len(trace.shape(equation.inputs[0]))
    return _avoids(axes[0], tuple(range(rank - len(equation.params["fft_lengths"]), rank)))
