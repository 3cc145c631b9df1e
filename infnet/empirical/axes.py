"""What becomes of the axes of an output in its kernel: Neural Tangents' convention.

The kernel of outputs y1 (n1, h, c) and y2 (n2, h, c) has every axis twice, in natural order: (n1, n2, h, h', c, c').
A diagonal axis appears once, of both outputs at the same place; a traced one is averaged over, and is gone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from infnet.arguments import axis_numbers
from infnet.errors import InputError


@dataclass(frozen=True)
class Axes:
    """The axes of one output, for two sets of examples.

    Attributes:
        shape1, shape2: of the output for each set, examples first.
        traced, diagonal: the numbers of the axes of each kind; all others are free.
    """

    shape1: tuple[int, ...]
    shape2: tuple[int, ...]
    traced: tuple[int, ...]
    diagonal: tuple[int, ...]

    @classmethod
    def read(
        cls, shape1: tuple[int, ...], shape2: tuple[int, ...], trace_axes: Any, diagonal_axes: Any, name: str
    ) -> Axes:
        """From what users pass.

        Args:
            shape1, shape2: of the output for each set of examples.
            trace_axes, diagonal_axes: an axis or several, counted from the end if negative.
            name: of the output, for errors.

        Raises:
            InputError: there is no such axis, or it may not be of this kind.
        """
        if len(shape1) != len(shape2):
            raise InputError(f"{name} has shape {shape1} for x1 but {shape2} for x2: they must have the same axes")
        traced = axis_numbers(trace_axes, len(shape1), "trace_axes", name)
        diagonal = axis_numbers(diagonal_axes, len(shape1), "diagonal_axes", name)
        both = set(traced) & set(diagonal)
        if both:
            raise InputError(f"axes {sorted(both)} of {name} are in trace_axes and in diagonal_axes: choose one")
        if 0 in traced:
            raise InputError(
                f"trace_axes holds axis 0 of {name}, which counts examples: a kernel cannot be averaged over them"
            )
        for axis in (*traced, *diagonal):
            if shape1[axis] != shape2[axis]:
                raise InputError(
                    f"axis {axis} of {name} has size {shape1[axis]} for x1 and {shape2[axis]} for x2: "
                    "traced and diagonal axes must have the same size for both"
                )
        return cls(shape1, shape2, traced, diagonal)

    @property
    def free(self) -> tuple[int, ...]:
        """The axes that appear twice."""
        return tuple(k for k in range(len(self.shape1)) if k not in (*self.traced, *self.diagonal))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the kernel."""
        sizes = dict(zip(self._labels(1), self.shape1, strict=True)) | dict(
            zip(self._labels(2), self.shape2, strict=True)
        )
        return tuple(sizes[label] for label in self._kernel_labels)

    @property
    def n_traced(self) -> int:
        """The number of elements that the kernel is an average over."""
        return math.prod(self.shape1[k] for k in self.traced)

    def gram(self, one: jax.Array, two: jax.Array, dtype: Any) -> jax.Array:
        """Sum of products of all that comes after the axes of the output: the kernel of two factors.

        Args:
            one: `(*shape1, ...)`.
            two: `(*shape2, ...)`, of which the complex conjugate is taken.
            dtype: that of the result, in which sums are formed too unless the factors are wider.
        """
        # A product of matrices as they are stored: `jnp.einsum` would transpose the second one first.
        total = lax.dot_general(
            self._matrices(one, self.shape1),
            self._matrices(two, self.shape2).conj(),
            (((2,), (2,)), ((0,), (0,))),
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.promote_types(dtype, jnp.result_type(one, two)),
        )
        return (self.in_order(total) / max(1, self.n_traced)).astype(dtype)

    def _matrices(self, factor: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        """`(diagonal, free, traced and all that comes after)` of `(*shape, ...)`."""
        order = (*self.diagonal, *self.free, *self.traced, len(shape))
        moved = factor.reshape(*shape, -1).transpose(order)
        sizes = (math.prod(shape[k] for k in kind) for kind in (self.diagonal, self.free))
        return moved.reshape(*sizes, -1)

    def mirrored(self, kernel: jax.Array) -> jax.Array:
        """The kernel with x1 and x2 exchanged, whatever the numbers of examples: (n2, n1, h', h, c', c)."""
        one, two = self._labels(1), self._labels(2)
        exchanged = dict(zip(one, two, strict=True)) | dict(zip(two, one, strict=True))
        return kernel.transpose([self._kernel_labels.index(exchanged[k]) for k in self._kernel_labels]).conj()

    def rows(self, side: int) -> np.ndarray:
        """The numbers of the elements of an output, as `(diagonal, traced, free)`."""
        shape = self.shape1 if side == 1 else self.shape2
        kinds = (self.diagonal, self.traced, self.free)
        numbers = np.arange(math.prod(shape)).reshape(shape).transpose(*(k for kind in kinds for k in kind))
        return numbers.reshape([math.prod(shape[k] for k in kind) for kind in kinds])

    def in_order(self, kernel: jax.Array) -> jax.Array:
        """From `(diagonal, free of side 1, free of side 2)`, each as `rows` has it, to the kernel."""
        one, two = self._labels(1), self._labels(2)
        labels = [*(one[k] for k in (*self.diagonal, *self.free)), *(two[k] for k in self.free)]
        sizes = [*(self.shape1[k] for k in (*self.diagonal, *self.free)), *(self.shape2[k] for k in self.free)]
        return kernel.reshape(sizes).transpose([labels.index(label) for label in self._kernel_labels])

    def column(self, outputs: jax.Array, place: Sequence[jax.Array]) -> jax.Array:
        """Of outputs `shape1`, the free axes, at the place along the others of one element of `shape2`."""
        for axis in sorted((*self.traced, *self.diagonal), reverse=True):
            outputs = lax.dynamic_index_in_dim(outputs, place[axis], axis, keepdims=False)
        return outputs

    def of_columns(self, columns: jax.Array) -> jax.Array:
        """From `(elements of shape2, free axes of shape1)`, every row a `column`, to the kernel."""
        columns = columns.reshape(*self.shape2, *(self.shape1[k] for k in self.free))
        one, two = self._labels(1), self._labels(2)
        labels = [*two, *(one[k] for k in self.free)]
        return jnp.einsum(columns, labels, list(self._kernel_labels)) / max(1, self.n_traced)

    def _labels(self, side: int) -> list[int]:
        """A number for each axis: another one for the second output, unless both are at the same place along it."""
        rank = len(self.shape1)
        return [k if side == 1 or k not in self.free else rank + k for k in range(rank)]

    @property
    def _kernel_labels(self) -> tuple[int, ...]:
        labels = zip(self._labels(1), self._labels(2), strict=True)
        kept = [pair for k, pair in enumerate(labels) if k not in self.traced]
        return tuple(label for pair in kept for label in dict.fromkeys(pair))
