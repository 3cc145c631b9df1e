"""Masks: which positions of an example are there. `mask` has shape `(n, *positions)` and is True where there is one.

A layer that is given a mask takes its inputs elsewhere for zero; means leave these positions out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.errors import InputError
from infnet.functional.windows import Padding, Sizes, Windows


def mask_constant(x: Any, value: float) -> tuple[jax.Array, jax.Array]:
    """Inputs in which a number stands for what is not there.

    Args:
        x: `(n, *positions, channels)`.
        value: the number, which may be NaN.

    Returns:
        x with zeros in the place of `value`, and the mask `(n, *positions)`: True unless all channels are `value`.
    """
    x = jnp.asarray(x)
    missing = jnp.isnan(x) if np.isnan(value) else x == value
    return jnp.where(missing, 0, x), ~missing.all(-1)


def where_present(x: jax.Array, mask: Any = None) -> jax.Array:
    """x, with zeros at the positions that are not there.

    Args:
        x: `(n, *positions, channels)`.
        mask: None, or Boolean of shape `(n, *positions)`, where axes may have size 1.

    Raises:
        InputError: the mask has another shape or dtype.
    """
    return x if mask is None else jnp.where(checked(mask, x.shape)[..., None], x, 0)


def checked(mask: Any, shape: Sequence[int]) -> jax.Array:
    """The mask as an array, for inputs of this shape."""
    mask = jnp.asarray(mask)
    fits = mask.ndim == len(shape) - 1 and all(m in (1, s) for m, s in zip(mask.shape, shape, strict=False))
    if mask.dtype != bool or not fits:
        raise InputError(
            f"the mask of inputs {tuple(shape)} must be Boolean of shape {tuple(shape[:-1])}, "
            f"but it is {mask.dtype} of shape {mask.shape}"
        )
    return mask


def window_mask(mask: Any, window: Sizes, strides: Sizes | None = None, padding: Padding = "SAME") -> jax.Array:
    """The mask of what a convolution or a pool returns: an output is there if the centre of its window is.

    Args:
        mask: of the inputs, `(n, *positions)`.
        window, strides, padding: those of the layer.

    Returns:
        `(n, *positions of the outputs)`.
    """
    mask = jnp.asarray(mask)
    windows = Windows.of(mask.shape[1:], window, strides, padding)
    first = [(w - 1) // 2 - low for w, (low, _) in zip(windows.window, windows.pads, strict=True)]
    at = [f + np.arange(n) * s for f, n, s in zip(first, windows.outputs, windows.strides, strict=True)]
    return mask[:, *np.ix_(*at)]
