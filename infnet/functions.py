"""Stage 2: which function of one variable another is, where every operation between the two acts element by element."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from infnet._jax import ClosedJaxpr
from infnet.activations import Activation, recognise
from infnet.activations.series import SeriesActivation
from infnet.errors import Where
from infnet.program import Feature, Known, Value
from infnet.trace import Equation, Trace


class Functions:
    """The functions between the variables of a trace.

    Args:
        trace: the trace.
        values: what is known of its variables so far.
        producer: the equation that computes each of them.
        constant: the number that a variable is, None if it is not one.
    """

    def __init__(
        self,
        trace: Trace,
        values: dict[int, Value],
        producer: dict[int, Equation],
        constant: Callable[[int], float | None],
    ):
        self._trace = trace
        self._values = values
        self._producer = producer
        self._constant = constant
        self._chains: dict[tuple[Any, ...], ClosedJaxpr] = {}
        self._recognised: dict[tuple[Any, ...], Activation] = {}

    def where(self, base: int, var: int) -> Where:
        """The place of the first operation between `base` and `var` that is not affine."""
        for equation in self._equations(base, var):
            for out in equation.outputs:
                value = self._values.get(out)
                if isinstance(value, Feature) and value.affine is None:
                    return equation.where
        return self._producer[var].where

    def recognised(self, base: int, var: int, where: Where) -> Activation:
        """What `var` is as a function of `base`; one that was met before is not recognised again.

        Raises:
            UnsupportedError: its kernels are not known; the error points to `where`.
        """
        key = self._description(base, var)
        if key not in self._recognised:
            self._recognised[key] = recognise(self.chain(base, var), where)
        found = self._recognised[key]
        return dataclasses.replace(found, where=where) if isinstance(found, SeriesActivation) else found

    def chain(self, base: int, var: int) -> ClosedJaxpr:
        """`var` as a function of `base`: one jaxpr for all that are equal."""
        key = self._description(base, var)
        if key not in self._chains:
            self._chains[key] = self._jaxpr(base, var)
        return self._chains[key]

    def _equations(self, base: int, var: int) -> list[Equation]:
        """The equations that compute `var` from `base`, apart from those of constants."""
        needed, kept = {var}, []
        for out, equation in reversed(self._producer.items()):
            if out in needed and out != base and not self._is_known(out) and equation not in kept:
                needed.update(v for v in equation.inputs if v != base)
                kept.append(equation)
        return kept[::-1]

    def _is_known(self, var: int) -> bool:
        return isinstance(self._values.get(var), Known)

    def _description(self, base: int, var: int) -> tuple[Any, ...]:
        """Equal descriptions are of equal functions."""
        numbers: dict[int, int] = {base: 0}
        described: list[Any] = [self._trace.avals[base]]
        for equation in self._equations(base, var):
            constants = tuple(self._constant(v) if self._is_known(v) else None for v in equation.inputs)
            names = tuple(numbers.setdefault(v, len(numbers)) for v in (*equation.inputs, *equation.outputs))
            # What says nothing of its value, as jaxprs, is the same only if it is one object.
            params = equation.source.params.items()
            values = tuple((name, value if _is_plain(value) else id(value)) for name, value in params)
            described.append((equation.primitive, names, constants, values))
        return (*described, numbers[var])

    def _jaxpr(self, base: int, var: int) -> ClosedJaxpr:
        equations = self._equations(base, var)
        known = {v: self._trace.avals[v] for e in equations for v in e.inputs if self._is_known(v)}
        numbers = {
            v: np.broadcast_to(np.asarray(self._constant(v), aval.dtype), aval.shape) for v, aval in known.items()
        }

        def function(x: jax.Array) -> Any:
            env = {**numbers, **self._trace.constants, base: x}
            for equation in equations:
                outputs = equation.evaluate([env[v] for v in equation.inputs])
                env.update(zip(equation.outputs, outputs, strict=True))
            return env[var]

        aval = self._trace.avals[base]
        return jax.make_jaxpr(function)(jax.ShapeDtypeStruct(aval.shape, aval.dtype))


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, bool | int | float | str | bytes | None | np.dtype)
