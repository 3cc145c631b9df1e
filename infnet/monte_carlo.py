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
from infnet.empirical import empirical_kernel_fn
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
) -> Callable[..., Any]:
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

    compiled: dict[Any, Any] = {}

    def kernel_fn(x1: PyTree, x2: PyTree = None, get: Any = None) -> Any:
        names = names_of(NAMES if get is None else get)
        kinds = get if isinstance(get, str) else names

        def sample(number: jax.Array, key: jax.Array, x1: PyTree, x2: PyTree) -> PyTree:
            params = init_fn(jax.random.fold_in(key, number), *example_args(x1))
            return finite(x1, x2, kinds, params)

        arguments = (key, x1, x2)
        start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(sample, 0, *arguments))
        accumulate = compiled.setdefault(kinds, jax.jit(partial(_accumulate, sample)))
        estimates = _estimates(partial(accumulate, arguments), start, counts)
        return next(estimates) if isinstance(n_samples, int | np.integer) else estimates

    return kernel_fn


def _estimates(accumulate: Callable[..., Any], mean: PyTree, counts: Sequence[int]) -> Iterator[PyTree]:
    squares = jax.tree.map(lambda x: x.real, mean)
    for start, count in zip([0, *counts], counts, strict=False):
        mean, squares = accumulate(start, count, (mean, squares))
        yield jax.tree.map(partial(_estimate, count), mean, squares)


def _estimate(count: int, mean: jax.Array, squares: jax.Array) -> Estimate:
    error = jnp.sqrt(squares / (count * (count - 1))) if count > 1 else jnp.full_like(squares, jnp.inf)
    return Estimate(mean, error, count)


def _accumulate(sample: Callable[..., PyTree], arguments: Any, start: Any, stop: Any, moments: Any) -> Any:
    """Add samples `start` ... `stop` - 1 to the mean of those before, and to the sum of squared distances from it."""

    def one_more(number: jax.Array, moments: Any) -> Any:
        means, squares = moments
        found = sample(number, *arguments)
        after = jax.tree.map(lambda mean, x: mean + (x - mean) / (number + 1), means, found)
        more = jax.tree.map(
            lambda total, x, old, new: total + ((x - old) * (x - new).conj()).real, squares, found, means, after
        )
        return after, more

    return lax.fori_loop(start, stop, one_more, moments)


def _counts(n_samples: Any) -> list[int]:
    given = [n_samples] if isinstance(n_samples, int | np.integer) else n_samples
    counts = list(given) if isinstance(given, Sequence | np.ndarray | range) else []
    natural = all(isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0 for n in counts)
    if not counts or not natural or any(a >= b for a, b in pairwise(counts)):
        raise InputError(f"n_samples must be a positive integer, or an increasing sequence of them, not {n_samples!r}")
    return [int(n) for n in counts]
