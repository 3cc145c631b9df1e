"""Jacobian contraction: the NTK as the product of Jacobians, Σ_θ J1 conj(J2), at a bounded memory.

Parameters are taken in groups whose Jacobians fit together, one group after the other; each costs a backward pass of
its own. Where the Jacobian of a single parameter does not fit, it is taken in blocks of rows: those of x2 are then
computed again for every block of rows of x1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from infnet.empirical.axes import Axes
from infnet.empirical.side import Leaves, Side


def jacobian_contraction(
    side1: Side, side2: Side | None, axes: Axes, rates: list[float], dtype: Any, memory_limit: int
) -> jax.Array:
    """The NTK of one output.

    Args:
        side1, side2: the output for x1 and for x2; None for x1 itself.
        axes: those of the output.
        rates: the relative learning rate of each parameter.
        dtype: of the kernel.
        memory_limit: bytes that Jacobians may take at a time.
    """
    total = jnp.zeros(axes.shape, dtype)
    leaves = side1.leaves
    costs = [_bytes(side1.only([k], [leaf]), side2) for k, leaf in enumerate(leaves)]
    for group in groups(costs, memory_limit):
        # One group after the other, so that never two of them are in memory.
        chosen, total = lax.optimization_barrier(([leaves[k] for k in group], total))
        one, two = side1.only(group, chosen), side2 and side2.only(group, chosen)
        fits = sum(costs[k] for k in group) <= memory_limit
        contract = _at_once if fits else partial(_in_blocks, memory_limit=memory_limit)
        total += contract(one, two, axes, [rates[k] for k in group], dtype)
    return total


def groups(costs: Sequence[int], limit: int) -> list[list[int]]:
    """The numbers of consecutive items whose costs together are within a limit, or of single ones."""
    found: list[list[int]] = []
    taken = 0
    for number, cost in enumerate(costs):
        if not found or taken + cost > limit:
            found.append([])
            taken = 0
        found[-1].append(number)
        taken += cost
    return found


def _bytes(side1: Side, side2: Side | None) -> int:
    """The size of the Jacobians."""
    return side1.row_bytes * (side1.size + (side2.size if side2 else 0))


def _at_once(side1: Side, side2: Side | None, axes: Axes, rates: list[float], dtype: Any) -> jax.Array:
    one = side1.jacobian()
    two = side2.jacobian() if side2 else one
    terms = [rate * axes.gram(a, b, dtype) for rate, a, b in zip(rates, one, two, strict=True)]
    return sum(terms, start=jnp.zeros(axes.shape, dtype))


def _in_blocks(
    side1: Side, side2: Side | None, axes: Axes, rates: list[float], dtype: Any, memory_limit: int
) -> jax.Array:
    two = side2 or side1
    size = max(1, memory_limit // max(1, 2 * side1.row_bytes))

    def product(row1: Leaves, row2: Leaves) -> jax.Array:
        terms = [
            rate * jnp.vdot(b, a, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.result_type(a, dtype))
            for rate, a, b in zip(rates, row1, row2, strict=True)
        ]
        return sum(terms, start=jnp.zeros((), dtype)).astype(dtype)

    def block(numbers: tuple[jax.Array, jax.Array]) -> jax.Array:
        """All pairs of elements of the free axes, at one place along the others."""
        rows1, rows2 = numbers

        def of_row(number: jax.Array) -> jax.Array:
            row1 = side1.row(number)
            return lax.map(lambda k: product(row1, two.row(k)), rows2, batch_size=size)

        return lax.map(of_row, rows1, batch_size=size)

    def of_place(numbers: tuple[jax.Array, jax.Array]) -> jax.Array:
        """The sum over the traced axes."""
        free = (numbers[0].shape[1], numbers[1].shape[1])
        return lax.scan(lambda total, n: (total + block(n), None), jnp.zeros(free, dtype), numbers)[0]

    rows = jnp.asarray(axes.rows(1)), jnp.asarray(axes.rows(2))
    return axes.in_order(lax.map(of_place, rows)) / max(1, axes.n_traced)
