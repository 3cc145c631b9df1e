"""Stage 3b: layers of a plan that are alike, to be run as a loop.

A plan of a deep network repeats itself: the steps of a layer are those of the layer before, applied to other results
and other parameters. Found here, in the plan, this holds for stacks of layers that were written as a loop in Python, as
`lax.scan` or as `nn.scan`, for residual and normalised blocks, and for recurrent networks that are read at their last
step. The time to compile a stack is then that of one of its layers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from infnet.activations import Activation
from infnet.nodes import ParamKey
from infnet.plan import Plan, Request, Step, home
from infnet.signature import Signatures

Key = tuple[Any, ...]
# Fewer layers are not worth a loop.
FEWEST = 6


class Here(NamedTuple):
    """The result of a step of the same iteration."""

    step: int


class Before(NamedTuple):
    """The result of a step of the iteration before."""

    step: int


Slot = Here | Before | None  # None: a result of another part of the plan


class Place(NamedTuple):
    """Where in a loop something is computed."""

    loop: int
    iteration: int
    step: int


@dataclass(frozen=True)
class Loop:
    """Steps that are repeated: each of an iteration does the same as that of the first one, with other inputs.

    Attributes:
        number: of the loop.
        iterations: the steps of each.
        slots: for each step of an iteration, where each of its needs and reads comes from.
        carried: the steps whose results the next iteration needs, and what stands for them at the first one.
        outside: by (step, need), the requests at each iteration for a result of another part of the plan.
        leaves: the parameters that an iteration reads; each is a tuple of one for each iteration.
        every: the steps whose results are needed elsewhere, at more than the last iteration.
        last: those that are needed elsewhere at the last iteration alone.
    """

    number: int
    iterations: tuple[tuple[Step, ...], ...]
    slots: tuple[tuple[Slot, ...], ...]
    carried: dict[int, Request]
    outside: dict[tuple[int, int], tuple[Request, ...]]
    leaves: tuple[tuple[int, ...], ...]
    every: tuple[int, ...] = ()
    last: tuple[int, ...] = ()


Part = Step | Loop


class Schedule:
    """The order in which a plan is executed: of the steps about each example, and about the pair.

    Attributes:
        plan: what is executed.
        parts: of each example (1, 2) and of the pair (0), steps and loops.
        places: where in a loop a request is answered.
    """

    def __init__(self, plan: Plan, activations: Mapping[int, Activation]):
        self.plan = plan
        found = _Finder(plan, activations)
        steps = {side: [step for step in plan.steps if home(step.request) == side] for side in (0, 1, 2)}
        parts = {side: found.parts(own) for side, own in steps.items()}
        self.places: dict[Key, Place] = {
            step.request.key: Place(loop.number, j, k)
            for loop in found.loops
            for j, iteration in enumerate(loop.iterations)
            for k, step in enumerate(iteration)
        }
        needed = self._needed_elsewhere(found.loops)
        self.parts = {side: [_keeping(part, needed) for part in own] for side, own in parts.items()}

    def _needed_elsewhere(self, loops: Sequence[Loop]) -> set[Place]:
        """The results of loops that are needed outside of them."""
        needed = {ask.key for ask in self.plan.outputs if ask is not None}
        for step in self.plan.steps:
            place = self.places.get(step.request.key)
            slots = loops[place.loop].slots[place.step] if place else None
            for number, request in enumerate(step.requests):
                if request is not None and not (slots and slots[number] and self._is_in(place, request)):
                    needed.add(request.key)
        return {self.places[key] for key in needed if key in self.places}

    def _is_in(self, place: Place | None, request: Request) -> bool:
        """Whether a request is answered in the same loop."""
        other = self.places.get(request.key)
        return place is not None and other is not None and place.loop == other.loop

    def kept(self, side: int) -> set[Key]:
        """The results for one example that pairs, or the outputs, need."""
        needs = [n for step in self.plan.steps if home(step.request) == 0 for n in step.requests if n is not None]
        needs.extend(ask for ask in self.plan.outputs if ask is not None)
        return {n.key for n in needs if home(n) == side}


def _keeping(part: Part, needed: set[Place]) -> Part:
    """A loop that keeps the results that are needed."""
    if isinstance(part, Step):
        return part
    final = len(part.iterations) - 1
    own = [place for place in needed if place.loop == part.number]
    every = sorted({place.step for place in own if place.iteration < final})
    last = {place.step for place in own} - {*every, *part.carried}
    return replace(part, every=tuple(every), last=tuple(sorted(last)))


class _Finder:
    """Finds the loops in lists of steps."""

    def __init__(self, plan: Plan, activations: Mapping[int, Activation]):
        self.loops: list[Loop] = []
        self._signatures = Signatures(plan, activations)

    def parts(self, steps: Sequence[Step]) -> list[Part]:
        """Steps, with those that are repeated as loops."""
        described = [self._signatures.of(step) for step in steps]
        numbers, params = np.array([n for n, _ in described], int), [p for _, p in described]
        waiting, found = [(0, len(steps))], dict[int, Loop]()
        while waiting:
            first, stop = waiting.pop()
            start, period, count = _longest_repeat(numbers[first:stop])
            for repeat in _trimmed(_Repeat(first + start, period, count)):
                loop = _as_loop(len(self.loops), steps, params, repeat)
                if loop is not None:
                    found[repeat.start] = loop
                    self.loops.append(loop)
                    waiting += [(first, repeat.start), (repeat.stop, stop)]
                    break
        return list(_replaced(steps, found))


@dataclass(frozen=True)
class _Repeat:
    """Steps from `start` on that consist of `count` equal periods."""

    start: int
    period: int
    count: int

    @property
    def stop(self) -> int:
        """The first step after them."""
        return self.start + self.period * self.count

    def step(self, iteration: int, number: int) -> int:
        """One of its steps."""
        return self.start + iteration * self.period + number


def _longest_repeat(numbers: np.ndarray) -> tuple[int, int, int]:
    """(start, period, count) of the repetition that saves most."""
    best, saved = (0, 1, 0), 0
    for period in range(1, len(numbers) // FEWEST + 1):
        # Runs of entries that are equal to those one period later.
        ends = np.flatnonzero(np.diff(np.concatenate([[0], numbers[:-period] == numbers[period:], [0]])))
        for start, stop in ends.reshape(-1, 2):
            count = (stop - start) // period + 1
            if count >= FEWEST and (count - 1) * period > saved:
                best, saved = (int(start), period, int(count)), (count - 1) * period
    return best


def _trimmed(repeat: _Repeat) -> Iterator[_Repeat]:
    """The same and shorter ones: the first iterations may get their inputs from elsewhere."""
    for fewer in range(3):
        if repeat.count - fewer >= FEWEST:
            yield _Repeat(repeat.start + fewer * repeat.period, repeat.period, repeat.count - fewer)


def _replaced(steps: Sequence[Step], loops: Mapping[int, Loop]) -> Iterator[Part]:
    number = 0
    while number < len(steps):
        part = loops.get(number)
        yield part or steps[number]
        number += sum(map(len, part.iterations)) if part else 1


class _NotALoop(Exception):
    """An iteration needs something from another place than the others do."""


def _as_loop(
    number: int, steps: Sequence[Step], params: Sequence[tuple[ParamKey, ...]], repeat: _Repeat
) -> Loop | None:
    """A repetition as a loop, if its iterations get what they need from corresponding places."""
    iterations = tuple(tuple(steps[repeat.step(j, k)] for k in range(repeat.period)) for j in range(repeat.count))
    position = {step.request.key: at for at, step in enumerate(steps)}
    slots, carried, outside = [], dict[int, Request](), dict[tuple[int, int], tuple[Request, ...]]()
    try:
        leaves = _leaves(params, repeat)
        for k in range(repeat.period):
            slots.append(list[Slot]())
            for n in range(len(iterations[0][k].requests)):
                requests = [r for r in (iteration[k].requests[n] for iteration in iterations) if r is not None]
                slot = _slot(repeat, [position.get(r.key) for r in requests])
                slots[-1].append(slot)
                if requests and slot is None:
                    outside[k, n] = tuple(requests)
                if isinstance(slot, Before) and carried.setdefault(slot.step, requests[0]).key != requests[0].key:
                    return None
    except _NotALoop:
        return None
    return Loop(number, iterations, tuple(map(tuple, slots)), carried, outside, leaves)


def _slot(repeat: _Repeat, positions: Sequence[int | None]) -> Slot:
    """Where the results at these positions, one for each iteration, come from.

    Raises:
        _NotALoop: not from corresponding places.
    """
    found = [_slot_at(repeat, j, at) for j, at in enumerate(positions)]
    slot = found[-1] if found else None
    first = None if isinstance(slot, Before) else slot
    if found and (found[0] != first or any(other != slot for other in found[1:])):
        raise _NotALoop
    return slot


def _slot_at(repeat: _Repeat, iteration: int, at: int | None) -> Slot:
    if at is None or at < repeat.start:
        return None
    other, step = divmod(at - repeat.start, repeat.period)
    if iteration - other > 1:
        raise _NotALoop
    return Here(step) if other == iteration else Before(step)


def _leaves(params: Sequence[tuple[ParamKey, ...]], repeat: _Repeat) -> tuple[tuple[int, ...], ...]:
    """The parameters that iterations read; each is a tuple of one for each iteration."""
    found = set()
    for k in range(repeat.period):
        for keys in zip(*(params[repeat.step(j, k)] for j in range(repeat.count)), strict=True):
            if keys[0].leaf >= 0:  # not those of random numbers
                found.add(tuple(key.leaf for key in keys))
    if any(len(set(leaves)) < len(found) for leaves in zip(*found, strict=True)):
        raise _NotALoop
    return tuple(sorted(found))
