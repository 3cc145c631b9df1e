"""The identity that XLA does not compute twice."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet.primitives.homogeneous import homogeneous
from infnet.primitives.stored import stored

pytestmark = pytest.mark.optimised

X = jnp.asarray([0.0, -1.5, jnp.inf, -jnp.inf, jnp.nan, 2e-38, 3e38], "float32")


@pytest.mark.parametrize("run", [stored, jax.jit(stored), jax.vmap(stored)], ids=["eager", "jit", "vmap"])
def test_is_the_identity(run):
    np.testing.assert_array_equal(run(X), X)


def test_so_are_its_derivatives():
    x = jnp.arange(3.0)
    np.testing.assert_array_equal(jax.jacfwd(stored)(x), np.eye(3))
    np.testing.assert_array_equal(jax.jacrev(stored)(x), np.eye(3))
    np.testing.assert_array_equal(jax.hessian(lambda x: (stored(x) ** 3).sum())(x), np.diag(6 * x))


def instructions(depth, use):
    """Of the compiled NNGP and NTK of relu layers, both of which have two users."""

    def kernels(q12, q11, q22):
        k, t = q12, q12
        for _ in range(depth):
            k, kdot = homogeneous(k, q11, q22, values=(1, 0.0, 1.0, 0.0), slope=(0.0, 1.0, 0.5), derivative=True)
            k = stored(2 * k)
            t = stored(k + 2 * kdot * t)
        return k, t, jnp.isfinite(k).all(), jnp.isfinite(t).all()

    shapes = [jax.ShapeDtypeStruct(s, "float32") for s in ((8, 8), (8, 1), (1, 8))]
    return len(jax.jit(use(kernels)).lower(*shapes).compile().as_text().splitlines())


def gradient(kernels):
    return jax.grad(lambda *q: sum(k.sum() for k in kernels(*q)[:2]), (0, 1, 2))


@pytest.mark.parametrize("use", [lambda f: f, gradient], ids=["value", "gradient"])
def test_programs_grow_with_the_depth_and_not_its_square(use):
    four, eight, sixteen = (instructions(depth, use) for depth in (4, 8, 16))
    assert sixteen - eight < 2.5 * (eight - four)
