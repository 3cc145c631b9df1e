"""Proof that an optimizer is linear, so that it trains functions as it trains parameters.

The parameters of a linearised network move by sums of multiples of earlier gradients if the optimizer is linear, with
multiples that depend on nothing but the number of the step. Gradients are Jᵀ r, with the Jacobian J of the training
outputs and the derivative r of the loss in these, and so θ - θ₀ = Jᵀ h, where h is what the same optimizer makes of r
in place of the gradients. The outputs are f₀ + Θ h: exactly, and for any loss.

The proof reads the jaxpr of `update`. What depends on gradients may be added up, scaled by numbers that do not depend
on them and are the same for all elements, converted, and selected by such numbers: nothing else.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet._jax import ClosedJaxpr, JaxprEqn, Literal, lax_primitives
from infnet.errors import InputError
from infnet.numpy_rules import CALLS, called_jaxpr

PyTree = Any

SUMS = {lax_primitives.add_p, lax_primitives.sub_p}
COPIES = {lax_primitives.neg_p, lax_primitives.convert_element_type_p, lax_primitives.copy_p}
RESHAPES = {lax_primitives.broadcast_in_dim_p, lax_primitives.reshape_p}
ELEMENTWISE = {*SUMS, *COPIES, *RESHAPES, lax_primitives.mul_p, lax_primitives.div_p, lax_primitives.select_n_p}
# Parameters of several shapes and names, so that an optimizer which treats them differently is found out.
SHAPES = {"kernel": (2, 3), "bias": (5,), "scale": (), "filter": (2, 2, 2)}
GRADIENTS = (1.0, -0.5, 2.0, 0.3, -1.7)


class Kind(enum.Enum):
    """What a value of a jaxpr is."""

    ZERO = enum.auto()
    UNIFORM = enum.auto()
    """The same number in all elements, which does not depend on gradients."""
    VARIED = enum.auto()
    """Does not depend on gradients."""
    LINEAR = enum.auto()
    """A sum of multiples of gradients."""
    PARAMS = enum.auto()
    """Depends on the values of the parameters."""


class _NotLinear(Exception):
    """Why an optimizer is not linear."""


def require_linear(optimizer: Any, decay_to_init: bool) -> None:
    """Raise `InputError` unless an optax optimizer is linear, and the same for all parameters.

    Args:
        optimizer: an `optax.GradientTransformation`.
        decay_to_init: whether the parameters that it sees are displacements from their initial values. Else it may not
            use any.
    """
    try:
        _check_updates(optimizer, decay_to_init)
        _check_same_for_all(optimizer)
    except _NotLinear as reason:
        raise InputError(
            f"the optimizer cannot be followed in the space of functions: {reason}. There, steps must be sums of "
            "multiples of earlier gradients, the same for all parameters, such as those of optax.sgd with momentum, "
            "Nesterov's or not, and schedules. Train the linearised network instead: `infnet.linearize(f, params)` is "
            "a function of parameters, which any optimizer trains."
        ) from reason


def _check_updates(optimizer: Any, decay_to_init: bool) -> None:
    params = {name: jnp.zeros(shape) for name, shape in SHAPES.items() if shape}
    of_params = Kind.LINEAR if decay_to_init else Kind.PARAMS
    count = len(params)
    try:
        init = jax.make_jaxpr(optimizer.init)(params)
        state = jax.eval_shape(optimizer.init, params)
        update = jax.make_jaxpr(optimizer.update)(params, state, params)
    except Exception as error:
        raise _NotLinear(f"it does not run on parameters of other names and shapes ({error})") from error
    kinds = _kinds(init, [of_params] * count)
    while True:
        outputs = _kinds(update, [Kind.LINEAR] * count + kinds + [of_params] * count)
        updates, new = outputs[:count], [_joined(*pair) for pair in zip(kinds, outputs[count:], strict=True)]
        if new == kinds:
            break
        kinds = new
    if Kind.PARAMS in (*updates, *kinds):
        raise _NotLinear(
            "it uses the values of the parameters, as weight decay does, and what their initial values add to the "
            "outputs is not in the kernel (decay_to_init=True is weight decay towards these values in place of 0, "
            "which is well defined)"
        )
    if not {*updates} <= {Kind.LINEAR, Kind.ZERO}:
        raise _NotLinear("its updates are not zero where all gradients are")


def _check_same_for_all(optimizer: Any) -> None:
    """Gradients that are alike for all parameters must make updates that are."""
    params = {name: jnp.zeros(shape) for name, shape in SHAPES.items()}
    state = optimizer.init(params)
    for number in GRADIENTS:
        gradients = {name: jnp.full(shape, number) for name, shape in SHAPES.items()}
        updates, state = optimizer.update(gradients, state, params)
        params = {name: params[name] + updates[name] for name in params}
        values = np.concatenate([np.ravel(x) for x in updates.values()])
        if not np.allclose(values, values[0], rtol=1e-4, atol=0):
            raise _NotLinear("it treats parameters of different names or shapes differently")


def _joined(one: Kind, two: Kind) -> Kind:
    """Of a state that is of either kind, at different steps."""
    if one == two or one == Kind.ZERO:
        return two
    if two == Kind.ZERO:
        return one
    if Kind.PARAMS in (one, two):
        return Kind.PARAMS
    if Kind.LINEAR in (one, two):
        raise _NotLinear("its state does not start at zero")
    return Kind.VARIED


def _kinds(closed: ClosedJaxpr, inputs: Sequence[Kind]) -> list[Kind]:
    """Of the outputs of a jaxpr."""
    jaxpr = closed.jaxpr
    known = dict(zip(jaxpr.invars, inputs, strict=True))
    known |= {v: _of_constant(x) for v, x in zip(jaxpr.constvars, closed.consts, strict=True)}

    def read(atom: Any) -> Kind:
        return _of_constant(atom.val) if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        known.update(zip(equation.outvars, _of_equation(equation, [read(v) for v in equation.invars]), strict=True))
    return [read(v) for v in jaxpr.outvars]


def _of_constant(value: Any) -> Kind:
    array = np.asarray(value)
    if not np.all(array == array.flat[:1]):
        return Kind.VARIED
    return Kind.ZERO if np.all(array == 0) else Kind.UNIFORM


def _of_equation(equation: JaxprEqn, inputs: list[Kind]) -> list[Kind]:
    if equation.primitive in CALLS:
        return _kinds(called_jaxpr(equation), inputs)
    if equation.primitive is lax_primitives.cond_p:
        return _of_branches(equation, inputs)
    if Kind.PARAMS in inputs:
        return [Kind.PARAMS] * len(equation.outvars)
    if Kind.LINEAR not in inputs:
        return [_independent(equation, inputs, math.prod(_struct(v).shape)) for v in equation.outvars]
    (output,) = equation.outvars if len(equation.outvars) == 1 else (None,)
    if output is None or not _is_linear(equation, inputs):
        raise _NotLinear(f"`{equation.primitive.name}` of gradients is not linear, or mixes their elements")
    return [Kind.LINEAR]


def _is_linear(equation: JaxprEqn, inputs: Sequence[Kind]) -> bool:
    """Whether an operation on values that depend on gradients is a sum of multiples of them, element by element."""
    primitive, same = equation.primitive, {Kind.LINEAR, Kind.ZERO}
    if primitive in SUMS:
        return {*inputs} <= same
    if primitive in COPIES:
        dtype = _struct(equation.outvars[0]).dtype  # half precision would round gradients otherwise than outputs
        return bool(jnp.issubdtype(dtype, jnp.floating)) and dtype.itemsize >= 4
    if primitive in RESHAPES:
        return _struct(equation.invars[0]).shape == _struct(equation.outvars[0]).shape
    if primitive is lax_primitives.integer_pow_p:
        return equation.params["y"] == 1
    if primitive is lax_primitives.mul_p:
        return sorted(kind is Kind.LINEAR for kind in inputs) == [False, True] and Kind.VARIED not in inputs
    if primitive is lax_primitives.div_p:
        return inputs[0] is Kind.LINEAR and inputs[1] is Kind.UNIFORM
    if primitive is lax_primitives.select_n_p:
        return inputs[0] in (Kind.UNIFORM, Kind.ZERO) and {*inputs[1:]} <= same
    return False


def _struct(atom: Any) -> Any:
    return atom.aval


def _independent(equation: JaxprEqn, inputs: list[Kind], size: int) -> Kind:
    """Of an output that depends on no gradient."""
    zeros_as_gradients = [Kind.LINEAR if kind is Kind.ZERO else kind for kind in inputs]
    if Kind.ZERO in inputs and (_is_linear(equation, zeros_as_gradients) or equation.primitive in RESHAPES):
        return Kind.ZERO
    if Kind.VARIED in inputs:
        return Kind.VARIED
    return Kind.UNIFORM if equation.primitive in ELEMENTWISE or size == 1 else Kind.VARIED


def _of_branches(equation: JaxprEqn, inputs: list[Kind]) -> list[Kind]:
    if inputs[0] not in (Kind.UNIFORM, Kind.ZERO):
        raise _NotLinear("it branches on gradients or parameters")
    rows = [_kinds(branch, inputs[1:]) for branch in equation.params["branches"]]
    outputs = rows[0]
    for row in rows[1:]:
        outputs = [_joined(*pair) for pair in zip(outputs, row, strict=True)]
    return outputs
