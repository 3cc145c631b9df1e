"""Products of two features summed over channels: the scores of attention."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

from infnet._jax import lax_primitives as lax_p
from infnet.errors.features import POSITIONS_TIMES_CHANNELS
from infnet.errors.functions import PRODUCT_ACROSS_CHANNELS, PRODUCT_OF_UNLIKE_CHANNELS
from infnet.nodes import SummedPart
from infnet.program import Feature, Known, Noise
from infnet.reader import Reader
from infnet.rules.channel_sums import (
    check_independent,
    define_sum,
    excess_after,
    magnitude,
    vanishes,
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
        raise PRODUCT_ACROSS_CHANNELS.of(equation)
    letters = string.ascii_letters
    operands = ["".join(letters[place] for place in own) for own in product.places()]
    kept = [operands[number][a.number] for number, dim in product.dims for a in dim if not a.is_channel]
    u, v = product.factors
    parts, largest = _score_parts(reader, equation, u, v, product.count / math.prod(u.channels))
    subscripts = f"{''.join(operands)}->{''.join(kept)}"
    axes = [dim for _, dim in product.dims]
    # Scores divided by d may also be times a temperature, which does not grow with d as sqrt(d) does.
    excess = product.count * largest / min(TEMPERATURE, product.count**0.25)
    define_sum(reader, equation, parts, subscripts, axes, excess, squares=False, pairs=True)
    (out,) = equation.outputs
    value = reader.values[out]
    if isinstance(value, Known) and value.vanishing:
        reader.zero_scores[equation] = None


def zero_scores(reader: Reader) -> list[str]:
    """Remarks on the scores that are zero at infinite width."""
    return [
        f"the products summed over channels at {equation.where} vanish at infinite width, their factors having "
        "different weights: as scores, they attend to all positions alike"
        for equation in reader.zero_scores
    ]


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
        raise POSITIONS_TIMES_CHANNELS.of(equation)
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
            raise PRODUCT_OF_UNLIKE_CHANNELS.of(equation)
        shift = two.start + second - one.start - first
        parts.append(SummedPart(share * (stop - start), one.node, two.node, shift))
        largest = max(largest, magnitude(reader, one.node) * magnitude(reader, two.node))
    return parts, largest


# Scores of mean zero, as features


def scores_as_features(reader: Reader, equation: Equation) -> list[Equation]:
    """Make features of scores of mean zero, where an equation does not read them as sums that have concentrated.

    They are zero to a softmax, once they have been divided by the number of channels, and else refused. But a product
    with them is as small as they are, not zero, so there they count as what they are at finite width.

    Returns:
        what was computed from the scores before, to be read again as functions of features.
    """
    if not _takes_features(reader, equation):
        return []
    found, waiting = set(), _vanishing(reader, equation)
    while waiting:
        before = reader.producer[waiting.pop()]
        if before not in found:
            found.add(before)
            waiting.extend(_vanishing(reader, before))
    again = [e for e in dict.fromkeys(reader.producer.values()) if e in found]
    sources = [e for e in again if all(isinstance(reader.values[v], Feature) for v in e.inputs)]
    if any(e.primitive is not lax_p.dot_general_p for e in sources):
        return []
    products = [_contracted(reader, source) for source in sources]
    if not all(product.by_heads for product in products):
        return []
    for source, product in zip(sources, products, strict=True):
        read_by_heads(reader, source, product)
        reader.zero_scores.pop(source, None)
    return [e for e in again if e not in sources]


def _vanishing(reader: Reader, equation: Equation) -> list[int]:
    values = [reader.values[v] for v in equation.inputs]
    return [k.var for k in values if isinstance(k, Known) and k.vanishing]


def _takes_features(reader: Reader, equation: Equation) -> bool:
    """Whether an equation is a product with scores, or a function of them that they have not concentrated for.

    A softmax, or a mask that is added before one, is not zero where the scores are: what it needs are sums that have
    concentrated.
    """
    zeros = _vanishing(reader, equation)
    if not zeros:
        return False
    others = [reader.values[v] for v in equation.inputs if v not in zeros]
    if reader.sampling and _fluctuates(reader, equation, zeros):
        return True
    if equation.primitive is lax_p.dot_general_p and not all(isinstance(k, Known) for k in others):
        return True
    if not is_elementwise(equation.source) or not all(isinstance(k, Known | Noise) for k in others):
        return False
    fluctuates = _fluctuates(reader, equation, zeros)
    return vanishes(reader, equation) and (fluctuates or any(isinstance(k, Noise) for k in others))


def _fluctuates(reader: Reader, equation: Equation, zeros: Sequence[int]) -> bool:
    """Whether an equation takes scores that have not been divided by their number, other than to scale them."""
    pending = [v for v in zeros if isinstance(k := reader.values[v], Known) and k.excess]
    scaled = len(pending) == 1 and excess_after(reader, equation, pending[0]) is not None
    return bool(pending) and not scaled
