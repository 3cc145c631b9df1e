"""XLA may compute the argument of a nonlinearity more than once, rounded in different ways."""

import jax
import numpy as np
import pytest
from finite import Function, conv, dense
from flax import linen as nn
from quick import unoptimised

import infnet_flax

pytestmark = pytest.mark.optimised


def pooled_twice(x):
    x = nn.avg_pool(nn.relu(conv(8)(x)), (2, 2), (2, 2))
    x = nn.avg_pool(nn.relu(conv(8, (2, 2), padding="VALID")(x)), (2, 2), (1, 1))
    return dense(3)(x.reshape(len(x), -1))


def test_the_same_kernels_however_xla_compiles_them():
    """Here the gap 1 - rho of a position with itself came out as 0 in one place and as 1e-16 in another."""
    x = np.random.RandomState(0).standard_normal((3, 8, 8, 1)) + 0.3

    def kernels():
        return infnet_flax.kernel_fn(Function(pooled_twice), x[:1])(x, get=("nngp", "ntk"))

    with jax.enable_x64(True):
        expected = kernels()
        with unoptimised():
            found = kernels()
        np.testing.assert_allclose(found.nngp, expected.nngp, rtol=1e-10)
        np.testing.assert_allclose(found.ntk, expected.ntk, rtol=1e-6)  # the angle of rounding errors is their root
