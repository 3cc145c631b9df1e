"""`fit` and `predict`: the same numbers as those of the functions underneath, in scikit-learn's conventions."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, clone
from sklearn.model_selection import GridSearchCV, cross_val_score

import infnet
from infnet import Prior, predict
from infnet.errors import InputError

X = np.random.RandomState(0).standard_normal((24, 3)).astype(np.float32)
Y = np.sin(X[:, 0]) + X[:, 1]
LABELS = np.where(X[:, 0] > 0.4, "right", np.where(X[:, 0] > -0.4, "middle", "left"))


def prior(*shape, std=1.0):
    return Prior(0.0, std, shape=shape, dtype=np.float32)


PRIORS = {"w": prior(3, 32), "v": prior(32, 1, std=0.5)}
KERNEL_FN = infnet.kernel_fn(lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"], PRIORS, X)
FIRST, REST = slice(0, 12), slice(12, 24)


@pytest.mark.parametrize("get", ["nngp", "ntk", "ntkgp"])
def test_regression(get):
    model = predict.Regressor(KERNEL_FN, get, noise=0.1).fit(X[FIRST], Y[FIRST])
    both = ("nngp", "ntk")
    fitted = predict.gp_inference(KERNEL_FN(X[FIRST], None, both), Y[FIRST], noise=0.1)
    expected = fitted(get, KERNEL_FN(X[REST], X[FIRST], both), KERNEL_FN(X[REST], None, both))
    mean, deviation = model.predict(X[REST], return_std=True)
    same, covariance = model.predict(X[REST], return_cov=True)
    for found in (mean, same, model.predict(X[REST])):
        np.testing.assert_allclose(found, expected.mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(deviation**2, expected.variance, rtol=1e-3)
    np.testing.assert_allclose(covariance, expected.covariance, rtol=1e-3, atol=1e-4)
    assert model.posterior(X[REST]).sample(jax.random.key(0), 3).shape == (3, 12)


def test_any_function_is_a_kernel():
    def squared(x1, x2, get):
        return np.exp(-((x1[:, None] - (x1 if x2 is None else x2)) ** 2).sum(-1))

    mean, deviation = predict.Regressor(squared).fit(X[FIRST], Y[FIRST]).predict(X[FIRST], return_std=True)
    np.testing.assert_allclose(mean, Y[FIRST], atol=1e-4)
    np.testing.assert_allclose(deviation, 0, atol=2e-3)


def test_classification():
    model = predict.Classifier(KERNEL_FN).fit(X[FIRST], LABELS[FIRST])
    assert list(model.classes_) == ["left", "middle", "right"]
    fitted = predict.laplace_classification(KERNEL_FN(X[FIRST], get="nngp"), np.unique(LABELS[FIRST], True, True)[2])
    latent = fitted(KERNEL_FN(X[REST], X[FIRST], "nngp"), KERNEL_FN.diag(X[REST], "nngp"))
    probabilities = model.predict_proba(X[REST])
    np.testing.assert_allclose(probabilities, latent.probabilities(), rtol=1e-4)
    np.testing.assert_array_equal(model.predict(X[REST]), model.classes_[probabilities.argmax(1)])


def test_scikit_learn_takes_them():
    class Regression(RegressorMixin, BaseEstimator, predict.Regressor):
        pass

    class Classification(ClassifierMixin, BaseEstimator, predict.Classifier):
        pass

    model = clone(Regression(KERNEL_FN, noise=0.1))
    assert model.kernel_fn is KERNEL_FN
    search = GridSearchCV(model, {"noise": [0.01, 100.0]}, cv=2).fit(X, Y)
    assert search.best_params_ == {"noise": 0.01}
    assert cross_val_score(Classification(KERNEL_FN), X, LABELS, cv=2).min() > 0.5


def test_refusals():
    with pytest.raises(InputError, match=r"call fit\(X, y\) first"):
        predict.Regressor(KERNEL_FN).predict(X)
    with pytest.raises(InputError, match="call fit"):
        predict.Classifier(KERNEL_FN).predict(X)
    with pytest.raises(InputError, match=r"two classes or more; got \[0\.\]"):
        predict.Classifier(KERNEL_FN).fit(X, np.zeros(24))
    with pytest.raises(InputError, match="'nngpp'"):
        predict.Regressor(KERNEL_FN, "nngpp").fit(X, Y)
    with pytest.raises(InputError, match="choose one"):
        predict.Regressor(KERNEL_FN).fit(X, Y).predict(X, return_std=True, return_cov=True)
    activations = infnet.kernel_fn(lambda w, x: jax.nn.relu(x @ w), prior(3, 8), X)
    for estimator, y in ((predict.Regressor, Y), (predict.Classifier, LABELS)):
        with pytest.raises(InputError, match="kernel_fn is the kernel of an output that is not a Gaussian process"):
            estimator(activations).fit(X, y)
    assert predict.Regressor(activations, any_law=True).fit(X, Y).predict(X).shape == (24,)


def test_a_model_with_several_outputs():
    def apply(params, x):
        return {"a": x @ params, "b": -x @ params}

    x = np.ones((3, 2), np.float32)
    several = infnet.kernel_fn(apply, Prior(0.0, 1.0, shape=(2, 1), dtype="float32"), x)
    for fit in (predict.Regressor(several).fit, predict.Classifier(several).fit):
        with pytest.raises(InputError, match=r"several outputs.*choose one with output="):
            fit(x, np.arange(3))
