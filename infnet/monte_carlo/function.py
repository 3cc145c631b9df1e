"""`monte_carlo_kernel_fn`: how many networks are drawn, and what is made of them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import jax
import numpy as np

from infnet.arguments import NAMES, example_args, names_of, positive
from infnet.batching.batched import TILE_OPTIONS
from infnet.batching.blocks import Blocks, calls
from infnet.empirical import empirical_kernel_fn
from infnet.errors import InputError
from infnet.monte_carlo.estimate import Estimate, estimates, largest_relative_error
from infnet.monte_carlo.moments import merged
from infnet.monte_carlo.rounds import Run, Sampler, in_steps, run_of
from infnet.progress import bar

PyTree = Any
# With a target error: no fewer networks, since the variance of few is not known (see `monte_carlo_kernel_fn`); no more,
# unless n_samples says so; and how much larger the number may become before the error is looked at again.
FEWEST, MOST, GROWTH = 64, 100_000, 4


def monte_carlo_kernel_fn(
    init_fn: Callable[..., PyTree],
    apply_fn: Callable[..., PyTree],
    key: jax.Array,
    n_samples: int | Sequence[int] | None = None,
    trace_axes: int | Sequence[int] = (-1,),
    diagonal_axes: int | Sequence[int] = (),
    *,
    target_error: float | None = None,
    progress: bool = False,
    **options: Any,
) -> MonteCarloKernelFn:
    """The mean kernels of random networks: an estimate of what `kernel_fn` computes, for any model.

    Finite networks differ from their limit, in the mean by a term that decreases with the width: the standard error
    is that of the kernels at the widths of the model. (`infnet.verify` extrapolates.)

    With a target error the number of networks depends on their variance, which is random itself. Such intervals have
    the stated coverage as the target becomes small (Chow & Robbins 1965, doi:10.1214/aoms/1177700156), but too low a
    coverage where few networks suffice, since one stops where they happen to vary little. Therefore it is at least 64
    networks, with which the standard error is known to 9 % (of normal samples), and the error is looked at a few times
    only: the number grows by up to a factor of 4 at a time, to what the last error says is needed.

    Args:
        init_fn: `(key, *inputs) -> params`. All floating-point leaves count as trained parameters: see `trainable`.
        apply_fn: `(params, *inputs) -> outputs`, with a leading batch axis.
        key: of the samples; the k-th network is that of `jax.random.fold_in(key, k)`, whatever their number.
        n_samples: the number of networks, or an increasing sequence of numbers. With `target_error`, the largest
            number; None is 100 000.
        trace_axes, diagonal_axes: as in `empirical_kernel_fn`. By default kernels are averaged over output channels,
            the last axis, as those of `kernel_fn` are.
        target_error: so many networks are drawn that `Estimate.relative_error` of every array is at most this number.
            If the largest number of them does not suffice, `Estimate.target_reached` is False.
        progress: whether to show a progress bar, with tqdm.
        **options: keyword arguments of `empirical_kernel_fn`, such as `trainable`; and of `infnet.batch`, for all
            calls.

    Returns:
        `kernel_fn(x1, x2=None, get=None, **tile_options)`, with x1 and x2 tuples if `apply_fn` takes several inputs: an
        `Estimate` for `get` "nngp" or "ntk", a pytree of them for "ntk_by_param", and a namedtuple for a tuple of these
        names, None being ("nngp", "ntk"). For a sequence of numbers, an iterator of what there is after each of them.

    Raises:
        InputError: an argument is of the wrong kind; see also `empirical_kernel_fn`.
    """
    tile_options = {name: options.pop(name) for name in TILE_OPTIONS if name in options}
    finite = empirical_kernel_fn(
        lambda params, x: apply_fn(params, *example_args(x)), trace_axes, diagonal_axes, **options
    )
    schedule = Schedule.read(n_samples, target_error)
    return MonteCarloKernelFn(Sampler(init_fn, finite), key, schedule, progress, tile_options)


@dataclass(frozen=True)
class Schedule:
    """How many networks are drawn.

    Attributes:
        counts: after how many there is an estimate; the last number is the largest.
        single: there is only one estimate.
        target_error: at which relative error to stop before that.
    """

    counts: tuple[int, ...]
    single: bool
    target_error: float | None = None

    @classmethod
    def read(cls, n_samples: Any, target_error: Any) -> Schedule:
        """Of the arguments of `monte_carlo_kernel_fn`.

        Raises:
            InputError: they are of the wrong kind.
        """
        if target_error is not None:
            target_error = positive("target_error", target_error)
            n_samples = MOST if n_samples is None else n_samples
        single = isinstance(n_samples, int | np.integer)
        given = [n_samples] if single else n_samples
        counts = list(given) if isinstance(given, Sequence | np.ndarray | range) else []
        natural = all(isinstance(n, int | np.integer) and not isinstance(n, bool) and n > 0 for n in counts)
        if not counts or not natural or any(a >= b for a, b in pairwise(counts)):
            raise InputError(
                f"n_samples must be a positive integer, or an increasing sequence of them, not {n_samples!r}; "
                "or give target_error"
            )
        if target_error is not None and not single:
            raise InputError("with target_error, n_samples is the largest number of networks, one integer")
        return cls(tuple(map(int, counts)), single, target_error)


class MonteCarloKernelFn:
    """The mean kernels of random networks, as a function; `infnet.monte_carlo_kernel_fn` makes it."""

    def __init__(
        self, sampler: Sampler, key: jax.Array, schedule: Schedule, progress: bool, tile_options: Mapping[str, Any]
    ):
        """A function for as many networks as `schedule` says."""
        self._sampler, self._key, self._schedule = sampler, key, schedule
        self._progress, self._tile_options = progress, dict(tile_options)

    def __call__(self, x1: PyTree, x2: PyTree = None, get: Any = None, **tile_options: Any) -> Any:
        """The estimate, or an iterator of estimates.

        Args:
            x1, x2, get: see `infnet.monte_carlo_kernel_fn`.
            **tile_options: of `infnet.batch`, for this call: the kernels are put together in tiles. With `device_count`
                alone there are no tiles, and the devices share the networks.

        Raises:
            InputError: an argument is of the wrong kind; or the number of networks depends on values that are traced.
            BatchAxisError: there are tiles, and the examples of a batch are not proved to be independent of each other.
        """
        kinds = _kinds(get)
        unknown = tile_options.keys() - set(TILE_OPTIONS)
        if unknown:
            raise InputError(f"unknown option {sorted(unknown)[0]!r}; the options of a call are {TILE_OPTIONS}")
        run = run_of(self._sampler, x1, x2, kinds, self._key, {**self._tile_options, **tile_options})
        if self._schedule.target_error is not None:
            if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((self._key, x1, x2))):
                raise InputError(
                    "with target_error the number of networks depends on the values of the kernels, which are not "
                    "known under jax.jit or jax.vmap: give n_samples instead"
                )
            return self._to_target(run, self._schedule.target_error)
        found = self._running(run)
        return next(found) if self._schedule.single else found

    def with_samples(
        self,
        key: jax.Array,
        n_samples: int | Sequence[int] | None = None,
        *,
        target_error: float | None = None,
        progress: bool = False,
    ) -> MonteCarloKernelFn:
        """The same for other random networks, or another number of them; nothing is compiled again.

        Args:
            key, n_samples, target_error, progress: as of `infnet.monte_carlo_kernel_fn`.

        Raises:
            InputError: an argument is of the wrong kind.
        """
        other = copy(self)
        other._key, other._progress = key, progress
        other._schedule = Schedule.read(n_samples, target_error)
        return other

    def blocks(self, x1: PyTree, x2: PyTree = None, get: Any = None) -> Blocks:
        """The estimate in blocks of examples; see `infnet.batch`. The networks are the same for all blocks.

        Raises:
            InputError: there is a sequence of numbers of samples, or a target error.
            BatchAxisError: the examples of a batch are not proved to be independent of each other.
        """
        if not self._schedule.single or self._schedule.target_error is not None:
            raise InputError(
                "each tile by itself is of one number of samples: pass n_samples as an integer, without target_error, "
                "or give batch_size to the Monte Carlo function itself"
            )
        one, two, mirror = self._sampler.proved(x1, x2, self._key)
        # Not those of `batch_size`: these are the tiles already.
        alone = MonteCarloKernelFn(self._sampler, self._key, self._schedule, False, {})
        shared, block, own_block = calls(alone, _kinds(get))
        return Blocks(shared, one, two, block, *((own_block, _of_estimates(mirror)) if x2 is None else (None, None)))

    def _running(self, run: Run) -> Iterator[PyTree]:
        counts, moments = self._schedule.counts, None
        with self._bar() as shown:
            for start, count in zip([0, *counts], counts, strict=False):
                found = in_steps(run, start, count, shown)
                moments = found if moments is None else merged(start, moments, count - start, found)
                yield estimates(count, *moments)

    def _to_target(self, run: Run, target: float) -> PyTree:
        (most,) = self._schedule.counts
        count = min(FEWEST, most)
        with self._bar() as shown:
            moments = in_steps(run, 0, count, shown)
            while True:
                found = jax.tree.leaves(estimates(count, *moments), is_leaf=_is_estimate)
                error = largest_relative_error(found)
                if error <= target or count == most:
                    return estimates(count, *moments, error <= target)
                needed = count * min((error / target) ** 2, GROWTH)
                more = min(most, max(math.ceil(needed), count + FEWEST // 2))
                moments = merged(count, moments, more - count, in_steps(run, count, more, shown))
                count = more

    def _bar(self) -> Any:
        if not self._progress:
            return contextlib.nullcontext()
        return bar(True, "Monte Carlo", self._schedule.counts[-1], "network")


def _kinds(get: Any) -> Any:
    return get if isinstance(get, str) else names_of(NAMES if get is None else get)


def _is_estimate(x: Any) -> bool:
    return isinstance(x, Estimate)


def _of_estimates(mirror: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
    """What `mirror` does to kernels, to means and standard errors."""

    def mirrored(found: PyTree) -> PyTree:
        leaves, tree = jax.tree.flatten(found, is_leaf=_is_estimate)
        means, errors = (
            jax.tree.leaves(mirror(jax.tree.unflatten(tree, [getattr(e, name) for e in leaves])))
            for name in ("mean", "standard_error")
        )
        pairs = zip(leaves, means, errors, strict=True)
        return jax.tree.unflatten(tree, [replace(old, mean=mean, standard_error=error) for old, mean, error in pairs])

    return mirrored
