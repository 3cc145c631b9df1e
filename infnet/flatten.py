"""Stage 1, the work: from `apply(params, *inputs)` to a flat list of equations.

`apply` is traced with abstract values at batch sizes 2 and 3, and calls are inlined. So are loops over features
(`lax.scan`), step by step: a weight that every step uses is then one parameter of several contractions, which is
exact. Comparing the two traces shows which axes count examples, and `independence` proves that no operation mixes them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from infnet._jax import ClosedJaxpr, JaxprEqn, Literal, scan_counts, summarize
from infnet._jax import lax_primitives as lax_p
from infnet.errors import InputError, Where
from infnet.numpy_rules import CALLS, called_jaxpr
from infnet.trace import Equation, Flat, constant_value, is_elementwise, needed_equations

BATCH_SIZES = (2, 3)
# In the name of a `jax.named_scope`, between a layer and the line of the model that it says it comes from: the control
# character that separates units, which no user writes.
AT = "\x1f"
CUSTOM_CALLS = frozenset({lax_p.custom_jvp_call_p, lax_p.custom_vjp_call_p})


def trace_at_batch_sizes(
    apply_fn: Callable[..., Any],
    params: Any,
    inputs: Sequence[Any],
    *,
    sizes: Sequence[int] = BATCH_SIZES,
    unroll: bool = True,
) -> list[Flat]:
    """Trace `apply_fn(params, *inputs)` abstractly, once for each of `sizes`.

    Args:
        apply_fn: the function, its inputs with a leading batch axis.
        params: pytree of `jax.ShapeDtypeStruct`.
        inputs: pytrees of `jax.ShapeDtypeStruct`, without the batch axis.
        sizes: the batch sizes.
        unroll: read the parameters as random; otherwise as data, over which loops stay whole.

    Raises:
        InputError: the model cannot be traced on inputs of these shapes.
    """
    n_params = len(jax.tree.leaves(params)) if unroll else 0
    return [flatten(_jaxpr_at(apply_fn, params, inputs, size), n_params) for size in sizes]


def _jaxpr_at(apply_fn: Callable[..., Any], params: Any, inputs: Sequence[Any], size: int) -> ClosedJaxpr:
    batched = jax.tree.map(lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), inputs)
    try:
        return jax.make_jaxpr(apply_fn)(params, *batched)
    except Exception as error:
        shapes = jax.tree.map(lambda x: tuple(x.shape), list(batched))
        raise InputError(
            f"the model cannot be traced on inputs of shape {shapes} (batch size {size}): "
            f"{type(error).__name__}: {error}\n  infnet traces it at batch sizes 2 and 3: check the shape of "
            "the example input (its first axis counts examples) and that no batch size is written into the model"
        ) from error


def flatten(closed: ClosedJaxpr, random_inputs: int, where: Where | None = None, *, unroll: bool = True) -> Flat:
    """Inline all calls, and leave out what the outputs do not depend on: a model may compute a loss as it goes.

    Functions with a derivative of their own (`jax.custom_jvp`, `jax.custom_vjp`) stay whole where they act element
    by element, since that derivative is the one the NTK must use; on data alone only their value matters. Control flow
    stays whole on data alone, where it is evaluated by ordinary JAX. On what is random, which is what depends on the
    parameters, a scan is unrolled, and of a conditional whose index is a constant the branch is taken.

    Args:
        closed: the jaxpr.
        random_inputs: the number of parameters, which are the first inputs.
        where: the operation that the jaxpr is the body of, if it is one.
        unroll: unroll loops over what is random; otherwise they stay whole.
    """
    flat = Flat()
    flat.inputs = [flat.new(v.aval) for v in closed.jaxpr.invars]
    inliner = _Inliner(flat, set(flat.inputs[:random_inputs]), unroll)
    flat.outputs = inliner.inline(closed, flat.inputs, where or Where())
    return Flat(needed_equations(flat, flat.outputs), flat.avals, flat.constants, flat.inputs, flat.outputs)


def add_function(flat: Flat, function: Callable[..., Any], inputs: Sequence[int], where: Where) -> int:
    """Add the equations of a function of variables that are not random; returns its output."""
    return _Inliner(flat, set()).call(function, inputs, where)


class _Inliner:
    """Adds equations to `flat`; `random` are the variables that depend on parameters."""

    def __init__(self, flat: Flat, random: set[int], unroll: bool = True):
        self.flat = flat
        self.random = random
        self.unroll = unroll

    def inline(self, closed: ClosedJaxpr, inputs: Sequence[int], outer: Where) -> list[int]:
        """Add the equations of a jaxpr applied to `inputs`; returns its outputs."""
        jaxpr = closed.jaxpr
        env: dict[Any, int] = dict(zip(jaxpr.invars, inputs, strict=True))
        for var, value in zip(jaxpr.constvars, closed.consts, strict=True):
            env[var] = self.flat.constant(value, var.aval)

        def read(atom: Any) -> int:
            return self.flat.constant(atom.val, atom.aval) if isinstance(atom, Literal) else env[atom]

        for eqn in jaxpr.eqns:
            outputs = self._add(eqn, tuple(map(read, eqn.invars)), _where(eqn, outer))
            env.update(zip(eqn.outvars, outputs, strict=True))
        return [read(v) for v in jaxpr.outvars]

    def _add(self, eqn: JaxprEqn, inputs: tuple[int, ...], where: Where) -> Sequence[int]:
        is_random = any(v in self.random for v in inputs)
        stays_whole = eqn.primitive in CUSTOM_CALLS and (is_random or is_elementwise(eqn))
        if eqn.primitive in CALLS and not stays_whole:
            return self.inline(called_jaxpr(eqn), inputs, where)
        if eqn.primitive is lax_p.scan_p and is_random and self.unroll and eqn.params["length"]:
            return self._unroll(eqn, inputs, where)
        if eqn.primitive is lax_p.cond_p and is_random:
            index = constant_value(self.flat, inputs[0])
            if index is not None:
                branches = eqn.params["branches"]
                return self.inline(branches[min(max(int(index), 0), len(branches) - 1)], inputs[1:], where)
        outputs = tuple(self.flat.new(v.aval) for v in eqn.outvars)
        if is_random:
            self.random.update(outputs)
        self.flat.equations.append(Equation(eqn.primitive, inputs, outputs, eqn.params, where, eqn))
        return outputs

    def _unroll(self, eqn: JaxprEqn, inputs: tuple[int, ...], where: Where) -> list[int]:
        """The steps of a scan, one after the other."""
        (n_consts, n_carry), params, length = scan_counts(eqn), eqn.params, eqn.params["length"]
        consts, xs = inputs[:n_consts], inputs[n_consts + n_carry :]
        carry: Sequence[int] = inputs[n_consts : n_consts + n_carry]
        rows: dict[int, list[int]] = {}
        for step in reversed(range(length)) if params["reverse"] else range(length):
            row = [self.inline(_row_of(self.flat.avals[x], step), [x], where)[0] for x in xs]
            outputs = self.inline(params["jaxpr"], [*consts, *carry, *row], where)
            carry, rows[step] = outputs[:n_carry], outputs[n_carry:]
        in_order = [rows[step] for step in range(length)]
        return [*carry, *(self.call(lambda *y: jnp.stack(y), y, where) for y in zip(*in_order, strict=True))]

    def call(self, function: Callable[..., Any], inputs: Sequence[int], where: Where) -> int:
        """Add the equations of a function of arrays; returns its output."""
        avals = [self.flat.avals[v] for v in inputs]
        closed = jax.make_jaxpr(function)(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))
        (output,) = self.inline(closed, inputs, where)
        return output


@lru_cache(maxsize=2**12)  # a deep stack has several arrays of each shape, and is traced at two batch sizes
def _row_of(aval: Any, at: int) -> ClosedJaxpr:
    return jax.make_jaxpr(partial(lax.index_in_dim, index=at, keepdims=False))(aval)


def _where(eqn: JaxprEqn, outer: Where) -> Where:
    # The body of a jitted library function is traced once and cached, with the lines of its first caller: the
    # line of the outermost call is the one that is always right.
    inner = str(eqn.source_info.name_stack)
    inner, _, made = inner.partition(AT)
    module = "/".join(part for part in (outer.module, inner) if part)
    return Where(module, outer.line or made or summarize(eqn.source_info))
