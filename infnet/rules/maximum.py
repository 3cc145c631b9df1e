"""Max-pooling: the largest of several values of one channel, whose moments have no closed form."""

from __future__ import annotations

from typing import NoReturn

from infnet._jax import lax_primitives as lax_p
from infnet.errors.functions import MAX_POOL
from infnet.nodes import Node, WindowMax
from infnet.plan import Ask, AskMean
from infnet.program import Feature
from infnet.reader import READS, Reader
from infnet.rules.index_linear import windows_of
from infnet.trace import Equation


@READS.register(lax_p.reduce_window_max_p)
def read_max_pool(reader: Reader, equation: Equation) -> None:
    """Maxima over windows of positions."""
    feature, windows = windows_of(reader, equation)
    (out,) = equation.outputs
    sizes = tuple(w.output_size(n) for w, n in zip(windows, feature.sizes, strict=True))

    def pooled(node: Node) -> Node:
        return reader.new(
            WindowMax,
            sizes=sizes,
            where=equation.where,
            leaves=node.leaves,
            gaussian=False,
            zero_mean=False,
            uniform=node.uniform,
            scales=node.scales,
            operand=node,
            windows=windows,
        )

    segments = reader.replace_nodes(feature, pooled, out)
    reader.values[out] = Feature(feature.dims, feature.channels, segments, out)


def refuse_maximum(request: Ask | AskMean, *nodes: Node) -> NoReturn:
    """Refuse a moment of nodes of which one is a maximum."""
    raise MAX_POOL.at(next(n for n in nodes if isinstance(n, WindowMax)).where)
