"""Where a Haiku transform keeps its `apply` and its initialisers. No kernel mathematics here."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import haiku as hk
import jax

import infnet
from infnet.errors import InputError

PyTree = Any

# Errors then name the line of the model that uses a layer, not Haiku's own. This is process-wide: JAX keeps one list.
infnet.exclude_from_source_lines(str(Path(hk.__file__).parent))


def kernel_fn(
    transformed: hk.Transformed,
    example_x: PyTree,
    *,
    priors: Mapping[str, infnet.Prior] | None = None,
    rng: jax.Array | None = None,
    **options: Any,
) -> infnet.KernelFn:
    """The kernel function of a Haiku transform, as it is.

    Args:
        transformed: what `hk.transform` returns, with or without `hk.without_apply_rng`.
        example_x: an input `(n, ...)`, or a tuple of inputs if the function takes several.
            Only shapes and dtypes count.
        priors: parameters whose law is given here rather than read off the initialiser, by path or glob.
        rng: the key that `transformed.apply` is called with, for models with dropout: the kernel is that of the network
            with it, and does not depend on the key.
        **options: of `infnet.kernel_fn` (`parameterization`, `trainable`, `lr_scale`, `output`).

    Raises:
        infnet.errors.UnsupportedError: the model has no closed-form limit, or contains what infnet does not know.
        infnet.errors.PriorError: the law of a parameter could not be read; give it in `priors`.
    """
    if not isinstance(transformed, hk.Transformed):
        raise InputError(f"kernel_fn takes the result of hk.transform, not {transformed!r}")
    inputs = example_x if isinstance(example_x, tuple) else (example_x,)
    laws = infnet.infer_priors(transformed.init, *inputs)
    laws = infnet.override_priors(laws, priors) if priors else laws
    takes_rng = "rng" in inspect.signature(transformed.apply).parameters

    def apply(params: PyTree, *args: PyTree) -> PyTree:
        return transformed.apply(params, rng, *args) if takes_rng else transformed.apply(params, *args)

    return infnet.kernel_fn(apply, laws, example_x, **options)
