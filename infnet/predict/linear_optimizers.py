"""Proof that an optimizer is linear, so that it trains functions as it trains parameters.

The parameters of a linearised network move by sums of multiples of earlier gradients if the optimizer is linear, with
multiples that depend on nothing but the number of the step. Gradients are Jᵀ r, with the Jacobian J of the training
outputs and the derivative r of the loss in these, and so θ - θ₀ = Jᵀ h, where h is what the same optimizer makes of r in
place of the gradients. The outputs are f₀ + Θ h: exactly, and for any loss.

The proof reads the jaxpr of `update`. What depends on gradients may be added up, scaled by numbers that do not depend on
them and are the same for all elements, converted, and selected by such numbers: nothing else.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet._jax import ClosedJaxpr, Jaxpr, JaxprEqn, Literal, Var, lax_primitives
from infnet.errors import UnsupportedError, Where

PyTree = Any

SUMS = {lax_primitives.add_p, lax_primitives.sub_p, lax_primitives.add_any_p if hasattr(lax_primitives, "add_any_p") else lax_primitives.add_p}
COPIES = {lax_primitives.neg_p, lax_primitives.convert_element_type_p, lax_primitives.copy_p}
RESHAPES = {lax_primitives.broadcast_in_dim_p, lax_primitives.reshape_p}
# A parameter of two axes, and another one, so that an optimizer which treats them differently is found out.
PROBE = {"kernel": jax.ShapeDtypeStruct((2, 3), np.float32), "bias": jax.ShapeDtypeStruct((5,), np.float32)}
STEPS = 5


class Kind(enum.Enum):
    """What a value of a jaxpr is."""

    ZERO = 0
    UNIFORM = 1
    """The same number in all elements, which does not depend on gradients."""
    VARIED = 2
    """Does not depend on gradients."""
    LINEAR = 3
    """A sum of multiples of gradients."""
