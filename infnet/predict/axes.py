"""Outputs and kernels with axes as the vectors and matrices of linear algebra: Neural Tangents' convention.

Targets have the examples on axis 0 and any axes after it, `(n, o, p, ...)`. Their kernel has every axis twice, in
natural order, `(n1, n2, o, o', p, p', ...)`, except for

    trace_axes      which it lacks: outputs at different places along them are independent, and share one kernel;
    diagonal_axes   which appear once: they are independent, and each has a kernel of its own.

So a kernel is one matrix for every place along the diagonal axes, `(d, n1 o p ..., n2 o' p' ...)`, and outputs are as
many blocks of columns, `(d, n o p ..., t)`, with a column for every place along the traced axes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.arguments import as_axes, axis_numbers
from infnet.errors import InputError

Array = jax.Array
Shape = tuple[int, ...]


@dataclass(frozen=True)
class OutputAxes:
    """What becomes of each axis of the outputs, the examples being axis 0.

    Attributes:
        sizes: of the axes after the examples.
        traced, diagonal: the numbers of the axes of each kind, in order; all others appear twice in a kernel.
    """

    sizes: Shape
    traced: Shape
    diagonal: Shape

    @classmethod
    def read(cls, shape: Shape, trace_axes: Any = (-1,), diagonal_axes: Any = ()) -> OutputAxes:
        """From what users pass.

        Args:
            shape: of the outputs, `(n, o, p, ...)`.
            trace_axes, diagonal_axes: an axis of the outputs or several, counted from the end if negative. Outputs
                `(n,)` have no axes but the examples, and (-1,) then means ().

        Raises:
            InputError: there is no such axis, it is that of the examples, or it is of both kinds.
        """
        rank = len(shape)
        if rank == 0:
            raise InputError("outputs must have the examples on axis 0, (n, ...); got a scalar")
        if rank == 1 and as_axes(trace_axes) == (-1,):
            trace_axes = ()
        traced, diagonal = _numbers(trace_axes, rank, "trace_axes"), _numbers(diagonal_axes, rank, "diagonal_axes")
        if both := sorted({*traced} & {*diagonal}):
            raise InputError(f"axes {both} of the outputs are in trace_axes and in diagonal_axes: choose one")
        return cls(tuple(shape[1:]), traced, diagonal)

    @property
    def free(self) -> Shape:
        """The axes that appear twice in a kernel, without the examples."""
        return tuple(k for k in range(1, 1 + len(self.sizes)) if k not in (*self.traced, *self.diagonal))

    def shape(self, n: int) -> Shape:
        """Of the outputs of n examples."""
        return (n, *self.sizes)

    def kernel_shape(self, n1: int, n2: int) -> Shape:
        """Of a kernel in natural order."""
        pairs = [self._sizes([axis] if axis in self.diagonal else [axis, axis]) for axis in self._of_kernel]
        return (n1, n2, *itertools.chain.from_iterable(pairs))

    def matrix(self, kernel: Array, label: str = "the kernel") -> Array:
        """A kernel `(n1, n2, o, o', ...)` as matrices `(d, n1 o ..., n2 o' ...)`.

        Raises:
            InputError: its axes are not those of the outputs; the error says which `trace_axes` would fit.
        """
        self._check(tuple(kernel.shape), label)
        n1, n2 = kernel.shape[:2]
        ordered = kernel.transpose(self._blocks_first)
        return ordered.reshape(self._product(self.diagonal), *(n * self._product(self.free) for n in (n1, n2)))

    def kernel(self, matrix: Array) -> Array:
        """The inverse of `matrix`, which may have axes before these, `(..., d, n1 o ..., n2 o' ...)`: they stay."""
        lead, (n1, n2) = matrix.shape[:-3], (size // max(1, self._product(self.free)) for size in matrix.shape[-2:])
        sides = (size for n in (n1, n2) for size in (n, *self._sizes(self.free)))
        split = matrix.reshape(*lead, *self._sizes(self.diagonal), *sides)
        return split.transpose(_behind(len(lead), np.argsort(self._blocks_first)))

    def columns(self, outputs: Array) -> Array:
        """Outputs `(..., n, o, ...)` as `(..., d, n o ..., t)`."""
        lead = outputs.shape[: outputs.ndim - 1 - len(self.sizes)]
        ordered = outputs.transpose(_behind(len(lead), self._columns_last))
        rows = outputs.shape[len(lead)] * self._product(self.free)
        return ordered.reshape(*lead, self._product(self.diagonal), rows, self._product(self.traced))

    def outputs(self, columns: Array) -> Array:
        """The inverse of `columns`."""
        lead, n = columns.shape[:-3], columns.shape[-2] // max(1, self._product(self.free))
        sizes = (*self._sizes(self.diagonal), n, *self._sizes(self.free), *self._sizes(self.traced))
        return columns.reshape(*lead, *sizes).transpose(_behind(len(lead), np.argsort(self._columns_last)))

    @property
    def of_variances(self) -> OutputAxes:
        """The axes of an output's variance, which does not depend on the place along traced axes."""
        kept = [axis for axis in range(1, 1 + len(self.sizes)) if axis not in self.traced]
        return OutputAxes(self._sizes(kept), (), tuple(kept.index(axis) + 1 for axis in self.diagonal))

    def variances(self, diagonals: Array) -> Array:
        """The diagonals of matrices, `(..., d, n o ...)`, as variances `(..., n, o, ...)` without the traced axes."""
        return self.of_variances.outputs(diagonals[..., None])

    def own_variances(self, kernels: Array) -> Array:
        """The variances `(n, o, ...)` in kernels of each example with itself, `(n, o, o', ...)`."""
        once = [0, *self._of_kernel]
        twice = [axis for axis in once for _ in range(1 + (axis in self.free))]
        return jnp.einsum(kernels, twice, once)

    @property
    def _of_kernel(self) -> Shape:
        return tuple(axis for axis in range(1, 1 + len(self.sizes)) if axis not in self.traced)

    @property
    def _blocks_first(self) -> list[int]:
        """Where the axes `(diagonal, side 1, side 2)` stand in a kernel in natural order."""
        natural = [(0, 1), (0, 2)]
        for axis in self._of_kernel:
            natural += [(axis, 0)] if axis in self.diagonal else [(axis, 1), (axis, 2)]
        blocks = [
            *((axis, 0) for axis in self.diagonal),
            *((axis, side) for side in (1, 2) for axis in (0, *self.free)),
        ]
        return [natural.index(label) for label in blocks]

    @property
    def _columns_last(self) -> list[int]:
        return [*self.diagonal, 0, *self.free, *self.traced]

    def _sizes(self, axes: Sequence[int]) -> Shape:
        return tuple(self.sizes[axis - 1] for axis in axes)

    def _product(self, axes: Sequence[int]) -> int:
        return math.prod(self._sizes(axes))

    def _check(self, found: Shape, label: str) -> None:
        expected = self.kernel_shape(*found[:2]) if len(found) >= 2 else None
        if found == expected:
            return
        twice, once = (", ".join(map(str, axes)) or "none" for axes in (self.free, self.diagonal))
        natural = ("n1", "n2", *map(str, self.kernel_shape(0, 0)[2:]))
        raise InputError(
            f"{label} has shape {found}, but ({', '.join(natural)}) was expected: the outputs have shape "
            f"{('n', *self.sizes)}, and with trace_axes={self.traced} and diagonal_axes={self.diagonal} their axes "
            f"{twice} appear twice in a kernel, {once} once. {self._remedy(found)}".replace("'n'", "n")
        )

    def _remedy(self, found: Shape) -> str:
        axes = [axis for axis in range(1, 1 + len(self.sizes)) if axis not in self.diagonal]
        choices = itertools.chain.from_iterable(itertools.combinations(axes, k) for k in range(len(axes) + 1))
        fitting = [c for c in choices if OutputAxes(self.sizes, c, self.diagonal).kernel_shape(0, 0)[2:] == found[2:]]
        if len(found) >= 2 and fitting:
            exact = " (empirical kernels are exact by default, and have all axes twice)" if not fitting[0] else ""
            return f"trace_axes={fitting[0]} would fit{exact}."
        return (
            "No trace_axes fit: compute the kernel with the trace_axes of these outputs, or give targets and initial "
            "outputs the axes of the kernel, one for each pair."
        )


def _behind(n_lead: int, order: Sequence[int] | np.ndarray) -> list[int]:
    return [*range(n_lead), *(n_lead + int(k) for k in order)]


def _numbers(axes: Any, rank: int, argument: str) -> Shape:
    numbers = axis_numbers(axes, rank, argument, "the array of outputs")
    if 0 in numbers:
        raise InputError(f"{argument}={axes!r} holds axis 0 of the outputs, that of the examples")
    return numbers
