"""Elementwise operations: sums and scalings are linear, everything else is a scalar function composed as it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from infnet._jax import lax_primitives as lax_p
from infnet.errors import RefusalError
from infnet.errors.functions import FUNCTION_OF_TWO_FEATURES, FUNCTION_OF_VARYING_ARRAY
from infnet.errors.parameters import PARAMETER_MEETS_FEATURE, PARAMETER_THROUGH_OPERATION
from infnet.nodes import Param
from infnet.program import Feature, Known, ScaledParam
from infnet.reader import Reader
from infnet.rules.masked_weights import times_constants
from infnet.rules.masks import read_select
from infnet.rules.products import read_maximum, read_product, read_quotient
from infnet.rules.sums import combine, scale
from infnet.rules.trained_scales import read_scaled
from infnet.trace import Equation

ADDITIVE = {lax_p.add_p: (1.0, 1.0), lax_p.add_jaxvals_p: (1.0, 1.0), lax_p.sub_p: (1.0, -1.0)}
OF_TWO_FEATURES = {
    lax_p.mul_p: read_product,
    lax_p.max_p: read_maximum,
    lax_p.min_p: read_maximum,
    lax_p.div_p: read_quotient,
}
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
    elif _is_trained_scaling(equation, values):
        read_scaled(reader, equation)
    elif all(isinstance(v, Feature) for v in values) and equation.primitive in OF_TWO_FEATURES:
        OF_TWO_FEATURES[equation.primitive](reader, equation)
    elif equation.primitive is lax_p.select_n_p and isinstance(values[0], Known):
        read_select(reader, equation)
    else:
        raise _refusal(reader, equation)


def _composes(reader: Reader, equation: Equation) -> bool:
    """Whether all inputs are functions of one feature, or plain numbers, and no axis is repeated."""
    features, shape = set(), reader.shape(equation.outputs[0])
    for var in equation.inputs:
        value = reader.values[var]
        if isinstance(value, Feature):
            if reader.shape(var) != shape:
                return False
            features.add((value.base, value.dims, value.segments))
        elif reader.constant(var) is None:
            return False
    return len(features) == 1


def _compose(reader: Reader, equation: Equation) -> None:
    feature = next(v for v in map(reader.values.get, equation.inputs) if isinstance(v, Feature))
    (out,) = equation.outputs
    polynomial = _polynomial(reader, equation)
    reader.values[out] = Feature(feature.dims, feature.channels, feature.segments, feature.base, polynomial)


def _polynomial(reader: Reader, equation: Equation) -> tuple[float, float, float] | None:
    """(c, b, a) if the result is c + b x + a x^2 of the base feature x, else None."""
    forms = [form for form in (_form(reader, var) for var in equation.inputs) if form is not None]
    if len(forms) < len(equation.inputs):
        return None
    with np.errstate(all="ignore"):
        return _polynomial_of(equation, forms)


def _polynomial_of(
    equation: Equation, forms: Sequence[tuple[float, float, float]]
) -> tuple[float, float, float] | None:
    primitive = equation.primitive
    if primitive in ADDITIVE:
        return _quadratic(np.dot(ADDITIVE[primitive], forms))
    if primitive is lax_p.neg_p:
        return _quadratic(np.negative(forms[0]))
    if _unchanged(equation):
        return forms[0]
    if primitive is lax_p.mul_p:
        return _quadratic(np.convolve(forms[0], forms[1]))
    if primitive is lax_p.square_p or (primitive is lax_p.integer_pow_p and equation.params["y"] == 2):
        return _quadratic(np.convolve(forms[0], forms[0]))
    if primitive is lax_p.div_p and forms[1][0] and not any(forms[1][1:]):
        return _quadratic(np.divide(forms[0], forms[1][0]))
    return None


def _quadratic(coefficients: np.ndarray) -> tuple[float, float, float] | None:
    c, b, a, *higher = map(float, coefficients)
    return None if any(higher) or not np.isfinite(coefficients).all() else (c, b, a)


def _unchanged(equation: Equation) -> bool:
    """Whether the operation returns its argument, up to rounding; a conversion to integers does not."""
    if equation.primitive is lax_p.convert_element_type_p:
        return jnp.issubdtype(equation.params["new_dtype"], jnp.floating)
    return equation.primitive in UNCHANGED


def _form(reader: Reader, var: int) -> tuple[float, float, float] | None:
    value = reader.values[var]
    if isinstance(value, Feature):
        return value.polynomial
    constant = reader.constant(var)
    return None if constant is None else (constant, 0.0, 0.0)


def _is_trained_scaling(equation: Equation, values: list) -> bool:
    kinds = [isinstance(v, Feature) for v in values]
    params = [isinstance(v, Param | ScaledParam) for v in values]
    return equation.primitive is lax_p.mul_p and sum(kinds) == sum(params) == 1


def _is_scaling(equation: Equation, values: list) -> bool:
    kinds = [type(v) for v in values]
    if equation.primitive is lax_p.mul_p:
        return kinds in ([Feature, Known], [Known, Feature])
    return equation.primitive is lax_p.div_p and kinds == [Feature, Known]


def _read_param(reader: Reader, equation: Equation) -> None:
    """A parameter times numbers, plus a number, or times Known arrays."""
    (out,), primitive = equation.outputs, equation.primitive
    places = [i for i, v in enumerate(equation.inputs) if isinstance(reader.values[v], Param | ScaledParam)]
    if len(places) != 1:
        raise PARAMETER_THROUGH_OPERATION.of(equation)
    var, value = equation.inputs[places[0]], reader.values[equation.inputs[places[0]]]
    other = next((v for v in equation.inputs if v != var), None)
    number = None if other is None else reader.constant(other)
    power = {lax_p.mul_p: 1, lax_p.div_p: -1 if places == [0] else 0}.get(primitive, 0)
    if isinstance(value, Param) and (other is None or number is not None):
        affine = _affine_of_param(equation, number, power, places[0])
        if affine is None:
            raise PARAMETER_THROUGH_OPERATION.of(equation)
        scale, offset = affine
        reader.values[out] = replace(value, scale=scale * value.scale, offset=scale * value.offset + offset)
    elif isinstance(value, Param) and (masked := times_constants(reader, equation, value, places[0])):
        reader.values[out] = masked
    elif power and other is not None:
        factors = ((other, power),)
        param, before = (value.param, value.factors) if isinstance(value, ScaledParam) else (var, ())
        reader.values[out] = ScaledParam(param, (*before, *factors))
    else:
        raise PARAMETER_THROUGH_OPERATION.of(equation)


def _affine_of_param(equation: Equation, number: float | None, power: int, place: int) -> tuple[float, float] | None:
    """(a, c) if the result is a times the parameter plus c, else None."""
    primitive = equation.primitive
    if number is None:
        return (1.0, 0.0) if _unchanged(equation) else (-1.0, 0.0) if primitive is lax_p.neg_p else None
    if power:
        return None if power < 0 and not number else (number**power, 0.0)
    if primitive in ADDITIVE:
        signs = ADDITIVE[primitive]
        return signs[place], signs[1 - place] * number
    return None


def _refusal(reader: Reader, equation: Equation) -> RefusalError:
    values = [reader.values[v] for v in equation.inputs]
    if any(isinstance(v, Param | ScaledParam) for v in values):
        return PARAMETER_MEETS_FEATURE.of(equation)
    if sum(isinstance(v, Feature) for v in values) > 1:
        return FUNCTION_OF_TWO_FEATURES.of(equation)
    return FUNCTION_OF_VARYING_ARRAY.of(equation, name=equation.primitive.name)
