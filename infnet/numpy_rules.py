"""Elementwise JAX functions in float64 numpy, whatever precision the program was traced in.

Laws of initialisers, activation recognition and quadratures need an elementwise function at many
points to ~1e-15. Running JAX itself would give the dtype of the trace (float32 unless x64 is
enabled) and compile; here each primitive is its numpy or scipy.special counterpart.

`evaluate` reads a jaxpr as a *pointwise* function: every variable is either a scalar or a
one-dimensional array over points, the values of one element as its argument varies. All elements of
an array being the same function of the argument, primitives that only move or repeat elements
(reshape, transpose, broadcast_in_dim, ...) are the identity.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from scipy import special

from infnet._jax import ClosedJaxpr, JaxprEqn, Literal, Primitive, Var
from infnet._jax import lax_primitives as lax

Rule = Callable[..., Any]


class NoNumpyRule(LookupError):
    """A primitive that is not elementwise, or whose numpy counterpart is not known."""

    def __init__(self, primitive: Primitive):
        """Keeps the primitive for callers that explain the refusal in their own words."""
        self.primitive = primitive
        super().__init__(f"no elementwise numpy rule for the primitive {primitive}")


# The elementwise primitives.


def _drop_params(function: Rule) -> Rule:
    """Most primitives' parameters (accuracy, out_dtype, sharding) do not change the function."""

    def rule(*operands: Any, **params: Any) -> Any:
        with np.errstate(all="ignore"):
            return function(*operands)

    return functools.wraps(function)(rule) if hasattr(function, "__name__") else rule


def _div(x: Any, y: Any) -> Any:
    if np.asarray(x).dtype.kind in "iu" and np.asarray(y).dtype.kind in "iu":
        return np.trunc(np.divide(x, y)).astype(np.int64)  # lax.div rounds towards zero
    return np.divide(x, y)


def _select_n(which: Any, *cases: Any) -> Any:
    index = np.asarray(which).astype(np.int64)
    return np.select([index == i for i in range(len(cases))], cases)


def _round(x: Any, *, rounding_method: jax.lax.RoundingMethod, **_: Any) -> Any:
    if rounding_method == jax.lax.RoundingMethod.TO_NEAREST_EVEN:
        return np.rint(x)
    whole = np.trunc(x)  # floor(|x| + 1/2) would round 0.49999999999999994 up
    return whole + np.where(np.abs(x - whole) >= 0.5, np.sign(x), 0.0)


def _integer_pow(x: Any, *, y: int, **_: Any) -> Any:
    with np.errstate(all="ignore"):
        return np.power(np.asarray(x, np.float64), y)


def _pow(x: Any, y: Any) -> Any:
    return np.power(np.asarray(x, np.float64), y)


def _convert_element_type(x: Any, *, new_dtype: Any, **_: Any) -> Any:
    if jnp.issubdtype(new_dtype, jnp.floating):
        return np.asarray(x, np.float64)
    with np.errstate(all="ignore"):
        return np.asarray(x).astype(new_dtype)


def _bitcast_convert_type(x: Any, *, new_dtype: Any) -> Any:
    # jax 0.12 splits the argument of exp(-x^2) by masking bits. Only same-width casts are elementwise.
    new = np.dtype(new_dtype)
    if new.kind == "f":
        return np.asarray(x).astype(f"u{new.itemsize}").view(new).astype(np.float64)
    source = np.asarray(x)
    if source.dtype.kind == "f":
        source = source.astype(f"f{new.itemsize}")
    return source.view(new)


def _identity(x: Any, *_: Any) -> Any:
    return x


_PLAIN: dict[Primitive, Rule] = {
    lax.add_p: np.add,
    lax.add_jaxvals_p: np.add,
    lax.sub_p: np.subtract,
    lax.mul_p: np.multiply,
    lax.div_p: _div,
    lax.rem_p: np.fmod,
    lax.neg_p: np.negative,
    lax.abs_p: np.abs,
    lax.sign_p: np.sign,
    lax.max_p: np.maximum,
    lax.min_p: np.minimum,
    lax.clamp_p: lambda lower, x, upper: np.minimum(np.maximum(x, lower), upper),
    lax.select_n_p: _select_n,
    lax.eq_p: np.equal,
    lax.ne_p: np.not_equal,
    lax.lt_p: np.less,
    lax.le_p: np.less_equal,
    lax.gt_p: np.greater,
    lax.ge_p: np.greater_equal,
    lax.and_p: np.bitwise_and,
    lax.or_p: np.bitwise_or,
    lax.not_p: np.invert,
    lax.xor_p: np.bitwise_xor,
    lax.exp_p: np.exp,
    lax.exp2_p: np.exp2,
    lax.expm1_p: np.expm1,
    lax.log_p: np.log,
    lax.log1p_p: np.log1p,
    lax.tanh_p: np.tanh,
    lax.sinh_p: np.sinh,
    lax.cosh_p: np.cosh,
    lax.tan_p: np.tan,
    lax.sin_p: np.sin,
    lax.cos_p: np.cos,
    lax.asin_p: np.arcsin,
    lax.acos_p: np.arccos,
    lax.atan_p: np.arctan,
    lax.atan2_p: np.arctan2,
    lax.asinh_p: np.arcsinh,
    lax.acosh_p: np.arccosh,
    lax.atanh_p: np.arctanh,
    lax.logistic_p: special.expit,
    lax.erf_p: special.erf,
    lax.erfc_p: special.erfc,
    lax.erf_inv_p: special.erfinv,
    lax.lgamma_p: special.gammaln,
    lax.digamma_p: special.digamma,
    lax.sqrt_p: np.sqrt,
    lax.rsqrt_p: lambda x: 1.0 / np.sqrt(x),
    lax.cbrt_p: np.cbrt,
    lax.square_p: np.square,
    lax.pow_p: _pow,
    lax.floor_p: np.floor,
    lax.ceil_p: np.ceil,
    lax.is_finite_p: np.isfinite,
    lax.copy_p: _identity,
    lax.stop_gradient_p: _identity,
    lax.reduce_precision_p: _identity,
    lax.name_p: _identity,
    # one unit in the last place of the traced dtype: nothing at float64 accuracy
    lax.nextafter_p: _identity,
}
# Primitives of newer JAX versions only.
_NEWER: dict[str, Rule] = {
    "log2_p": np.log2,
    "one_minus_square_p": lambda x: (1.0 - x) * (1.0 + x),
    "polynomial_p": lambda x, *coeffs: functools.reduce(lambda s, c: s * x + c, coeffs[::-1]),
}

NUMPY_RULES: dict[Primitive, Rule] = {
    **{primitive: _drop_params(rule) for primitive, rule in _PLAIN.items()},
    **{getattr(lax, n): _drop_params(rule) for n, rule in _NEWER.items() if hasattr(lax, n)},
    lax.round_p: _round,
    lax.integer_pow_p: _integer_pow,
    lax.convert_element_type_p: _convert_element_type,
    lax.bitcast_convert_type_p: _bitcast_convert_type,
}
"""`rule(*operands, **eqn.params)` is the elementwise primitive in float64 (int and bool kept)."""


# Pointwise evaluation of whole jaxprs.

SHAPE_ONLY: frozenset[Primitive] = frozenset(
    {lax.broadcast_in_dim_p, lax.reshape_p, lax.squeeze_p, lax.transpose_p, lax.rev_p}
)
"""Primitives that only move or repeat elements: the identity on pointwise values."""

CALLS: frozenset[Primitive] = frozenset(
    {
        lax.jit_p,
        lax.call_p,
        lax.closed_call_p,
        lax.remat_p,
        lax.custom_jvp_call_p,
        lax.custom_vjp_call_p,
    }
)
"""Primitives that apply the jaxpr they carry to their operands."""


def called_jaxpr(eqn: JaxprEqn) -> ClosedJaxpr:
    """The body of one of `CALLS`: for custom derivatives, the primal function."""
    body = eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]
    return body if isinstance(body, ClosedJaxpr) else ClosedJaxpr(body, ())


def float64(value: Any) -> np.ndarray:
    """A constant as a numpy array: floats of any width in float64, integers and bools unchanged."""
    array = np.asarray(value)
    return array.astype(np.float64) if jnp.issubdtype(array.dtype, jnp.floating) else array


def _uniform_constant(value: Any) -> np.ndarray:
    """A constant as a scalar: with unequal elements, elements would be different functions."""
    array = float64(value)
    if array.size and (array == array.flat[0]).all():
        return array.reshape(-1)[0]
    if array.size == 1:  # NaN differs from itself
        return array.reshape(-1)[0]
    raise ValueError(
        f"an array constant of shape {array.shape} has different elements: the elements of the "
        "result are different functions of the argument"
    )


def evaluate(jaxpr: ClosedJaxpr, *args: Any) -> list[Any]:
    """The outputs of a pointwise jaxpr in float64, one per output variable.

    Each argument is a scalar or a one-dimensional array over points, whatever the shape the jaxpr
    was traced with. An output that does not depend on any argument is a scalar.

    Raises:
      NoNumpyRule: for a primitive that is neither elementwise, nor shape-only, nor a call.
      ValueError: for an array constant whose elements differ.
    """
    env: dict[Var, Any] = dict(zip(jaxpr.jaxpr.invars, map(float64, args), strict=True))
    env.update(zip(jaxpr.jaxpr.constvars, map(_uniform_constant, jaxpr.consts), strict=True))

    def read(atom: Var | Literal) -> Any:
        return _uniform_constant(atom.val) if isinstance(atom, Literal) else env[atom]

    for eqn in jaxpr.jaxpr.eqns:
        operands = [read(atom) for atom in eqn.invars]
        if eqn.primitive in CALLS:
            outputs = evaluate(called_jaxpr(eqn), *operands)
        elif eqn.primitive in SHAPE_ONLY:
            outputs = operands[:1]
        elif eqn.primitive in NUMPY_RULES:
            outputs = [NUMPY_RULES[eqn.primitive](*operands, **eqn.params)]
        else:
            raise NoNumpyRule(eqn.primitive)
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(atom) for atom in jaxpr.jaxpr.outvars]
