"""Products of two features summed over channels: the scores of attention."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

import jax
import numpy as np

from infnet._jax import lax_primitives as lax_p
from infnet.nodes import SummedPart
from infnet.program import Feature, Known, Noise
from infnet.reader import Reader
from infnet.rules.channel_sums import (
    check_independent,
    define_sum,
    excess_after,
    magnitude,
    note_vanishing,
    pending,
    since_sum,
)
from infnet.rules.heads import Contracted, Pairs, read_by_heads
from infnet.rules.rearrange import in_dim_order
from infnet.rules.sums import cuts, segment_at
from infnet.trace import Equation, is_elementwise

TEMPERATURE = 2.0  # the largest factor of scores that are divided by the number of channels


def read_scores(reader: Reader, equation: Equation) -> None:
    """`dot_general` of two features over channels (and positions), such as the scores of attention."""
    product = _contracted(reader, equation)
    if product.count == 1 and product.by_heads:
        read_by_heads(reader, equation, product)
        return
    if product.count == 1 or not product.channel_by_channel:
        reader.refuse(
            equation,
            "two features are multiplied other than channel by channel",
            "infnet has a rule for products of equal channels, and for their sums",
        )
    letters = string.ascii_letters
    operands = ["".join(letters[place] for place in own) for own in product.places()]
    kept = [operands[number][a.number] for number, dim in product.dims for a in dim if not a.is_channel]
    u, v = product.factors
    parts, largest = _score_parts(reader, equation, u, v, product.count / math.prod(u.channels))
    subscripts = f"{''.join(operands)}->{''.join(kept)}"
    axes = [dim for _, dim in product.dims]
    # Not divided by sqrt(d), but perhaps times a temperature, which does not grow with their number d.
    excess = product.count * largest / min(TEMPERATURE, product.count**0.25)
    define_sum(reader, equation, parts, subscripts, axes, excess, squares=False, pairs=True)
    (out,) = equation.outputs
    note_vanishing(reader, out)


def _contracted(reader: Reader, equation: Equation) -> Contracted:
    """How two features are multiplied."""
    contracted, batch = equation.params["dimension_numbers"]
    both = [in_dim_order(reader, reader.settled(v), v) for v in equation.inputs]
    summed = [pair for d, e in zip(*contracted, strict=True) for pair in _matched(reader, equation, both, d, e)]
    along = [pair for d, e in zip(*batch, strict=True) for pair in _matched(reader, equation, both, d, e)]
    dims = [(0, both[0].dims[d]) for d in batch[0]]
    for number, feature in enumerate(both):
        gone = (*contracted[number], *batch[number])
        dims += [(number, dim) for d, dim in enumerate(feature.dims) if d not in gone]
    return Contracted((both[0], both[1]), summed, along, dims)


def _matched(reader: Reader, equation: Equation, features: Sequence[Feature], d: int, e: int) -> Pairs:
    """The atoms of axis d of one feature with those of axis e of the other, which must correspond one to one."""
    one, two = ([a for a in f.dims[k] if f.size(a) > 1] for f, k in zip(features, (d, e), strict=True))
    sizes = [[(a.is_channel, f.size(a)) for a in atoms] for f, atoms in zip(features, (one, two), strict=True)]
    if sizes[0] != sizes[1]:
        reader.refuse(
            equation, "positions of one feature are multiplied with channels of another", "infnet has no rule for this"
        )
    return list(zip(one, two, strict=True))


def _score_parts(
    reader: Reader, equation: Equation, u: Feature, v: Feature, share: float
) -> tuple[list[SummedPart], float]:
    """Products of the two features, channel by channel, and the largest constant factor in them."""
    if share < 1:
        check_independent(reader, equation, [s.node for s in (*u.segments, *v.segments)])
    parts, largest = [], 0.0
    for start, stop in cuts([u.segments, v.segments]):
        (one, first), (two, second) = segment_at(u.segments, start), segment_at(v.segments, start)
        if not (one.node.uniform and two.node.uniform):
            reader.refuse(equation, "products of features whose channels are not alike", "infnet has no rule for this")
        shift = two.start + second - one.start - first
        parts.append(SummedPart(share * (stop - start), one.node, two.node, shift))
        largest = max(largest, magnitude(reader, one.node) * magnitude(reader, two.node))
    return parts, largest


# Scores that are divided by sqrt(d) only


def scores_as_features(reader: Reader, equation: Equation) -> list[Equation]:
    """Make features of the scores that an equation reads, where it could not read them as sums over channels.

    Whether scores of mean zero concentrate at zero shows only when they have been divided by all that they are going
    to be. So they are sums over channels until something else than a scaling needs their value. Softmax and masks
    added before one are not zero where the scores are: these need sums that have concentrated.

    Returns:
        the scalings of the scores up to this equation, to be read again as those of a feature.
    """
    scores = [v for v in dict.fromkeys(equation.inputs) if pending(reader.values[v])]
    if not scores or not _takes_features(reader, equation, scores):
        return []
    again = []
    for var in scores:
        source, *scalings = since_sum(reader, var)
        if not _is_random(reader, source):
            return []
        product = _contracted(reader, source)
        if not product.by_heads:
            return []
        read_by_heads(reader, source, product)
        again.extend(scalings)
    return again


def _is_random(reader: Reader, source: Equation) -> bool:
    """Whether a sum over channels is one of products whose mean vanishes."""
    value = reader.values[source.outputs[0]]
    products = source.primitive is lax_p.dot_general_p and all(
        isinstance(reader.values[v], Feature) for v in source.inputs
    )
    return products and isinstance(value, Known) and value.constant


def _takes_features(reader: Reader, equation: Equation, scores: Sequence[int]) -> bool:
    """Whether an equation acts on scores by position, and is zero where they are zero."""
    if equation.primitive is lax_p.dot_general_p:
        return all(v in scores or isinstance(reader.values[v], Feature) for v in equation.inputs)
    kinds = {type(reader.values[v]) for v in equation.inputs}
    if not is_elementwise(equation.source) or not kinds <= {Known, Noise}:
        return False
    if len(scores) == 1 and excess_after(reader, equation, scores[0]) is not None:
        return False
    rest = [v for v in equation.inputs if v not in scores]
    if equation.primitive is lax_p.mul_p:
        return True
    if equation.primitive is lax_p.select_n_p:
        return equation.inputs[0] in rest and all(reader.constant(v) == 0.0 for v in rest[1:])
    numbers = {v: 0.0 if v in scores else reader.constant(v) for v in equation.inputs}
    if None in numbers.values():
        return False
    avals = reader.trace.avals
    with jax.ensure_compile_time_eval():
        arguments = [np.full(avals[v].shape, numbers[v], avals[v].dtype) for v in equation.inputs]
        return not any(np.asarray(result).any() for result in equation.evaluate(arguments))
