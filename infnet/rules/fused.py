"""One layer in place of several: queries, keys and values out of one Dense layer, whose channels are cut apart.

If nothing reads across the cuts, the ranges are as many layers, each with a slice of the weight: what is made of one of
them, as scores are of all queries and keys, is then seen to be independent of another.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infnet._jax import lax_primitives as lax_p
from infnet._jax import split_p, unstack_p
from infnet.reader import Reader
from infnet.trace import Equation, Trace, is_elementwise

MOVES = (lax_p.reshape_p, lax_p.transpose_p, lax_p.squeeze_p)
CUTS = (lax_p.slice_p, split_p, unstack_p)
Channels = tuple[tuple[int, int], ...]  # (start, stop) of consecutive ranges


def ranges_read(reader: Reader, equation: Equation, axes: Sequence[int]) -> Channels:
    """The ranges of the channels that an equation makes which are read apart from each other.

    Args:
        reader: of the program.
        equation: it has one output.
        axes: those of the output that hold the channels, in order.

    Returns:
        all channels as one range, unless everything that reads them reads one of several ranges.
    """
    trace, (out,) = reader.trace, equation.outputs
    shape = trace.avals[out].shape
    total = math.prod(shape[d] for d in axes)
    numbers = np.arange(total).reshape([n if d in axes else 1 for d, n in enumerate(shape)])
    found = _Found(set(), {})
    if not _collect(trace, out, np.broadcast_to(numbers, shape), found):
        return ((0, total),)
    edges = sorted({0, total, *(edge for cut in found.cuts for edge in cut)})
    ranges = tuple(itertools.pairwise(edges))
    if not found.cuts <= set(ranges):
        return ((0, total),)
    reader.read_apart.update(found.passed)
    return ranges


class _Found(NamedTuple):
    """The ranges that are read, and the variables that hold all channels before they are cut, with their numbers."""

    cuts: set[tuple[int, int]]
    passed: dict[int, np.ndarray]


def _collect(trace: Trace, var: int, numbers: np.ndarray, found: _Found) -> bool:
    """Add the ranges in which a variable with channels of these numbers is read; False if it is read in other ways."""
    if var in trace.outputs:
        return False
    if var in found.passed:  # on another way; the channels may have been moved on it
        return np.array_equal(found.passed[var], numbers)
    found.passed[var] = numbers
    for equation in trace.equations:
        if var not in equation.inputs:
            continue
        if is_elementwise(equation.source):
            apart = all(_collect(trace, out, numbers, found) for out in equation.outputs)
        elif equation.primitive in MOVES:
            apart = _collect(trace, equation.outputs[0], _applied(equation, numbers)[0], found)
        else:
            apart = equation.primitive in CUTS and all(_add(part, found.cuts) for part in _applied(equation, numbers))
        if not apart:
            return False
    return True


def _applied(equation: Equation, numbers: np.ndarray) -> list[np.ndarray]:
    with jax.ensure_compile_time_eval():
        return [np.asarray(part) for part in equation.evaluate([jnp.asarray(numbers)])]


def _add(part: np.ndarray, cuts: set[tuple[int, int]]) -> bool:
    """Add a part of the channels, if it is a range of them."""
    there = np.unique(part)
    start, stop = int(there[0]), int(there[-1]) + 1
    cuts.add((start, stop))
    return len(there) == stop - start
