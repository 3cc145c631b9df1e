"""Windows of convolutions and pools: strides, padding and dilation as users write them, and what follows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from infnet.errors import InputError

Sizes = int | Sequence[int]
Padding = str | int | Sequence[int | tuple[int, int]]
PADDINGS = ("SAME", "VALID", "CIRCULAR")


@dataclass(frozen=True)
class Windows:
    """The windows of a layer on given positions; every field has one entry for each axis of positions.

    Attributes:
        window: their sizes, without dilation.
        strides: from one to the next.
        dilation: distances between the positions of one window.
        pads: how many positions are added before and after.
        circular: whether these repeat the other end, as on a torus, rather than being zeros.
        outputs: how many windows there are.
    """

    window: tuple[int, ...]
    strides: tuple[int, ...]
    dilation: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    circular: bool
    outputs: tuple[int, ...]

    @classmethod
    def of(
        cls, sizes: Sequence[int], window: Sizes, strides: Sizes | None, padding: Padding, dilation: Sizes | None = None
    ) -> Windows:
        """The windows on positions of these sizes.

        "CIRCULAR" pads as much as "SAME" does, before and after.

        Raises:
            InputError: an argument is malformed, or a window is larger than the padded inputs.
        """
        k = len(sizes)
        window = each(window, k, "window")
        strides, dilation = each(strides, k, "strides"), each(dilation, k, "dilation")
        spans = tuple((w - 1) * d + 1 for w, d in zip(window, dilation, strict=True))
        pads = _pads(sizes, spans, strides, padding)
        padded = [n + low + high for n, (low, high) in zip(sizes, pads, strict=True)]
        outputs = tuple((n - span) // s + 1 for n, span, s in zip(padded, spans, strides, strict=True))
        if min(outputs, default=1) < 1:
            raise InputError(f"a window of {spans} does not fit into {tuple(padded)} positions (with padding)")
        return cls(window, strides, dilation, pads, padding == "CIRCULAR", outputs)

    def padded(self, x: jax.Array) -> tuple[jax.Array, tuple[tuple[int, int], ...]]:
        """x of shape `(n, *positions, channels)`, and by how many zeros it still has to be padded."""
        if not self.circular:
            return x, self.pads
        return jnp.pad(x, ((0, 0), *self.pads, (0, 0)), "wrap"), ((0, 0),) * len(self.pads)


def each(value: Sizes | None, k: int, name: str) -> tuple[int, ...]:
    """One positive integer for each of k axes; a single one counts for all, None is 1.

    Raises:
        InputError: the value is something else.
    """
    listed = _listed(1 if value is None else value)
    values = listed * k if len(listed) == 1 and not isinstance(value, Iterable) else listed
    if len(values) != k or not all(_is_size(v, 1) for v in values):
        raise InputError(f"{name} must be an integer > 0, or one for each of {k} axes of positions, not {value!r}")
    return tuple(int(v) for v in values)


def window_of(value: Sizes) -> tuple[int, ...]:
    """A window: one positive integer for each axis of positions, of which there is one if it is a single integer.

    Raises:
        InputError: the value is something else.
    """
    return each(_listed(value), len(_listed(value)), "the window")


def _is_size(value: Any, least: int) -> bool:
    return isinstance(value, int | np.integer) and bool(value >= least)


def _listed(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, Iterable) else (value,)


def check_padding(padding: Any, allowed: Sequence[str] = PADDINGS) -> None:
    """Raises `InputError` for a string that is not among those `allowed`."""
    if isinstance(padding, str) and padding not in allowed:
        raise InputError(f"padding must be one of {', '.join(allowed)}, not {padding!r}")


def _pads(
    sizes: Sequence[int], spans: Sequence[int], strides: Sequence[int], padding: Padding
) -> tuple[tuple[int, int], ...]:
    check_padding(padding)
    if isinstance(padding, str):
        name = "VALID" if padding == "VALID" else "SAME"
        return tuple((int(low), int(high)) for low, high in lax.padtype_to_pads(sizes, spans, strides, name))
    listed = (padding,) * len(sizes) if _is_size(padding, 0) else _listed(padding)
    pairs = [(p, p) if _is_size(p, 0) else _listed(p) for p in listed]
    fits = all(len(pair) == 2 and all(_is_size(i, 0) for i in pair) for pair in pairs)
    if len(pairs) != len(sizes) or not fits:
        raise InputError(f"padding must be {', '.join(PADDINGS)}, an integer or a pair for each axis, not {padding!r}")
    return tuple((int(low), int(high)) for low, high in pairs)
