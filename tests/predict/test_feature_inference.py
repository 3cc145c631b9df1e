"""Inference with features is that with the matrix of their inner products."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet.errors import InputError, NumericalError
from infnet.predict import feature_inference, gp_inference

RNG = np.random.RandomState(0)
X, Y, TEST = RNG.standard_normal((50, 7)), RNG.standard_normal((50, 2)), RNG.standard_normal((11, 7))
EACH = RNG.uniform(0.1, 1, 50)


def features(x):
    return jnp.concatenate([jnp.sin(x), jnp.asarray(x)], axis=1)


OPTIONS = [
    {"diag_reg": 0.1},
    {"noise": 0.3},
    {"diag_reg": 0.1, "noise": 0.3},
    {"noise": EACH},
    {"diag_reg": 0.2, "diag_reg_absolute_scale": True, "noise": EACH},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_it_is_gp_inference_of_the_dense_kernel(options):
    with jax.enable_x64(True):
        phi, test = features(X), features(TEST)
        expected = gp_inference(phi @ phi.T, Y, **options)("nngp", test @ phi.T, test @ test.T)
        predictor = feature_inference(features, X, Y, batch_size=16, **options)
        found, alone = predictor(TEST, covariance=True), predictor(TEST)
        for name in ("mean", "variance", "covariance"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(alone.variance, expected.variance, rtol=1e-9, atol=1e-11)
        np.testing.assert_allclose(found.info.diag_reg, expected.info.diag_reg, rtol=1e-12)
        assert alone.covariance is None
        assert bool(found.info.ok)


def test_in_float32_the_sums_keep_the_digits_of_float64():
    """The noise is 1e-7 of the largest eigenvalue: sums in float32 would be useless."""
    x, y, test = (a.astype(np.float32) for a in (X, Y, TEST))
    x[:, 0] *= 3000
    test[:, 0] *= 3000
    found = feature_inference(jnp.asarray, x, y, noise=1.0, batch_size=13)(test)
    wide, wide_test = x.astype(np.float64), test.astype(np.float64)
    inverse = np.linalg.inv(wide.T @ wide + np.eye(7))
    np.testing.assert_allclose(found.mean, wide_test @ inverse @ wide.T @ y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.variance, np.einsum("ij,jk,ik->i", wide_test, inverse, wide_test), rtol=1e-4)


@pytest.mark.parametrize("size", [1, 7, 50, 1000])
def test_the_size_of_batches_does_not_matter(size):
    whole = feature_inference(features, X, Y[:, 0], noise=0.5)(TEST)
    found = feature_inference(features, X, Y[:, 0], noise=0.5, batch_size=size)(TEST)
    assert found.mean.shape == found.variance.shape == (11,)
    np.testing.assert_allclose(found.mean, whole.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.variance, whole.variance, rtol=1e-4, atol=1e-6)


def test_nothing_to_predict_and_samples():
    predictor = feature_inference(features, X, Y, noise=0.5)
    nothing = predictor(TEST[:0])
    assert (nothing.mean.shape, nothing.variance.shape) == ((0, 2), (0,))
    assert predictor(TEST, covariance=True).sample(jax.random.key(0), 3).shape == (3, 11, 2)


def test_refusals():
    with pytest.raises(InputError, match="above zero"):
        feature_inference(features, X, Y)
    with pytest.raises(InputError, match="must be absolute"):
        feature_inference(features, X, Y, diag_reg=0.1, noise=EACH)
    with pytest.raises(InputError, match="batch_size"):
        feature_inference(features, X, Y, noise=1.0, batch_size=0)
    with pytest.raises(InputError, match="49 rows"):
        feature_inference(features, X, Y[:49], noise=1.0)
    with pytest.raises(InputError, match="one row for each"):
        feature_inference(lambda x: jnp.sum(x, 1), X, Y, noise=1.0)
    bad = X.copy()
    bad[4, 1] = np.inf
    with pytest.raises(NumericalError, match="not finite"):
        feature_inference(jnp.asarray, bad, Y, noise=1.0)
    with pytest.raises(NumericalError, match="below the rounding errors"):
        feature_inference(lambda x: 1e6 * jnp.tile(x, 2), X, Y, noise=1e-30)
