"""Max-pooling: the largest of several values of one channel, whose moments have no closed form."""

from __future__ import annotations

from dataclasses import replace
from typing import NoReturn

from infnet._jax import lax_primitives as lax_p
from infnet.errors.functions import MAX_POOL
from infnet.index_maps import Total
from infnet.nodes import Node, WindowMax
from infnet.plan import Ask, AskMean
from infnet.primitives.windows import Window
from infnet.program import Atom, Feature, Segment
from infnet.reader import READS, Reader
from infnet.rules.index_linear import mapped, windows_of, with_whole_axes
from infnet.trace import Equation


@READS.register(lax_p.reduce_window_max_p)
def read_max_pool(reader: Reader, equation: Equation) -> None:
    """Maxima over windows of positions."""
    feature, windows = windows_of(reader, equation)
    (out,) = equation.outputs
    segments = _pooled(reader, equation, feature, windows, out)
    reader.values[out] = Feature(feature.dims, feature.channels, segments, out)


@READS.register(lax_p.reduce_max_p)
def read_max(reader: Reader, equation: Equation) -> None:
    """Maxima over whole axes of positions, as a softmax has them, where they are sampled."""
    reduced = equation.params["axes"]
    if not reader.sampling:
        raise reader.unknown_operation(equation)
    feature = with_whole_axes(reader, equation, equation.inputs[0], reduced)
    if any(a.is_channel for d in reduced for a in feature.dims[d]):
        raise reader.unknown_operation(equation)
    numbers = tuple(sorted(a.number for d in reduced for a in feature.dims[d]))
    windows = tuple(Window(n, n) if k in numbers else Window() for k, n in enumerate(feature.sizes))
    (out,) = equation.outputs
    largest = replace(feature, segments=_pooled(reader, equation, feature, windows, out))
    segments = mapped(reader, equation, largest, Total(largest.sizes, numbers), "max", out)
    kept = [k for k in range(len(feature.sizes)) if k not in numbers]
    dims = tuple(
        tuple(a if a.is_channel else Atom(False, kept.index(a.number)) for a in dim)
        for d, dim in enumerate(feature.dims)
        if d not in reduced
    )
    reader.values[out] = Feature(dims, feature.channels, segments, out)


def _pooled(
    reader: Reader, equation: Equation, feature: Feature, windows: tuple[Window, ...], out: int
) -> tuple[Segment, ...]:
    sizes = tuple(w.output_size(n) for w, n in zip(windows, feature.sizes, strict=True))

    def pooled(node: Node) -> Node:
        made = reader.new_map(WindowMax, node, sizes=sizes, where=equation.where, windows=windows)
        return replace(made, gaussian=False, zero_mean=False)  # other than a linear map

    return reader.replace_nodes(feature, pooled, out)


def refuse_maximum(request: Ask | AskMean, *nodes: Node) -> NoReturn:
    """Refuse a moment of nodes of which one is a maximum."""
    raise MAX_POOL.at(next(n for n in nodes if isinstance(n, WindowMax)).where)
