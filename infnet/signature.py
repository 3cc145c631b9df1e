"""When do two steps of a plan do the same? A description of all that a step can see, apart from which one it is.

A step is a function with what it has closed over: the request, nodes, layouts. Its signature is the code of that
function together with a description of these, in which nodes, parameters and variables are numbered in the order in
which they are met. Whatever cannot be described counts as itself, so it is at worst taken for different.

A node is described by its own attributes and those of its operands, and of theirs only by their kind, their sizes,
whether they are Gaussian and have a mean. All else about them reaches a step as the results that it needs.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import Any

import numpy as np

from infnet.activations import Activation
from infnet.errors import Where
from infnet.layout import Layout
from infnet.nodes import Elementwise, Field, Node, ParamKey
from infnet.plan import Ask, AskKnown, Plan, Request, Step
from infnet.trace import Equation, Variable

Name = tuple[str, Any]
DEPTH = 2  # a node and its operands
# Of a node: which one it is, where it stands, what only planning asks, and the function that its activation is.
NOT_DESCRIBED = frozenset({"index", "where", "leaves", "scales", "var", "chain"})
SHALLOW = ("sizes", "gaussian", "zero_mean", "uniform")


class Signatures:
    """Numbers for the signatures of the steps of one plan: steps with equal ones do the same."""

    def __init__(self, plan: Plan, activations: Mapping[int, Activation]):
        self._plan = plan
        self._activations = activations
        self._numbers: dict[Hashable, int] = {}
        self._nodes: dict[tuple[int, int], tuple[int, tuple[Name, ...]]] = {}

    def of(self, step: Step) -> tuple[int, tuple[ParamKey, ...]]:
        """The number of a step's signature, and the parameters that it reads, in a fixed order."""
        if isinstance(step.request, AskKnown) and not step.request.sums:
            # It takes a variable from the inputs, where no other stands for it.
            return self._number(("alone", step.request.key)), ()
        found = _Description(self, DEPTH)
        needs = tuple(found.of(self._need(r)) for r in step.requests)
        parts = (step.rule, needs, found.of(step.evaluate))
        first: dict[Name, int] = {}
        pattern = tuple(first.setdefault(name, len(first)) for name in found.names)
        params = tuple(value for kind, value in first if kind == "param")
        return self._number((parts, pattern)), params

    def _need(self, request: Request | None) -> Any:
        done = None if request is None else self._plan.by_key[request.key]
        return (request, done.layout, done.ntk) if isinstance(done, Ask) else request

    def _number(self, description: Hashable) -> int:
        return self._numbers.setdefault(description, len(self._numbers))

    def node(self, node: Node, depth: int) -> tuple[int, tuple[Name, ...]]:
        """The number of a node's description, and the names in it."""
        key = (node.index, depth)
        if key not in self._nodes:
            inner = _Description(self, max(depth - 1, 0))
            fields = [f.name for f in dataclasses.fields(node) if f.name not in NOT_DESCRIBED]
            parts = [inner.of(getattr(node, name)) for name in (fields if depth else SHALLOW)]
            if isinstance(node, Elementwise):
                parts.append(inner.of(self._activations.get(node.index)))
            self._nodes[key] = self._number((type(node), *parts)), (("node", node.index), *inner.names)
        return self._nodes[key]


class _Description:
    """Describes objects as hashable values; collects the names that were met on the way."""

    def __init__(self, signatures: Signatures, depth: int):
        self.names: list[Name] = []
        self._signatures = signatures
        self._depth = depth
        self._within: list[int] = []  # what is being described: functions may contain themselves

    def of(self, x: Any) -> Hashable:
        """The description of an object."""
        if x is None or isinstance(x, bool | int | float | str | bytes | Layout):
            return type(x), x
        if id(x) in self._within:
            return "within", len(self._within) - self._within.index(id(x))
        self._within.append(id(x))
        try:
            return _describer(type(x))(self, x)
        finally:
            self._within.pop()

    def attributes(self, x: Any, names: Iterable[str]) -> Hashable:
        """The description of an object by its attributes."""
        return type(x), tuple(self.of(getattr(x, name)) for name in names)

    def node(self, node: Node) -> Hashable:
        """A node, by its number."""
        number, names = self._signatures.node(node, self._depth)
        self.names.extend(names)
        return "node", number

    def named(self, kind: str, *which: Any) -> Hashable:
        """Something that only has a name."""
        self.names.extend((kind, one) for one in which)
        return kind, len(which)


def _field(found: _Description, field: Field) -> Hashable:
    found.named("variable", field.var)
    return found.attributes(field, [f.name for f in dataclasses.fields(field) if f.name not in ("var", "sums")])


def _variable(found: _Description, variable: Variable) -> Hashable:
    found.named("variable", variable.number)
    return variable.shape, str(variable.dtype), variable.batch_axis


def _equation(found: _Description, equation: Equation) -> Hashable:
    variables = found.named("variable", *equation.inputs, *equation.outputs)
    results = tuple(str(v.aval) for v in equation.source.outvars)
    return equation.primitive, variables, results, found.of(equation.source.params)


def _function(found: _Description, function: types.FunctionType) -> Hashable:
    cells = tuple(found.of(cell.cell_contents) for cell in function.__closure__ or ())
    return function.__code__, cells, found.of(function.__defaults__)


def _method(found: _Description, method: types.MethodType) -> Hashable:
    return found.of(method.__func__), found.of(method.__self__)


def _array(found: _Description, array: np.ndarray) -> Hashable:
    return array.shape, array.dtype.str, array.tobytes()


def _sequence(found: _Description, x: Any) -> Hashable:
    return type(x), tuple(map(found.of, x))


def _mapping(found: _Description, x: dict[Any, Any]) -> Hashable:
    return tuple((found.of(key), found.of(value)) for key, value in x.items())


def _other(found: _Description, x: Any) -> Hashable:
    if dataclasses.is_dataclass(x) and not isinstance(x, type) and not _is_activation(x):
        return found.attributes(x, [f.name for f in dataclasses.fields(x)])
    if type(x).__module__.startswith("infnet.rules"):
        return found.attributes(x, sorted(vars(x)))
    return (type(x), x) if isinstance(x, Hashable) else ("itself", id(x))


def _is_activation(x: Any) -> bool:
    return type(x).__module__.startswith("infnet.activations")


Describer = Callable[[_Description, Any], Hashable]
KINDS: tuple[tuple[type, Describer], ...] = (
    (Node, _Description.node),
    (Where, lambda found, where: None),
    (ParamKey, lambda found, key: found.named("param", key)),
    (AskKnown, lambda found, ask: (found.named("variable", ask.var), ask.side)),
    (Field, _field),
    (Variable, _variable),
    (Equation, _equation),
    (types.FunctionType, _function),
    (types.MethodType, _method),
    (np.ndarray, _array),
    (tuple, _sequence),
    (list, _sequence),
    (dict, _mapping),
)


DESCRIBERS: dict[type, Describer] = {}


def _describer(kind: type) -> Describer:
    if kind not in DESCRIBERS:
        DESCRIBERS[kind] = next((describe for base, describe in KINDS if issubclass(kind, base)), _other)
    return DESCRIBERS[kind]
