"""What an equation of an initialiser may compute: constants, keys, bits, laws, or nothing readable.

Every variable of the jaxpr of `init` is one of

* `Constant`: known numbers, compressed; computed in float64 where the primitive is elementwise,
  else by JAX in the traced dtype.
* `Key`: computed from PRNG keys. Computed for real (for key 0), so that two draws are known to be the
  same draw or different draws however their keys were derived.
* `Bits`: raw random bits on their way to becoming floats: shifted into the mantissa of 1.0.
* `Pointwise`, `Moments`: laws (`moments.py`).
* `Factor`: computed from the R of a QR factorisation. Only its signs have a use: Q · sign(diag R) is
  Haar-distributed (Mezzadri, arXiv:math-ph/0609050). Q alone has the same second and fourth moments,
  and means that are zero but for LAPACK's choice of signs; it is taken as Haar too.
* `Opaque`: unreadable, and why. Refusals are values, not exceptions: other outputs stay readable.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import jax
import numpy as np
from jax import numpy as jnp

from infnet._jax import JaxprEqn
from infnet.laws.moments import (
    Draw,
    Moments,
    NoLaw,
    Pointwise,
    Shape,
    compress,
    constant_cumulants,
)
from infnet.numpy_rules import float64
from infnet.registry import Rules


@dataclass(frozen=True)
class Constant:
    """Known numbers; `value` is compressed."""

    shape: Shape
    value: np.ndarray


@dataclass(frozen=True)
class Key:
    """What was computed from PRNG keys: typed keys, raw keys, or numbers."""

    value: jax.Array


@dataclass(frozen=True)
class Bits:
    """`count` independent random low bits in each element, below the fixed bits of `pattern`."""

    shape: Shape
    draw: Draw
    count: int
    pattern: int = 0

    @property
    def roots(self) -> frozenset[bytes]:
        """The keys drawn from."""
        return self.draw.roots


@dataclass(frozen=True)
class Factor:
    """Computed from the R of one QR factorisation and from constants; `sign`: a sign of such."""

    shape: Shape
    identity: Hashable
    roots: frozenset[bytes]
    sign: bool = False


@dataclass(frozen=True)
class Opaque:
    """No law: why, the equation that stopped the reading, and the calls around it, inside out."""

    why: str
    eqn: JaxprEqn | None
    roots: frozenset[bytes] = frozenset()
    calls: tuple[JaxprEqn, ...] = ()


Value: TypeAlias = Constant | Key | Bits | Pointwise | Moments | Factor | Opaque
DATA = Opaque("its value depends on the example inputs, so it has no law of its own", None)


def constant(value: Any) -> Value:
    """A value of the trace that is not random, unless it is a PRNG key."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return Key(value)
    return Constant(np.shape(value), compress(float64(value)))


def roots_of(values: Sequence[Value]) -> frozenset[bytes]:
    """The keys that any of the values was drawn from."""
    return frozenset().union(*(getattr(v, "roots", frozenset()) for v in values))


def aval(atom: Any) -> Any:
    """The abstract value, of which JAX does not say that it is that of an array."""
    return atom.aval


def out_shape(eqn: JaxprEqn) -> Shape:
    """The shape of the (first) result."""
    return tuple(aval(eqn.outvars[0]).shape)


def out_dtype(eqn: JaxprEqn) -> Any:
    """The dtype of the (first) result."""
    return aval(eqn.outvars[0]).dtype


def as_moments(value: Value) -> Moments:
    """A law, or a constant, by its cumulants."""
    if isinstance(value, Moments):
        return value
    if isinstance(value, Constant):
        return Moments(value.shape, constant_cumulants(value.value), frozenset())
    if isinstance(value, Pointwise):
        return Moments(value.shape, value.cumulants, value.roots)
    raise NoLaw("raw random bits or keys are moved together with numbers")


def scalar_int(value: Value) -> int:
    """A constant number, as shifts and masks of random bits must be."""
    if isinstance(value, Constant) and value.value.ndim == 0:
        return int(value.value)
    raise NoLaw("random bits are combined with something that is not one number")


def materialise(value: Value, atom: Any) -> jax.Array:
    """What is known as the array that JAX would compute with."""
    if isinstance(value, Key):
        return value.value
    assert isinstance(value, Constant)
    return jnp.asarray(np.broadcast_to(value.value, value.shape).astype(atom.aval.dtype))


def bind(eqn: JaxprEqn, arrays: Sequence[Any]) -> list[jax.Array]:
    """Runs the equation on arrays."""
    try:
        results = eqn.primitive.bind(*arrays, **eqn.primitive.get_bind_params(eqn.params))
    except Exception as error:
        raise NoLaw(f"its constant operands could not be evaluated ({error})") from error
    return list(results) if eqn.primitive.multiple_results else [results]


# `rule(eqn, *operands) -> Value`, no operand being Opaque or a Factor; it may raise NoLaw.
RULES: Rules[Callable[..., Value]] = Rules()
