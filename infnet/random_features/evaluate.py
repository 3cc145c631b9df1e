"""The features of examples: what is known of each of them exactly, and then the bases of the blocks, in order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import jax
import jax.numpy as jnp

from infnet.activations.pointwise import callable_of
from infnet.computation import Computation
from infnet.context import Context, Weights
from infnet.execute import example_values, pair_moments
from infnet.layout import Layout
from infnet.nodes import Elementwise
from infnet.plan import AskKnown, AskMean, Moments, Request, ask, make_plan, variance
from infnet.random_features.blocks import ONE, Base, Block, Scalar, columns
from infnet.random_features.projections import gaussian_numbers, gaussian_projection, mixed, mixing_numbers
from infnet.random_features.walk import MEAN, Maps, Sizes, Structure, Walk
from infnet.rules import rule

Array = jax.Array
SIDE = (1, 1)


def draws(structure: Structure, sizes: Sizes) -> list[tuple[Callable[..., Any], int, int]]:
    """What is drawn at random, in order: the function that does, from how many columns, and to how many."""
    walk = structure.walk(None, sizes)
    found: list[tuple[Callable[..., Any], int, int]] = []
    for field in structure.fields:
        start, stop = field.channels
        if field.varies_along_channels and stop - start > sizes.known:
            found.append((mixing_numbers, stop - start, sizes.known))
    for node in structure.nodes:
        found += [(mixing_numbers, walk.columns(walk.compressed[b]), walk.width(b)) for b in walk.compressed_at(node)]
        if isinstance(node, Elementwise):
            maps = walk.found[node.operand.index]
            found.append((gaussian_numbers, walk.columns(random_part(maps)), _count(sizes, maps)))
            if maps.t:
                found.append((mixing_numbers, walk.columns(maps.t.values()), sizes.mixed))
    total = walk.columns(walk.output)
    return [*found, (mixing_numbers, total, sizes.limit)] if total > sizes.limit else found


def random_part(maps: Maps) -> list[Block]:
    """The map for S without the mean."""
    return [block for space, block in maps.s.items() if space != MEAN]


def _count(sizes: Sizes, maps: Maps) -> int:
    return max(sizes.sampled, sizes.mixed if maps.t else 0)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The function of (weights, examples, numbers) that computes features.

    Attributes:
        computation: of the kernel.
        structure: of the features.
        sizes: how many there are of each kind.
        normalise: whether each random base is scaled to its exact norm.
    """

    computation: Computation
    structure: Structure
    sizes: Sizes
    normalise: bool

    def __call__(self, weights: Weights, x: Any, numbers: Sequence[Any]) -> dict[str, Any]:
        """A dict of `features`, and what else `Computation.diagonal` returns; `numbers`: see `random_numbers`."""
        names: list[Scalar] = []

        def of_example(weights: Weights, x: Any) -> tuple[list[Array], list[Array], Array]:
            known, scalars, error = self._of_example(weights, x)
            names.extend(scalars)
            return known, list(scalars.values()), error

        known, values, error = jax.vmap(of_example, (None, 0))(weights, x)
        scalars = dict(zip(names, values, strict=True))
        n, dtype = x[0].shape[0], self.computation.dtype
        walk = self.structure.walk(self.computation.context(weights), self.sizes)
        bases: dict[Base, Array] = {ONE: jnp.ones((n, 1), dtype)}
        run = _Run(walk, bases, scalars, known, iter(numbers), self.normalise)
        run.fill()
        features = run.columns(walk.output)
        if features.shape[1] > self.sizes.limit:
            features = run.compressed(features, self.sizes.limit)
        return {"features": features, "error": error.max(initial=0), "finite": jnp.asarray(True)}

    @cached_property
    def _requests(self) -> list[tuple[Scalar, Request | None]]:
        """What is known exactly of one example, by its name; None for what is zero."""
        found: list[tuple[Scalar, Request | None]] = []
        for node in self.structure.nonlinear:
            u, g = node, node.operand
            found += [
                (Scalar("second moment", u.index), variance(u, 1)),
                (Scalar("second moment", g.index), variance(g, 1)),
                (Scalar("mean", u.index), None if u.zero_mean else AskMean(u, 1)),
                (Scalar("mean", g.index), None if g.zero_mean else AskMean(g, 1)),
            ]
            if self.structure.ntk:
                found.append((Scalar("tangent kernel", g.index), ask(g, g, 0, SIDE, Layout.diagonal(()), ntk=True)))
        return found

    @cached_property
    def _plan(self) -> Any:
        known: list[Request] = [AskKnown(f.var, 1, f.sums) for f in self.structure.fields]
        asked = [request for _, request in self._requests if request is not None]
        return make_plan([*asked, *known], partial(rule, self.computation.program.trace))

    def _of_example(self, weights: Weights, x: Any) -> tuple[list[Array], dict[Scalar, Array], Array]:
        """Known values, `(channels,)` each, scalars, and a bound on the relative error of these."""
        context = self.computation.context(weights)
        schedule = self.computation.schedule(self._plan)
        values = example_values(schedule, self.computation.program.trace, context, 1, x)
        found, error = pair_moments(schedule, context, {1: values})
        results = iter(found)
        scalars = {
            name: _number(name, None if request is None else next(results), context.dtype)
            for name, request in self._requests
        }
        fields = self.structure.fields
        read = replace(context, known={(f.var, 1): value for f, value in zip(fields, results, strict=True)})
        known = [read.read(f, 1) for f in fields]
        scalars.update((Scalar("known mean", number), k.mean()) for number, k in enumerate(known))
        for node in self.structure.nonlinear:
            scalars.update(_of_function(context, node, scalars))
        return known, scalars, jnp.zeros((), context.dtype) if error is None else error


def _number(name: Scalar, result: Any, dtype: Any) -> Array:
    if isinstance(result, Moments):
        result = result.t if name.kind == "tangent kernel" else result.s
    return jnp.zeros((), dtype) if result is None else result.reshape(())


def _of_function(context: Context, node: Elementwise, scalars: dict[Scalar, Array]) -> dict[Scalar, Array]:
    """d, d', E phi'^2 and the variance of the argument."""
    index, operand = node.index, node.operand
    mean = scalars[Scalar("mean", operand.index)]
    q = jnp.maximum(scalars[Scalar("second moment", operand.index)] - mean**2, 0)
    given = (q, None if operand.zero_mean else mean)
    activation = context.activation(node)
    slope, gradient = activation.mean_slopes(*given)
    return {
        Scalar("variance", operand.index): q,
        Scalar("slope", index): slope,
        Scalar("gradient", index): gradient,
        Scalar("squared gradient", index): activation.squares(*given)[1],
    }


@dataclass
class _Run:
    """The bases of the blocks; `numbers`: those that are random, in the order of `draws`."""

    walk: Walk
    bases: dict[Base, Array]
    scalars: dict[Scalar, Array]
    known: list[Array]
    numbers: Iterator[Any]
    normalise: bool

    def fill(self) -> None:
        """Compute all bases."""
        for field, values in zip(self.walk.structure.fields, self.known, strict=True):
            if field.varies_along_channels:
                self.bases[Base("known", field)] = self._inputs(values)
        for node in self.walk.structure.nodes:
            for base in self.walk.compressed_at(node):
                self.bases[base] = self.compressed(self.columns(self.walk.compressed[base]), self.walk.width(base))
            if isinstance(node, Elementwise):
                self._nonlinear(node)

    def columns(self, blocks: Iterable[Block]) -> Array:
        """The features of blocks whose bases are known, `(n, columns)`."""
        return columns(blocks, self.bases, self.scalars)

    def compressed(self, x: Array, size: int) -> Array:
        """Fewer columns, or as many, with the same inner products on average."""
        return self._of_norm(mixed(next(self.numbers), x, size), _squares(x))

    def _inputs(self, values: Array) -> Array:
        centred = (values - values.mean(1, keepdims=True)) / math.sqrt(values.shape[1])
        size = self.walk.sizes.known
        return self.compressed(centred, size) if centred.shape[1] > size else centred

    def _nonlinear(self, node: Elementwise) -> None:
        """z and y of `walk`."""
        sizes, maps, index = self.walk.sizes, self.walk.found[node.operand.index], node.index
        argument = self.columns(random_part(maps))
        variance = self._scalar("variance", node.operand.index)
        v = gaussian_projection(next(self.numbers), argument, _count(sizes, maps))
        if self.normalise:
            v = v * _ratio(variance, _squares(argument))
        at = self._scalar("mean", node.operand.index) + v
        values, slopes = jax.jvp(callable_of(node.chain, custom_rules=True), (at,), (jnp.ones_like(at),))
        mean, slope, gradient = (self._scalar(name, index) for name in ("mean", "slope", "gradient"))
        rest = (values - mean - slope * v)[:, : sizes.sampled] / math.sqrt(sizes.sampled)
        exact = self._scalar("second moment", index) - mean**2 - slope**2 * variance
        self.bases[Base("sampled", index)] = self._of_norm(rest, exact)
        if maps.t:
            y = mixed(next(self.numbers), self.columns(maps.t.values()), sizes.mixed) * (
                slopes[:, : sizes.mixed] - gradient
            )
            left = self._scalar("squared gradient", index) - gradient**2
            self.bases[Base("mixed", index)] = self._of_norm(
                y, self._scalar("tangent kernel", node.operand.index) * left
            )

    def _scalar(self, kind: str, which: int) -> Array:
        return self.scalars[Scalar(kind, which)][:, None]

    def _of_norm(self, x: Array, squares: Array) -> Array:
        return x * _ratio(squares, _squares(x)) if self.normalise else x


def _squares(x: Array) -> Array:
    return jnp.sum(x * x, axis=1, keepdims=True)


def _ratio(wanted: Array, found: Array) -> Array:
    """sqrt(wanted / found), 0 where either is; a NaN stays one."""
    positive = ~((wanted <= 0) | (found <= 0))
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, wanted / jnp.where(positive, found, 1), 1)), 0)
