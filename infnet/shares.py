"""The cost of each step of a plan, in operations and in memory, found from shapes alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax

from infnet.computation import Computation
from infnet.context import KnownValues, Weights
from infnet.cost import Program
from infnet.plan import AskKnown, Plan, Request, Step, home
from infnet.results import Results
from infnet.signature import Signatures


def proto(computation, weights, example, n=1000, compiled=False):
    import time
    plan = computation.plan(("ntk",), (1, 2))
    signatures = Signatures(plan, computation.activations)
    results = Results(plan, {}, {})
    trace = computation.program.trace
    shapes = {}
    memo = {}
    rows = []
    for step in plan.steps:
        number, _ = signatures.of(step)
        if isinstance(step.request, AskKnown) and not step.request.sums:
            inputs = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in example]
            shapes[step.request.key] = jax.eval_shape(lambda x: KnownValues(trace, x)[step.request.var], inputs)
            continue
        requests = step.requests
        given = [None if r is None else shapes[r.key] for r in requests]
        key = (number, jax.tree.structure(given), tuple((x.shape, x.dtype) for x in jax.tree.leaves(given)))
        def evaluate(*values, step=step):
            wholes = [None if r is None else results.adapted(r, v) for r, v in zip(step.requests, values)]
            known = {(one.var, one.side): v for one, v in zip(step.reads, wholes[len(step.needs):])}
            context = replace(computation.context(weights), known=known)
            return step.evaluate(context, wholes[: len(step.needs)])
        if key not in memo:
            out = jax.eval_shape(evaluate, *given)
            cost = None
            if home(step.request) == 0:
                homes = [0 if r is None else home(r) for r in requests]
                outer = tuple(None if h == 2 or r is None else 0 for h, r in zip(homes, requests))
                inner = tuple(None if h == 1 or r is None else 0 for h, r in zip(homes, requests))
                lead = {0: (n, n), 1: (n,), 2: (n,)}
                args = [jax.tree.map(lambda x, h=h: jax.ShapeDtypeStruct((*lead[h], *x.shape), x.dtype), g) for g, h in zip(given, homes)]
                f = evaluate
                if requests:
                    f = jax.vmap(f, inner) if any(a is not None for a in inner) else f
                    f = jax.vmap(f, outer) if any(a is not None for a in outer) else f
                p = Program(jax.jit(f), args)
                cost = p.compiled_cost if compiled else p.cost
            memo[key] = out, cost
        shapes[step.request.key], cost = memo[key]
        if cost is not None:
            rows.append((step.rule, step.where.module, cost.flops/n/n, cost.bytes_accessed/n/n))
    return rows, len(memo)
