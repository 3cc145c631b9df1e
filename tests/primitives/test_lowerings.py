"""Every special lowering for a platform, against the reference implementation, over the whole domain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import infnet  # noqa: F401 - defines all primitives
from infnet.primitives.define import LOWERINGS

pytestmark = pytest.mark.optimised

# The domain of each primitive that has special lowerings: operands, by the primitive's name.
POSITIVE = np.concatenate([np.geomspace(1e-30, 1, 20_000), np.linspace(0, 1, 20_000)])
DOMAINS = {"arctan": [np.concatenate([-POSITIVE, POSITIVE])]}


def test_every_special_lowering_has_a_domain():
    assert {primitive.name for primitive, _ in LOWERINGS} == DOMAINS.keys()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("key", LOWERINGS, ids=lambda key: f"{key[0]}-{key[1]}")
def test_equals_the_reference(key, dtype):
    reference, special = LOWERINGS[key]
    with jax.enable_x64(True):
        exact = reference(*(jnp.asarray(x, dtype).astype("float64") for x in DOMAINS[key[0].name]))
        operands = [jnp.asarray(x, dtype) for x in DOMAINS[key[0].name]]
        for found, wanted in zip(jax.jit(special)(*operands), exact, strict=True):
            assert found.dtype == dtype
            np.testing.assert_allclose(found, wanted, rtol=8 * jnp.finfo(dtype).eps, atol=0)
        poisoned = special(*(jnp.full_like(x[:3], jnp.nan) for x in operands))
        assert all(jnp.isnan(y).all() for y in poisoned)


def here(platform):
    """Whether this machine has such a device; it always has a CPU, beside others too."""
    try:
        return bool(jax.devices(platform))
    except RuntimeError:
        return False


@pytest.mark.parametrize("key", [k for k in LOWERINGS if here(k[1])], ids=lambda key: f"{key[0]}-{key[1]}")
def test_is_what_the_platform_runs(key):
    """On a device of its platform the compiled primitive gives the special lowering's digits."""
    primitive, platform = key
    operands = jax.device_put([jnp.asarray(x, "float32") for x in DOMAINS[primitive.name]], jax.devices(platform)[0])
    found = jax.jit(primitive.bind)(*operands)
    for one, two in zip(found, jax.jit(LOWERINGS[key][1])(*operands), strict=True):
        np.testing.assert_array_equal(one, two)
