"""The functions of (weights, examples) that a kernel function compiles: a matrix of pairs, or each example with itself.

They return a dict: the kernels asked for; `error`, the largest bound on the relative error that a step reported; and
`finite`, whether all is finite that can be (a NaN in an example is not our doing).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from operator import itemgetter
from typing import Any

import jax
import jax.numpy as jnp

from infnet.activations import Activation
from infnet.arguments import BY_PARAM, NAMES
from infnet.context import Context, InputMoments, Weights
from infnet.errors import UnsupportedError
from infnet.execute import Given, example_values, pair_moments
from infnet.layout import to_sides
from infnet.plan import Ask, AskMean, Plan, Request, make_plan
from infnet.program import OutputPair, Program
from infnet.results import Values
from infnet.rules import rule
from infnet.sampling.points import Replicate
from infnet.sampling.step import rule_or_sample
from infnet.schedule import Schedule
from infnet.tiling import examples_at_once, matrix, mirrored, symmetric_matrix, tile_sizes

Arrays = dict[str, Any]  # a list of arrays for each kernel, one for each pair of outputs
Examples = Sequence[jax.Array]


@dataclass(frozen=True)
class Computation:
    """A program and how its kernels are computed.

    Attributes:
        program: of one example.
        ntk_units: whether gradients are with respect to weights written as std * theta.
        dtype: in which it is computed.
        activations: what stands in for the activation of some nodes (see `Context`).
        replicate: at which points moments without a closed form are sampled; None if they are refused.
        too_slow: the nodes whose series do not converge at the variances of the examples, and which are sampled.
    """

    program: Program
    ntk_units: bool
    dtype: Any
    activations: Mapping[int, Activation] = field(default_factory=dict)
    replicate: Replicate | None = None
    too_slow: Mapping[int, UnsupportedError] = field(default_factory=dict)

    def plan(self, names: Sequence[str], side: tuple[int, int]) -> Plan:
        """The plan for the kernels in `names`, of examples on these sides."""
        asks: list[Request] = []
        for pair in self.program.outputs:
            for left, right, _ in pair.pieces:
                shift = right.start - left.start
                asks.append(Ask(left.node, right.node, shift, side, pair.layout, "ntk" in names))
        if "mean" in names:
            asks.extend(AskMean(piece.left.node, 1) for pair in self.program.outputs for piece in pair.pieces)
        trace = self.program.trace
        return make_plan(
            asks, partial(rule_or_sample, trace, self.too_slow) if self.replicate else partial(rule, trace)
        )

    @property
    def variant(self) -> Hashable:
        """What of it depends on the examples at hand."""
        return tuple(self.activations.values()), frozenset(self.too_slow)

    def schedule(self, plan: Plan) -> Schedule:
        """The order in which a plan is executed, with loops for repeated layers."""
        return Schedule(plan, self.activations)

    def context(self, weights: Weights) -> Context:
        """What the steps of a plan read."""
        return Context(weights, self.ntk_units, self.dtype, self.activations, replicate=self.replicate)

    def matrix(self, names: Sequence[str], *, symmetric: bool, sharded: bool) -> Callable[..., Arrays]:
        """The function of (weights, x1, x2) that computes everything in `names`.

        Args:
            names: of "nngp", "ntk", "cov1", "cov2", "mean1" and "mean2".
            symmetric: x2 is x1; every unordered pair is computed once.
            sharded: examples may be spread over devices, so every pair is computed where its row is.
        """
        wanted = [n for n in names if n in NAMES]
        pairs = _Pairs(self, wanted)
        own = self._own([*wanted, *self._means()] if "mean1" in names else wanted, sharded)

        def of_pairs(weights: Weights, x1: Examples, x2: Examples) -> Arrays:
            rows, columns = pairs.of_examples(weights, 1, x1), pairs.of_examples(weights, 2, x2)
            devices = jax.device_count() if sharded else 1
            if symmetric and not sharded and self.mirrored:
                return pairs.symmetric(weights, rows, columns)
            return pairs.matrix(weights, rows, columns, devices)

        def kernels(weights: Weights, x1: Examples, x2: Examples) -> Arrays:
            one = own(weights, x1) if symmetric or "cov1" in names else {}
            values = of_pairs(weights, x1, x2)
            if symmetric and self.replicate and self.mirrored:  # an estimate depends on which example comes first
                values.update(
                    {n: [(k + m) / 2 for k, m in zip(values[n], mirrored(values[n]), strict=True)] for n in wanted}
                )
            if symmetric:
                values.update({n: _with_diagonals(values[n], one[n], sharded) for n in wanted})
            values["error"] = self._worst(values)
            if "cov1" in names:
                values.update(self.in_kernel(one, one if symmetric else own(weights, x2)))
            return {**values, "finite": _all_finite(values) | ~_all_finite([*x1, *x2])}

        return kernels

    def staged(self, names: Sequence[str]) -> tuple[Callable[..., Any], Callable[..., Any], Callable[..., Any]]:
        """`matrix` in two stages: what is computed of each example by itself, and then of blocks of pairs.

        Args:
            names: "nngp", "ntk" or both.

        Returns:
            `of_examples(weights, x, sides)`, where the sides are (1,), (2,), or both if x2 is x1;
            `block(weights, rows, columns)`, of what it returned, and `own_block(weights, rows)` of examples with
            themselves, which return the kernels and as notes `error`, the largest bound, and `failed`, whether a kernel
            of finite examples is not finite.
        """
        pairs, own = _Pairs(self, names), self._own(names)

        def of_examples(weights: Weights, x: Examples, sides: tuple[int, ...]) -> Any:
            found: dict[str, Any] = {f"side{side}": pairs.of_examples(weights, side, x) for side in sides}
            if len(sides) > 1:
                found["own"] = own(weights, x)
            return {**found, "finite": jax.vmap(lambda example: _all_finite([*example]))(x)}

        def block(weights: Weights, rows: Any, columns: Any) -> tuple[Arrays, Arrays]:
            values = pairs.matrix(weights, rows["side1"], columns["side2"])
            return noted(values, rows, columns)

        def own_block(weights: Weights, rows: Any) -> tuple[Arrays, Arrays]:
            values = pairs.matrix(weights, rows["side1"], rows["side2"])
            values.update({n: _with_diagonals(values[n], rows["own"][n], sharded=False) for n in names})
            return noted(values, rows, rows)

        def noted(values: Arrays, rows: Any, columns: Any) -> tuple[Arrays, Arrays]:
            kernels = {n: values[n] for n in names}
            finite = rows["finite"][:, None] & columns["finite"]
            wrong = [(~jnp.isfinite(k).all(range(2, k.ndim)) & finite).any() for k in jax.tree.leaves(kernels)]
            return kernels, {"error": self._worst(values), "failed": jnp.stack(wrong).any()}

        return of_examples, block, own_block

    def bytes_of_pair(self, names: Sequence[str]) -> int:
        """The size of the kernels of one pair of examples."""
        matrices = sum(self.program.trace.n_params if n == BY_PARAM else int(n in NAMES) for n in names)
        numbers = sum(math.prod(pair.positions) for pair in self.program.outputs)
        return matrices * numbers * jnp.dtype(self.dtype).itemsize

    @property
    def mirrored(self) -> bool:
        """Whether the kernels of x2 and x1 are those of x1 and x2 with every axis exchanged with its partner."""
        return not any(pair.is_cross for pair in self.program.outputs)

    def composed(self, names: Sequence[str], *, symmetric: bool) -> Callable[..., Arrays]:
        """The function of (weights, x1, x2, pairs) that computes everything in `names` if the input is random itself.

        Its arguments are `InputMoments`: of the examples, with leading axes n1 and n2, and of all pairs, (n1, n2).
        `symmetric`: x2 is x1.
        """
        wanted = [n for n in names if n in NAMES]
        plan = self.plan(wanted, (1, 2))
        schedule = self.schedule(plan)
        own = self._own([*(wanted if symmetric else ["nngp"]), *self._means()])

        def kernels(weights: Weights, x1: InputMoments, x2: InputMoments, pairs: InputMoments) -> Arrays:
            context = self.context(weights)

            def of_example(side: int) -> Callable[[InputMoments], Values]:
                return jax.vmap(lambda x: example_values(schedule, self.program.trace, context, side, x))

            def of_pair(one: Values, two: Values, pair: InputMoments) -> Arrays:
                return self.outputs(*pair_moments(schedule, context, {1: one, 2: two}, pair), wanted)

            columns = of_example(2)(x2)

            def row(given: tuple[Values, InputMoments]) -> Arrays:
                return jax.vmap(of_pair, (None, 0, 0))(given[0], columns, given[1])

            n1, n2 = pairs.s.shape[:2]
            rows, _ = tile_sizes(plan, n1, n2, False)
            every = (of_example(1)(x1), pairs)
            values = jax.vmap(row)(every) if rows >= n1 else jax.lax.map(row, every, batch_size=rows)
            one = own(weights, x1) if symmetric or "cov1" in names else {}
            if symmetric:
                values.update({n: _with_diagonals(values[n], one[n], sharded=False) for n in wanted})
            values["error"] = self._worst(values)
            if "cov1" in names:
                values.update(self.in_kernel(one, one if symmetric else own(weights, x2)))
            return {**values, "finite": _all_finite(values) | ~_all_finite([x1, x2, pairs])}

        return kernels

    def by_param(self, function: Callable[..., Arrays]) -> Callable[..., Arrays]:
        """A function of (weights, *inputs) that computes the NTK, and here also the share of every parameter in it.

        The NTK is linear in the learning rates. So a share is what it is when one parameter alone is trained.
        """

        def kernels(weights: Weights, *inputs: Any) -> Arrays:
            rates = jnp.stack([jnp.asarray(rate, self.dtype) for rate in weights.learning_rate])
            some = jnp.concatenate([rates[None], jnp.diag(rates)])  # all of them, and each alone
            found = jax.vmap(lambda own: function(replace(weights, learning_rate=list(own)), *inputs))(some)
            values: Arrays = jax.tree.map(itemgetter(0), found)
            return {**values, BY_PARAM: [list(ntk[1:]) for ntk in found["ntk"]], "finite": found["finite"].all()}

        return kernels

    def of_single_examples(self) -> Callable[..., Arrays]:
        """The function of (weights, x) that computes "nngp" of each example with itself, and "mean" if it has one."""
        return self._own(["nngp", *self._means()])

    def _means(self) -> list[str]:
        """["mean"] if the means of the outputs are not all zero, and have rules."""
        laws = [pair.law for pair in self.program.outputs]
        if all(law is None or law.zero_mean for law in laws):
            return []
        with suppress(UnsupportedError):
            self.plan(["mean"], (1, 1))
            return ["mean"]
        return []

    def in_kernel(self, one: Arrays, two: Arrays) -> Arrays:
        """What is computed of single examples, by its names in a `Kernel`."""
        nothing = [None] * len(self.program.outputs)
        found = {f"cov{k}": own["nngp"] for k, own in ((1, one), (2, two))}
        return {**found, **{f"mean{k}": own.get("mean", nothing) for k, own in ((1, one), (2, two))}}

    def diagonal(self, names: Sequence[str]) -> Callable[..., Arrays]:
        """The function of (weights, x) that computes the kernels of each example with itself."""
        own = self._own(names)

        def kernels(weights: Weights, x: Examples) -> Arrays:
            values = own(weights, x)
            values["error"] = self._worst(values)
            return {**values, "finite": _all_finite(values) | ~_all_finite(x)}

        return kernels

    def _worst(self, values: Arrays) -> jax.Array:
        """The largest error bound; an example that is NaN has none."""
        errors = values.get("error", jnp.zeros((), self.dtype))
        return jnp.where(jnp.isnan(errors), 0, errors).max(initial=0)

    def _own(self, names: Sequence[str], sharded: bool = False) -> Callable[..., Arrays]:
        """The function of (weights, examples) that computes the moments of each example with itself."""
        plan = self.plan(names, (1, 1))
        schedule, at_once = self.schedule(plan), examples_at_once(plan)

        def moments(weights: Weights, x: Given) -> Arrays:
            context = self.context(weights)
            values = example_values(schedule, self.program.trace, context, 1, x)
            return self.outputs(*pair_moments(schedule, context, {1: values}), names)

        def of_all(weights: Weights, x: Given) -> Arrays:
            if sharded or len(jax.tree.leaves(x)[0]) <= at_once:
                return jax.vmap(moments, (None, 0))(weights, x)
            return jax.lax.map(partial(moments, weights), x, batch_size=at_once)

        return of_all

    def outputs(self, found: Sequence[Any], error: jax.Array | None, names: Sequence[str]) -> Arrays:
        """For each name the kernels (or means) of all pairs of outputs, with positions in natural order."""
        rest = iter(found)
        values: Arrays = {name: [] for name in names}
        for pair in self.program.outputs:
            own = list(itertools.islice(rest, len(pair.pieces)))
            for k, name in enumerate(NAMES):
                if name in names:
                    blocks = [None if moments is None else moments[k] for moments in own]
                    block = _mean_over_channels(pair, blocks, pair.layout.shape, self.dtype)
                    values[name].append(_in_order(pair, block))
        for pair in self.program.outputs if "mean" in names else ():
            own = list(itertools.islice(rest, len(pair.pieces)))
            mean = _mean_over_channels(pair, own, pair.one.sizes, self.dtype)
            values["mean"].append(mean.mean(pair.one.averaged))
        return values if error is None else {**values, "error": error}


class _Pairs:
    """Kernels of pairs of examples, from what is known of each."""

    def __init__(self, computation: Computation, names: Sequence[str]):
        self._computation, self._names = computation, names
        self._plan = computation.plan(names, (1, 2))
        self._schedule = computation.schedule(self._plan)

    def of_examples(self, weights: Weights, side: int, x: Examples) -> Values:
        """What is known of examples of x1 (side 1) or x2 (side 2), with their axis first."""
        context, trace = self._computation.context(weights), self._computation.program.trace
        return jax.vmap(lambda example: example_values(self._schedule, trace, context, side, example))(x)

    def matrix(self, weights: Weights, rows: Values, columns: Values, devices: int = 1) -> Arrays:
        """The kernels of all pairs; rows may be spread over devices."""
        n1, n2 = (len(jax.tree.leaves(values)[0]) for values in (rows, columns))
        tile = tile_sizes(self._plan, n1, n2, False, devices)
        return matrix(partial(self._block, weights), rows, columns, tile)

    def symmetric(self, weights: Weights, rows: Values, columns: Values) -> Arrays:
        """The kernels of all pairs of the same examples, every unordered pair of tiles once."""
        n = len(jax.tree.leaves(rows)[0])
        tile, _ = tile_sizes(self._plan, n, n, True)
        return symmetric_matrix(lambda r, c: self._block(weights, r[0], c[1]), (rows, columns), tile)

    def _block(self, weights: Weights, rows: Values, columns: Values) -> Arrays:
        context = self._computation.context(weights)

        def of_pair(one: Values, two: Values) -> Arrays:
            return self._computation.outputs(*pair_moments(self._schedule, context, {1: one, 2: two}), self._names)

        return jax.vmap(jax.vmap(of_pair, (None, 0)), (0, None))(rows, columns)


def _in_order(pair: OutputPair, block: jax.Array) -> jax.Array:
    """A block with the positions of both outputs: of one with itself side by side, of two one after the other."""
    if pair.is_cross:
        return to_sides(pair.layout, block)
    averaged = pair.one.averaged
    kept = [k for k in range(len(pair.one.sizes)) if k not in averaged]
    order = [axis for k in kept for axis in (2 * k + 1, 2 * k)]  # the position of x1 first
    channels = [axis for k in averaged for axis in (2 * k, 2 * k + 1)]
    return jnp.transpose(block, [*order, *channels]).mean(range(len(order), block.ndim))


def _with_diagonals(kernels: Sequence[jax.Array], diagonals: Sequence[jax.Array], sharded: bool) -> list[jax.Array]:
    return [_with_diagonal(k, d, sharded) for k, d in zip(kernels, diagonals, strict=True)]


def _with_diagonal(kernel: jax.Array, diagonal: jax.Array, sharded: bool) -> jax.Array:
    """An example with itself has rho = 1 exactly, which a matrix product rounds."""
    index = jnp.arange(len(diagonal))
    if not sharded:
        return kernel.at[index, index].set(diagonal)
    # A scatter into a sharded matrix would gather it.
    same = jnp.expand_dims(index[:, None] == index, range(2, kernel.ndim))
    return jnp.where(same, diagonal[:, None], kernel)


def _all_finite(arrays: Any) -> jax.Array:
    found = [jnp.isfinite(x).all() for x in jax.tree.leaves(arrays) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.stack(found).all() if found else jnp.asarray(True)


def _mean_over_channels(
    pair: OutputPair, blocks: Sequence[jax.Array | None], shape: tuple[int, ...], dtype: Any
) -> jax.Array:
    if len(blocks) == 1 and blocks[0] is not None:
        return blocks[0]
    mean = jnp.zeros(shape, dtype)
    for piece, block in zip(pair.pieces, blocks, strict=True):
        mean = mean if block is None else mean + piece.share * block
    return mean
