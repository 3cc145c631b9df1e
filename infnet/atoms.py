"""Reshape as a regrouping of the factors that array axes are made of."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Factor = tuple[Any, int]  # (name, size), sizes above 1


def regroup(dims: Sequence[Sequence[Factor]], shape: Sequence[int]) -> tuple[tuple[Factor, ...], ...]:
    """The factors of each axis after a row-major reshape to `shape`.

    A factor that an axis cuts through is split: its parts are named `(name, 0)`, `(name, 1)`, ... from the outside in.

    Raises:
        ValueError: an axis boundary falls inside a factor without dividing it.
    """
    remaining = [f for dim in dims for f in dim]
    result = []
    for size in shape:
        taken: list[Factor] = []
        while size > 1:
            name, n = remaining.pop(0)
            if size % n == 0:
                taken.append((name, n))
                size //= n
                continue
            if n % size:
                raise ValueError(f"cannot split an axis of {n} into {size}")
            taken.append(((name, "outer", size), size))
            remaining.insert(0, ((name, "inner", n // size), n // size))
            size = 1
        result.append(tuple(taken))
    return tuple(result)


def common_factors(one: Sequence[int], two: Sequence[int]) -> list[int] | None:
    """The coarsest sizes that both lists of factors (of one product) can be split into; None if there are none."""
    assert math.prod(one) == math.prod(two)
    a, b, common = list(one), list(two), []
    while a and b:
        small, large = (a, b) if a[0] <= b[0] else (b, a)
        size = small.pop(0)
        if large[0] % size:
            return None
        common.append(size)
        large[0] //= size
        if large[0] == 1:
            large.pop(0)
    return common
