"""Where a Haiku transform keeps its `apply` and its initialisers. No kernel mathematics here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
    if not isinstance(transformed, hk.Transformed | hk.TransformedWithState):
        raise InputError(f"kernel_fn takes the result of hk.transform or hk.transform_with_state, not {transformed!r}")
    inputs = example_x if isinstance(example_x, tuple) else (example_x,)
    keywords = dict(call_kwargs or {})
    of_init = {**keywords, **(init_kwargs or {})}
    with_state = isinstance(transformed, hk.TransformedWithState)
    laws = infnet.infer_priors(lambda key, *args: transformed.init(key, *args, **of_init), *inputs)
    laws, laws_of_state = laws if with_state else (laws, {})
    laws = infnet.override_priors(laws, priors) if priors else laws
    constants = _constants(laws_of_state, state)
    rngs = (rng,) if "rng" in inspect.signature(transformed.apply).parameters else ()

    def apply(params: PyTree, *args: PyTree) -> PyTree:
        if not with_state:
            return transformed.apply(params, *rngs, *args, **keywords)
        output, _ = transformed.apply(params, constants, *rngs, *args, **keywords)
        return output  # what the state becomes is not used

    return infnet.kernel_fn(apply, laws, example_x, **options)


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
