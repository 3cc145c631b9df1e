"""`verify`: the kernel of a Haiku model against random networks of the same model. No kernel mathematics here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

import infnet
import infnet_haiku.kernel

PyTree = Any
OF_FUNCTIONS = ("state", "rng", "init_kwargs", "call_kwargs")


def verify(
    transformed: Any, x: PyTree, key: jax.Array, *, widen: Callable[[int], Any] | None = None, **options: Any
) -> infnet.Verification:
    """Compare the kernel of a Haiku model with the mean kernels of random networks of it, at growing widths.

    Args:
        transformed: what `hk.transform` or `hk.transform_with_state` returns.
        x: a few examples, an input or a tuple of inputs; see `infnet.verify`.
        key: of the random networks.
        widen: `multiplier -> transformed`: the model with all hidden widths multiplied. Without it, the model is
            compared at its own width, as a transform is a function that does not say which numbers in it are widths.
        **options: of `infnet.verify` (`multipliers`, `resolution`, `n_samples`, `level`, `gaussian_first_layer`,
            `progress`) and of `infnet_haiku.kernel_fn` (`state`, `call_kwargs`, `trainable`, `output`, ...).

    Raises:
        infnet.errors.InfnetError: as `infnet_haiku.kernel_fn` and `infnet.verify`.
    """
    return infnet.verify_model(_functions, transformed, x, key, widen, options)


def _functions(model: Any, x: PyTree, **options: Any) -> tuple[Any, Any, infnet.KernelFn]:
    given = {name: options[name] for name in OF_FUNCTIONS if name in options}
    found = infnet_haiku.kernel.functions(model, x, **given)
    return found.init, found.apply, infnet_haiku.kernel.kernel_fn(model, x, **options)
