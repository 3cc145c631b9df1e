"""NTK-vector products: the NTK applied to a vector without forming it, J1 (J2ᴴ v).

J2ᴴ v is a vector-Jacobian product, J1 u a Jacobian-vector product. The columns of the NTK are its products with the
vectors of a basis (Novak et al. 2022, arXiv:2206.08720, section 3.3): in place of the contraction of Jacobians, a
forward pass for every column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from infnet.empirical.axes import Axes
from infnet.empirical.model import Model
from infnet.empirical.side import Leaves, Side, row_of
from infnet.errors import InputError

PyTree = Any


def ntk_vector_products(
    side1: Side, side2: Side | None, axes: Axes, rates: list[float], dtype: Any, memory_limit: int
) -> jax.Array:
    """The NTK of one output; as `jacobian_contraction`."""
    two = side2 or side1
    push = _pushforward(side1)

    def column(row: Leaves, number: jax.Array) -> jax.Array:
        tangent = [rate * g.conj() for rate, g in zip(rates, row, strict=True)]
        return axes.column(push(tangent), jnp.unravel_index(number, two.shape))

    numbers = jnp.arange(two.size)
    if two.row_bytes * two.size <= memory_limit:
        rows = [j.reshape(two.size, *leaf.shape) for j, leaf in zip(two.jacobian(), two.leaves, strict=True)]
        columns = jax.vmap(column)(rows, numbers)
    else:
        size = max(1, memory_limit // max(1, two.row_bytes))
        columns = lax.map(lambda k: column(two.row(k), k), numbers, batch_size=size)
    return axes.of_columns(columns).astype(dtype)


def empirical_ntk_vp_fn(
    f: Callable[..., PyTree], x1: PyTree, x2: PyTree | None, params: PyTree, **kwargs: Any
) -> Callable[[PyTree], PyTree]:
    """The product of the NTK with vectors, which is never formed.

    A product costs as much as a gradient of the outputs for x2 and a forward derivative of those for x1.

    Args:
        f: `(params, x, **kwargs) -> outputs`, any JAX function; outputs are a pytree.
        x1, x2: inputs; x2=None for x1 itself.
        params: the parameters.
        **kwargs: passed to `f` with x1 and with x2.

    Returns:
        `ntk_vp(vector)`: from a pytree of the structure, shapes and dtypes of `f(params, x2)` to one of those of
        `f(params, x1)`. Covariances between several outputs are part of the product.

    Raises:
        InputError: the vector has another structure or other shapes; `f` is not holomorphic in complex parameters.
    """
    model = Model(f, params, kwargs)
    side1 = model.concatenated(x1)
    side2 = side1 if x2 is None else model.concatenated(x2)
    push, pullback = _pushforward(side1), jax.vjp(side2.whole, side2.leaves)[1]

    def ntk_vp(vector: PyTree) -> PyTree:
        conjugate = model.concatenate(vector, x1 if x2 is None else x2).astype(side2.dtype).conj()
        tangent = [g.conj() for g in row_of(pullback, side2.leaves, conjugate)]
        return model.split(push(tangent), x1)

    return ntk_vp


def _pushforward(side: Side) -> Callable[[Leaves], jax.Array]:
    """tangent -> J tangent; of real parameters too, a tangent may be complex."""
    try:
        along = jax.linearize(side.whole, side.leaves)[1]
        # JAX says it where the derivative is batched or compiled.
        jax.eval_shape(jax.vmap(along), [leaf[None] for leaf in side.leaves])
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise InputError(
            "products of the NTK with vectors take forward derivatives, which functions of `jax.custom_vjp` do not "
            'have: use implementation="jacobian_contraction", or `jax.custom_jvp`'
        ) from error

    def push(tangent: Leaves) -> jax.Array:
        pairs = list(zip(side.leaves, tangent, strict=True))
        real = along([t.astype(leaf.dtype) if jnp.iscomplexobj(leaf) else t.real for leaf, t in pairs])
        if all(jnp.iscomplexobj(leaf) or not jnp.iscomplexobj(t) for leaf, t in pairs):
            return real
        return real + 1j * along([jnp.zeros_like(leaf) if jnp.iscomplexobj(leaf) else t.imag for leaf, t in pairs])

    return push
