"""Products of two features summed over channels: the scores of attention."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence

from infnet.nodes import SummedPart
from infnet.program import Atom, Feature, Known
from infnet.reader import Reader
from infnet.rules.channel_sums import define_sum, magnitude
from infnet.rules.rearrange import in_dim_order
from infnet.rules.sums import cuts, segment_at
from infnet.trace import Equation


def read_scores(reader: Reader, equation: Equation) -> None:
    """`dot_general` of two features over channels (and positions), such as the scores of attention."""
    contracted, batch = equation.params["dimension_numbers"]
    both = [in_dim_order(reader, reader.settled(v), v) for v in equation.inputs]
    u, v = both
    summed = [pair for d, e in zip(*contracted, strict=True) for pair in _matched(reader, equation, both, d, e)]
    along = [pair for d, e in zip(*batch, strict=True) for pair in _matched(reader, equation, both, d, e)]
    channels = [pair for pair in (*summed, *along) if pair[0].is_channel]
    count = math.prod(u.size(x) for x, _ in summed if x.is_channel)
    if count == 1 or sorted(channels) != [(a, a) for a in (Atom(True, k) for k in range(len(u.channels)))]:
        reader.refuse(
            equation,
            "two features are multiplied other than channel by channel",
            "infnet has a rule for products of equal channels, and for their sums",
        )
    letters = iter(string.ascii_letters)
    names = {(0, Atom(False, k)): next(letters) for k in range(len(u.sizes))}
    names.update({(1, y): names[0, x] for x, y in (*summed, *along) if not x.is_channel})
    for k in range(len(v.sizes)):
        names.setdefault((1, Atom(False, k)), next(letters))
    dims = [(0, u.dims[d]) for d in batch[0]]
    for number, feature in enumerate(both):
        gone = (*contracted[number], *batch[number])
        dims += [(number, dim) for d, dim in enumerate(feature.dims) if d not in gone]
    operands = [names[number, Atom(False, k)] for number, f in enumerate(both) for k in range(len(f.sizes))]
    kept = [names[number, a] for number, dim in dims for a in dim if not a.is_channel]
    parts, largest = _score_parts(reader, equation, u, v, count / math.prod(u.channels))
    subscripts = f"{''.join(operands)}->{''.join(kept)}"
    axes = [dim for _, dim in dims]
    define_sum(reader, equation, parts, subscripts, axes, count * largest, squares=False, pairs=True)
    value = reader.values[equation.outputs[0]]
    if isinstance(value, Known) and value.constant:
        reader.remarks.append(
            f"the products summed over channels at {equation.where} vanish at infinite width, their factors having "
            "different weights: as scores, they attend to all positions alike"
        )


def _matched(
    reader: Reader, equation: Equation, features: Sequence[Feature], d: int, e: int
) -> list[tuple[Atom, Atom]]:
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
    parts, largest = [], 0.0
    for start, stop in cuts([u.segments, v.segments]):
        (one, first), (two, second) = segment_at(u.segments, start), segment_at(v.segments, start)
        if not (one.node.uniform and two.node.uniform):
            reader.refuse(equation, "products of features whose channels are not alike", "infnet has no rule for this")
        shift = two.start + second - one.start - first
        parts.append(SummedPart(share * (stop - start), one.node, two.node, shift))
        largest = max(largest, magnitude(one.node) * magnitude(two.node))
    return parts, largest
