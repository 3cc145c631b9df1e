"""Priors given by the user, in the place of those that `init` has."""

import jax
import numpy as np
import pytest

from infnet.errors import InputError, Where
from infnet.priors import Prior, Unreadable, check_readable, override_priors, path_name

PRIORS = {
    "params": {
        "Dense_0": {"kernel": Prior(0.0, 1.0), "bias": Prior(0.0, 0.0)},
        "Dense_1": {"kernel": Unreadable(Where(), "no", (), "float32"), "bias": Prior(0.0, 0.0)},
    },
    "batch_stats": {"mean": Prior(0.0, 0.0)},
}


def test_override_by_path():
    new = Prior(1.0, 2.0, 3.0)
    for pattern in ("Dense_1/kernel", "params/Dense_1/kernel", "*_1/ker*"):
        priors = override_priors(PRIORS, {pattern: new})
        assert priors["params"]["Dense_1"]["kernel"] == new
        assert priors["params"]["Dense_0"] == PRIORS["params"]["Dense_0"]
        check_readable(priors)


def test_override_by_glob_the_last_counts():
    priors = override_priors(PRIORS, {"*": Prior(0.0, 3.0), "*/bias": Prior(0.0, 0.5)})
    stds = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(priors)}
    assert stds["params/Dense_1/bias/std"] == 0.5
    assert stds["batch_stats/mean/std"] == 3.0


def test_override_errors():
    with pytest.raises(InputError, match=r"did you mean.*params/Dense_0/kernel"):
        override_priors(PRIORS, {"Dense_0/kernle": Prior(0.0, 1.0)})
    with pytest.raises(InputError, match=r"infnet\.Prior"):
        override_priors(PRIORS, {"*": 1.0})
    with pytest.raises(InputError, match="negative"):
        override_priors(PRIORS, {"*": Prior(0.0, -1.0)})
    with pytest.raises(InputError, match="not finite"):
        override_priors(PRIORS, {"*": Prior(np.array([0.0, np.nan]), 1.0)})


def test_prior_is_a_pytree():
    prior = Prior(0.0, np.ones((3, 1)))
    doubled = jax.tree.map(lambda x: 2 * x, prior)
    np.testing.assert_array_equal(doubled.std, 2 * prior.std)
    assert jax.tree.leaves(prior)[2] == 0.0
