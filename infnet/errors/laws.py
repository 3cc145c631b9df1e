"""Refusals: parameters whose law at initialisation is not known."""

from __future__ import annotations

from infnet.errors.kinds import PriorError
from infnet.errors.refusal import Refusal

UNREADABLE_LAW = Refusal(
    "the law of the parameter {name!r} at initialisation could not be read off `init`",
    "{why}",
    'say what it is: infnet.override_priors(priors, {{"{name}": infnet.Prior(mean, std)}})',
    kind=PriorError,
)
LAW_NOT_KEPT = Refusal(
    "the law of the parameter {name!r} {shape} at initialisation is not known",
    "an NNX module does not keep its initialisers, and none of flax.nnx.initializers with its usual arguments returns "
    "these values: they may be trained or loaded, or of an initialiser of your own, or too few",
    "pass a function that makes the module, infnet_flax.kernel_fn(lambda rngs: Model(..., rngs=rngs), x), or say what "
    'the law is: priors={{"{name}": infnet.Prior(mean, std)}}',
    kind=PriorError,
)
