"""Run a loop of a schedule: layers that are alike are traced and compiled once, as one `lax.scan`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from infnet.context import Context, Weights
from infnet.plan import Request
from infnet.results import Results, Stack, are_alike, run_step, stack_alike
from infnet.schedule import Before, Here, Loop

# The first iterations may differ from the others: the tangent kernel of inputs is absent, rather than zero.
ATTEMPTS = 3
Numbered = dict[Any, Any]


def run_loop(loop: Loop, context: Context, results: Results, side: int) -> None:
    """Compute all steps of a loop."""
    for start, iteration in enumerate(loop.iterations):
        stack = _scanned(loop, start, context, results, side) if start < ATTEMPTS else None
        if stack is not None:
            results.of(side).stacks[loop.number] = stack
            return
        for step in iteration:
            run_step(step, context, results)


def _scanned(loop: Loop, start: int, context: Context, results: Results, side: int) -> Stack | None:
    """The iterations from `start` on, as a scan; None if they are not of one structure."""
    before = loop.iterations[start - 1] if start else None
    state = {k: results.whole(before[k].request if before else first) for k, first in loop.carried.items()}
    body = _Body(loop, start, context, results)
    xs, alike = body.inputs()
    if not alike:
        return None
    after, _ = jax.eval_shape(body, state, jax.tree.map(lambda x: x[0], xs))
    if not are_alike([state, {k: after[k] for k in state}]):
        return None
    state.update({k: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), after[k]) for k in after if k not in state})
    last, (every, errors) = lax.scan(body, state, xs, length=len(loop.iterations) - start)
    results.of(side).errors.extend(e.max() for e in errors)
    return Stack(start, every, last)


class _Body:
    """One iteration of a loop, as a function of results of the one before, and of what differs between iterations."""

    def __init__(self, loop: Loop, start: int, context: Context, results: Results):
        self._loop = loop
        self._start = start
        self._context = context
        self._results = results
        self._fixed: dict[str, Numbered] = {"results": {}, "laws": {}}

    def inputs(self) -> tuple[dict[str, Numbered], bool]:
        """What differs between iterations, with a leading axis; and whether it is of the same shape at all of them."""
        found = {"results": self._outside(), "laws": self._laws()}
        return found, all(x is not None for values in found.values() for x in values.values())

    def _outside(self) -> Numbered:
        varying: Numbered = {}
        for place, requests in self._loop.outside.items():
            requests = requests[self._start :]
            if len({r.key for r in requests}) == 1:
                self._fixed["results"][place] = self._results.whole(requests[0])
            else:
                varying[place] = self._results.stacked(requests)
        return varying

    def _laws(self) -> Numbered:
        weights, varying = self._context.weights, {}
        for leaves in self._loop.leaves:
            leaves = leaves[self._start :]
            laws = [
                tuple(jnp.asarray(x[k]) for x in (weights.mean, weights.std, weights.learning_rate)) for k in leaves
            ]
            if len(set(leaves)) == 1:
                self._fixed["laws"][leaves[0]] = laws[0]
            else:
                varying[leaves[0]] = stack_alike(laws)
        return varying

    def __call__(self, state: Numbered, xs: dict[str, Numbered]) -> tuple[Numbered, tuple[Numbered, list[jax.Array]]]:
        """The state after an iteration, and what is kept of it: results, and bounds on errors."""
        given = {name: {**self._fixed[name], **xs[name]} for name in xs}
        done: list[Any] = []

        def value(place: int, request: Request | None) -> Any:
            if request is None:
                return None
            slot = self._loop.slots[len(done)][place]
            if isinstance(slot, Here):
                whole = done[slot.step]
            else:
                whole = state[slot.step] if isinstance(slot, Before) else given["results"][len(done), place]
            return self._results.adapted(request, whole)

        laws = given["laws"].items()
        weights = Weights(*({leaf: law[n] for leaf, law in laws} for n in range(3)))
        context = replace(self._context, weights=weights, errors=[])
        for step in self._loop.iterations[self._start]:
            values = [value(place, request) for place, request in enumerate(step.requests)]
            needs, reads = values[: len(step.needs)], values[len(step.needs) :]
            known = {(one.var, one.side): read for one, read in zip(step.reads, reads, strict=True)}
            done.append(step.evaluate(replace(context, known=known), needs))
        after = {k: done[k] for k in (*self._loop.carried, *self._loop.last)}
        return after, ({k: done[k] for k in self._loop.every}, list(context.errors))
