"""From the law of a layer's weights to parameters of a linen module."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax

from infnet import functional


def parameters(module: Any, x: Any, **laws: functional.Weight | None) -> tuple[jax.Array, dict[str, Any]]:
    """The inputs, and the parameters of these laws by name, all of the dtype that the module computes in.

    Args:
        module: the linen module that is being called; it has the fields `dtype` and `param_dtype`.
        x: its inputs.
        **laws: by the names of the parameters, in their order; None if there is no such parameter.

    Returns:
        x, and the parameters multiplied by their factors.
    """
    own = {
        name: module.param(name, nn.initializers.normal(law.std), law.shape, module.param_dtype)
        for name, law in laws.items()
        if law is not None
    }
    x, *values = nn.dtypes.promote_dtype(x, *own.values(), dtype=module.dtype)
    found = dict(zip(own, values, strict=True))
    return x, {name: None if law is None else law.scaled(found[name]) for name, law in laws.items()}
