"""Parameters times constant arrays: masked convolutions, and weights that are scaled from tap to tap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np

from infnet._jax import lax_primitives as lax_p
from infnet.errors.parameters import PARAMETER_TIMES_ARRAY_AFTER_CUT
from infnet.nodes import Mask, Param
from infnet.reader import Reader
from infnet.trace import Equation

LINEAR_IN_ONE = frozenset({lax_p.mul_p, lax_p.div_p, lax_p.select_n_p})


def times_constants(reader: Reader, equation: Equation, param: Param, position: int) -> Param | None:
    """The parameter after an operation that multiplies it by constants; None if this is not one.

    Raises:
        UnsupportedError: the constants vary along something that is not a whole axis of the parameter's array.
    """
    linear = equation.primitive in LINEAR_IN_ONE and not param.offset
    factors = _factors(reader, equation, position) if linear else None
    if factors is None:
        return None
    shape = [1] * len(reader.shape(reader.trace.param_inputs[param.key.leaf]))
    for d, size in enumerate(factors.shape):
        varies = not np.array_equal(factors, np.broadcast_to(factors.take([0], d), factors.shape))
        if not varies:
            factors = factors.take([0], d)
            continue
        names = [name for name, _ in param.factors[d]]
        if not names:  # the parameter is repeated along this axis
            return None
        if len(names) != 1 or not isinstance(names[0], int):
            raise PARAMETER_TIMES_ARRAY_AFTER_CUT.of(equation)
        shape[names[0]] = size
    if factors.size == 1:
        return replace(param, scale=param.scale * float(factors.flat[0]))
    array = np.transpose(factors, _leaf_order(param, factors.shape)).reshape(shape)
    return replace(param, mask=Mask.of(array if param.mask is None else array * param.mask.array))


def _leaf_order(param: Param, shape: Sequence[int]) -> list[int]:
    """The array axes, those along which the constants vary in the order of the parameter's own axes."""
    return sorted(range(len(shape)), key=lambda d: param.factors[d][0][0] if shape[d] > 1 else -1)


def _factors(reader: Reader, equation: Equation, position: int) -> np.ndarray | None:
    """What the operation multiplies its argument at `position` by; None if it does anything else to it."""
    constants = [None if k == position else reader.constant_array(v) for k, v in enumerate(equation.inputs)]
    if any(c is None for k, c in enumerate(constants) if k != position):
        return None
    dtype = reader.trace.avals[equation.inputs[position]].dtype

    def applied(value: float) -> np.ndarray:
        argument = np.full(reader.shape(equation.inputs[position]), value, dtype)
        with jax.ensure_compile_time_eval():
            return np.asarray(equation.evaluate([argument if c is None else c for c in constants])[0])

    zero, one, two = (applied(value) for value in (0.0, 1.0, 2.0))
    linear = not zero.any() and np.isfinite(one).all() and np.array_equal(two, 2 * one)
    return np.asarray(one, np.float64) if linear else None
