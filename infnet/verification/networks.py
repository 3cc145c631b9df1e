"""What is sampled: the kernels of random networks, each with several readouts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from infnet.arguments import BY_PARAM, NAMES, example_args, named_kernels
from infnet.empirical import empirical_kernel_fn
from infnet.errors import InputError
from infnet.monte_carlo.moments import Moments, merged, moments_of
from infnet.monte_carlo.rounds import in_steps
from infnet.priors import Prior
from infnet.progress import bar
from infnet.verification.structure import last_leaves, tree_of

PyTree = Any
# The kernels that are compared.
KINDS = (*NAMES, BY_PARAM)
# Output channels that the NNGP of each network is averaged over, at least: the readout is drawn again for that.
CHANNELS = 128
# Numbers of keys within a sample: readouts count down from the first one.
READOUTS, NORMAL = np.uint32(2**31), np.uint32(2**31 + 1)


class Functions(NamedTuple):
    """A model of some width.

    Attributes:
        init: `(key, *inputs) -> params`.
        apply: `(params, *inputs) -> outputs`.
        kernel_fn: its `KernelFn`.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., PyTree]
    kernel_fn: Any


class Networks:
    """Random networks of one width, of which kernels are sampled, more and more of them.

    A sample of the NTK is that of a network drawn from `init`. A sample of the NNGP is the average over several
    networks that have all but the last layer in common. The parameters of different layers being independent, its mean
    is that of single networks, and it hardly varies with the readout, of which a single one says little.

    Attributes:
        count: of the networks so far.
        moments: of their kernels.
    """

    def __init__(self, functions: Functions, x: PyTree, key: jax.Array, normal_leaves: Mapping[int, Prior]):
        """Networks for the examples x.

        Args:
            functions: the model.
            x: the examples.
            key: of the random numbers.
            normal_leaves: parameters, by the number of their leaf, that are drawn from normal laws instead.
        """
        self.count = 0
        self.moments: Moments | None = None
        self._functions, self._normal_leaves = functions, dict(normal_leaves)
        self._last = last_leaves(functions.kernel_fn)
        self._finite = empirical_kernel_fn(
            lambda params, inputs: with_channels(functions.apply(params, *example_args(inputs))),
            trace_axes=-1,
            implementation="structured_derivatives",
            lr_scale=shares(functions.kernel_fn),
        )
        self._key, self._x = key, x
        self._program = jax.jit(self._round)

    def draw(self, count: int, label: str, progress: bool) -> None:
        """Draw networks until there are `count`.

        Args:
            count: their number.
            label: of the progress bar.
            progress: whether there is one.

        Raises:
            InputError: tqdm is not there.
        """
        if count <= self.count:
            return
        with bar(progress, label, count - self.count, "network") as shown:
            found = in_steps(partial(self._program, self._key, self._x), self.count, count, shown if progress else None)
        self.moments = found if self.moments is None else merged(self.count, self.moments, count - self.count, found)
        self.count = count

    @property
    def means_and_variances(self) -> tuple[PyTree, PyTree]:
        """Of the kernels of single networks, in float64: pytrees of namedtuples of `KINDS`, like the outputs."""
        assert self.moments is not None
        as_float64 = [jax.tree.map(lambda a: np.asarray(a, np.float64), part) for part in self.moments]
        return as_float64[0], jax.tree.map(lambda s: s / (self.count - 1), as_float64[1])

    @property
    def units(self) -> list[float]:
        """By which the share of each parameter is of the order of those of others, or vanishes as 1 / width.

        That is the NTK with every weight written as std * theta; and of parameters without variance, such as biases
        that start at zero, theta itself.
        """
        kernel_fn = self._functions.kernel_fn
        if kernel_fn.parameterization == "ntk":
            return [1.0] * len(kernel_fn.weights.std)
        return [float(np.mean(np.square(std))) or 1.0 for std in kernel_fn.weights.std]

    def _round(self, key: jax.Array, x: PyTree, start: Any, stop: Any) -> Moments:
        return moments_of(lambda number: self._sample(jax.random.fold_in(key, number), x), start, stop, 1)

    def _sample(self, key: jax.Array, x: PyTree) -> PyTree:
        params = self.params(key, x)
        shares = self._finite(x, None, BY_PARAM, params)
        outputs = jax.tree.leaves(jax.eval_shape(self._outputs, params, x))
        readouts = math.ceil(CHANNELS / min(leaf.shape[-1] for leaf in outputs))
        leaves, tree = jax.tree.flatten(params)

        def nngp(number: jax.Array) -> PyTree:
            others = jax.tree.leaves(self.params(jax.random.fold_in(key, number), x))
            mixed = [others[k] if k in self._last else leaf for k, leaf in enumerate(leaves)]
            return self._finite(x, None, "nngp", jax.tree.unflatten(tree, mixed))

        def together(several: jax.Array, of_params: PyTree) -> Any:
            return named_kernels(KINDS)(several.mean(0), sum(jax.tree.leaves(of_params)), of_params)

        return jax.tree.map(together, jax.vmap(nngp)(READOUTS - jnp.arange(readouts, dtype=jnp.uint32)), shares)

    def params(self, key: jax.Array, x: PyTree) -> PyTree:
        """The parameters of the network with this key."""
        leaves, tree = jax.tree.flatten(self._functions.init(key, *example_args(x)))
        own = jax.random.fold_in(key, NORMAL)
        for k, prior in self._normal_leaves.items():
            noise = jax.random.normal(jax.random.fold_in(own, k), leaves[k].shape, leaves[k].dtype)
            leaves[k] = (prior.mean + prior.std * noise).astype(leaves[k].dtype)
        return jax.tree.unflatten(tree, leaves)

    def _outputs(self, params: PyTree, x: PyTree) -> PyTree:
        return with_channels(self._functions.apply(params, *example_args(x)))


def with_channels(outputs: PyTree) -> PyTree:
    """Outputs with an axis of channels: those of shape (n,) have one channel."""
    return jax.tree.map(lambda y: y[:, None] if y.ndim == 1 else y, outputs)


def shares(kernel_fn: Any) -> PyTree:
    """The factor of each parameter in the NTK: its learning rate; and if weights are std * theta, std².

    Raises:
        InputError: the elements of a parameter have different standard deviations.
    """
    weights = kernel_fn.weights
    rates = [float(rate) for rate in weights.learning_rate]
    if kernel_fn.parameterization == "ntk":
        if any(np.size(std) > 1 for std in weights.std):
            raise InputError(
                'the NTK of the "ntk" parameterization is sampled for parameters with one standard deviation each, and '
                'here is one whose elements have different ones: verify the "as_model" parameterization'
            )
        rates = [rate * float(std) ** 2 for rate, std in zip(rates, weights.std, strict=True)]
    return jax.tree.unflatten(tree_of(kernel_fn), rates)
