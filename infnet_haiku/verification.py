"""`verify`: the kernel of a Haiku model against random networks of the same model. No kernel mathematics here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

import infnet
import infnet_haiku.kernel

PyTree = Any
# What `infnet.verify` takes; everything else is for `kernel_fn`.
OPTIONS = ("resolution", "n_samples", "level", "gaussian_first_layer", "progress")
OF_FUNCTIONS = ("state", "rng", "init_kwargs", "call_kwargs")


def verify(
    transformed: Any,
    x: PyTree,
    key: jax.Array,
    *,
    widen: Callable[[int], Any] | None = None,
    multipliers: Sequence[int] = (1, 2, 4),
    **options: Any,
) -> infnet.Verification:
    """Compare the kernel of a Haiku model with the mean kernels of random networks of it, at growing widths.

    Args:
        transformed: what `hk.transform` or `hk.transform_with_state` returns.
        x: a few examples, an input or a tuple of inputs; see `infnet.verify`.
        key: of the random networks.
        widen: `multiplier -> transformed`: the model with all hidden widths multiplied. Without it, the model is
            compared at its own width, as a transform is a function that does not say which numbers in it are widths.
        multipliers: of the width.
        **options: of `infnet.verify` (`resolution`, `n_samples`, `level`, `gaussian_first_layer`, `progress`) and of
            `infnet_haiku.kernel_fn` (`state`, `call_kwargs`, `parameterization`, `trainable`, `output`, ...).

    Raises:
        infnet.errors.InfnetError: as `infnet_haiku.kernel_fn` and `infnet.verify`.
    """
    own = {name: options.pop(name) for name in OPTIONS if name in options}
    given = {name: options[name] for name in OF_FUNCTIONS if name in options}

    def at_width(model: Any) -> tuple[Callable[..., PyTree], Callable[..., PyTree], infnet.KernelFn]:
        found = infnet_haiku.kernel.functions(model, x, **given)
        return found.init, found.apply, infnet_haiku.kernel.kernel_fn(model, x, **options)

    init, apply, kernel_fn = at_width(transformed)
    made = None if widen is None else lambda multiplier: at_width(widen(multiplier))
    return infnet.verify(kernel_fn, init, apply, x, key, widen=made, multipliers=multipliers, **own)
