"""An input that is random itself: what another model returns. Its moments are those of a `Kernel`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from infnet.errors.programs import MEAN_OF_GIVEN_KERNEL
from infnet.layout import Layout, restrict
from infnet.nodes import InputFeature
from infnet.plan import Ask, AskMean, Moments, Step, home


def random_input_step(request: Ask, u: InputFeature, v: InputFeature) -> Step:
    """The moments that are given, at the offsets that are asked for."""
    full = Layout.full(u.sizes, v.sizes)

    def block(context: Any, array: jax.Array) -> jax.Array:
        order = [axis for k in range(len(u.sizes)) for axis in (2 * k + 1, 2 * k)]  # the position of x1 last
        return restrict(jnp.transpose(array, order).astype(context.dtype), full, request.layout)

    def evaluate(context: Any, results: Sequence[Any]) -> Moments:
        given = context.inputs[home(request)]
        return Moments(block(context, given.s), block(context, given.t) if request.ntk else None)

    return Step(request, "kernel", u.where, (), evaluate)


def mean_of_random_input(request: AskMean, node: InputFeature) -> Step:
    """The mean that is given."""

    def evaluate(context: Any, results: Sequence[Any]) -> jax.Array:
        mean = context.inputs[request.side].mean
        if node.zero_mean:
            return jnp.zeros(node.sizes, context.dtype)
        if mean is None:
            raise MEAN_OF_GIVEN_KERNEL.at(node.where)
        return jnp.broadcast_to(mean, node.sizes).astype(context.dtype)

    return Step(request, "mean", node.where, (), evaluate)
