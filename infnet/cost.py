"""What XLA's analysis says that a program takes, before it is run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax

from infnet._jax import ClosedJaxpr, JaxprEqn, jaxpr_as_fun
from infnet._jax import lax_primitives as lax_p
from infnet.independence import bodies

# How long accesses to memory take, in operations per byte. Caches answer most of them; with this number, and the margin
# of `infnet.empirical.choice`, the choice is the fastest on each network of `benchmarks/empirical.py`.
OPERATIONS_PER_BYTE = 2
# XLA's fusion of operations leaves at least this part of the accesses to memory.
FUSED = 0.25


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


class Program:
    """A jitted function for some arguments, or their shapes."""

    def __init__(self, function: Any, arguments: Sequence[Any]):
        self._traced = function.trace(*arguments)
        self._lowered = self._traced.lower()

    @cached_property
    def cost(self) -> Cost:
        """Before XLA has compiled it."""
        return _total([_analysis(self._lowered), *self._in_loops])

    @cached_property
    def _in_loops(self) -> list[Cost]:
        return _repeated(self._traced.jaxpr)

    @cached_property
    def compiled(self) -> Any:
        """What XLA makes of it."""
        return self._lowered.compile()

    @property
    def compiled_cost(self) -> Cost:
        """The cost of what XLA makes of it, with its memory."""
        memory = memory_of(self.compiled)
        return replace(_total([_analysis(self.compiled), *self._in_loops]), memory=memory)


def memory_of(compiled: Any) -> int:
    """Bytes that a compiled program needs besides its arguments; 0 if the platform does not say."""
    statistics = compiled.memory_analysis()
    return int(statistics.temp_size_in_bytes + statistics.output_size_in_bytes) if statistics else 0


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
            shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in body.in_avals]  # whatever devices hold them
            once = _analysis(jax.jit(jaxpr_as_fun(body)).lower(*shapes))
            found += [once.times(turns - 1), *(cost.times(turns) for cost in _repeated(body))]
    return found


def _equations(closed: ClosedJaxpr) -> Iterator[JaxprEqn]:
    """Equations and those of the jaxprs that they apply, but for what is in scans."""
    for equation in closed.jaxpr.eqns:
        yield equation
        if equation.primitive is not lax_p.scan_p:
            for body in bodies(equation):
                yield from _equations(body)
