"""The functions of (weights, examples) that a kernel function compiles: a matrix of pairs, or each example with itself.

They return a dict: the kernels asked for; `error`, the largest bound on the relative error that a step reported; and
`finite`, whether all is finite that can be (a NaN in an example is not our doing).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp

from infnet.activations import Activation
from infnet.arguments import NAMES
from infnet.execute import Context, Values, Weights, example_values, pair_moments
from infnet.plan import Ask, Moments, Plan, make_plan
from infnet.program import Output, Program
from infnet.rules import rule
from infnet.tiling import matrix, symmetric_matrix, tile_sizes

Arrays = dict[str, jax.Array]
Examples = Sequence[jax.Array]


@dataclass(frozen=True)
class Computation:
    """A program and how its kernels are computed.

    Attributes:
        program: of one example.
        ntk_units: whether gradients are with respect to weights written as std * theta.
        dtype: in which it is computed.
        activations: what stands in for the activation of some nodes (see `Context`).
    """

    program: Program
    ntk_units: bool
    dtype: Any
    activations: Mapping[int, Activation] = field(default_factory=dict)

    def plan(self, names: Sequence[str], side: tuple[int, int]) -> Plan:
        """The plan for the kernels in `names`, of examples on these sides."""
        output = self.program.output
        return make_plan([Ask(s.node, s.node, 0, side, output.layout, "ntk" in names) for s in output.segments], rule)

    def context(self, weights: Weights) -> Context:
        """What the steps of a plan read."""
        return Context(weights, self.ntk_units, self.dtype, self.activations)

    def matrix(self, names: Sequence[str], *, symmetric: bool, sharded: bool) -> Callable[..., Arrays]:
        """The function of (weights, x1, x2) that computes everything in `names`.

        Args:
            names: of "nngp", "ntk", "cov1" and "cov2".
            symmetric: x2 is x1; every unordered pair is computed once.
            sharded: examples may be spread over devices, so every pair is computed where its row is.
        """
        wanted = [n for n in names if n in NAMES]
        plan = self.plan(wanted, (1, 2))
        own = jax.vmap(self._own(wanted), (None, 0))

        def of_pairs(weights: Weights, x1: Examples, x2: Examples) -> Arrays:
            context = self.context(weights)

            def of_example(side: int) -> Callable[[Examples], Values]:
                return jax.vmap(lambda x: example_values(plan, self.program.trace, context, side, x))

            def of_pair(one: Values, two: Values) -> Arrays:
                return self._outputs(*pair_moments(plan, context, {1: one, 2: two}), wanted)

            def block(rows: Any, columns: Any) -> Arrays:
                return jax.vmap(jax.vmap(of_pair, (None, 0)), (0, None))(rows, columns)

            rows, columns = of_example(1)(x1), of_example(2)(x2)
            mirrored = symmetric and not sharded
            devices = jax.device_count() if sharded else 1
            tile = tile_sizes(plan, x1[0].shape[0], x2[0].shape[0], mirrored, devices)
            if mirrored:
                return symmetric_matrix(lambda r, c: block(r[0], c[1]), (rows, columns), tile[0])
            return matrix(block, rows, columns, tile)

        def kernels(weights: Weights, x1: Examples, x2: Examples) -> Arrays:
            diagonal = own(weights, x1) if symmetric or "cov1" in names else {}
            values = of_pairs(weights, x1, x2)
            if symmetric:
                values.update({n: _with_diagonal(values[n], diagonal[n], sharded) for n in wanted})
            values["error"] = self._worst(values)
            if "cov1" in names:
                values["cov1"] = diagonal["nngp"]
                values["cov2"] = diagonal["nngp"] if symmetric else own(weights, x2)["nngp"]
            return {**values, "finite": _all_finite(values) | ~_all_finite([*x1, *x2])}

        return kernels

    def diagonal(self, names: Sequence[str]) -> Callable[..., Arrays]:
        """The function of (weights, x) that computes the kernels of each example with itself."""
        own = jax.vmap(self._own(names), (None, 0))

        def kernels(weights: Weights, x: Examples) -> Arrays:
            values = own(weights, x)
            values["error"] = self._worst(values)
            return {**values, "finite": _all_finite(values) | ~_all_finite(x)}

        return kernels

    def _worst(self, values: Arrays) -> jax.Array:
        """The largest error bound; an example that is NaN has none."""
        errors = values.get("error", jnp.zeros((), self.dtype))
        return jnp.where(jnp.isnan(errors), 0, errors).max(initial=0)

    def _own(self, names: Sequence[str]) -> Callable[..., Arrays]:
        plan = self.plan(names, (1, 1))

        def kernels(weights: Weights, x: Examples) -> Arrays:
            context = self.context(weights)
            values = example_values(plan, self.program.trace, context, 1, x)
            return self._outputs(*pair_moments(plan, context, {1: values}), names)

        return kernels

    def _outputs(self, moments: Sequence[Moments], error: jax.Array | None, names: Sequence[str]) -> Arrays:
        """The kernels of the output, averaged over its segments, with positions in natural order."""
        output = self.program.output
        blocks = {"nngp": [m.s for m in moments], "ntk": [m.t for m in moments]}
        kept = [k for k in range(len(output.layout.left)) if k not in output.averaged]
        order = [axis for k in kept for axis in (2 * k + 1, 2 * k)]  # the position of x1 first
        channels = [axis for k in output.averaged for axis in (2 * k, 2 * k + 1)]

        def in_order(mean: jax.Array) -> jax.Array:
            return jnp.transpose(mean, [*order, *channels]).mean(range(len(order), mean.ndim))

        kernels = {name: in_order(_mean_over_segments(output, blocks[name], self.dtype)) for name in names}
        return kernels if error is None else {**kernels, "error": error}


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


def _mean_over_segments(output: Output, blocks: Sequence[jax.Array | None], dtype: Any) -> jax.Array:
    if len(blocks) == 1 and blocks[0] is not None:
        return blocks[0]
    mean, total = jnp.zeros(output.layout.shape, dtype), sum(s.width for s in output.segments)
    for segment, block in zip(output.segments, blocks, strict=True):
        mean = mean if block is None else mean + (segment.width / total) * block
    return mean
