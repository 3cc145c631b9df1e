"""`verify`: the kernel of a Flax model against random networks of the same model. No kernel mathematics here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

import infnet
import infnet_flax.kernel
import infnet_flax.widening
from infnet.errors import InputError
from infnet_flax import nnx as of_nnx

PyTree = Any
# What `infnet.verify` takes; everything else is for `kernel_fn`.
OPTIONS = ("resolution", "n_samples", "level", "gaussian_first_layer", "progress")
OF_FUNCTIONS = ("variables", "method", "init_kwargs", "call_kwargs")
Triple = tuple[Callable[..., PyTree], Callable[..., PyTree], infnet.KernelFn]


def verify(
    module: Any,
    x: PyTree,
    key: jax.Array,
    *,
    widen: Callable[[int], Any] | None = None,
    multipliers: Sequence[int] = (1, 2, 4),
    **options: Any,
) -> infnet.Verification:
    """Compare the kernel of a Flax model with the mean kernels of random networks of it, at growing widths.

    Args:
        module: a linen module, or a function of `rngs` that makes a module of NNX.
        x: a few examples, an input or a tuple of inputs; see `infnet.verify`.
        key: of the random networks.
        widen: `multiplier -> module`: the model with all hidden widths multiplied. By default that is
            `infnet_flax.widen` for linen modules whose widths are fields; others are compared at their own width,
            and the report says so.
        multipliers: of the width.
        **options: of `infnet.verify` (`resolution`, `n_samples`, `level`, `gaussian_first_layer`, `progress`) and of
            `infnet_flax.kernel_fn` (`variables`, `call_kwargs`, `parameterization`, `trainable`, `output`, ...).

    Raises:
        infnet.errors.InfnetError: as `infnet_flax.kernel_fn` and `infnet.verify`.
    """
    own = {name: options.pop(name) for name in OPTIONS if name in options}

    def at_width(model: Any) -> Triple:
        return _functions(model, x, options)

    init, apply, kernel_fn = at_width(module)
    remarks = []
    if widen is None and not of_nnx.makes_nnx(module):
        settings = {name: options[name] for name in OF_FUNCTIONS[1:] if name in options}
        try:
            wider = _Widened(module, x, settings)
            _check_all(kernel_fn, at_width(wider(2))[2])
            widen = wider
        except InputError as error:
            remarks.append(f"not at growing widths: {error}")
    made = None if widen is None else lambda multiplier: at_width(widen(multiplier))
    return infnet.verify(kernel_fn, init, apply, x, key, widen=made, multipliers=multipliers, remarks=remarks, **own)


class _Widened:
    """A linen module, as a function of the multiplier."""

    def __init__(self, module: Any, x: PyTree, settings: Mapping[str, Any]):
        self._module, self._x, self._settings = module, x, settings

    def __call__(self, multiplier: int) -> Any:
        return infnet_flax.widening.widen(self._module, multiplier, self._x, **self._settings)


def _functions(module: Any, x: PyTree, options: Mapping[str, Any]) -> Triple:
    given = {name: options[name] for name in OF_FUNCTIONS if name in options}
    if of_nnx.makes_nnx(module):
        init, apply = of_nnx.functions(module, **given)
    else:
        init, apply, _ = infnet_flax.kernel.functions(module, x, **given)
    return init, apply, infnet_flax.kernel.kernel_fn(module, x, **options)


def _check_all(kernel_fn: infnet.KernelFn, wider: infnet.KernelFn) -> None:
    """Raise if a hidden width is not a field of the model."""
    for (width, where), (other, _) in zip(kernel_fn.hidden_widths, wider.hidden_widths, strict=True):
        if other != 2 * width:
            raise InputError(
                f"some widths are no fields of the model, so they stay as they are ({width} in {where}): say how it is "
                "made wider, widen=lambda multiplier: Model(width=64 * multiplier)"
            )
