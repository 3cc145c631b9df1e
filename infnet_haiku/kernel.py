"""Where a Haiku transform keeps its `apply` and its initialisers. No kernel mathematics here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import haiku as hk
import jax
import numpy as np

import infnet
from infnet.errors import InputError

PyTree = Any
STATISTICS = {"mean_ema": 0.0, "var_ema": 1.0}

# Errors then name the line of the model that uses a layer, not Haiku's own. This is process-wide: JAX keeps one list.
infnet.exclude_from_source_lines(str(Path(hk.__file__).parent))


def kernel_fn(
    transformed: hk.Transformed | hk.TransformedWithState,
    example_x: PyTree,
    *,
    state: Mapping[str, Any] | None = None,
    priors: Mapping[str, infnet.Prior] | None = None,
    rng: jax.Array | None = None,
    init_kwargs: Mapping[str, Any] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> infnet.KernelFn:
    """The kernel function of a Haiku transform, as it is.

    Args:
        transformed: what `hk.transform` or `hk.transform_with_state` returns, with or without `hk.without_apply_rng`.
        example_x: an input `(n, ...)`, or a tuple of inputs if the function takes several.
            Only shapes and dtypes count.
        state: the state to read as constants. By default BatchNorm statistics are mean 0 and variance 1, and other
            state is what `init` makes of it.
        priors: parameters whose law is given here rather than read off the initialiser, by path or glob.
        rng: the key that `transformed.apply` is called with, for models with dropout: the kernel is that of the network
            with it, and does not depend on the key.
        init_kwargs: keyword arguments of `transformed.init` (`{"is_training": True}`, without which `hk.BatchNorm` does
            not make its state).
        call_kwargs: keyword arguments of `transformed.apply` (`{"is_training": False}`); also given to `init`.
        **options: of `infnet.kernel_fn` (`parameterization`, `trainable`, `lr_scale`, `output`).

    Raises:
        infnet.errors.UnsupportedError: the model has no closed-form limit, or contains what infnet does not know.
        infnet.errors.PriorError: the law of a parameter could not be read; give it in `priors`.
        infnet.errors.InputError: `transformed` is something else, or `state` is not the state of this function.
    """
    found = functions(
        transformed,
        example_x,
        state=state,
        priors=priors,
        rng=rng,
        init_kwargs=init_kwargs,
        call_kwargs=call_kwargs,
    )
    return infnet.kernel_fn(found.apply, found.priors, example_x, **options)


class Functions(NamedTuple):
    """A transform as pure functions of its parameters.

    Attributes:
        init: `(key, *inputs) -> params`.
        apply: `(params, *inputs) -> outputs`.
        priors: the laws of the parameters.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., PyTree]
    priors: PyTree


def functions(
    transformed: hk.Transformed | hk.TransformedWithState,
    example_x: PyTree,
    *,
    state: Mapping[str, Any] | None = None,
    priors: Mapping[str, infnet.Prior] | None = None,
    rng: jax.Array | None = None,
    init_kwargs: Mapping[str, Any] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
) -> Functions:
    """The pure functions of a transform; arguments as of `kernel_fn`.

    Raises:
        infnet.errors.PriorError, infnet.errors.InputError: as `kernel_fn`.
    """
    if not isinstance(transformed, hk.Transformed | hk.TransformedWithState):
        raise InputError(f"kernel_fn takes the result of hk.transform or hk.transform_with_state, not {transformed!r}")
    keywords = dict(call_kwargs or {})
    with_state = isinstance(transformed, hk.TransformedWithState)

    def init(key: jax.Array, *args: PyTree) -> PyTree:
        return transformed.init(key, *args, **{**keywords, **(init_kwargs or {})})

    laws = infnet.infer_priors(init, *infnet.example_args(example_x))
    laws, laws_of_state = laws if with_state else (laws, {})
    laws = infnet.override_priors(laws, priors) if priors else laws
    apply = pure_apply(transformed, _constants(laws_of_state, state), rng)

    def apply_as_called(params: PyTree, *args: PyTree) -> PyTree:
        return apply(params, *args, **keywords)

    def init_params(key: jax.Array, *args: PyTree) -> PyTree:
        return init(key, *args)[0] if with_state else init(key, *args)

    return Functions(init_params, apply_as_called, laws)


def pure_apply(
    transformed: hk.Transformed | hk.TransformedWithState, state: Mapping[str, Any], rng: jax.Array | None
) -> Callable[..., PyTree]:
    """`transformed.apply` as a function of the parameters: `apply(params, *inputs, **kwargs)`.

    Args:
        transformed: with or without state, with or without `hk.without_apply_rng`.
        state: as a constant: what it becomes in a call is not used.
        rng: a constant too.
    """
    rngs = (rng,) if "rng" in inspect.signature(transformed.apply).parameters else ()

    def apply(params: PyTree, *args: PyTree, **kwargs: Any) -> PyTree:
        if not isinstance(transformed, hk.TransformedWithState):
            return transformed.apply(params, *rngs, *args, **kwargs)
        output, _ = transformed.apply(params, state, *rngs, *args, **kwargs)
        return output

    return apply


def _constants(laws: Mapping[str, Any], state: Mapping[str, Any] | None) -> dict[str, Any]:
    """The state: as given, or the mean of what `init` makes of it."""
    if state is not None:
        needed, given = _shapes(laws), _shapes(state)
        if needed != given:
            raise InputError(f"state has arrays of shapes {given}, but that of this function has {needed}")
        return dict(state)

    def standard(path: tuple[Any, ...], law: Any) -> jax.Array:
        # The averages of hk.BatchNorm are made by modules of these names.
        module, name = path[0].key.rsplit("/", 1)[-1], path[-1].key
        value: Any
        if module in STATISTICS and name in ("average", "hidden"):
            value = STATISTICS[module]
        elif isinstance(law, infnet.Prior) and not np.any(law.std):
            value = law.mean
        else:
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise InputError(
                f"`init` computes the state {where!r} from its inputs or draws it at random: give the state, `state=`"
            )
        return jax.numpy.full(law.shape, jax.numpy.asarray(value, law.dtype))

    return jax.tree_util.tree_map_with_path(standard, dict(laws), is_leaf=_has_shape)


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_has_shape)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape if _has_shape(leaf) else ()
        for path, leaf in leaves
    }


def _has_shape(leaf: Any) -> bool:
    return hasattr(leaf, "shape")
