"""`verify`: the kernel of a Flax model against random networks of the same model. No kernel mathematics here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax

import infnet
import infnet_flax.kernel
import infnet_flax.widening
from infnet_flax import nnx as of_nnx

PyTree = Any
OF_CALLS = ("method", "init_kwargs", "call_kwargs")


def verify(
    module: Any, x: PyTree, key: jax.Array, *, widen: Callable[[int], Any] | None = None, **options: Any
) -> infnet.Verification:
    """Compare the kernel of a Flax model with the mean kernels of random networks of it, at growing widths.

    Args:
        module: a linen module, or a function of `rngs` that makes a module of NNX.
        x: a few examples, an input or a tuple of inputs; see `infnet.verify`.
        key: of the random networks.
        widen: `multiplier -> module`: the model with all hidden widths multiplied; see `infnet.verify`. By default
            that is `infnet_flax.widen` for linen modules whose widths are fields, with `heads=True` if numbers of
            heads have to grow too; others are compared at their own width, and the report says so.
        **options: of `infnet.verify` (`multipliers`, `resolution`, `n_samples`, `level`, `gaussian_first_layer`,
            `progress`) and of `infnet_flax.kernel_fn` (`variables`, `call_kwargs`, `trainable`, `output`, ...).

    Raises:
        infnet.errors.InfnetError: as `infnet_flax.kernel_fn` and `infnet.verify`.
    """
    settings = {name: options[name] for name in OF_CALLS if name in options}
    wider = partial(infnet_flax.widening.widen, module, example_x=x, **settings)
    guesses = [] if of_nnx.makes_nnx(module) else [wider, partial(wider, heads=True)]
    return infnet.verify_model(_functions, module, x, key, widen, options, guesses)


def _functions(module: Any, x: PyTree, **options: Any) -> tuple[Any, Any, infnet.KernelFn]:
    given = {name: options[name] for name in ("variables", *OF_CALLS) if name in options}
    kernel_fn = partial(infnet_flax.kernel.kernel_fn, module, x, **options)
    if of_nnx.makes_nnx(module):
        given.pop("init_kwargs", None)  # which `kernel_fn` refuses
        init, apply = of_nnx.functions(module, **given)
    else:
        init, apply, _ = infnet_flax.kernel.functions(module, x, **given)
    return init, apply, kernel_fn()
