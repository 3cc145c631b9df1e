"""The value that a kernel function returns when everything is asked for."""

from __future__ import annotations

from dataclasses import dataclass

import jax

AXIS_NAMES = ("h", "w", "d")


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
            series; 0 where all are closed forms. Later layers may enlarge or shrink it.
        width: number of output channels; all kernels are per channel.
        parameterization: "as_model" or "ntk".
    """

    nngp: jax.Array
    ntk: jax.Array
    cov1: jax.Array
    cov2: jax.Array
    error: jax.Array
    width: int
    parameterization: str

    def __repr__(self) -> str:
        lines = [f"Kernel({self.parameterization} parameterization, {self.width} output channels)"]
        for name in ("nngp", "ntk", "cov1", "cov2"):
            value = getattr(self, name)
            lines.append(f"  {name:4} {_axes(value.shape, name)} {value.dtype}")
        return "\n".join(lines)


jax.tree_util.register_dataclass(Kernel, ["nngp", "ntk", "cov1", "cov2", "error"], ["width", "parameterization"])


def _axes(shape: tuple[int, ...], name: str) -> str:
    """The shape with every axis named: `(n1=4, n2=3, h=8, h'=8)`."""
    examples = {"cov1": ["n1"], "cov2": ["n2"]}.get(name, ["n1", "n2"])
    count = (len(shape) - len(examples)) // 2
    names = AXIS_NAMES if count <= len(AXIS_NAMES) else tuple(f"i{k}" for k in range(count))
    positions = [label for k in range(count) for label in (names[k], names[k] + "'")]
    named = zip([*examples, *positions], shape, strict=True)
    return "(" + ", ".join(f"{label}={size}" for label, size in named) + ")"
