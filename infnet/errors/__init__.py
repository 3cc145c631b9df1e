"""Errors, and the catalogue of refusals: every reason for which a model is refused, in the files of this folder.

A rule refuses with an entry, `raise WEIGHT_WITH_MEAN.of(equation)`; the entry holds the text. `docs/refusals.md` shows
each with a model that meets it.
"""

from infnet.errors import features, functions, laws, parameters, programs
from infnet.errors.kinds import BatchAxisError as BatchAxisError
from infnet.errors.kinds import InfnetError as InfnetError
from infnet.errors.kinds import InputError as InputError
from infnet.errors.kinds import NonGaussianError as NonGaussianError
from infnet.errors.kinds import NumericalError as NumericalError
from infnet.errors.kinds import PriorError as PriorError
from infnet.errors.kinds import RefusalError as RefusalError
from infnet.errors.kinds import StorageError as StorageError
from infnet.errors.kinds import UnsupportedError as UnsupportedError
from infnet.errors.kinds import Where as Where
from infnet.errors.laws import LAW_NOT_KEPT as LAW_NOT_KEPT
from infnet.errors.refusal import MONTE_CARLO as MONTE_CARLO
from infnet.errors.refusal import Refusal as Refusal

# By name, in the order of the files.
CATALOGUE = {
    name: entry
    for file in (laws, parameters, features, functions, programs)
    for name, entry in vars(file).items()
    if isinstance(entry, Refusal)
}
