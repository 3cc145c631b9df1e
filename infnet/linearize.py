"""A model as a polynomial in its parameters: its Taylor expansion around given ones.

    f_tay(p, x) = Σ_k 1/k! d^k/dt^k f(p0 + t (p - p0), x) at t = 0,    k = 0 ... degree

(Lee et al. 2019, arXiv:1902.06720, eq. 2, has degree 1, whose gradient flow the empirical NTK describes.) Only
derivatives along the line from p0 to p are needed, so that no Hessian is ever formed. They are nested forward
derivatives: `jax.experimental.jet` takes all of them at once, but was not faster up to degree 6, and fails for
functions with a derivative rule of their own, such as `jax.nn.relu`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.errors import InputError
from infnet.priors import path_name

PyTree = Any
Leaves = list[Any]


def linearize(f: Callable[..., PyTree], params: PyTree) -> Callable[..., PyTree]:
    """The first-order Taylor expansion of a model in its parameters.

    Args:
        f: `(params, *args, **kwargs) -> outputs`, any JAX function; outputs are a pytree.
        params: where to expand.

    Returns:
        `f_lin(params, *args, **kwargs) -> outputs`, affine in its parameters; as `taylor_expand` of degree 1.

    Raises:
        InputError: as `taylor_expand`.
    """
    return taylor_expand(f, params, 1)


def taylor_expand(f: Callable[..., PyTree], params: PyTree, degree: int) -> Callable[..., PyTree]:
    """The Taylor expansion of a model in its parameters.

    Args:
        f: `(params, *args, **kwargs) -> outputs`, any JAX function; outputs are a pytree.
        params: where to expand. Leaves that are not floating-point or complex are constants.
        degree: the highest power of the change of the parameters, 0 or more.

    Returns:
        `f_tay(params, *args, **kwargs) -> outputs`, of the structure, shapes and dtypes of the outputs of `f`. Outputs
        that are not floating-point or complex are those at the parameters of the expansion.

    Raises:
        InputError: the degree is not a natural number; or, when `f_tay` is called, its parameters have another
            structure or other shapes than those of the expansion.
    """
    if isinstance(degree, bool) or not isinstance(degree, int | np.integer) or degree < 0:
        raise InputError(f"the degree of a Taylor expansion must be 0, 1, 2, ..., not {degree!r}")

    def f_tay(new: PyTree, *args: Any, **kwargs: Any) -> PyTree:
        line = _line(params, new)
        values, tree = jax.tree.flatten(f(line(jnp.zeros(())), *args, **kwargs))
        varying = [k for k, y in enumerate(values) if _is_continuous(y)]

        def along(t: jax.Array) -> Leaves:
            outputs = jax.tree.leaves(f(line(t), *args, **kwargs))
            return [outputs[k] for k in varying]

        for order, terms in enumerate(_derivatives(along, int(degree))):
            for k, term in zip(varying, terms, strict=True):
                values[k] = term if order == 0 else values[k] + term / math.factorial(order)
        return jax.tree.unflatten(tree, values)

    return f_tay


def _derivatives(along: Callable[[jax.Array], Leaves], degree: int) -> list[Leaves]:
    """The values of a function of one real variable at zero and its derivatives, up to `degree`."""

    def up_to(order: int, t: jax.Array) -> list[Leaves]:
        if order == 0:
            return [along(t)]
        values, slopes = jax.jvp(lambda s: up_to(order - 1, s), (t,), (jnp.ones_like(t),))
        return [*values, slopes[-1]]

    return up_to(degree, jnp.zeros(()))


def _line(start: PyTree, end: PyTree) -> Callable[[jax.Array], PyTree]:
    """t -> start + t (end - start)."""
    leaves, tree = jax.tree_util.tree_flatten_with_path(start)
    found: Any = jax.tree.structure(end)
    if found != tree:
        raise InputError(f"the parameters must have the structure of those of the expansion, {tree}, not {found}")
    steps = [_step(path_name(path), a, b) for (path, a), b in zip(leaves, jax.tree.leaves(end), strict=True)]

    def at(t: jax.Array) -> PyTree:
        # A step is added in its own dtype: t must not widen the parameters.
        moved = [
            a if step is None else a + t.astype(step.real.dtype) * step
            for (_, a), step in zip(leaves, steps, strict=True)
        ]
        return jax.tree.unflatten(tree, moved)

    return at


def _step(name: str, start: Any, end: Any) -> jax.Array | None:
    """The change of one parameter, in its own dtype; None if it is a constant."""
    if np.shape(start) != np.shape(end):
        raise InputError(f"the parameter {name!r} has shape {np.shape(end)}, but {np.shape(start)} in the expansion")
    if not _is_continuous(start):
        return None
    if jnp.iscomplexobj(end) and not jnp.iscomplexobj(start):
        raise InputError(f"the parameter {name!r} is complex, but real in the expansion")
    return jnp.asarray(end).astype(jnp.result_type(start)) - jnp.asarray(start)


def _is_continuous(x: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(x), jnp.inexact))
