"""Where a module of Flax NNX keeps its call, its parameters and their laws. No kernel mathematics here.

A linen module has initialisers; an NNX module has values, drawn when it was made, and does not keep what drew them. So
the laws come from a function that makes the module, which is traced, or else from the values themselves: see
`infnet.recognise_prior`.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx

import infnet
from infnet.errors import LAW_NOT_KEPT, InputError, Where

PyTree = Any
Module = nnx.Module | Callable[..., nnx.Module]
STATISTICS = {"mean": 0.0, "var": 1.0}


def makes_nnx(module: Any) -> bool:
    """Whether this is a module of NNX, or may be a function that makes one."""
    linen = isinstance(module, nn.Module) or (isinstance(module, type) and issubclass(module, nn.Module))
    return callable(module) and not linen


def kernel_fn(
    module: Module,
    example_x: PyTree,
    *,
    variables: Any = None,
    priors: Mapping[str, infnet.Prior] | None = None,
    method: str | Callable[..., PyTree] = "__call__",
    call_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> infnet.KernelFn:
    """The kernel function of an NNX module, as it is.

    Args:
        module: a function `rngs -> nnx.Module`, or a class that takes only `rngs`: it is traced, and the laws of the
            parameters are read off the initialisers that it calls. Or a module: the laws are those of the initialisers
            of `flax.nnx` that can have returned exactly the values in it. It is not changed.
        example_x: an input `(n, ...)`, or a tuple of inputs if the method takes several. Only shapes and dtypes count.
        variables: values of variables other than `nnx.Param`, to read as constants: an `nnx.State` or a nested
            dictionary; a whole `nnx.state(model)` will do. Otherwise BatchNorm statistics are mean 0 and variance 1,
            and others as the module has them.
        priors: parameters whose law is given here, by path (`"layers/0/kernel"`) or glob.
        method: the method to call, by name, or a function `(module, *inputs)`.
        call_kwargs: its keyword arguments.
        **options: of `infnet.kernel_fn` (`parameterization`, `trainable`, `lr_scale`, `output`).

    Raises:
        infnet.errors.UnsupportedError: the model has no closed-form limit, or contains what infnet does not know.
        infnet.errors.PriorError: the law of a parameter could not be read; give it in `priors`, or pass a function
            that makes the module.
        infnet.errors.InputError: `module` is something else, or a variable is drawn at random and not given.
    """
    if isinstance(module, nnx.Module):
        graph, params, state = _split(module)
        laws, own = _recognised(module, params), _held(state)
    else:
        make = _maker(module)
        graph, params, state = _split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
        laws, own = _traced(make, state)
    laws = infnet.override_priors(laws, priors) if priors else laws
    _check_known(laws)
    constants = _constants(own, params, variables)
    for name in ("trainable", "lr_scale"):  # masks of optax have the structure of the state
        if isinstance(options.get(name), nnx.State):
            options[name] = nnx.to_pure_dict(options[name])
    return infnet.kernel_fn(_apply((graph, params, state), constants, method, call_kwargs), laws, example_x, **options)


def split(
    module: nnx.Module, method: str | Callable[..., PyTree] = "__call__", call_kwargs: Mapping[str, Any] | None = None
) -> tuple[Callable[..., PyTree], PyTree]:
    """A module as a pure function and its parameters: `apply(params, *inputs)`, `params`.

    So `infnet.linearize(apply, params)` is the module linearized in its parameters.

    Args:
        module: it is not changed, neither now nor by calls of the function.
        method: the method to call, by name, or a function `(module, *inputs)`.
        call_kwargs: its keyword arguments.

    Returns:
        The function, to which all variables other than `nnx.Param` are constants, as the module has them; and the
        values of the parameters as nested dictionaries.
    """
    graph, params, state = _split(module)
    constants = _by_path(nnx.to_pure_dict(state))
    return _apply((graph, params, state), constants, method, call_kwargs), nnx.to_pure_dict(params)


def empirical_kernel(
    module: nnx.Module,
    x1: PyTree,
    x2: PyTree = None,
    get: Any = None,
    *,
    method: str | Callable[..., PyTree] = "__call__",
    call_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> Any:
    """The kernels of this finite network, with the parameters that it has.

    Args:
        module: it is not changed. Variables other than `nnx.Param` are constants, as the module has them.
        x1, x2: inputs `(n1, ...)`, `(n2, ...)`; tuples of inputs if the method takes several; None for x1 itself.
        get: "nngp", "ntk", or a tuple of them; None for both.
        method: the method to call, by name, or a function `(module, *inputs)`.
        call_kwargs: its keyword arguments.
        **options: of `infnet.empirical_kernel_fn` (`trace_axes`, `diagonal_axes`, `implementation`, ...).

    Raises:
        infnet.errors.InputError: as `infnet.empirical_kernel_fn`.
    """
    apply, params = split(module, method, call_kwargs)

    def f(params: PyTree, x: PyTree) -> PyTree:
        return apply(params, *infnet.example_args(x))

    return infnet.empirical_kernel_fn(f, **options)(x1, x2, get, params)


def monte_carlo_kernel(
    module: Callable[..., nnx.Module],
    key: jax.Array,
    x1: PyTree,
    x2: PyTree = None,
    n_samples: Any = None,
    get: Any = None,
    **options: Any,
) -> Any:
    """The kernels of finite networks, on average over initialisations, with standard errors.

    Args:
        module: a function `rngs -> nnx.Module`, or a class that takes only `rngs`. A module that was made does not keep
            its initialisers.
        key: of the random numbers.
        x1, x2: inputs `(n1, ...)`, `(n2, ...)`; tuples of inputs if the method takes several; None for x1 itself.
        n_samples: how many initialisations, 100 by default; a sequence of numbers for running estimates.
        get: "nngp", "ntk", or a tuple of them; None for both.
        **options: `variables`, `method` and `call_kwargs` of `kernel_fn`, and options of
            `infnet.monte_carlo_kernel_fn` (`target_error`, `progress`, `trainable`, `batch_size`, ...).

    Raises:
        infnet.errors.InputError: as `infnet.monte_carlo_kernel_fn`; or `module` is not a function that makes one.
    """
    return infnet.remembered_monte_carlo_kernel(_monte_carlo_kernel_fn, module, key, x1, x2, n_samples, get, options)


def _monte_carlo_kernel_fn(
    module: Callable[..., nnx.Module],
    example_x: PyTree,
    *,
    variables: Any = None,
    method: str | Callable[..., PyTree] = "__call__",
    call_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> infnet.MonteCarloKernelFn:
    """The mean kernels of random networks, of a number that `with_samples` says; `example_x` is not needed."""
    init, apply = functions(module, variables, method, call_kwargs)
    return infnet.monte_carlo_kernel_fn(init, apply, jax.random.key(0), 1, **options)


def functions(
    module: Callable[..., nnx.Module],
    variables: Any = None,
    method: str | Callable[..., PyTree] = "__call__",
    call_kwargs: Mapping[str, Any] | None = None,
) -> tuple[Callable[..., PyTree], Callable[..., PyTree]]:
    """A function that makes a module, as `init(key, *inputs) -> params` and `apply(params, *inputs) -> outputs`.

    Args:
        module: a function `rngs -> nnx.Module`.
        variables, method, call_kwargs: as of `kernel_fn`.

    Raises:
        infnet.errors.InputError: it is a module that was made, or something else.
    """
    if isinstance(module, nnx.Module):
        raise InputError(
            "a module of NNX that was made does not keep its initialisers, so no others can be drawn: pass a function "
            "that makes it, lambda rngs: Model(..., rngs=rngs)"
        )
    make = _maker(module)
    graph, params, state = _split(nnx.eval_shape(lambda: make(nnx.Rngs(0))))
    constants = _constants(_traced(make, state)[1], params, variables)

    def init(key: jax.Array, *inputs: PyTree) -> PyTree:
        return nnx.to_pure_dict(_split(make(nnx.Rngs(key)))[1])

    return init, _apply((graph, params, state), constants, method, call_kwargs)


def _split(module: nnx.Module) -> tuple[Any, nnx.State, nnx.State]:
    """What is static, the parameters, and all other variables."""
    split: Any = nnx.split
    graph, params, state = split(module, nnx.Param, ...)
    return graph, params, state


def _apply(
    parts: tuple[Any, nnx.State, nnx.State],
    constants: Mapping[str, Any],
    method: str | Callable[..., PyTree],
    call_kwargs: Mapping[str, Any] | None,
) -> Callable[..., PyTree]:
    graph, params, state = parts

    def apply(values: PyTree, *inputs: PyTree) -> PyTree:
        # A module of its own for every call: what the call changes is thrown away.
        module = nnx.merge(graph, _filled(params, _by_path(values)), _filled(state, constants))
        bound = _method(module, method)
        return bound(*inputs, **(call_kwargs or {}))

    return apply


def _method(module: nnx.Module, method: str | Callable[..., PyTree]) -> Callable[..., PyTree]:
    if not isinstance(method, str):
        return functools.partial(method, module)
    if not callable(getattr(module, method, None)):
        raise InputError(f"{type(module).__name__} has no method {method!r}")
    return getattr(module, method)


def _filled(state: nnx.State, values: Mapping[str, Any]) -> nnx.State:
    """A state of the same variables as `state`, with other values, by path."""
    tree: Any = jax.tree.structure(state)
    leaves: list[Any] = [None] * tree.num_leaves
    for name, i in _by_path(nnx.to_pure_dict(jax.tree.unflatten(tree, range(tree.num_leaves)))).items():
        leaves[i] = values[name]
    return jax.tree.unflatten(tree, leaves)


# A function that makes a module.


def _maker(module: Any) -> Callable[[nnx.Rngs], nnx.Module]:
    def make(rngs: nnx.Rngs) -> nnx.Module:
        names = inspect.signature(module).parameters
        made = module(rngs=rngs) if "rngs" in names else module(rngs)
        if not isinstance(made, nnx.Module):
            raise InputError(
                "kernel_fn takes a flax.linen Module instance, a flax.nnx Module or a function of rngs that makes one; "
                f"{module!r} returns {made!r}"
            )
        return made

    return make


def _traced(make: Callable[[nnx.Rngs], nnx.Module], state: nnx.State) -> tuple[PyTree, PyTree]:
    """The laws of the parameters, and of other variables the values, or their law where they are random."""

    def init(key: jax.Array) -> tuple[PyTree, PyTree]:
        _, params, others = _split(make(nnx.Rngs(key)))
        return nnx.to_pure_dict(params), nnx.to_pure_dict(nnx.filter_state(others, nnx.Not(nnx.RngState)))

    laws, others = infnet.infer_priors(init)
    own = _by_path(others)
    if any(isinstance(variable, nnx.RngState) for variable in jax.tree.leaves(state, is_leaf=_is_variable)):
        own |= _by_path(nnx.to_pure_dict(nnx.state(make(nnx.Rngs(0)), nnx.RngState)))
    return laws, _with_standard_statistics(state, own)


# A module that was made.


def _recognised(module: nnx.Module, params: nnx.State) -> PyTree:
    """The laws of the values in a module."""
    owners = dict(nnx.iter_modules(module))

    def law(path: tuple[Any, ...], value: jax.Array) -> infnet.Prior:
        owner = owners.get(tuple(key.key for key in path[:-1]))
        found = infnet.recognise_prior(value, _shape_drawn(owner, value.shape))
        return found or infnet.Prior(math.nan, math.nan, shape=value.shape, dtype=value.dtype)

    return jax.tree_util.tree_map_with_path(law, nnx.to_pure_dict(params))


def _shape_drawn(owner: Any, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a layer called its initialiser with."""
    if isinstance(owner, nnx.LinearGeneral):
        outputs = int(np.prod(owner.out_features))
        size = int(np.prod(shape))
        return (size // outputs, outputs) if len(shape) > len(owner.out_features) else (size,)
    return shape


def _check_known(laws: PyTree) -> None:
    for name, law in _by_path(laws).items():
        if isinstance(law, infnet.Prior) and np.isnan(law.mean).any():
            raise LAW_NOT_KEPT.at(Where(name), name=name, shape=law.shape)


def _held(state: nnx.State) -> dict[str, Any]:
    return _with_standard_statistics(state, _by_path(nnx.to_pure_dict(state)))


# Variables that are not parameters.


def _with_standard_statistics(state: nnx.State, own: dict[str, Any]) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(state, is_leaf=_is_variable)
    for path, variable in leaves:
        value = STATISTICS.get(str(path[-1].key))
        if isinstance(variable, nnx.BatchStat) and value is not None:
            own[_name(path)] = jnp.full(variable.shape, value, variable.dtype)
    return own


def _constants(own: dict[str, Any], params: nnx.State, variables: Any) -> dict[str, Any]:
    """The variables that are not parameters: as given, or as they are."""
    given = _by_path(nnx.to_pure_dict(variables) if isinstance(variables, nnx.State) else variables or {})
    unknown = set(given) - set(own) - set(_by_path(nnx.to_pure_dict(params)))
    if unknown:
        raise InputError(f"variables holds {sorted(unknown)}, but those of the module are {sorted(own)}")
    for name in set(given) & set(own):
        if jnp.shape(given[name]) != own[name].shape:
            raise InputError(f"the variable {name!r} has shape {own[name].shape}, not {jnp.shape(given[name])}")
    return {name: given[name] if name in given else _constant(name, value) for name, value in own.items()}


def _constant(name: str, value: Any) -> Any:
    if isinstance(value, jax.Array):
        return value
    if not isinstance(value, infnet.Prior) or np.any(value.std):
        raise InputError(
            f"the variable {name!r} is drawn at random and is no nnx.Param: give the values to use in `variables`"
        )
    return jnp.full(value.shape, jnp.asarray(value.mean, value.dtype))


def _by_path(tree: PyTree) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: hasattr(leaf, "shape"))
    return {_name(path): leaf for path, leaf in leaves}


def _name(path: tuple[Any, ...]) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _is_variable(leaf: Any) -> bool:
    return isinstance(leaf, nnx.Variable)
