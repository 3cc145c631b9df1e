"""First layers that are not Gaussian: their weights meet few inputs, and are drawn from another law.

The infinitely wide network is one whose first layer is Gaussian. Of a finite one, u = Σ w_i x_i is a sum over the
inputs, of excess kurtosis k = κ Σ x⁴ / (Σ x²)² where κ is that of a weight, however wide the network is. By the first
term of the Edgeworth series (Kolassa 2006, "Series Approximation Methods in Statistics", chapter 3) this changes a
mean E f(u) by k / 24 E f(u) He₄(u), which is at most k / √24 times the root mean square of f (Cauchy-Schwarz, as
E He₄² = 24). With f of the order of its mean, that is the relative size that kernels may be off by.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infnet.arguments import example_args
from infnet.priors import Prior, infer_priors, path_name
from infnet.verification.networks import Functions, with_channels
from infnet.verification.structure import first_leaves

PyTree = Any


class FirstWeight(NamedTuple):
    """A parameter that meets the inputs and is not normal.

    Attributes:
        leaf: its number.
        path: its name.
        prior: its law.
        effect: about how far it moves a kernel of these examples, relative to the kernel.
    """

    leaf: int
    path: str
    prior: Prior
    effect: float


def not_gaussian(functions: Functions, x: PyTree) -> list[FirstWeight]:
    """The weights of first layers that are not normal; x are the examples."""
    priors = infer_priors(functions.init, *example_args(x))
    with_paths, _ = jax.tree_util.tree_flatten_with_path(priors, is_leaf=lambda leaf: hasattr(leaf, "dtype"))
    laws = {leaf: with_paths[leaf] for leaf in first_leaves(functions.kernel_fn)}
    kurtoses = {
        leaf: float(np.max(np.abs(prior.kurtosis))) for leaf, (_, prior) in laws.items() if isinstance(prior, Prior)
    }
    found = [leaf for leaf, kurtosis in kurtoses.items() if kurtosis]
    ratios = _ratios(functions, x, found) if found else []
    return [
        FirstWeight(leaf, path_name(laws[leaf][0]), laws[leaf][1], kurtoses[leaf] * ratio / math.sqrt(24))
        for leaf, ratio in zip(found, ratios, strict=True)
    ]


def _ratios(functions: Functions, x: PyTree, leaves: Sequence[int]) -> list[float]:
    """Σ x⁴ / (Σ x²)² of what each weight is multiplied with, the largest of all examples.

    The gradient of an output in the weights of a channel is x times one number in a dense layer, and otherwise a
    combination of the x of several positions.
    """
    one = jax.tree.map(lambda a: a[:1], x)
    params = functions.init(jax.random.key(0), *example_args(one))
    values, tree = jax.tree.flatten(params)

    def output(chosen: Sequence[jax.Array], example: PyTree) -> jax.Array:
        filled = list(values)
        for leaf, value in zip(leaves, chosen, strict=True):
            filled[leaf] = value
        batch = jax.tree.map(lambda a: a[None], example)
        outputs = with_channels(functions.apply(jax.tree.unflatten(tree, filled), *example_args(batch)))
        return sum(y.ravel()[0] for y in jax.tree.leaves(outputs))

    @jax.jit
    def of_examples(x: PyTree) -> list[jax.Array]:
        gradients = jax.lax.map(lambda example: jax.grad(output)([values[k] for k in leaves], example), x)
        return [jnp.max(jax.vmap(_ratio)(g)) for g in gradients]

    return [float(ratio) for ratio in of_examples(x)]


def _ratio(gradient: jax.Array) -> jax.Array:
    """Of the gradient of one example, with the channels on its last axis; channels count by the size of theirs."""
    of_channel = gradient.reshape(-1, gradient.shape[-1])
    squares = jnp.sum(of_channel**2, 0)
    return jnp.sum(of_channel**4) / jnp.maximum(jnp.sum(squares**2), jnp.finfo(gradient.dtype).tiny)
