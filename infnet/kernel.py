"""The value that a kernel function returns when everything is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax

AXIS_NAMES = ("h", "w", "d")


class Law(NamedTuple):
    """What is known of the law of an output, besides its moments.

    Attributes:
        gaussian: jointly Gaussian over examples and positions, with a tangent kernel that is not random.
        zero_mean: its mean is zero for every input.
        uniform: all its channels have this law, independently; else the moments are averages over channels.
    """

    gaussian: bool
    zero_mean: bool
    uniform: bool


@dataclass(frozen=True)
class Kernel:
    """The kernels of a model between two sets of examples.

    Attributes:
        nngp: covariance of one output channel between examples and positions, `(n1, n2, *positions)`, where every
            index axis of the output appears twice: `(n1, n2, h, h', w, w', ...)`, the first for x1.
        ntk: neural tangent kernel, of the same shape.
        cov1: nngp of each example of x1 with itself, `(n1, *positions)`.
        cov2: likewise for x2, `(n2, *positions)`.
        error: the largest bound on the relative error of a kernel of one layer, among those that are computed as
            series; 0 where all are closed forms. Later layers may enlarge or shrink it: see `KernelFn.error_bounds`.
        width: number of output channels; all kernels are per channel.
        parameterization: "as_model" or "ntk".
        mean1: mean of one output channel for each example of x1, `(n1, *positions)`, where each axis appears once;
            None where it is zero, or not known.
        mean2: likewise for x2, `(n2, *positions)`.
        symmetric: x2 is x1, so that the diagonal is each example with itself.
        standard_errors: of each of these arrays, by name, where they are estimates (`on_unsupported="sample"`).
        law: what else a model needs to know that takes this output as its input; None where no model can, as of the
            covariance of two different outputs.
    """

    nngp: jax.Array
    ntk: jax.Array
    cov1: jax.Array
    cov2: jax.Array
    error: jax.Array
    width: int
    parameterization: str
    mean1: jax.Array | None = None
    mean2: jax.Array | None = None
    symmetric: bool = False
    law: Law | None = None
    standard_errors: Mapping[str, jax.Array] | None = None

    @property
    def positions(self) -> tuple[int, ...]:
        """The sizes of the index axes of the output."""
        return tuple(self.nngp.shape[2::2])

    @property
    def example(self) -> jax.ShapeDtypeStruct:
        """One example of this output, `(1, *positions, width)`: for the initialiser of a model that comes next."""
        return jax.ShapeDtypeStruct((1, *self.positions, self.width), self.nngp.dtype)

    def __repr__(self) -> str:
        lines = [f"Kernel({self.parameterization} parameterization, {self.width} output channels)"]
        for name in ("nngp", "ntk", "cov1", "cov2", "mean1", "mean2"):
            value = getattr(self, name)
            if value is not None:
                estimated = "" if self.standard_errors is None else ", an estimate"
                lines.append(f"  {name:4} {_axes(value.shape, name)} {value.dtype}{estimated}")
        return "\n".join(lines)


jax.tree_util.register_dataclass(
    Kernel,
    ["nngp", "ntk", "cov1", "cov2", "error", "mean1", "mean2", "standard_errors"],
    ["width", "parameterization", "symmetric", "law"],
)


def _axes(shape: tuple[int, ...], name: str) -> str:
    """The shape with every axis named: `(n1=4, n2=3, h=8, h'=8)`."""
    examples = {"1": ["n1"], "2": ["n2"]}.get(name[-1], ["n1", "n2"])
    primes = ("",) if name.startswith("mean") else ("", "'")
    count = (len(shape) - len(examples)) // len(primes)
    names = AXIS_NAMES if count <= len(AXIS_NAMES) else tuple(f"i{k}" for k in range(count))
    positions = [names[k] + prime for k in range(count) for prime in primes]
    named = zip([*examples, *positions], shape, strict=True)
    return "(" + ", ".join(f"{label}={size}" for label, size in named) + ")"
