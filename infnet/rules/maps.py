"""The node of a linear map of positions, in the simplest form there is.

A loop stacks what each of its steps returns. Of such a stack, a slice is the steps that it keeps, and a sum over time
is the sum of the steps: neither needs the moments of all pairs of positions of the whole stack.
"""

from __future__ import annotations

from typing import Any

from infnet.errors import Where
from infnet.index_maps import IndexMap, Rearrange, Select, Total
from infnet.nodes import IndexLinear, Node, Sum, Term
from infnet.reader import Reader


def index_linear(reader: Reader, node: Node, mapping: Any, sizes: tuple[int, ...], where: Where, rule: str) -> Node:
    """The node of a linear map of positions."""
    simpler = _without_unit_axes(node, mapping) or _of_parts(reader, node, mapping, where, rule)
    return simpler or reader.new_map(IndexLinear, node, sizes=sizes, where=where, map=mapping, rule=rule)


def _without_unit_axes(node: Node, mapping: IndexMap) -> Node | None:
    """What axes of size 1 were added to, where the map drops them again."""
    if not isinstance(node, Sum) or len(node.terms) > 1:
        return None
    (term,) = node.terms
    if isinstance(mapping, Total):
        kept = tuple(k for k in range(len(node.sizes)) if k not in mapping.summed)
    elif isinstance(mapping, Rearrange):
        kept = mapping.order
    else:
        return None
    added = [n for k, n in enumerate(node.sizes) if k not in kept]
    unchanged = (term.axes, term.node.sizes, term.start) == (kept, mapping.shape, 0) and set(added) <= {1}
    return term.node if unchanged and _is_number(term, 1.0) else None


def _is_number(term: Term, number: float) -> bool:
    return isinstance(term.coefficient, float) and term.coefficient == number


def _of_parts(reader: Reader, node: Node, mapping: IndexMap, where: Where, rule: str) -> Node | None:
    """The map of a sum of parts that are padded with zeros, applied to the parts; None if that is not simpler."""
    if not isinstance(mapping, Select | Total):
        return None
    if isinstance(node, IndexLinear) and isinstance(node.map, Select):
        direct = _composed(node.map, mapping)
        return None if direct is None or _is_zero(direct) else _mapped(reader, node.operand, direct, where, rule)
    if not isinstance(node, Sum):
        return None
    terms = []
    for term in node.terms:
        part = term.node
        whole = isinstance(term.coefficient, float) and term.axes == tuple(range(len(node.sizes)))
        if not whole or not isinstance(part, IndexLinear) or not isinstance(part.map, Select):
            return None
        composed = _composed(part.map, mapping)
        if composed is None:
            return None
        if not _is_zero(composed):
            terms.append((term, part.operand, composed))
    if not terms or (isinstance(mapping, Select) and len(terms) == len(node.terms)):
        return None
    axes = tuple(range(len(mapping.shape)))
    mapped = [
        Term(term.coefficient, _mapped(reader, operand, composed, where, rule), term.start, axes)
        for term, operand, composed in terms
    ]
    return reader.sum(mapped, mapping.shape, where)


def _mapped(reader: Reader, operand: Node, mapping: IndexMap, where: Where, rule: str) -> Node:
    unchanged = isinstance(mapping, Select) and mapping.ranges == tuple((1, 0, n) for n in operand.sizes)
    return operand if unchanged else index_linear(reader, operand, mapping, mapping.shape, where, rule)


def _composed(inner: Select, outer: Select | Total) -> IndexMap | None:
    """The map `outer` of `inner` as one map, if it is one of the same kind."""
    if isinstance(outer, Total):
        for axis, (n, (step, first, count)) in enumerate(zip(inner.sizes, inner.ranges, strict=True)):
            is_padding = step == 1 and first <= 0 and n <= first + count
            if not is_padding or (axis not in outer.summed and (first, count) != (0, n)):
                return None
        return Total(inner.sizes, outer.summed)
    ranges = []
    for (step, first, count), (outer_step, start, outer_count) in zip(inner.ranges, outer.ranges, strict=True):
        last = start + outer_step * (outer_count - 1)
        if not (0 <= start < count and 0 <= last < count):  # it pads, too
            return None
        ranges.append((step * outer_step, first + step * start, outer_count))
    return Select(inner.sizes, tuple(ranges))


def _is_zero(mapping: IndexMap) -> bool:
    """Whether some axis of a selection holds no position of its operand."""
    if not isinstance(mapping, Select):
        return False
    return any(
        all(not 0 <= first + step * i < n for i in range(count))
        for n, (step, first, count) in zip(mapping.sizes, mapping.ranges, strict=True)
    )
