"""Stage 3: which moments are needed, of which pairs of nodes, at which offsets of their positions.

Starting from the outputs, every request is turned into a `Step` by the rule for its pair of nodes; the step says which
moments of earlier nodes it needs. Requests for the same pair are united before the pair is planned, so each moment is
computed once. The work list is ordered by the number of the later node: no recursion, however deep the model.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax

from infnet.errors import Where
from infnet.layout import Layout
from infnet.nodes import ChannelSum, Node, meet, shifted

SAMPLED = "sampled"
Side = tuple[int, int]  # which example (1 or 2) the left and the right feature are evaluated on


class Moments(NamedTuple):
    """Second moment and tangent kernel of a pair, as blocks; None stands for zero."""

    s: jax.Array | None
    t: jax.Array | None = None


@dataclass(frozen=True)
class Ask:
    """A request: E[u_c v_(c + shift)] between two examples, and with `ntk` also the tangent kernel."""

    u: Node
    v: Node
    shift: int
    side: Side
    layout: Layout
    ntk: bool = False

    @property
    def key(self) -> tuple[Any, ...]:
        """What is computed, whatever the layout."""
        return (self.u.index, self.v.index, self.shift, self.side)

    @property
    def order(self) -> tuple[int, int]:
        """Moments with a later node come first in the plan."""
        return max(self.u.index, self.v.index), min(self.u.index, self.v.index)

    def union(self, other: Ask) -> Ask:
        """One request that serves both."""
        layout = self.layout.union(other.layout)
        return Ask(self.u, self.v, self.shift, self.side, layout, self.ntk or other.ntk)

    @property
    def vanishes(self) -> bool:
        """Whether the moment is zero by structure, so that nothing need be computed."""
        return self.independent and (self.u.zero_mean or self.v.zero_mean)

    @property
    def independent(self) -> bool:
        """Whether u_c and v_(c + shift) have no parameter in common at the top: then they are independent."""
        # u_c reads row c + start of a parameter, and v_(c + shift) reads row c + shift + start.
        return not meet(self.u.leaves, shifted(self.v.leaves, self.shift))


@dataclass(frozen=True)
class AskMean:
    """A request for E[u_c] on one example (averaged over channels where they differ)."""

    u: Node
    side: int

    @property
    def key(self) -> tuple[Any, ...]:
        """What is computed."""
        return (self.u.index, self.side)

    @property
    def order(self) -> tuple[int, int]:
        """Moments with a later node come first in the plan."""
        return self.u.index, -1


@dataclass(frozen=True)
class AskKnown:
    """A request for the value of a Known variable on one example; `sums`: over channels, that it is computed from."""

    var: int
    side: int
    sums: frozenset[ChannelSum] = field(default=frozenset(), repr=False)

    @property
    def key(self) -> tuple[Any, ...]:
        """What is computed."""
        return (-1, self.var, self.side)

    @property
    def order(self) -> tuple[int, int]:
        """Before all moments that need it, and after the last of the sums."""
        return max((one.index for one in self.sums), default=-1), 0


Request = Ask | AskMean | AskKnown


def home(request: Request) -> int:
    """The example (1 or 2) that a request is about; 0 for a pair of them."""
    if not isinstance(request, Ask):
        return request.side
    one, two = request.side
    return one if one == two else 0


@dataclass(frozen=True)
class Step:
    """How one requested moment is computed from the moments it `needs`.

    `evaluate(context, results)` gets one result per need (Moments, a mean, or None for zero); what it `reads` are Known
    variables, which it finds in the context. `error`, of the same arguments, bounds the error of the result, entry by
    entry, where it is not exact. `numbers`: how many it holds at a time for a pair of examples, where these are more
    than those of its result.
    """

    request: Request
    rule: str
    where: Where
    needs: tuple[Request | None, ...]
    evaluate: Callable[[Any, Sequence[Any]], Any] = field(repr=False)
    exact: str = "exact"
    reads: tuple[AskKnown, ...] = ()
    error: Callable[[Any, Sequence[Any]], Moments] | None = field(default=None, repr=False)
    numbers: int = 0

    @property
    def sampled(self) -> bool:
        """Whether its result is an average over points, with a standard error."""
        return self.exact == SAMPLED

    @property
    def requests(self) -> tuple[Request | None, ...]:
        """What it needs and reads."""
        return (*self.needs, *self.reads)


@dataclass(frozen=True)
class Plan:
    """Steps in the order in which they are executed, and the requests they answer."""

    steps: tuple[Step, ...]
    outputs: tuple[Request | None, ...]

    @cached_property
    def by_key(self) -> dict[Any, Request]:
        """The requests that the steps answer, by what they compute."""
        return {step.request.key: step.request for step in self.steps}


def make_plan(outputs: Sequence[Request], rule: Callable[[Request], Step]) -> Plan:
    """Plan everything that the outputs need; `rule` turns a request into a step."""
    waiting: dict[Any, Request] = {}
    heap: list[tuple[int, int, Any]] = []

    def add(request: Request) -> None:
        known = waiting.get(request.key)
        if known is None:
            waiting[request.key] = request
            heapq.heappush(heap, (-request.order[0], -request.order[1], request.key))
        elif isinstance(known, Ask) and isinstance(request, Ask):
            waiting[request.key] = known.union(request)

    wanted = tuple(None if isinstance(one, Ask) and one.vanishes else one for one in outputs)
    for request in wanted:
        if request is not None:
            add(request)
    steps = []
    while heap:
        *_, key = heapq.heappop(heap)
        step = rule(waiting.pop(key))
        steps.append(step)
        for need in step.requests:
            if need is not None:
                assert need.order < step.request.order, "a step may only need moments of earlier nodes"
                add(need)
    return Plan(tuple(reversed(steps)), wanted)


def ask(u: Node, v: Node, shift: int, side: Side, layout: Layout, ntk: bool = False) -> Ask | None:
    """A request, or None where the moment is zero by structure."""
    request = Ask(u, v, shift, side, layout, ntk)
    return None if request.vanishes else request


def variance(node: Node, side: int) -> Ask | None:
    """The request for the second moment of one node at each of its positions."""
    return ask(node, node, 0, (side, side), Layout.diagonal(node.sizes))
