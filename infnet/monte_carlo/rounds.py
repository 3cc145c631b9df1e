"""Samples in rounds: on one device or shared by several, all examples at once or in tiles."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from infnet.arguments import example_args
from infnet.batching.batched import BatchedKernelFn, local_mesh
from infnet.batching.blocks import Blocks, as_arrays, calls
from infnet.empirical.function import EmpiricalKernelFn
from infnet.monte_carlo.moments import Moments, merged, moments_of

PyTree = Any
Run = Callable[[int, int], Moments]
# A bar that moves about four times a second.
SECONDS = 0.25


class Sampler:
    """The moments of kernels over a round of random networks, as a function of examples: what is compiled, and kept."""

    def __init__(self, init_fn: Callable[..., PyTree], finite: EmpiricalKernelFn):
        """Of the networks with the parameters `init_fn(key, *inputs)`."""
        self._init_fn, self._finite = init_fn, finite
        self._compiled = jax.jit(self._moments, static_argnums=2)

    def __call__(self, x1: PyTree, x2: PyTree, kinds: Any, key: jax.Array, start: Any, stop: Any, step: Any) -> Moments:
        """Of the networks with these numbers, as of `moments_of`; `kinds` is as `get` of an empirical kernel."""
        found: Moments = self._compiled(x1, x2, kinds, key, start, stop, step)
        return found

    def blocks(self, x1: PyTree, x2: PyTree, kinds: Any, key: jax.Array, *numbers: Any) -> Blocks:
        """The same in blocks of examples; see `infnet.batch`. The networks are the same for all blocks.

        Raises:
            BatchAxisError: the examples of a batch are not proved to be independent of each other.
        """
        one, two, mirror = self.proved(x1, x2, key)
        shared, block, own_block = calls(self, kinds, key, *map(np.asarray, numbers))

        def of_moments(moments: Moments) -> Moments:
            return Moments(*map(mirror, moments))

        return Blocks(shared, one, two, block, *((own_block, of_moments) if x2 is None else (None, None)))

    def proved(self, x1: PyTree, x2: PyTree, key: jax.Array) -> tuple[PyTree, PyTree, Callable[[PyTree], PyTree]]:
        """Both sets of examples, and what exchanges them in a kernel; raises if examples depend on each other."""
        one = as_arrays(x1, "x1")
        mirrors = []

        def prove(key: jax.Array) -> jax.Array:
            mirrors.append(self._finite.mirror_of({}, one, self._init_fn(key, *example_args(one))))
            return key

        jax.eval_shape(prove, key)
        return one, one if x2 is None else as_arrays(x2, "x2"), mirrors[0]

    def _moments(self, x1: PyTree, x2: PyTree, kinds: Any, key: jax.Array, start: Any, stop: Any, step: Any) -> Moments:
        def sample(number: jax.Array) -> PyTree:
            params = self._init_fn(jax.random.fold_in(key, number), *example_args(x1))
            return self._finite(x1, x2, kinds, params)

        return moments_of(sample, start, stop, step)


def run_of(
    sampler: Sampler, x1: PyTree, x2: PyTree, kinds: Any, key: jax.Array, tile_options: Mapping[str, Any]
) -> Run:
    """A function `(start, stop) -> Moments` of the networks with these numbers.

    Args:
        sampler: of the moments.
        x1, x2, kinds, key: its arguments.
        tile_options: of `infnet.batch`. If there is none but `device_count`, the devices share the networks, and not
            the examples of a tile.
    """
    if tile_options.keys() - {"device_count"}:
        batched = BatchedKernelFn(sampler, **tile_options)
        return lambda start, stop: batched(x1, x2, kinds, key, start, stop, 1)
    devices = list(local_mesh(tile_options.get("device_count", 1)).devices.flat)
    if len(devices) == 1:
        return lambda start, stop: sampler(x1, x2, kinds, key, start, stop, 1)
    arguments = [jax.device_put((x1, x2, key), device) for device in devices]

    def shared(start: int, stop: int) -> Moments:
        # All are under way before one is waited for.
        parts = [
            sampler(own_x1, own_x2, kinds, own_key, start + k, stop, len(devices))
            for k, (own_x1, own_x2, own_key) in enumerate(arguments)
        ]
        counts = [len(range(start + k, stop, len(devices))) for k in range(len(devices))]
        return merged_rounds(zip(counts, jax.device_put(parts, devices[0]), strict=True))[1]

    return shared


def merged_rounds(rounds: Iterable[tuple[int, Moments]]) -> tuple[int, Moments]:
    """The number of samples of all rounds, `(number, moments)` each, and their moments; there is a sample."""
    total, together = 0, None
    for count, moments in rounds:
        if count:
            together = moments if together is None else merged(total, together, count, moments)
            total += count
    assert together is not None
    return total, together


def in_steps(run: Run, start: int, stop: int, bar: Any) -> Moments:
    """`run(start, stop)`, in steps between which a progress bar moves; all at once if there is none.

    Args:
        run: what is run.
        start, stop: its arguments.
        bar: has `update(n)`; or None.
    """
    if bar is None:
        return run(start, stop)

    def rounds() -> Iterator[tuple[int, Moments]]:
        first, size = start, 1
        while first < stop:
            last, began = min(stop, first + size), time.perf_counter()
            moments = jax.block_until_ready(run(first, last))
            yield last - first, moments
            bar.update(last - first)
            size = 2 * size if time.perf_counter() - began < SECONDS else size
            first = last

    return merged_rounds(rounds())[1]
