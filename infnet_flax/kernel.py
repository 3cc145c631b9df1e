"""Where a linen module keeps its `apply` and its initialisers. No kernel mathematics here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

import infnet
from infnet.errors import InputError
from infnet_flax import nnx as of_nnx

PyTree = Any

# Errors then name the line of the model that uses a layer, not Flax's own. This is process-wide: JAX keeps one list.
infnet.exclude_from_source_lines(str(Path(flax.__file__).parent))


def kernel_fn(
    module: nn.Module,
    example_x: PyTree,
    *,
    variables: Mapping[str, Any] | None = None,
    priors: Mapping[str, infnet.Prior] | None = None,
    method: str | Callable[..., PyTree] | None = None,
    init_kwargs: Mapping[str, Any] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> infnet.KernelFn:
    """The kernel function of a Flax module, as it is.

    Args:
        module: any linen module; its initialisers say what the parameters' laws are. Or a module of NNX, or a function
            of `rngs` that makes one: see `infnet_flax.nnx.kernel_fn`.
        example_x: an input `(n, ...)`, or a tuple of inputs if `__call__` takes several. Only shapes and dtypes count.
        variables: collections other than "params" to read as constants (`{"batch_stats": ...}`); a whole
            `variables` dictionary will do. Otherwise BatchNorm statistics are mean 0 and variance 1.
        priors: parameters whose law is given here rather than read off the initialiser, by path or glob.
        method: the method to call instead of `__call__`, by name or as a function `(module, *inputs)`.
        init_kwargs: keyword arguments of `module.init`.
        call_kwargs: keyword arguments of `module.apply` (`{"train": False}`); also given to `init`. With
            `{"deterministic": False, "rngs": {"dropout": key}}` the kernel is that of the network with dropout.
        **options: of `infnet.kernel_fn` (`parameterization`, `trainable`, `lr_scale`, `output`).

    Raises:
        infnet.errors.UnsupportedError: the model has no closed-form limit, or contains what infnet does not know.
        infnet.errors.PriorError: the law of a parameter could not be read; give it in `priors`.
    """
    given: dict[str, Any] = {"variables": variables, "priors": priors, "call_kwargs": call_kwargs}
    if of_nnx.makes_nnx(module):
        if init_kwargs is not None:
            raise InputError("init_kwargs are those of `init` of a linen module; an NNX module has none")
        return of_nnx.kernel_fn(module, example_x, method=method or "__call__", **given, **options)
    found = functions(module, example_x, method=method, init_kwargs=init_kwargs, **given)
    return infnet.kernel_fn(found.apply, found.priors, example_x, **options)


class Functions(NamedTuple):
    """A module as pure functions of its parameters.

    Attributes:
        init: `(key, *inputs) -> params`.
        apply: `(params, *inputs) -> outputs`.
        priors: the laws of the parameters.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., PyTree]
    priors: PyTree


def functions(
    module: nn.Module,
    example_x: PyTree,
    *,
    variables: Mapping[str, Any] | None = None,
    priors: Mapping[str, infnet.Prior] | None = None,
    method: str | Callable[..., PyTree] | None = None,
    init_kwargs: Mapping[str, Any] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
) -> Functions:
    """The pure functions of a linen module; arguments as of `kernel_fn`.

    Raises:
        infnet.errors.PriorError, infnet.errors.InputError: as `kernel_fn`.
    """
    if not isinstance(module, nn.Module):
        raise InputError(f"kernel_fn takes a flax.linen Module instance, not {module!r}")
    keywords = {**(call_kwargs or {}), **({} if method is None else {"method": method})}
    rngs = keywords.pop("rngs", None) or {}

    def init(key: jax.Array, *args: PyTree) -> PyTree:
        return module.init({**rngs, "params": key}, *args, **{**keywords, **(init_kwargs or {})})

    laws = infnet.infer_priors(init, *infnet.example_args(example_x))
    laws = infnet.override_priors(laws, priors) if priors else laws
    apply = pure_apply(module, _constants(laws, variables))

    def apply_as_called(params: PyTree, *args: PyTree) -> PyTree:
        return apply(params, *args, rngs=rngs, **keywords)

    def init_params(key: jax.Array, *args: PyTree) -> PyTree:
        return init(key, *args).get("params", {})

    return Functions(init_params, apply_as_called, laws.get("params", {}))


def pure_apply(module: nn.Module, state: Mapping[str, Any]) -> Callable[..., PyTree]:
    """`module.apply` as a function of the parameters: `apply(params, *inputs, **kwargs)`.

    Args:
        module: a linen module.
        state: the other collections, as constants: what they become in a call is not used.
    """

    def apply(params: PyTree, *args: PyTree, **kwargs: Any) -> PyTree:
        variables = {**state, "params": params}
        if not state or "mutable" in kwargs:
            return module.apply(variables, *args, **kwargs)
        output, _ = module.apply(variables, *args, **kwargs, mutable=list(state))
        return output

    return apply


def _constants(laws: Mapping[str, Any], variables: Mapping[str, Any] | None) -> dict[str, Any]:
    """The collections that are not parameters: as given, or the mean of what `init` makes of them."""
    given = {name: value for name, value in (variables or {}).items() if name != "params"}
    unknown = set(given) - set(laws)
    if unknown:
        known = sorted(set(laws) - {"params"})
        raise InputError(f"variables holds {sorted(unknown)}, but the module's own collections are {known}")

    def standard(path: tuple[Any, ...], law: infnet.Prior) -> jax.Array:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        value = {"mean": 0.0, "var": 1.0}.get(name, law.mean) if path[0].key == "batch_stats" else law.mean
        return jnp.full(law.shape, jnp.asarray(value, law.dtype))

    own = {name: tree for name, tree in laws.items() if name != "params" and name not in given}
    own = jax.tree_util.tree_map_with_path(standard, own, is_leaf=lambda leaf: isinstance(leaf, infnet.Prior))
    return {**own, **given}
