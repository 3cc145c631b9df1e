"""Tables of rules keyed by primitive objects (never by name), in which a second rule for a primitive is an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from infnet._jax import Primitive

R = TypeVar("R", bound=Callable[..., object])


class Rules(dict[Primitive, R]):
    """A table of rules; `@table.register(primitive, ...)` adds one."""

    def register(self, *primitives: Primitive) -> Callable[[R], R]:
        """Register the decorated function for these primitives.

        Raises:
            ValueError: one of them has a rule already.
        """

        def add(rule: R) -> R:
            for primitive in primitives:
                if primitive in self:
                    raise ValueError(f"a second rule for the primitive {primitive}")
                self[primitive] = rule
            return rule

        return add
