"""Where a linen module keeps its `apply` and its initialisers. No kernel mathematics here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import infnet
from infnet.errors import InputError
from infnet_flax import nnx as of_nnx

PyTree = Any
STATISTICS = {"mean": 0.0, "var": 1.0}

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
            `{"deterministic": False, "rngs": {"dropout": key}}` the kernel is that of the network with dropout. With
            `{"mutable": ["intermediates"]}` the outputs are what `apply` returns then: see `output`.
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


WITH_COLLECTIONS = ("mutable", "capture_intermediates")  # arguments of `apply` for which it returns collections too


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
    of_apply = {name: keywords.pop(name) for name in WITH_COLLECTIONS if name in keywords}
    if isinstance(method, str) and not callable(getattr(type(module), method, None)):
        raise InputError(f"{type(module).__name__} has no method {method!r}")

    def init(key: jax.Array, *args: PyTree) -> PyTree:
        return module.init({**rngs, "params": key}, *args, **{**keywords, **(init_kwargs or {})})

    laws = infnet.infer_priors(init, *infnet.example_args(example_x))
    laws = infnet.override_priors(laws, priors) if priors else laws
    state, unknown = _constants(laws, variables)
    apply, params = pure_apply(module, state), laws.get("params", {})

    def apply_as_called(params: PyTree, *args: PyTree) -> PyTree:
        return apply(params, *args, rngs=rngs, **keywords, **of_apply)

    def init_params(key: jax.Array, *args: PyTree) -> PyTree:
        return init(key, *args).get("params", {})

    if unknown:
        arguments = _shapes((params, *infnet.example_args(example_x)))
        _check_not_needed(unknown, lambda: jax.eval_shape(apply_as_called, *arguments))
    return Functions(init_params, apply_as_called, params)


def pure_apply(module: nn.Module, state: Mapping[str, Any]) -> Callable[..., PyTree]:
    """`module.apply` as a function of the parameters: `apply(params, *inputs, **kwargs)`.

    Args:
        module: a linen module.
        state: the other collections, as constants: what they become in a call is not used.
    """

    def apply(params: PyTree, *args: PyTree, **kwargs: Any) -> PyTree:
        variables = {**state, "params": params}
        if not state or any(name in kwargs for name in WITH_COLLECTIONS):
            return module.apply(variables, *args, **kwargs)
        output, _ = module.apply(variables, *args, **kwargs, mutable=list(state))
        return output

    return apply


def _shapes(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree, is_leaf=lambda x: hasattr(x, "shape"))


def _check_not_needed(unknown: Mapping[str, str], call: Callable[[], Any]) -> None:
    """Collections that are written only, as those of `sow` are, need no values."""
    try:
        call()
    except flax.errors.FlaxError as error:
        paths = ", ".join(unknown.values())
        raise InputError(
            f"`init` draws {paths} at random or computes it from the inputs, so its values are not known: give them in "
            f"`variables`, for example variables={{{next(iter(unknown))!r}: ...}}"
        ) from error


def _constants(laws: Mapping[str, Any], variables: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, str]]:
    """The collections that are not parameters: as given, or as `init` makes them, which may be unknown.

    Returns:
        The collections; and of those whose values are not known, the path of a variable by collection.
    """
    given = {name: value for name, value in (variables or {}).items() if name != "params"}
    unknown = set(given) - set(laws)
    if unknown:
        known = sorted(set(laws) - {"params"})
        raise InputError(f"variables holds {sorted(unknown)}, but the module's own collections are {known}")

    unknown_paths: dict[str, str] = {}

    def standard(path: tuple[Any, ...], law: Any) -> Any:
        value = STATISTICS.get(jax.tree_util.keystr(path[-1:], simple=True)) if path[0].key == "batch_stats" else None
        if value is None and (not isinstance(law, infnet.Prior) or np.any(law.std)):
            unknown_paths[path[0].key] = repr(jax.tree_util.keystr(path, simple=True, separator="/"))
            return None
        return jnp.full(law.shape, jnp.asarray(law.mean if value is None else value, law.dtype))

    own = {name: tree for name, tree in laws.items() if name != "params" and name not in given}
    own = jax.tree_util.tree_map_with_path(standard, own, is_leaf=lambda leaf: isinstance(leaf, infnet.Prior))
    return {**{name: tree for name, tree in own.items() if name not in unknown_paths}, **given}, unknown_paths
