"""What a kernel function says about its model: hidden widths, which parameters come first, and which last."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax

from infnet.explain import width_of
from infnet.nodes import Contraction, GroupSum, Node, Repeated
from infnet.plan import Ask


def hidden_widths(kernel_fn: Any) -> list[tuple[int, str]]:
    """What is sent to infinity, in the order of the model: numbers of channels or heads, and their modules.

    Args:
        kernel_fn: a `KernelFn`.
    """
    widths = [(width_of(node), node.where.module) for node in _nodes(kernel_fn)]
    return [(width, module) for width, module in widths if width is not None]


def has_heads(kernel_fn: Any) -> bool:
    """Whether numbers of heads, or sizes of heads, are among the hidden widths."""
    return any(isinstance(node, (GroupSum, Repeated)) for node in _nodes(kernel_fn))


def first_leaves(kernel_fn: Any) -> list[int]:
    """The parameters, by the number of their leaf, that meet the inputs directly."""
    first = {
        node.param.key.leaf: None
        for node in _nodes(kernel_fn)
        if isinstance(node, Contraction) and not node.operand.leaves
    }
    return list(first)


def last_leaves(kernel_fn: Any) -> list[int]:
    """The weight that is used last, and what is used after it: mostly those of the readout.

    It makes no difference to what is sampled which ones these are.
    """
    trace = kernel_fn.computation.program.trace
    place = {var: leaf for leaf, var in enumerate(trace.param_inputs)}
    first_use: dict[int, int] = {}
    for number, equation in enumerate(trace.equations):
        for var in equation.inputs:
            if var in place:
                first_use.setdefault(place[var], number)
    is_weight = {leaf: len(trace.avals[trace.param_inputs[leaf]].shape) > 1 for leaf in first_use}
    last = max((first_use[leaf] for leaf in first_use if is_weight[leaf]), default=0)
    return [leaf for leaf, number in first_use.items() if number >= last]


def tree_of(kernel_fn: Any) -> Any:
    """The structure of the parameters."""
    return jax.tree.structure(kernel_fn.hyperparameters)


def _nodes(kernel_fn: Any) -> Iterator[Node]:
    """The nodes of the kernel between two different examples, each once."""
    seen = set()
    for step in kernel_fn.computation.plan(("ntk",), (1, 2)).steps:
        request = step.request
        if isinstance(request, Ask) and request.side == (1, 2):
            for node in (request.u, request.v):
                if node.index not in seen:
                    seen.add(node.index)
                    yield node
