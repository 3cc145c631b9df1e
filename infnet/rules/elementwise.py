"""Elementwise operations: sums and scalings are linear, everything else is a scalar function composed as it is read."""

from __future__ import annotations

import jax.numpy as jnp

from infnet._jax import lax_primitives as lax_p
from infnet.errors import MONTE_CARLO
from infnet.program import Feature, Known, Param
from infnet.reader import Reader
from infnet.rules.masks import read_select
from infnet.rules.sums import combine, scale
from infnet.trace import Equation

ADDITIVE = {lax_p.add_p: (1.0, 1.0), lax_p.add_jaxvals_p: (1.0, 1.0), lax_p.sub_p: (1.0, -1.0)}
UNCHANGED = frozenset({lax_p.copy_p, lax_p.reduce_precision_p})


def read_elementwise(reader: Reader, equation: Equation) -> None:
    """Read an elementwise equation with at least one input that is a Param or a Feature."""
    values = [reader.values[v] for v in equation.inputs]
    if not any(isinstance(v, Feature) for v in values):
        _read_param(reader, equation)
    elif _composes(reader, equation):
        _compose(reader, equation)
    elif equation.primitive in ADDITIVE:
        combine(reader, equation, list(zip(ADDITIVE[equation.primitive], equation.inputs, strict=True)))
    elif _is_scaling(equation, values):
        scale(reader, equation)
    elif equation.primitive is lax_p.select_n_p and isinstance(values[0], Known):
        read_select(reader, equation)
    else:
        _refuse(reader, equation)


def _composes(reader: Reader, equation: Equation) -> bool:
    """Whether all inputs are functions of one feature, or plain numbers."""
    features = set()
    for var in equation.inputs:
        value = reader.values[var]
        if isinstance(value, Feature):
            features.add((value.base, value.dims, value.segments))
        elif reader.constant(var) is None:
            return False
    return len(features) == 1


def _compose(reader: Reader, equation: Equation) -> None:
    feature = next(v for v in map(reader.values.get, equation.inputs) if isinstance(v, Feature))
    (out,) = equation.outputs
    affine = _affine(reader, equation)
    reader.values[out] = Feature(feature.dims, feature.channels, feature.segments, feature.base, affine)


def _affine(reader: Reader, equation: Equation) -> tuple[float, float] | None:
    """(a, c) if the result is a x + c of the base feature x, else None."""
    forms = [form for form in (_form(reader, var) for var in equation.inputs) if form is not None]
    if len(forms) < len(equation.inputs):
        return None
    primitive = equation.primitive
    if primitive in ADDITIVE:
        (a, c), (b, d) = forms
        sign = ADDITIVE[primitive][1]
        return a + sign * b, c + sign * d
    if primitive is lax_p.neg_p:
        return -forms[0][0], -forms[0][1]
    if _unchanged(equation):
        return forms[0]
    if primitive is lax_p.mul_p and 0.0 in (forms[0][0], forms[1][0]):
        (a, c), (b, d) = forms
        return a * d + c * b, c * d
    if primitive is lax_p.div_p and forms[1][0] == 0.0 and forms[1][1]:
        return forms[0][0] / forms[1][1], forms[0][1] / forms[1][1]
    return None


def _unchanged(equation: Equation) -> bool:
    """Whether the operation returns its argument, up to rounding; a conversion to integers does not."""
    if equation.primitive is lax_p.convert_element_type_p:
        return jnp.issubdtype(equation.params["new_dtype"], jnp.floating)
    return equation.primitive in UNCHANGED


def _form(reader: Reader, var: int) -> tuple[float, float] | None:
    value = reader.values[var]
    if isinstance(value, Feature):
        return value.affine
    constant = reader.constant(var)
    return None if constant is None else (0.0, constant)


def _is_scaling(equation: Equation, values: list) -> bool:
    kinds = [type(v) for v in values]
    if equation.primitive is lax_p.mul_p:
        return kinds in ([Feature, Known], [Known, Feature])
    return equation.primitive is lax_p.div_p and kinds == [Feature, Known]


def _read_param(reader: Reader, equation: Equation) -> None:
    """A parameter times numbers stays a parameter."""
    (out,) = equation.outputs
    primitive = equation.primitive
    positions = [i for i, v in enumerate(equation.inputs) if isinstance(reader.values[v], Param)]
    param = reader.param(equation.inputs[positions[0]])
    others = [v for i, v in enumerate(equation.inputs) if i not in positions]
    same_shape = reader.shape(out) == reader.shape(equation.inputs[positions[0]])
    if len(positions) == 1 and same_shape:
        power = {lax_p.mul_p: 1, lax_p.div_p: -1 if positions == [0] else 0}.get(primitive, 0)
        if _unchanged(equation) or primitive is lax_p.neg_p:
            sign = -1.0 if primitive is lax_p.neg_p else 1.0
            reader.values[out] = Param(param.key, param.factors, sign * param.scale)
            return
        constant = reader.constant(others[0]) if power else None
        if constant is not None:
            reader.values[out] = Param(param.key, param.factors, param.scale * constant**power)
            return
    reader.refuse(
        equation,
        "a parameter goes through an operation other than multiplication by a number",
        "the law of the result, or its gradient, is then not that of the parameter",
        f"give the parameter the wanted law in its initialiser instead; or {MONTE_CARLO}",
    )


def _refuse(reader: Reader, equation: Equation) -> None:
    values = [reader.values[v] for v in equation.inputs]
    primitive = equation.primitive
    if any(isinstance(v, Param) for v in values):
        reader.refuse(
            equation,
            "a feature meets a trainable parameter elementwise, other than by addition",
            "the product of a feature with a random parameter of the same channel is not Gaussian, and infnet has no "
            "rule for trainable scales yet",
            f"leave the trainable scale out (`use_scale=False`); or {MONTE_CARLO}",
        )
    if sum(isinstance(v, Feature) for v in values) > 1:
        reader.refuse(
            equation,
            "a nonlinear function of two different features",
            "infnet has no rule yet for products and other joint functions of several features",
        )
    reader.refuse(
        equation,
        f"a nonlinear function (`{primitive.name}`) of a feature and of an array that varies",
        "the function would differ from one position, channel or example to the next",
        f"use a number in place of the array; or {MONTE_CARLO}",
    )
