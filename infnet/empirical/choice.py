"""Which of several programs for the same kernel is the cheapest, by XLA's analysis of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import jax

from infnet._jax import ClosedJaxpr, JaxprEqn, jaxpr_as_fun
from infnet._jax import lax_primitives as lax_p
from infnet.errors import InputError
from infnet.independence import bodies

# How long accesses to memory take, in operations per byte. Caches answer most of them; with this number and `MARGIN`,
# the choice is the fastest on each network of `benchmarks/empirical.py`.
OPERATIONS_PER_BYTE = 2
# XLA's fusion of operations leaves at least this part of the accesses to memory.
FUSED = 0.25
# A difference of less than this factor says little: operations of the same number take different times.
MARGIN = 1.2
# Operations, about a millisecond, below which it is not worth compiling a program to know its cost better.
SMALL = 1e8


@dataclass(frozen=True)
class Cost:
    """What a program takes.

    Attributes:
        flops: floating-point operations.
        bytes_accessed: bytes read and written.
        memory: bytes in memory at a time, without the arguments; None if the program was not compiled to know it.
    """

    flops: float
    bytes_accessed: float
    memory: int | None = None

    @property
    def work(self) -> float:
        """A measure of time."""
        return self.flops + OPERATIONS_PER_BYTE * self.bytes_accessed

    @property
    def least_work(self) -> float:
        """What may be left of the work when the program is compiled."""
        return self.flops + FUSED * OPERATIONS_PER_BYTE * self.bytes_accessed

    def times(self, turns: int) -> Cost:
        """That of as many runs."""
        return Cost(turns * self.flops, turns * self.bytes_accessed)


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
    analysed = {first: _Program(programs[first], shapes)}
    for name in set(programs) - {first}:
        with suppress(InputError):  # not every implementation has rules for everything
            analysed[name] = _Program(programs[name], shapes)
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


class _Program:
    """A jitted function for some arguments."""

    def __init__(self, function: Any, arguments: Sequence[Any]):
        traced = function.trace(*arguments)
        self._lowered = traced.lower()
        self._in_loops = _repeated(traced.jaxpr)
        self.cost = _total([_analysis(self._lowered), *self._in_loops])

    @property
    def compiled_cost(self) -> Cost:
        compiled = self._lowered.compile()
        statistics = compiled.memory_analysis()
        memory = statistics.temp_size_in_bytes + statistics.output_size_in_bytes if statistics else 0
        return replace(_total([_analysis(compiled), *self._in_loops]), memory=memory)


def _untraced(x: Any) -> Any:
    return jax.ShapeDtypeStruct(x.shape, x.dtype) if isinstance(x, jax.core.Tracer) else x


def _analysis(stage: Any) -> Cost:
    found = stage.cost_analysis() or {}
    return Cost(found.get("flops", 0.0), found.get("bytes accessed", 0.0))


def _total(costs: Sequence[Cost]) -> Cost:
    return Cost(sum(c.flops for c in costs), sum(c.bytes_accessed for c in costs))


def _repeated(closed: ClosedJaxpr) -> list[Cost]:
    """What XLA's analysis leaves out, as it counts the body of a loop once: all further turns."""
    found = []
    for equation in _equations(closed):
        if equation.primitive is lax_p.scan_p:
            body, turns = equation.params["jaxpr"], equation.params["length"]
            once = _analysis(jax.jit(jaxpr_as_fun(body)).lower(*body.in_avals))
            found += [once.times(turns - 1), *(cost.times(turns) for cost in _repeated(body))]
    return found


def _equations(closed: ClosedJaxpr) -> Iterator[JaxprEqn]:
    """Equations and those of the jaxprs that they apply, but for what is in scans."""
    for equation in closed.jaxpr.eqns:
        yield equation
        if equation.primitive is not lax_p.scan_p:
            for body in bodies(equation):
                yield from _equations(body)
