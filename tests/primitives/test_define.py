"""What `define` derives from an implementation."""

import jax
import jax.numpy as jnp
import numpy as np

from infnet.primitives.define import define

two_sums_p = define("two_sums", lambda x, y: (x + 1, x + y))


def test_a_result_that_is_not_mapped_has_no_mapped_axis():
    """Only y is mapped, in an inner and an outer vmap; x + 1 has the shape of x under each."""
    x, y = jnp.arange(3.0), jnp.arange(24.0).reshape(2, 4, 3)

    def of_one(x, y):
        first, second = two_sums_p.bind(x, y)
        return first.reshape(3), second

    inner = jax.vmap(of_one, (None, 0), (None, 0))
    for function in (jax.vmap(inner, (None, 0), (None, 0)), jax.jit(jax.vmap(inner, (None, 0), (None, 0)))):
        first, second = function(x, y)
        np.testing.assert_array_equal(first, x + 1)
        np.testing.assert_array_equal(second, x + y)
