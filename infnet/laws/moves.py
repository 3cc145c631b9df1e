"""Rules for equations of an initialiser that move elements, and for orthogonal matrices.

Moving is harmless as long as no random element ends in two places: the copies would not be
independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jax import numpy as jnp

from infnet._jax import JaxprEqn, Primitive
from infnet._jax import lax_primitives as lax
from infnet.laws.moments import (
    Cumulants,
    Moments,
    NoLaw,
    Pointwise,
    Shape,
    compress,
    haar_cumulants,
)
from infnet.laws.values import (
    RULES,
    Bits,
    Constant,
    Factor,
    Value,
    as_moments,
    aval,
    bind,
    materialise,
    out_shape,
    roots_of,
)

# Moving elements: one operand, in numpy on compressed arrays.


def _move_slice(x: np.ndarray, shape: Shape, params: dict[str, Any]) -> np.ndarray:
    starts, limits = params["start_indices"], params["limit_indices"]
    strides = params["strides"] or (1,) * len(shape)
    cuts = zip(x.shape, starts, limits, strides, strict=True)
    return x[tuple(slice(None) if n == 1 else slice(a, b, s) for n, a, b, s in cuts)]


def _move_broadcast(x: np.ndarray, shape: Shape, params: dict[str, Any]) -> np.ndarray:
    sizes = [1] * len(params["shape"])
    for size, axis in zip(x.shape, params["broadcast_dimensions"], strict=True):
        sizes[axis] = size
    return x.reshape(sizes)


def _move_reshape(x: np.ndarray, shape: Shape, params: dict[str, Any]) -> np.ndarray:
    return np.broadcast_to(x, shape).reshape(params["new_sizes"])


MOVES: dict[Primitive, Callable[[np.ndarray, Shape, dict[str, Any]], np.ndarray]] = {
    lax.transpose_p: lambda x, shape, params: x.transpose(params["permutation"]),
    lax.rev_p: lambda x, shape, params: np.flip(x, params["dimensions"]),
    lax.squeeze_p: lambda x, shape, params: np.squeeze(x, tuple(params["dimensions"])),
    lax.slice_p: _move_slice,
    lax.reshape_p: _move_reshape,
    lax.broadcast_in_dim_p: _move_broadcast,
}
"""`move(array, shape, params)` for an array of full rank, compressed from `shape`."""


@RULES.register(*MOVES)
def move_rule(eqn: JaxprEqn, value: Value) -> Value:
    """Reshape, transpose, slice, ...: of any value but keys."""
    assert isinstance(value, Constant | Bits | Pointwise | Moments | Factor)
    shape, old_shape = out_shape(eqn), value.shape

    def move(array: np.ndarray) -> np.ndarray:
        return MOVES[eqn.primitive](array, old_shape, eqn.params) if array.ndim else array

    if isinstance(value, Constant):
        return Constant(shape, compress(move(value.value)))
    if isinstance(value, Factor):
        return replace(value, shape=shape)
    if math.prod(shape) > math.prod(value.shape):
        raise NoLaw("it repeats random elements, which are then not independent")
    if isinstance(value, Pointwise) and not value.uniform_law:
        value = as_moments(value)
    if isinstance(value, Moments):
        return replace(value, shape=shape, cumulants=value.cumulants.move(move))
    draw = replace(value.draw, place=(value.draw.place, eqn.primitive, str(eqn.params)))
    return replace(value, shape=shape, draw=draw)


@RULES.register(lax.sharding_constraint_p)
def _sharding_rule(eqn: JaxprEqn, value: Value) -> Value:
    return value


# Moving elements: several operands, or computed places.


def place(eqn: JaxprEqn, operands: Sequence[Value], moved: Sequence[int]) -> Moments:
    """Follows every element by running the primitive on the elements' numbers."""
    sources = [as_moments(operands[i]) for i in moved]
    if len(roots_of(sources)) < sum(len(s.roots) for s in sources):
        raise NoLaw("it places the same random numbers several times")
    sizes = [math.prod(s.shape) for s in sources]
    starts = np.cumsum([0, *sizes])
    if starts[-1] >= 2**31:
        raise NoLaw("the arrays are too large to follow every element")
    arrays: list[Any] = [None] * len(operands)
    for i, value in enumerate(operands):
        if i in moved:
            k = list(moved).index(i)
            ids = np.arange(starts[k], starts[k + 1], dtype=np.int32)
            arrays[i] = jnp.asarray(ids.reshape(sources[k].shape))
        elif isinstance(value, Constant):
            arrays[i] = materialise(value, eqn.invars[i])
        else:
            raise NoLaw("elements are placed by random indices")
    where = np.asarray(bind(eqn, arrays)[0]).reshape(-1)
    if where.size and (where.min() < 0 or where.max() >= starts[-1]):
        raise NoLaw("it reads elements outside of the array")
    counts = np.bincount(where, minlength=int(starts[-1]))
    for source, start, stop in zip(sources, starts[:-1], starts[1:], strict=True):
        if source.roots and (counts[start:stop] > 1).any():
            raise NoLaw("it repeats random elements, which are then not independent")
    orders = [
        np.concatenate([np.broadcast_to(s.cumulants.orders[n], s.shape).ravel() for s in sources]) for n in range(4)
    ]
    shape = out_shape(eqn)
    cumulants = Cumulants.of(*(order[where].reshape(shape) for order in orders))
    return Moments(shape, cumulants, roots_of(sources))


PLACES: dict[Primitive, Callable[[int], Sequence[int]]] = {
    lax.concatenate_p: range,
    lax.pad_p: range,
    lax.scatter_p: lambda n: (0, 2),
    lax.dynamic_update_slice_p: lambda n: (0, 1),
    lax.dynamic_slice_p: lambda n: (0,),
    lax.gather_p: lambda n: (0,),
}
"""Which of n operands hold the elements; the others say where to."""


@RULES.register(*PLACES)
def _place_rule(eqn: JaxprEqn, *operands: Value) -> Value:
    return place(eqn, operands, PLACES[eqn.primitive](len(operands)))


# QR.

SIGN_KEEPING = {
    lax.copy_p,
    lax.convert_element_type_p,
    lax.name_p,
    lax.reduce_precision_p,
    lax.stop_gradient_p,
}


def qr_rule(eqn: JaxprEqn, matrix: Value) -> list[Value]:
    """Q and R of a matrix of iid normals."""
    iid_normal = (
        isinstance(matrix, Pointwise)
        and matrix.affine is not None
        and matrix.truncation is not None
        and matrix.truncation.full
        and matrix.uniform_law
        and not matrix.affine.shift.any()
    )
    if not iid_normal or not isinstance(matrix, Pointwise):
        raise NoLaw("the orthogonal factor is known for a matrix of iid normals of mean 0 only")
    rows, columns = matrix.shape[-2:]
    if eqn.params["pivoting"] or (eqn.params["full_matrices"] and rows > columns):
        raise NoLaw("only the reduced QR factorisation without pivoting is read")
    q, r = (tuple(aval(v).shape) for v in eqn.outvars)
    identity = (matrix.draw.place, "qr")
    return [
        Moments(q, haar_cumulants(rows), matrix.roots, identity),
        Factor(r, identity, matrix.roots),
    ]


def factor_rule(eqn: JaxprEqn, operands: Sequence[Value]) -> list[Value]:
    """Any function of R (and constants) is a Factor; its sign may multiply Q."""
    factors = [v for v in operands if isinstance(v, Factor)]
    factor = factors[0]
    others = [v for v in operands if not isinstance(v, Factor)]
    shapes = [tuple(aval(v).shape) for v in eqn.outvars]
    shape, *_ = shapes
    if any(f.identity != factor.identity for f in factors) or any(roots_of([v]) for v in others):
        q = others[0] if len(others) == 1 and eqn.primitive is lax.mul_p and factor.sign else None
        same = isinstance(q, Moments) and q.factor_of == factor.identity
        if isinstance(q, Moments) and same and math.prod(q.shape) == math.prod(shape):
            return [replace(q, shape=shape, factor_of=None)]
        raise NoLaw("of the R of a QR factorisation only the signs are read, as Q * sign(diag(R))")
    keeps_sign = factor.sign and (eqn.primitive in MOVES or eqn.primitive in SIGN_KEEPING)
    sign = eqn.primitive is lax.sign_p or keeps_sign
    return [Factor(shape, factor.identity, factor.roots, sign) for shape in shapes]
