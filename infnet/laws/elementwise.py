"""Rules for one equation of an initialiser: constants, random bits, elementwise functions.

Each takes the values of the operands (`values.py`), none of them unreadable, to the value of
the result, or raises NoLaw with the reason.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp

from infnet._jax import JaxprEqn, Primitive
from infnet._jax import lax_primitives as lax
from infnet.laws.moments import (
    Affine,
    Draw,
    Expression,
    Moments,
    NoLaw,
    Pointwise,
    Truncation,
    compress,
)
from infnet.laws.moves import MOVES, move_rule, place
from infnet.laws.values import (
    RULES,
    Bits,
    Constant,
    Key,
    Value,
    as_moments,
    aval,
    bind,
    constant,
    materialise,
    out_dtype,
    out_shape,
    roots_of,
    scalar_int,
)
from infnet.numpy_rules import NUMPY_RULES, float64

# Constants and keys.


def known_rule(eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """Of constants, a constant; of keys, what only a key can be made of."""
    constants = [v for v in operands if isinstance(v, Constant)]
    if len(constants) == len(operands):
        if eqn.primitive in MOVES:
            return [move_rule(eqn, constants[0])]
        if eqn.primitive is lax.iota_p:
            return [_iota(eqn)]
        if eqn.primitive in NUMPY_RULES:
            value = NUMPY_RULES[eqn.primitive](*(v.value for v in constants), **eqn.params)
            dtype = out_dtype(eqn)
            if not jnp.issubdtype(dtype, jnp.floating):
                value = np.asarray(value).astype(dtype)
            return [Constant(out_shape(eqn), compress(value))]
    results = bind(eqn, [materialise(v, a) for v, a in zip(operands, eqn.invars, strict=True)])
    if any(isinstance(v, Key) for v in operands):
        return [Key(result) for result in results]
    return [constant(result) for result in results]


def _iota(eqn: JaxprEqn) -> Constant:
    axis, shape = eqn.params["dimension"], out_shape(eqn)
    sizes = [shape[axis] if i == axis else 1 for i in range(len(shape))]
    values = np.arange(shape[axis]).astype(eqn.params["dtype"])
    return Constant(shape, compress(float64(values).reshape(sizes)))


# From bits to uniform floats.


@RULES.register(lax.random_bits_p)
def _random_bits_rule(eqn: JaxprEqn, key: Value) -> Value:
    if not isinstance(key, Key):
        raise NoLaw("its key is not a PRNG key")
    data = np.asarray(jax.random.key_data(key.value))
    keys = [k.tobytes() for k in data.reshape(math.prod(key.value.shape), -1)]
    if len(set(keys)) < len(keys):
        raise NoLaw("several of its elements are drawn from the same key, so they are equal")
    width = eqn.params["bit_width"]
    place = (data.tobytes(), out_shape(eqn), width)
    return Bits(out_shape(eqn), Draw(place, frozenset(keys)), width)


@RULES.register(lax.shift_right_logical_p)
def _shift_rule(eqn: JaxprEqn, bits: Value, amount: Value) -> Value:
    count = scalar_int(amount)
    if not isinstance(bits, Bits) or bits.pattern or not 0 <= count < bits.count:
        raise NoLaw("only raw random bits can be shifted")
    return replace(bits, count=bits.count - count)


@RULES.register(lax.or_p)
def _or_rule(eqn: JaxprEqn, x: Value, y: Value) -> Value:
    if not (isinstance(x, Bits) or isinstance(y, Bits)):
        return elementwise_rule(eqn, [x, y])
    bits, pattern = (x, y) if isinstance(x, Bits) else (y, x)
    fixed = scalar_int(pattern)
    if not isinstance(bits, Bits) or bits.pattern or fixed % 2**bits.count:
        raise NoLaw("the fixed bits overlap the random ones")
    return replace(bits, pattern=fixed)


@RULES.register(lax.bitcast_convert_type_p)
def _bitcast_rule(eqn: JaxprEqn, bits: Value) -> Value:
    """Random bits in the mantissa below the exponent of 1.0: U(1, 2)."""
    dtype = eqn.params["new_dtype"]
    if isinstance(bits, Bits) and jnp.issubdtype(dtype, jnp.floating):
        raw = np.asarray(bits.pattern, f"uint{8 * np.dtype(dtype).itemsize}")
        if bits.count == jnp.finfo(dtype).nmant and float(raw.view(dtype)) == 1.0:
            unit = Affine(np.asarray(1.0), np.asarray(1.0))
            return Pointwise.of_affine(bits.shape, bits.draw, None, unit)
    raise NoLaw("the bits are not a uniform float")


@RULES.register(lax.convert_element_type_p)
def _convert_rule(eqn: JaxprEqn, value: Value) -> Value:
    dtype = np.dtype(eqn.params["new_dtype"])
    if isinstance(value, Bits):
        if dtype.kind != "u" or value.pattern:
            raise NoLaw("random integers are not read")
        return replace(value, count=min(value.count, 8 * dtype.itemsize))
    return elementwise_rule(eqn, [value])


# Elementwise functions.


def _add(x: Affine, y: Affine, sign: float = 1.0) -> Affine:
    scale = (0.0 if x.scale is None else x.scale) + sign * (0.0 if y.scale is None else y.scale)
    return Affine(compress(scale), compress(x.shift + sign * y.shift))


def _scaled(x: Affine, factor: Any) -> Affine:
    return Affine(compress(x.scale * factor), compress(x.shift * factor))


def _mul(x: Affine, y: Affine) -> Affine | None:
    if y.scale is None:
        return _scaled(x, y.shift)
    return _scaled(y, x.shift) if x.scale is None else None


def _div(x: Affine, y: Affine) -> Affine | None:
    if y.scale is None:
        return Affine(compress(x.scale / y.shift), compress(x.shift / y.shift))
    return None


def _keep(x: Affine, *_: Affine) -> Affine:
    return x


def _select(which: Affine, *cases: Affine) -> Affine | None:
    if which.scale is not None:
        return None
    select = NUMPY_RULES[lax.select_n_p]
    scale = select(which.shift, *(0.0 if c.scale is None else c.scale for c in cases))
    return Affine(compress(scale), compress(select(which.shift, *(c.shift for c in cases))))


AFFINE: dict[Primitive, Callable[..., Affine | None]] = {
    lax.add_p: _add,
    lax.add_jaxvals_p: _add,
    lax.sub_p: functools.partial(_add, sign=-1.0),
    lax.mul_p: _mul,
    lax.div_p: _div,
    lax.neg_p: lambda x: _scaled(x, -1.0),
    lax.copy_p: _keep,
    lax.stop_gradient_p: _keep,
    lax.reduce_precision_p: _keep,
    lax.name_p: _keep,
    lax.nextafter_p: _keep,
    lax.convert_element_type_p: _keep,
    lax.select_n_p: _select,
}
"""`rule(*operands)`: affine operands to an affine result, or None where it is not."""


def _affine_result(eqn: JaxprEqn, operands: Sequence[Affine]) -> Affine | None:
    if not jnp.issubdtype(out_dtype(eqn), jnp.floating):
        return None
    function = AFFINE.get(eqn.primitive)
    result = function(*operands) if function else None
    return None if result is None or result.scale is None else result


def elementwise_rule(eqn: JaxprEqn, operands: Sequence[Value]) -> Value:
    """An elementwise function of laws and constants."""
    laws = [v for v in operands if isinstance(v, Pointwise | Moments)]
    if len(laws) + sum(isinstance(v, Constant) for v in operands) < len(operands):
        raise NoLaw("it computes with the PRNG key, or with random bits, as if they were numbers")
    if any(math.prod(law.shape) != math.prod(out_shape(eqn)) for law in laws):
        raise NoLaw("one random number is shared by several elements, which are not independent")
    pointwise = [law for law in laws if isinstance(law, Pointwise)]
    if len(pointwise) == len(laws) and len({law.draw for law in pointwise}) == 1:
        return _pointwise_rule(eqn, operands, pointwise)
    if len(laws) == 1 and eqn.primitive is not lax.select_n_p:
        return _moments_rule(eqn, operands)
    for i, law in enumerate(laws):
        if not law.roots.isdisjoint(roots_of(laws[:i])):
            raise NoLaw(
                "its operands are made of the same random numbers in different places or by "
                "different functions, so they are not independent"
            )
    if eqn.primitive not in COMBINE:
        raise NoLaw("it is not a sum, product or choice of independent draws")
    return COMBINE[eqn.primitive](eqn, *operands)


def _pointwise_rule(eqn: JaxprEqn, operands: Sequence[Value], laws: Sequence[Pointwise]) -> Pointwise:
    """A function of functions of the same draw."""
    shape, draw = out_shape(eqn), laws[0].draw
    cuts = {law.truncation for law in laws} - {None}
    if len(cuts) > 1:
        raise NoLaw("it combines one draw in two truncated forms")
    cut = next(iter(cuts), None)
    if all(law.affine is not None and law.truncation == cut for law in laws):
        affine = _affine_result(eqn, [_as_affine(v) for v in operands])
        if affine is not None:
            return Pointwise.of_affine(shape, draw, cut, affine)
        if len(laws) == 1 and _ineffective_clip(eqn, operands):
            return laws[0]
        normal = _normal_of_uniform(eqn, laws[0]) if eqn.primitive is lax.erf_inv_p else None
        if normal is not None:
            return normal
    inner = tuple(v.expression if isinstance(v, Pointwise) else _numbers(v) for v in operands)
    function = functools.partial(NUMPY_RULES[eqn.primitive], **eqn.params)
    return Pointwise(shape, draw, cut, Expression(function, inner))


def _numbers(value: Value) -> np.ndarray:
    """Of an operand that is not a law: the callers have sorted out the rest."""
    assert isinstance(value, Constant)
    return value.value


def _as_affine(value: Value) -> Affine:
    if not isinstance(value, Pointwise):
        return Affine(None, _numbers(value))
    assert value.affine is not None
    return value.affine


def _normal_of_uniform(eqn: JaxprEqn, law: Pointwise) -> Pointwise | None:
    """erf⁻¹ of a uniform in (-1, 1) is a (truncated) normal / √2."""
    affine = law.affine
    if law.truncation is not None or affine is None or affine.scale is None:
        return None
    if affine.scale.ndim or affine.shift.ndim or affine.scale <= 0:
        return None
    slack = 2 * float(jnp.finfo(out_dtype(eqn)).eps)
    low, high = (float(end) for end in law.support)
    if not -1 - slack <= low < high <= 1 + slack:
        return None
    cut = Truncation.of_erf_range(low, high, slack)
    unit = Affine(np.asarray(math.sqrt(0.5)), np.asarray(0.0))
    return Pointwise.of_affine(law.shape, law.draw, cut, unit)


def _ineffective_clip(eqn: JaxprEqn, operands: Sequence[Value]) -> bool:
    """Clips of samplers to their own range (against rounding) touch only its ends."""
    if eqn.primitive is lax.clamp_p:
        position, lower, upper = 1, operands[0], operands[2]
    elif eqn.primitive in (lax.max_p, lax.min_p):
        position = 0 if isinstance(operands[0], Pointwise) else 1
        lower = upper = operands[1 - position]
    else:
        return False
    law = operands[position]
    if not isinstance(law, Pointwise):
        return False
    low, high = law.support
    slack = 1e-6 * np.sqrt(law.cumulants.orders[1])
    below = eqn.primitive is lax.min_p or bool(np.all(_numbers(lower) <= low + slack))
    above = eqn.primitive is lax.max_p or bool(np.all(_numbers(upper) >= high - slack))
    return below and above


def _moments_rule(eqn: JaxprEqn, operands: Sequence[Value]) -> Moments:
    """One operand known by its moments: affine functions only."""
    law = next(v for v in operands if isinstance(v, Moments))
    unit = Affine(np.asarray(1.0), np.asarray(0.0))
    affine = _affine_result(eqn, [unit if v is law else _as_affine(v) for v in operands])
    if affine is None:
        raise NoLaw("it is a nonlinear function of elements of which only the moments are known")
    factor_of = None if np.any(affine.shift) else law.factor_of
    cumulants = law.cumulants.affine(affine.scale, affine.shift)
    return Moments(out_shape(eqn), cumulants, law.roots, factor_of)


def _sum(eqn: JaxprEqn, x: Any, y: Any, sign: float = 1.0) -> Moments:
    cumulants = x.cumulants.plus(y.cumulants.affine(sign, 0.0))
    return Moments(out_shape(eqn), cumulants, x.roots | y.roots)


def _product(eqn: JaxprEqn, x: Any, y: Any) -> Moments:
    return Moments(out_shape(eqn), x.cumulants.times(y.cumulants), x.roots | y.roots)


def _choice(eqn: JaxprEqn, which: Value, *cases: Value) -> Value:
    """A random choice between two laws, or a fixed choice per position."""
    if isinstance(which, Constant):
        return place(eqn, [which, *cases], range(1, len(cases) + 1))
    dtype = aval(eqn.invars[0]).dtype
    if not isinstance(which, Pointwise) or len(cases) != 2 or dtype != np.dtype(bool):
        raise NoLaw("it is not a choice between two laws by an independent draw")
    no, yes = (as_moments(case).cumulants for case in cases)
    mixed = yes.mixed(no, which.cumulants.orders[0])
    return Moments(out_shape(eqn), mixed, roots_of([which, *cases]))


COMBINE: dict[Primitive, Callable[..., Value]] = {
    lax.add_p: _sum,
    lax.add_jaxvals_p: _sum,
    lax.sub_p: functools.partial(_sum, sign=-1.0),
    lax.mul_p: _product,
    lax.select_n_p: _choice,
}
"""`rule(eqn, *operands)` of laws made of different draws."""


@RULES.register(lax.scatter_add_p, lax.scatter_mul_p)
def _scatter_arithmetic_rule(eqn: JaxprEqn, x: Value, where: Value, updates: Value) -> Value:
    """x.at[i].add(c) = x + zeros.at[i].add(c), for constants; likewise multiply."""
    if not isinstance(where, Constant) or not isinstance(updates, Constant):
        raise NoLaw("random updates are combined with what is already there")
    adds = eqn.primitive is lax.scatter_add_p
    neutral = Constant(out_shape(eqn), np.asarray(0.0 if adds else 1.0))
    (change,) = known_rule(eqn, [neutral, where, updates])
    arithmetic = eqn.replace(primitive=lax.add_p if adds else lax.mul_p, params={}, invars=[eqn.invars[0]] * 2)
    return elementwise_rule(arithmetic, [x, change])
