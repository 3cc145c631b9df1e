"""How each family of operations is read, and how its moments follow from earlier ones.

Reading rules register themselves in `reader.READS`; this is where they are all imported and applied.
"""

from __future__ import annotations

from collections.abc import Mapping

import infnet.rules.contraction
import infnet.rules.custom
import infnet.rules.index_linear
from infnet.program import Known, Program
from infnet.reader import READS, Reader
from infnet.rules.elementwise import read_elementwise
from infnet.rules.moments import rule as rule
from infnet.rules.outputs import read_output
from infnet.trace import Trace, is_elementwise, needed_equations


def read(trace: Trace, nonzero_mean: frozenset[int], varying: Mapping[int, tuple[int, ...]]) -> Program:
    """Read a trace into a program.

    Args:
        trace: the program of one example.
        nonzero_mean: the parameters whose prior has a mean.
        varying: the shape of the prior's standard deviation, for parameters where it is an array.

    Raises:
        UnsupportedError: at the first operation that no rule reads.
    """
    reader = Reader(trace, nonzero_mean, varying)
    for equation in needed_equations(trace, trace.outputs):
        reader.producer.update(dict.fromkeys(equation.outputs, equation))
        if all(isinstance(reader.values[v], Known) for v in equation.inputs):
            reader.read_known(equation)
        elif is_elementwise(equation.source):
            read_elementwise(reader, equation)
        elif equation.primitive in READS:
            READS[equation.primitive](reader, equation)
        else:
            reader.refuse_operation(equation)
    (var,) = trace.outputs
    return Program(trace, read_output(reader, var))
