"""How each family of operations is read, and how its moments follow from earlier ones.

Reading rules register themselves in `reader.READS`; this is where they are all imported and applied.
"""

from __future__ import annotations

import infnet.rules.contraction
import infnet.rules.convolution
import infnet.rules.custom
import infnet.rules.index_linear
import infnet.rules.indexing
import infnet.rules.matrix
import infnet.rules.maximum
from infnet.errors import UnsupportedError
from infnet.errors.features import EMPTY_RESULT
from infnet.errors.parameters import PARAMETER_THROUGH_OPERATION
from infnet.kernel import Law
from infnet.program import Known, Noise, Program, ScaledParam
from infnet.reader import READS, PriorFacts, Reader
from infnet.rules.channel_sums import read_known
from infnet.rules.dropout import is_noise, read_dropout, read_noise
from infnet.rules.elementwise import read_elementwise
from infnet.rules.moments import rule as rule
from infnet.rules.outputs import read_outputs
from infnet.rules.scores import scores_as_features, zero_scores
from infnet.trace import Equation, Trace, is_elementwise, needed_equations


def read(
    trace: Trace,
    priors: PriorFacts,
    *,
    cross: bool = False,
    law: Law | None = None,
    sampling: bool = False,
) -> Program:
    """Read a trace into a program.

    Args:
        trace: the program of one example.
        priors: of its parameters.
        cross: also covariances between different outputs.
        law: of the input, where it is what another model returns.
        sampling: moments without a closed form are sampled, so a softmax of scores is read as a function of them.

    Raises:
        UnsupportedError: at the first operation that no rule reads.
    """
    reader = Reader(trace, priors, law, sampling)
    for equation in needed_equations(trace, trace.outputs):
        reader.producer.update(dict.fromkeys(equation.outputs, equation))
        _check_not_empty(reader, equation)
        for one in (*scores_as_features(reader, equation), equation):
            _read(reader, one)
    remarks = (*reader.remarks, *zero_scores(reader))
    return Program(trace, read_outputs(reader, cross), frozenset(reader.fixed_scales), remarks)


def _read(reader: Reader, equation: Equation) -> None:
    kinds = {type(reader.values[v]) for v in equation.inputs}
    if is_noise(reader, equation) or (Noise in kinds and kinds <= {Known, Noise}):
        read_noise(reader, equation)
    elif Noise in kinds:
        read_dropout(reader, equation)
    elif kinds <= {Known}:
        read_known(reader, equation)
    elif is_elementwise(equation.source):
        read_elementwise(reader, equation)
    elif ScaledParam in kinds:
        raise PARAMETER_THROUGH_OPERATION.of(equation)
    elif equation.primitive in READS:
        READS[equation.primitive](reader, equation)
    else:
        raise reader.unknown_operation(equation)


def _check_not_empty(reader: Reader, equation: Equation) -> None:
    random = any(not isinstance(reader.values[v], Known) for v in equation.inputs)
    if random and any(0 in reader.shape(v) for v in equation.outputs):
        raise EMPTY_RESULT.of(equation)
