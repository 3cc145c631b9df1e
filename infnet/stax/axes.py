"""The arguments of Neural Tangents that say where examples and channels are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from infnet.errors import InputError


@dataclass(frozen=True)
class Axes:
    """Which axis of the inputs counts examples, and which channels; all others are positions."""

    batch: int = 0
    channel: int = -1

    def last(self, x: jax.Array) -> jax.Array:
        """x as `(n, *positions, channels)`."""
        self.place(x.ndim)
        return x if self._usual(x.ndim) else jnp.moveaxis(x, (self.batch, self.channel), (0, -1))

    def back(self, y: jax.Array, ndim: int) -> jax.Array:
        """`(n, *positions, channels)` with the axes where they were in inputs of `ndim` axes."""
        if self._usual(ndim):
            return y
        batch, channel = self.place(ndim)
        if y.ndim < ndim:  # without positions
            return y if batch < channel else y.T
        return jnp.moveaxis(y, (0, -1), (batch, channel))

    def around(self, fn: Callable[..., jax.Array], x: jax.Array, mask: Any, **options: Any) -> jax.Array:
        """`fn`, for inputs `(n, *positions, channels)`, of inputs with these axes.

        Raises:
            InputError: there are no such axes, or a mask with other than the usual ones.
        """
        if mask is not None and not self._usual(x.ndim):
            raise InputError("masks need inputs of shape (n, *positions, channels): batch_axis=0, channel_axis=-1")
        return self.back(fn(self.last(x), mask=mask, **options), x.ndim)

    def place(self, ndim: int) -> tuple[int, int]:
        """Both axes, counted from the first, of arrays of `ndim` axes."""
        if not all(-ndim <= axis < ndim for axis in (self.batch, self.channel)):
            raise InputError(f"inputs of {ndim} axes have no axes {self.batch} (batch) and {self.channel} (channels)")
        batch, channel = self.batch % ndim, self.channel % ndim
        if batch == channel:
            raise InputError(f"batch_axis {self.batch} and channel_axis {self.channel} are the same axis")
        return batch, channel

    def _usual(self, ndim: int) -> bool:
        return self.place(ndim) == (0, ndim - 1)


def only(name: str, argument: str, value: Any, allowed: Any, why: str) -> None:
    """Raises `InputError` unless an argument of a layer has its only value."""
    if value != allowed:
        raise InputError(f"{name} has {argument}={allowed!r} only, not {value!r}: {why}")


def usual_axes(name: str, batch_axis: int, channel_axis: int) -> None:
    """Raises `InputError` unless the inputs are `(n, *positions, channels)`."""
    why = "its inputs have shape (n, *positions, channels)"
    only(name, "batch_axis", batch_axis, 0, why)
    only(name, "channel_axis", channel_axis, -1, why)
