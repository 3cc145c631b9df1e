"""Models that return several arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import dense, examples
from flax import linen as nn

import infnet_flax
from infnet import Kernel
from infnet.errors import UnsupportedError


class Features(nn.Module):
    """A dictionary of hidden layers of one width, and a head."""

    width: int = 8

    @nn.compact
    def __call__(self, x):
        hidden = dense(self.width)(x)
        later = hidden + dense(self.width)(nn.relu(hidden))
        return {"hidden": hidden, "later": later, "head": (dense(3)(nn.relu(later)),)}


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


X1, X2 = (np.float64(x) for x in examples(4, n=3))


def only(pick, x1=X1, x2=X2, get="nngp", **options):
    return infnet_flax.kernel_fn(Features(), x1, output=pick, **options)(x1, x2, get)


def test_each_output_has_the_kernel_it_has_alone():
    kernels = infnet_flax.kernel_fn(Features(), X1)(X1, X2)
    assert jax.tree.structure(kernels, is_leaf=lambda k: isinstance(k, Kernel)) == jax.tree.structure(
        {"hidden": 0, "later": 0, "head": (0,)}
    )
    for pick in (lambda y: y["hidden"], lambda y: y["later"], lambda y: y["head"]):
        for name in ("nngp", "ntk", "cov1", "cov2"):
            alone = infnet_flax.kernel_fn(Features(), X1, output=pick)(X1, X2)
            for one, two in zip(jax.tree.leaves(pick(kernels)), jax.tree.leaves(alone), strict=True):
                np.testing.assert_allclose(one, two, rtol=1e-12)
            assert getattr(kernels["head"][0], name).dtype == np.float64
    assert (kernels["hidden"].width, kernels["head"][0].width) == (8, 3)


def test_get_and_diag():
    kernel_fn = infnet_flax.kernel_fn(Features(), X1)
    both = kernel_fn(X1, get=("nngp", "ntk"))
    np.testing.assert_allclose(both["later"].ntk, kernel_fn(X1, get="ntk")["later"], rtol=1e-12)
    np.testing.assert_allclose(np.diag(both["later"].ntk), kernel_fn.diag(X1)["later"].ntk, rtol=1e-12)


def pair(y):
    return y["hidden"], y["later"]


def test_cross_covariances():
    """later = hidden + an independent layer: E[hidden later] = E[hidden hidden]."""
    blocks = only(pair, cross=True)
    np.testing.assert_allclose(blocks[0][0], only(lambda y: y["hidden"]), rtol=1e-12)
    np.testing.assert_allclose(blocks[1][1], only(lambda y: y["later"]), rtol=1e-12)
    np.testing.assert_allclose(blocks[0][1], blocks[0][0], rtol=1e-12)
    np.testing.assert_allclose(blocks[1][0], blocks[0][0], rtol=1e-12)


def test_cross_tangent_kernels_against_the_sum():
    """The kernel of a sum is the sum of all four blocks; d(later)/d(hidden's weights) includes the second layer."""
    blocks = only(pair, get="ntk", cross=True)
    total = only(lambda y: y["hidden"] + y["later"], get="ntk")
    np.testing.assert_allclose(sum(block for row in blocks for block in row), total, rtol=1e-10)


def test_a_set_with_itself():
    blocks = only(pair, X1, None, "ntk", cross=True)
    np.testing.assert_allclose(blocks[0][1], blocks[1][0].T, rtol=1e-12)


class Positions(nn.Module):
    """Outputs with and without positions."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(dense(8)(x))
        return h, h.mean(1)


def test_cross_covariances_with_positions():
    x = np.float64(examples(5, 3)[0])
    blocks = infnet_flax.kernel_fn(Positions(), x, cross=True)(x, get="nngp")
    assert blocks[0][0].shape == (2, 2, 5, 5)
    assert blocks[0][1].shape == blocks[1][0].shape == (2, 2, 5)
    np.testing.assert_allclose(blocks[0][1], blocks[0][0].mean(-1), rtol=1e-12)
    np.testing.assert_allclose(blocks[1][0], blocks[0][0].mean(-2), rtol=1e-12)
    np.testing.assert_allclose(blocks[1][1], blocks[0][0].mean((-1, -2)), rtol=1e-12)


def test_outputs_of_different_widths_have_no_cross_covariance():
    with pytest.raises(UnsupportedError, match="channels do not correspond") as caught:
        infnet_flax.kernel_fn(Features(), X1, cross=True)
    assert "test_outputs.py" in caught.value.where.line


def test_explain_lists_the_steps_of_all_outputs():
    assert "Features/Dense_2" in str(infnet_flax.kernel_fn(Features(), X1).explain())


def test_gradients_through_several_outputs():
    kernel_fn = infnet_flax.kernel_fn(Features(), X1)

    def total(x):
        return sum(jnp.sum(k) for k in jax.tree.leaves(kernel_fn(x, X2, "ntk")))

    step = 1e-5 * np.ones_like(X1)
    slope = (total(X1 + step) - total(X1 - step)) / 2e-5
    np.testing.assert_allclose(jax.grad(total)(jnp.asarray(X1)).sum(), slope, rtol=1e-6)
