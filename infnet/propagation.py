"""How the errors of steps reach the outputs: a bound, to first order, for each entry of a kernel.

A step whose kernel is a series has an error of at most e(i, j) at each entry (its bound, see `primitives.series`). To
first order in the errors, that of an entry of the output is

    dK_out = sum over steps l and their entries k of (dK_out / dK_l[k]) dK_l[k],   |dK_l[k]| <= e_l[k],

so it is at most the sum of |dK_out / dK_l[k]| e_l[k]. The derivatives are those of reverse-mode differentiation, step
by step back through the plan, for all entries of the output at a time. What is left out are products of two errors, and
rounding. The tangent kernel T' = K' T has the error e' |T| of K' besides that of T. Where a trained scale reaches a
nonlinearity, its share in T' is a derivative of K' and counts as exact.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from infnet.computation import Arrays, Computation
from infnet.context import KnownValues, Weights
from infnet.plan import Moments, Plan, Request
from infnet.results import Results, as_function

Bounds = tuple[Arrays, dict[Any, jax.Array]]
Pullback = Callable[[Any], list[tuple[Any, Any]]]  # an adjoint, to those of what was needed by their keys


def error_bounds(
    computation: Computation, plan: Plan, names: Sequence[str], weights: Weights, x1: Sequence[Any], x2: Sequence[Any]
) -> Bounds:
    """Bounds on the errors of all pairs, step by step and without a loop: for few examples.

    Args:
        computation: of the plan.
        plan: of pairs of examples.
        names: "nngp", "ntk" or both.
        weights: laws of the parameters.
        x1, x2: leaves of the examples, `(n1, ...)` and `(n2, ...)`.

    Returns:
        for each name and output an array like the kernel, `(n1, n2, *positions)`; and for steps with an error, by the
        key of the request, the largest error relative to the largest entry of its second moment.
    """
    of_pair = _OfPair(computation, plan, names, weights)
    return jax.vmap(jax.vmap(of_pair, (None, 0)), (0, None))(list(x1), list(x2))


class _OfPair:
    """The bounds of one pair of examples."""

    def __init__(self, computation: Computation, plan: Plan, names: Sequence[str], weights: Weights):
        self._computation, self._plan, self._names = computation, plan, names
        self._context = computation.context(weights)
        self._results = Results(plan, {}, {})
        # Steps that have errors, by themselves or by what they need: the others need not be differentiated.
        self._inexact = set[Any]()
        for step in plan.steps:
            if step.error is not None or any(r is not None and r.key in self._inexact for r in step.requests):
                self._inexact.add(step.request.key)

    def __call__(self, one: Sequence[jax.Array], two: Sequence[jax.Array]) -> Bounds:
        trace = self._computation.program.trace
        examples = {1: KnownValues(trace, one), 2: KnownValues(trace, two)}
        context = replace(self._context, examples=examples)
        wholes, pulls, errors = dict[Any, Any](), dict[Any, Pullback](), dict[Any, Moments]()
        for step in self._plan.steps:
            key, given = step.request.key, [None if r is None else wholes[r.key] for r in step.requests]
            function = as_function(self._plan, replace(context, errors=[]), step)
            wholes[key], pulls[key] = self._with_pullback(function, step.requests, given)
            if step.error is not None:
                needs = zip(step.needs, given, strict=False)
                errors[key] = step.error(context, [r and self._results.adapted(r, value) for r, value in needs])
        relative = {key: _relative(error.s, wholes[key].s) for key, error in errors.items()}
        return self._of_outputs(wholes, pulls, errors), relative

    def _of_outputs(
        self, wholes: Mapping[Any, Any], pulls: Mapping[Any, Pullback], errors: Mapping[Any, Moments]
    ) -> Arrays:
        """Back from the outputs to all steps, adding up what their errors contribute."""
        requests = self._plan.outputs

        def outputs(*own: Any) -> Arrays:
            found = [r and self._results.adapted(r, value) for r, value in zip(requests, own, strict=True)]
            return self._computation.outputs(found, None, self._names)

        values, pull = self._with_pullback(outputs, requests, [None if r is None else wholes[r.key] for r in requests])
        if not errors:
            return jax.tree.map(jnp.zeros_like, values)
        flat, unravel = ravel_pytree(values)
        total, adjoints = jnp.zeros_like(flat), dict[Any, Any]()
        _add(adjoints, pull(jax.vmap(unravel)(jnp.eye(len(flat), dtype=flat.dtype))))
        for step in reversed(self._plan.steps):
            adjoint = adjoints.pop(step.request.key, None)
            if adjoint is None:
                continue
            if step.request.key in errors:
                total = total + _contribution(adjoint, errors[step.request.key])
            _add(adjoints, pulls[step.request.key](adjoint))
        return dict(unravel(total))

    def _with_pullback(
        self, function: Callable[..., Any], requests: Sequence[Request | None], given: Sequence[Any]
    ) -> tuple[Any, Pullback]:
        """The value of a function of what was requested, and what maps its adjoints, with a leading axis, to theirs."""
        some = {
            k: request.key
            for k, (request, value) in enumerate(zip(requests, given, strict=True))
            if request is not None and request.key in self._inexact and _is_real(value)
        }

        def of_some(*values: Any) -> Any:
            every = dict(enumerate(given)) | dict(zip(some, values, strict=True))
            return function(*every.values())

        value, pull = jax.vjp(of_some, *(given[k] for k in some))

        def back(adjoint: Any) -> list[tuple[Any, Any]]:
            return list(zip(some.values(), jax.vmap(pull)(adjoint), strict=True)) if some and _is_real(value) else []

        return value, back


def _is_real(value: Any) -> bool:
    return all(jnp.issubdtype(x.dtype, jnp.floating) for x in jax.tree.leaves(value))


def _add(adjoints: dict[Any, Any], more: Sequence[tuple[Any, Any]]) -> None:
    for key, own in more:
        adjoints[key] = jax.tree.map(jnp.add, adjoints[key], own) if key in adjoints else own


def _contribution(adjoint: Moments, error: Moments) -> jax.Array:
    """The sum over entries of |derivative| times error, for each entry of the outputs."""
    parts = [
        (jnp.abs(a) * e).sum(range(1, a.ndim))
        for a, e in zip(adjoint, error, strict=True)
        if a is not None and e is not None
    ]
    return jnp.stack(parts).sum(0)


def _relative(error: jax.Array | None, value: jax.Array | None) -> jax.Array:
    assert error is not None
    assert value is not None
    size = jnp.abs(value).max(initial=0)
    return jnp.where(size > 0, error.max(initial=0) / jnp.where(size > 0, size, 1), 0)
