"""From the law of a layer's weights to parameters of a Haiku module."""

from __future__ import annotations

from typing import Any

import haiku as hk
import jax
import jax.numpy as jnp

from infnet import functional
from infnet.errors import InputError


def parameters(x: Any, **laws: functional.Weight | None) -> tuple[jax.Array, dict[str, Any]]:
    """The inputs, and the parameters of these laws by name, all of the dtype of the inputs.

    Args:
        x: the inputs of the Haiku module that is being called.
        **laws: by the names of the parameters, in their order; None if there is no such parameter.

    Returns:
        x, and the parameters multiplied by their factors.

    Raises:
        InputError: the inputs are not floating.
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise InputError(f"the parameters have the dtype of the inputs, which must be floating, not {x.dtype}")
    own = {
        name: hk.get_parameter(name, law.shape, x.dtype, hk.initializers.RandomNormal(law.std))
        for name, law in laws.items()
        if law is not None
    }
    return x, {name: None if law is None else law.scaled(own[name]) for name, law in laws.items()}
