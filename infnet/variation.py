"""Along which axes the values of a Known variable may differ.

A statistic of a layer is the same for every channel, however it is spread over them: only then does a nonlinearity
after a normalisation, or attention with several heads, treat all channels alike. Unknown operations count as varying.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from infnet._jax import JaxprEqn, Literal
from infnet._jax import lax_primitives as lax_p
from infnet.atoms import regroup
from infnet.numpy_rules import CALLS, called_jaxpr
from infnet.registry import Rules
from infnet.trace import is_elementwise

Axes = frozenset[int]
Shape = Sequence[int]
# (equation, the varying axes of each operand, their shapes) -> the varying axes of the result.
Rule = Callable[[JaxprEqn, Sequence[Axes], Sequence[Shape]], Axes]
RULES: Rules[Rule] = Rules()


def long_axes(shape: Shape) -> Axes:
    """The axes with more than one element."""
    return frozenset(axis for axis, size in enumerate(shape) if size > 1)


def varying_axes(equation: JaxprEqn, varies: Sequence[Axes]) -> list[Axes]:
    """The axes along which the results of an equation may vary.

    Args:
        equation: any equation of a jaxpr.
        varies: the axes along which its operands may vary.
    """
    if equation.primitive in CALLS:
        return _of_call(equation, varies)
    shapes = [_shape(v) for v in equation.invars]
    results = [_shape(v) for v in equation.outvars]
    if is_elementwise(equation):
        return [frozenset().union(*varies) & long_axes(shape) for shape in results]
    if equation.primitive in RULES:
        return [RULES[equation.primitive](equation, varies, shapes) & long_axes(shape) for shape in results]
    return [long_axes(shape) for shape in results]


def _shape(atom: Any) -> tuple[int, ...]:
    return tuple(getattr(atom.aval, "shape", ()))


def _of_call(equation: JaxprEqn, varies: Sequence[Axes]) -> list[Axes]:
    closed = called_jaxpr(equation)
    env = {v: long_axes(_shape(v)) for v in closed.jaxpr.constvars}
    env.update(zip(closed.jaxpr.invars, varies, strict=True))

    def read(atom):
        return frozenset() if isinstance(atom, Literal) else env[atom]

    for inner in closed.jaxpr.eqns:
        env.update(zip(inner.outvars, varying_axes(inner, [read(v) for v in inner.invars]), strict=True))
    return [read(v) for v in closed.jaxpr.outvars]


@RULES.register(lax_p.broadcast_in_dim_p)
def _broadcast(equation: JaxprEqn, varies: Sequence[Axes], shapes: Sequence[Shape]) -> Axes:
    places = equation.params["broadcast_dimensions"]
    return frozenset(int(places[axis]) for axis in varies[0])


@RULES.register(lax_p.transpose_p)
def _transpose(equation: JaxprEqn, varies: Sequence[Axes], shapes: Sequence[Shape]) -> Axes:
    return frozenset(k for k, axis in enumerate(equation.params["permutation"]) if axis in varies[0])


@RULES.register(lax_p.squeeze_p)
def _squeeze(equation: JaxprEqn, varies: Sequence[Axes], shapes: Sequence[Shape]) -> Axes:
    return _without(varies[0], equation.params["dimensions"])


@RULES.register(lax_p.reduce_sum_p, lax_p.reduce_max_p, lax_p.reduce_min_p, lax_p.reduce_prod_p)
def _reduce(equation: JaxprEqn, varies: Sequence[Axes], shapes: Sequence[Shape]) -> Axes:
    return _without(varies[0], equation.params["axes"])


def _without(axes: Axes, gone: Sequence[int]) -> Axes:
    return frozenset(axis - sum(g < axis for g in gone) for axis in axes if axis not in gone)


@RULES.register(lax_p.slice_p, lax_p.rev_p)
def _same(equation: JaxprEqn, varies: Sequence[Axes], shapes: Sequence[Shape]) -> Axes:
    return varies[0]


@RULES.register(lax_p.concatenate_p)
def _concatenate(equation: JaxprEqn, varies: Sequence[Axes], shapes: Sequence[Shape]) -> Axes:
    return frozenset().union(*varies) | {equation.params["dimension"]}


@RULES.register(lax_p.gather_p)
def _gather(equation: JaxprEqn, varies: Sequence[Axes], shapes: Sequence[Shape]) -> Axes:
    return long_axes(_shape(equation.outvars[0])) if any(varies) else frozenset()


@RULES.register(lax_p.reshape_p)
def _reshape(equation: JaxprEqn, varies: Sequence[Axes], shapes: Sequence[Shape]) -> Axes:
    shape = _shape(equation.outvars[0])
    factors = [((axis in varies[0], n),) if n > 1 else () for axis, n in enumerate(shapes[0])]
    try:
        grouped = regroup(factors, shape)
    except ValueError:
        return long_axes(shape)
    return frozenset(axis for axis, dim in enumerate(grouped) if any(_root(name) for name, _ in dim))


def _root(name):
    while isinstance(name, tuple):
        name = name[0]
    return name


@RULES.register(lax_p.dot_general_p)
def _dot_general(equation: JaxprEqn, varies: Sequence[Axes], shapes: Sequence[Shape]) -> Axes:
    contracted, batch = equation.params["dimension_numbers"]
    pairs = enumerate(zip(*batch, strict=True))
    count, found = len(batch[0]), {d for d, (a, b) in pairs if a in varies[0] or b in varies[1]}
    for own, gone, batched, shape in zip(varies, contracted, batch, shapes, strict=True):
        free = [axis for axis in range(len(shape)) if axis not in gone and axis not in batched]
        found.update(count + k for k, axis in enumerate(free) if axis in own)
        count += len(free)
    return frozenset(found)


@RULES.register(lax_p.iota_p)
def _iota(equation: JaxprEqn, varies: Sequence[Axes], shapes: Sequence[Shape]) -> Axes:
    return frozenset({equation.params["dimension"]})
