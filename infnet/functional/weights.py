"""The law of a layer's weights, and the factor in front of them, in both parameterizations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import jax
import jax.numpy as jnp

from infnet.errors import InputError

PARAMETERIZATIONS = ("ntk", "standard")


@dataclass(frozen=True)
class Weight:
    """A parameter array with independent elements N(0, std^2), that enters the layer multiplied by `factor`.

    Attributes:
        shape: of the array.
        std: of its elements at initialisation.
        factor: what the layer multiplies the array by.
    """

    shape: tuple[int, ...]
    std: float
    factor: float

    def scaled(self, values: jax.Array) -> jax.Array:
        """`factor * values`, of the shape and dtype of `values`."""
        return values if self.factor == 1 else self.factor * values


def weight(shape: Sequence[int], fan_in: int, w_std: float, parameterization: str) -> Weight:
    """Weights of variance `w_std^2 / fan_in`.

    In the "ntk" parameterization (Jacot et al. 2018, arXiv:1806.07572) the parameters are N(0, 1), and the layer
    multiplies them by `w_std / sqrt(fan_in)`. In the "standard" one they are N(0, w_std^2 / fan_in) themselves, so that
    their share of the NTK grows with the widths (Sohl-Dickstein et al. 2020, arXiv:2001.07301).

    Args:
        shape: of the array.
        fan_in: how many inputs an output sums up.
        w_std: not negative.
        parameterization: "ntk" or "standard".

    Raises:
        InputError: an argument is out of its range.
    """
    if parameterization not in PARAMETERIZATIONS:
        raise InputError(f"parameterization must be 'ntk' or 'standard', not {parameterization!r}")
    if not isinstance(w_std, Real) or not 0 <= w_std < math.inf:
        raise InputError(f"a standard deviation must be a number >= 0, not {w_std!r}")
    if not all(isinstance(size, Integral) and size > 0 for size in shape):
        raise InputError(f"the numbers of channels and the window of a layer must be integers > 0, not {tuple(shape)}")
    shape = tuple(int(size) for size in shape)
    std = float(w_std) / math.sqrt(fan_in)
    return Weight(shape, 1.0, std) if parameterization == "ntk" else Weight(shape, std, 1.0)


def bias(shape: Sequence[int], b_std: float, parameterization: str, use: bool = True) -> Weight | None:
    """Biases of variance `b_std^2` (see `weight`), or None if the layer does not `use` any."""
    return weight(shape, 1, b_std, parameterization) if use else None


def channels(x: Any) -> int:
    """The size of the last axis of x.

    Raises:
        InputError: x has no axes.
    """
    if not jnp.shape(x):
        raise InputError("a layer needs inputs of shape (n, *positions, channels), not a single number")
    return jnp.shape(x)[-1]
