"""Kernels estimated from random networks of finite width, with the standard error of every entry.

Means and variances are accumulated sample by sample (Welford 1962, doi:10.1080/00401706.1962.10490022), which loses no
digits to the size of the mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from infnet.arguments import NAMES, example_args, names_of
from infnet.batching.blocks import Blocks, as_arrays, calls
from infnet.empirical import empirical_kernel_fn
from infnet.empirical.function import EmpiricalKernelFn
from infnet.errors import InputError

PyTree = Any


@dataclass(frozen=True)
class Estimate:
    """A kernel estimated from random networks.

    Attributes:
        mean: over the samples.
        standard_error: of the mean, entry by entry; infinite for a single sample.
        n_samples: the number of networks.
    """

    mean: jax.Array
    standard_error: jax.Array
    n_samples: int


jax.tree_util.register_dataclass(Estimate, ["mean", "standard_error"], ["n_samples"])


def monte_carlo_kernel_fn(
    init_fn: Callable[..., PyTree],
    apply_fn: Callable[..., PyTree],
    key: jax.Array,
    n_samples: int | Sequence[int],
    trace_axes: int | Sequence[int] = (-1,),
    diagonal_axes: int | Sequence[int] = (),
    **options: Any,
) -> MonteCarloKernelFn:
    """The mean kernels of random networks: an estimate of what `kernel_fn` computes, for any model.

    Finite networks differ from their limit, in the mean by a term that decreases with the width: the standard error
    is that of the kernels at the widths of the model.

    Args:
        init_fn: `(key, *inputs) -> params`. All floating-point leaves count as trained parameters: see `trainable`.
        apply_fn: `(params, *inputs) -> outputs`, with a leading batch axis.
        key: of the samples; the k-th network is that of `jax.random.fold_in(key, k)`, whatever their number.
        n_samples: the number of networks, or an increasing sequence of numbers.
        trace_axes, diagonal_axes: as in `empirical_kernel_fn`. By default kernels are averaged over output channels,
            the last axis, as those of `kernel_fn` are.
        **options: keyword arguments of `empirical_kernel_fn`, such as `trainable`.

    Returns:
        `kernel_fn(x1, x2=None, get=None)`, with x1 and x2 tuples if `apply_fn` takes several inputs: an `Estimate`
        for `get` "nngp" or "ntk", a pytree of them for "ntk_by_param", and a namedtuple for a tuple of these names,
        None being ("nngp", "ntk"). For a sequence of numbers of samples, an iterator of what there is after each.

    Raises:
        InputError: an argument is of the wrong kind; see also `empirical_kernel_fn`.
    """
    counts = _counts(n_samples)
    finite = empirical_kernel_fn(
        lambda params, x: apply_fn(params, *example_args(x)), trace_axes, diagonal_axes, **options
    )

    return MonteCarloKernelFn(init_fn, finite, key, counts, single=isinstance(n_samples, int | np.integer))


class MonteCarloKernelFn:
    """The mean kernels of random networks, as a function; `infnet.monte_carlo_kernel_fn` makes it."""

    def __init__(
        self, init_fn: Callable[..., PyTree], finite: EmpiricalKernelFn, key: jax.Array, counts: list[int], single: bool
    ):
        """A function for as many networks as `counts` says; `single`: it returns an estimate, not an iterator."""
        self._init_fn, self._finite, self._key, self._counts, self._single = init_fn, finite, key, counts, single
        self._compiled: dict[Any, Any] = {}

    def __call__(self, x1: PyTree, x2: PyTree = None, get: Any = None) -> Any:
        """The estimate, or an iterator of estimates; see `infnet.monte_carlo_kernel_fn`."""
        kinds = _kinds(get)
        sample = partial(self._sample, kinds)
        arguments = (self._key, x1, x2)
        start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sample, 0, *arguments))
        accumulate = self._compiled.setdefault(kinds, jax.jit(partial(_accumulate, sample)))
        estimates = _estimates(partial(accumulate, arguments), start, self._counts)
        return next(estimates) if self._single else estimates

    def blocks(self, x1: PyTree, x2: PyTree = None, get: Any = None) -> Blocks:
        """The estimate in blocks of examples; see `infnet.batch`. The networks are the same for all blocks.

        Raises:
            InputError: there is a sequence of numbers of samples.
            BatchAxisError: the examples of a batch are not proved to be independent of each other.
        """
        if not self._single:
            raise InputError("kernels in tiles are of one number of samples: pass n_samples as an integer")
        one = as_arrays(x1, "x1")
        two = one if x2 is None else as_arrays(x2, "x2")
        mirrors = []

        def prove(key: jax.Array) -> jax.Array:
            params = self._init_fn(key, *example_args(one))
            mirrors.append(self._finite.mirror_of({}, one, params))
            return key

        jax.eval_shape(prove, self._key)
        shared, block, own_block = calls(self, _kinds(get))
        mirror = _of_estimates(mirrors[0])
        return Blocks(shared, one, two, block, *((own_block, mirror) if x2 is None else (None, None)))

    def _sample(self, kinds: Any, number: jax.Array, key: jax.Array, x1: PyTree, x2: PyTree) -> PyTree:
        params = self._init_fn(jax.random.fold_in(key, number), *example_args(x1))
        return self._finite(x1, x2, kinds, params)


def _kinds(get: Any) -> Any:
    return get if isinstance(get, str) else names_of(NAMES if get is None else get)


def _of_estimates(mirror: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
    """What `mirror` does to kernels, to means and standard errors."""

    def is_estimate(x: Any) -> bool:
        return isinstance(x, Estimate)

    def mirrored(estimates: PyTree) -> PyTree:
        leaves, tree = jax.tree.flatten(estimates, is_leaf=is_estimate)
        means, errors = (
            jax.tree.leaves(mirror(jax.tree.unflatten(tree, [getattr(e, name) for e in leaves])))
            for name in ("mean", "standard_error")
        )
        pairs = zip(leaves, means, errors, strict=True)
        return jax.tree.unflatten(tree, [Estimate(mean, error, old.n_samples) for old, mean, error in pairs])

    return mirrored


def _estimates(accumulate: Callable[..., Any], mean: PyTree, counts: Sequence[int]) -> Iterator[PyTree]:
    squares = jax.tree.map(lambda x: x.real, mean)
    for start, count in zip([0, *counts], counts, strict=False):
        mean, squares = accumulate(start, count, (mean, squares))
        yield jax.tree.map(partial(estimate, count), mean, squares)


def estimate(count: int, mean: jax.Array, squares: jax.Array) -> Estimate:
    """From the mean of `count` samples, and the sum of squared distances from it."""
    error = jnp.sqrt(squares / (count * (count - 1))) if count > 1 else jnp.full_like(squares, jnp.inf)
    return Estimate(mean, error, count)


def _accumulate(sample: Callable[..., PyTree], arguments: Any, start: Any, stop: Any, moments: Any) -> Any:
    """Add samples `start` ... `stop` - 1 to the mean of those before, and to the sum of squared distances from it."""

    def one_more(number: jax.Array, moments: Any) -> Any:
        return accumulated(number, sample(number, *arguments), moments)

    return lax.fori_loop(start, stop, one_more, moments)


def accumulated(number: Any, found: PyTree, moments: Any) -> Any:
    """The mean of samples and the sum of squared distances from it, after sample `number` (counted from 0)."""
    means, squares = moments
    after = jax.tree.map(lambda mean, x: mean + (x - mean) / (number + 1), means, found)
    more = jax.tree.map(
        lambda total, x, old, new: total + ((x - old) * (x - new).conj()).real, squares, found, means, after
    )
    return after, more


def _counts(n_samples: Any) -> list[int]:
    given = [n_samples] if isinstance(n_samples, int | np.integer) else n_samples
    counts = list(given) if isinstance(given, Sequence | np.ndarray | range) else []
    natural = all(isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0 for n in counts)
    if not counts or not natural or any(a >= b for a, b in pairwise(counts)):
        raise InputError(f"n_samples must be a positive integer, or an increasing sequence of them, not {n_samples!r}")
    return [int(n) for n in counts]
