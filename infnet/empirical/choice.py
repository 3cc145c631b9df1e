"""Which of several programs for the same kernel is the cheapest, by XLA's analysis of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import jax

from infnet.cost import Cost, Program
from infnet.errors import InputError

# A difference of less than this factor says little: operations of the same number take different times.
MARGIN = 1.2
# Operations, about a millisecond, below which it is not worth compiling a program to know its cost better.
SMALL = 1e8


@dataclass(frozen=True)
class Choice:
    """Which implementation is used, and what it and the others cost. Print it, or read its fields.

    Attributes:
        implementation: the one that is used.
        costs: of all that were considered, by name.
        memory_limit: bytes that it was to stay within.
    """

    implementation: str
    costs: Mapping[str, Cost]
    memory_limit: float

    def __str__(self) -> str:
        lines = [f"{'implementation':24} {'GFLOP':>12} {'GB accessed':>12} {'MB in memory':>13}"]
        for name, cost in self.costs.items():
            memory = "not compiled" if cost.memory is None else f"{cost.memory / 1e6:.1f}"
            mark = "  <- used" if name == self.implementation else ""
            lines.append(f"{name:24} {cost.flops / 1e9:12.3g} {cost.bytes_accessed / 1e9:12.3g} {memory:>13}{mark}")
        return "\n".join([*lines, f"memory_limit: {self.memory_limit / 1e6:.1f} MB"])


def choose(programs: Mapping[str, Any], arguments: Sequence[Any], memory_limit: float) -> Choice:
    """The fastest of the programs that stay within a limit of memory, or else the one that takes the least.

    What XLA compiles here is not compiled again when the program is called with arrays.

    Args:
        programs: jitted functions that compute the same, by name; an earlier one is taken unless a later one is
            clearly cheaper.
        arguments: those they are called with; traced ones stand for their shapes.
        memory_limit: bytes.
    """
    traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(tuple(arguments)))
    shapes = jax.tree.map(_untraced, tuple(arguments))
    first = next(iter(programs))
    analysed = {first: Program(programs[first], shapes)}
    for name in set(programs) - {first}:
        with suppress(InputError):  # not every implementation has rules for everything
            analysed[name] = Program(programs[name], shapes)
    costs = {name: analysed[name].cost for name in programs if name in analysed}

    def rivals() -> list[str]:
        return [name for name, cost in costs.items() if name != first and MARGIN * cost.least_work < costs[first].work]

    def compile_(names: Iterable[str]) -> None:
        costs.update({name: analysed[name].compiled_cost for name in names if costs[name].memory is None})

    # As a part of a larger program, what is compiled here will be compiled again.
    matters = costs[first].work > SMALL and (rivals() or not traced)
    if matters or costs[first].bytes_accessed > memory_limit:
        compile_([first])
        compile_(rivals())
    fitting = [name for name in (first, *rivals()) if (costs[name].memory or 0) <= memory_limit]
    if not fitting:
        compile_(costs)
        fitting = [name for name in costs if (costs[name].memory or 0) <= memory_limit]
    if not fitting:
        return Choice(min(costs, key=lambda name: costs[name].memory or 0), costs, memory_limit)
    chosen = fitting[0]
    for name in fitting[1:]:
        if MARGIN * costs[name].work < costs[chosen].work:
            chosen = name
    return Choice(chosen, costs, memory_limit)


def _untraced(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.core.Tracer) else x
