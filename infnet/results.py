"""The results of the steps of a plan, those of repeated layers stacked."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.context import Context
from infnet.layout import restrict
from infnet.plan import Ask, Moments, Plan, Request, Step, home
from infnet.schedule import Place

Key = tuple[Any, ...]


@dataclass(frozen=True)
class Stack:
    """Results of a loop.

    Attributes:
        start: the first iteration that was run in it.
        every: the results of some steps of an iteration, at all iterations: arrays with a leading axis.
        last: the results of others, at the last iteration.
    """

    start: int
    every: dict[int, Any]
    last: dict[int, Any]


jax.tree_util.register_dataclass(Stack, ["every", "last"], ["start"])


@dataclass(frozen=True)
class Values:
    """The results of steps, of loops, and the error bounds these reported; of one example or of a pair."""

    results: dict[Key, Any] = field(default_factory=dict)
    stacks: dict[int, Stack] = field(default_factory=dict)
    errors: list[jax.Array] = field(default_factory=list)

    def picked(self, keys: Collection[Key], places: Mapping[Key, Place]) -> Values:
        """Without results that are not needed any more."""
        wanted = {(places[k].loop, places[k].step) for k in keys if k in places}

        def of_loop(number: int, stack: Stack) -> Stack:
            every, last = ({k: x for k, x in d.items() if (number, k) in wanted} for d in (stack.every, stack.last))
            return Stack(stack.start, every, last)

        stacks = {number: of_loop(number, stack) for number, stack in self.stacks.items()}
        return Values({key: x for key, x in self.results.items() if key in keys}, stacks, self.errors)


jax.tree_util.register_dataclass(Values, ["results", "stacks", "errors"], [])


class Results:
    """What was computed so far, by request."""

    def __init__(self, plan: Plan, places: Mapping[Key, Place], values: Mapping[int, Values]):
        self._plan = plan
        self._places = places
        self._values = values

    def of(self, side: int) -> Values:
        """The results of one example, or of the pair."""
        return self._values[side]

    def read(self, request: Request | None) -> Any:
        """The result of a request; None for zero."""
        return None if request is None else self.adapted(request, self.whole(request))

    def adapted(self, request: Request, value: Any) -> Any:
        """What a request asks for, of the value of the step that answers it."""
        if value is None or not isinstance(request, Ask):
            return value
        done = self._plan.by_key[request.key]
        assert isinstance(done, Ask)
        s, t = (None if m is None else restrict(m, done.layout, request.layout) for m in value)
        return Moments(s, t if request.ntk else None)

    def whole(self, request: Request) -> Any:
        """All that the step which answers a request has computed."""
        values = self._values[home(request)]
        if request.key in values.results:
            return values.results[request.key]
        place = self._places[request.key]
        stack = values.stacks[place.loop]
        if place.step in stack.every:
            return jax.tree.map(lambda x: x[place.iteration - stack.start], stack.every[place.step])
        return stack.last[place.step]

    def stacked(self, requests: Sequence[Request]) -> Any:
        """`whole` of several requests, with a leading axis; None if they are not of one shape."""
        parts = [self._stacked(source, list(own)) for source, own in groupby(requests, self._source)]
        if len(parts) == 1:
            return parts[0]
        rows = [jax.tree.map(lambda x: x[0], part) for part in parts]
        return jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts) if are_alike(rows) else None

    def _source(self, request: Request) -> tuple[int, int, int] | None:
        """The stack (example, loop, step) that holds an answer; None if it stands by itself."""
        side, place = home(request), self._places.get(request.key)
        if place is None or request.key in self._values[side].results:
            return None
        return (side, place.loop, place.step) if place.step in self._values[side].stacks[place.loop].every else None

    def _stacked(self, source: tuple[int, int, int] | None, requests: Sequence[Request]) -> Any:
        if source is None:
            return stack_alike([self.whole(r) for r in requests])
        side, loop, step = source
        stack = self._values[side].stacks[loop]
        rows = [self._places[r.key].iteration - stack.start for r in requests]
        is_range = rows == list(range(rows[0], rows[0] + len(rows)))
        index: Any = slice(rows[0], rows[0] + len(rows)) if is_range else np.array(rows)
        return jax.tree.map(lambda x: x[index], stack.every[step])


def stack_alike(values: Sequence[Any]) -> Any:
    """Values stacked, with a leading axis; None if they are not of one structure, shape and dtype."""
    return jax.tree.map(lambda *xs: jnp.stack(xs), *values) if are_alike(values) else None


def are_alike(values: Sequence[Any]) -> bool:
    """Whether pytrees of arrays are all of one structure, shape and dtype."""
    kinds: list[Any] = [jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), value) for value in values]
    return all(kind == kinds[0] for kind in kinds)


def as_function(plan: Plan, context: Context, step: Step) -> Callable[..., Any]:
    """A step as a function of all that the steps which answer its requests have computed."""
    results = Results(plan, {}, {})

    def evaluate(*wholes: Any) -> Any:
        pairs = zip(step.requests, wholes, strict=True)
        values: list[Any] = [None if r is None else results.adapted(r, whole) for r, whole in pairs]
        count = len(step.needs)
        known = {(one.var, one.side): x for one, x in zip(step.reads, values[count:], strict=True)}
        return step.evaluate(replace(context, known=known), values[:count])

    return evaluate


def run_step(step: Step, context: Context, results: Results) -> None:
    """Compute the result of a step."""
    values = results.of(home(step.request))
    known = {(read.var, read.side): results.read(read) for read in step.reads}
    context = replace(context, known=known, errors=values.errors)
    values.results[step.request.key] = step.evaluate(context, [results.read(need) for need in step.needs])
