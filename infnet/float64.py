"""Run a function in float64, whatever JAX's default: what `precision="highest"` means.

`jax.enable_x64` holds while a function is traced, but JAX differentiates and transposes later, outside of it, and would
then round half of the work to float32. Here the function is one primitive, which every transformation maps to another
function of the same kind, traced inside the context again.

Where float64 arrays do not exist outside (x64 is off), what is computed once for many calls is kept as the sum of two
float32 arrays (`split`, `kept`), which together have 48 of its 53 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet._jax import Primitive, ad, batching, mlir
from infnet.errors import InputError

Leaves = Sequence[jax.Array]
Function = Callable[..., list[jax.Array]]

call_p = Primitive("in_float64")
call_p.multiple_results = True


def in_float64(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` of pytrees of arrays, its floating-point work done in float64.

    Arguments are converted on the way in; results have the widest floating dtype of the arguments.
    """

    def wrapped(*args: Any) -> Any:
        leaves, tree = jax.tree.flatten(args)
        leaves = [jnp.asarray(x) for x in leaves]
        floating = [x.dtype for x in leaves if _is_real(x)]
        call = _flat(function, tree, jnp.result_type(*floating))
        results = call_p.bind(*leaves, function=call)
        return jax.tree.unflatten(call.out_trees[_signature(leaves)], results)

    return wrapped


def default_dtype() -> np.dtype:
    """float64 if JAX has it enabled, otherwise float32."""
    return np.dtype(jnp.result_type(float))


def split(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What fits into float32 and the rest; to be called in float64."""
    upper_bits = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=23)
    return upper_bits, x - upper_bits


def kept(parts: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
    """How an array that was `split` is kept outside of float64: as its parts, or whole where it can be."""
    return parts if default_dtype() == jnp.float32 else (parts[0] + parts[1],)


def require_float64(parts: tuple[jax.Array, ...]) -> None:
    """Raise `InputError` where an array that was `kept` lost half of its digits on its way here."""
    if len(parts) == 1 and jnp.result_type(parts[0]) != jnp.float64:
        raise InputError(
            "this predictor was made with x64 on and holds float64 arrays, which do not exist where x64 is off: "
            "call it under jax.enable_x64(True), or make it again."
        )


@lru_cache
def _flat(function: Callable[..., Any], tree: Any, dtype: Any) -> _Flat:
    return _Flat(function, tree, dtype)


class _Flat:
    """A function of leaves, with conversions; knows the structures of results of what shapes it was traced for."""

    def __init__(self, function: Callable[..., Any], tree: Any, dtype: Any):
        self.function, self.tree, self.dtype = function, tree, dtype
        self.out_trees: dict[Any, Any] = {}

    def __call__(self, *leaves: jax.Array) -> list[jax.Array]:
        args = jax.tree.unflatten(self.tree, [_as(x, jnp.float64) for x in leaves])
        results, self.out_trees[_signature(leaves)] = jax.tree.flatten(self.function(*args))
        return [_as(x, self.dtype) for x in results]


def _signature(leaves: Leaves) -> tuple[Any, ...]:
    return tuple((x.shape, x.dtype) for x in leaves)


def _as(x: jax.Array, dtype: Any) -> jax.Array:
    return x.astype(dtype) if _is_real(x) else x


def _is_real(x: jax.Array) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)


@lru_cache
def _compiled(function: Function) -> Callable[..., Any]:
    return jax.jit(function)


@call_p.def_impl
def _eager(*leaves: jax.Array, function: Function) -> Any:
    with jax.enable_x64(True):
        return _compiled(function)(*leaves)


@call_p.def_abstract_eval
def _shapes(*avals: Any, function: Function) -> list[Any]:
    with jax.enable_x64(True):
        shapes = jax.eval_shape(function, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))
    return [jax.core.ShapedArray(s.shape, s.dtype) for s in shapes]


def _lower(ctx: Any, *operands: Any, function: Function) -> Any:
    with jax.enable_x64(True):
        return mlir.lower_fun(function, multiple_results=True)(ctx, *operands)


mlir.register_lowering(call_p, _lower)


@lru_cache
def _mapped(function: Function, axes: tuple[int | None, ...]) -> Function:
    return jax.vmap(function, axes)


def _batch(leaves: Leaves, axes: Sequence[int | None], function: Function) -> Any:
    results = call_p.bind(*leaves, function=_mapped(function, tuple(axes)))
    return results, [0] * len(results)


batching.primitive_batchers[call_p] = _batch


@lru_cache
def _tangents(function: Function, active: tuple[bool, ...]) -> Function:
    """The function of primals, and of the tangents of the `active` ones, that computes the tangents of real results."""

    def tangents_out(*leaves: jax.Array) -> list[jax.Array]:
        primals, tangents = leaves[: len(active)], leaves[len(active) :]

        def of_active(*varied: jax.Array) -> list[jax.Array]:
            values = iter(varied)
            return function(*(next(values) if a else p for a, p in zip(active, primals, strict=True)))

        moving = tuple(p for a, p in zip(active, primals, strict=True) if a)
        values, moved = jax.jvp(of_active, moving, tuple(tangents))
        return [t for v, t in zip(values, moved, strict=True) if _is_real(v)]

    return tangents_out


def _jvp(primals: Leaves, tangents: Sequence[Any], function: Function) -> tuple[Any, Any]:
    active = tuple(not isinstance(t, ad.Zero) for t in tangents)
    given = [t for t in tangents if not isinstance(t, ad.Zero)]
    results = call_p.bind(*primals, function=function)
    moved = iter(call_p.bind(*primals, *given, function=_tangents(function, active)))
    return results, [next(moved) if _is_real(r) else np.zeros(r.shape, jax.dtypes.float0) for r in results]


ad.primitive_jvps[call_p] = _jvp


@lru_cache
def _transposed(function: Function, linear: tuple[Any, ...]) -> Function:
    """The function of the known leaves and cotangents; `linear`: (shape, dtype) of a linear leaf, None for a known."""
    count = sum(kind is None for kind in linear)

    def pullback(*leaves: jax.Array) -> list[jax.Array]:
        known, cotangents = leaves[:count], leaves[count:]

        def of_linear(*varied: jax.Array) -> list[jax.Array]:
            rest, values = iter(known), iter(varied)
            return function(*(next(rest) if kind is None else next(values) for kind in linear))

        shapes = [jax.ShapeDtypeStruct(*kind) for kind in linear if kind is not None]
        return list(jax.linear_transpose(of_linear, *shapes)(list(cotangents)))

    return pullback


def _transpose(cotangents: Sequence[Any], *leaves: Any, function: Function) -> list[Any]:
    linear = tuple((x.aval.shape, x.aval.dtype) if ad.is_undefined_primal(x) else None for x in leaves)
    known = [x for x in leaves if not ad.is_undefined_primal(x)]
    given = [ad.instantiate_zeros(c) for c in cotangents]
    pulled = iter(call_p.bind(*known, *given, function=_transposed(function, linear)))
    return [None if kind is None else next(pulled) for kind in linear]


ad.primitive_transposes[call_p] = _transpose
