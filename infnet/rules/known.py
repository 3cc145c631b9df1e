"""The values of Known variables: what the steps of a plan read, and how it follows from sums over channels.

What depends on the inputs alone is computed by ordinary JAX. What depends on sums over channels too
(the weights of attention, the norms of LayerNorm) is computed from these sums, by the operations of the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from infnet.errors import Where
from infnet.nodes import Aggregation, Field, KnownNode, Lookup, Node, Sum
from infnet.plan import Ask, AskKnown, AskMean, Step
from infnet.trace import Equation, Trace, needed_equations


def reads_of(request: Ask | AskMean) -> tuple[AskKnown, ...]:
    """The Known variables that the step of a request reads."""
    if isinstance(request, AskMean):
        sided: list[tuple[Node, int]] = [(request.u, request.side)]
    else:
        sided = list(zip((request.u, request.v), request.side, strict=True))
    found = [AskKnown(field.var, side, field.sums) for node, side in sided for field in _fields(node)]
    return tuple(dict.fromkeys(found))


def _fields(node: Node) -> list[Field]:
    if isinstance(node, KnownNode):
        return [node.field]
    if isinstance(node, Sum):
        return [t.coefficient for t in node.terms if isinstance(t.coefficient, Field)]
    if isinstance(node, Aggregation):
        return [node.matrix]
    return [node.indices] if isinstance(node, Lookup) else []


def known_step(trace: Trace, request: AskKnown) -> Step:
    """The value of a Known variable on one example, an array of its shape for one example."""
    if request.sums:
        return _from_sums(trace, request)

    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        return context.examples[request.side][request.var]

    return Step(request, "known", Where(), (), evaluate)


def _from_sums(trace: Trace, request: AskKnown) -> Step:
    sums = {one.var: one for one in request.sums}
    equations = _equations_since(trace, request.var, sums)
    computed = {v for e in equations for v in e.outputs}
    given = dict.fromkeys(v for e in equations for v in e.inputs if v not in computed)
    given = given or {request.var: None}  # the sum itself
    constants = [(trace.variable(v), trace.constants[v]) for v in given if v in trace.constants]
    inputs = [trace.variable(v) for v in given if v not in trace.constants]
    output = trace.variable(request.var)
    needs = tuple(
        AskMean(sums[x.number], request.side) if x.number in sums else AskKnown(x.number, request.side) for x in inputs
    )

    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        env = {x.number: value for x, value in constants}
        env.update((x.number, x.of_batch(r)) for x, r in zip(inputs, results, strict=True))
        for equation in equations:
            env.update(zip(equation.outputs, equation.evaluate([env[v] for v in equation.inputs]), strict=True))
        return output.of_one(env[output.number])

    return Step(request, "known", Where(), needs, evaluate)


def _equations_since(trace: Trace, var: int, sums: Any) -> list[Equation]:
    """The equations between sums over channels and a variable; not those of what depends on the inputs alone."""
    after, of_inputs, kept = set(sums), set(trace.data_inputs), []
    for equation in needed_equations(trace, [var], {**trace.constants, **sums}):
        if of_inputs.intersection(equation.inputs) and not after.intersection(equation.inputs):
            of_inputs.update(equation.outputs)
            continue
        kept.append(equation)
        if after.intersection(equation.inputs):
            after.update(equation.outputs)
    return kept
