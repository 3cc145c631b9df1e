"""Laplace's approximation against a brute-force mode with dense Hessians, and against scikit-learn."""

from __future__ import annotations

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.linalg import block_diag
from scipy.optimize import minimize
from scipy.special import expit, log_softmax, softmax
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF

from infnet import predict
from infnet.errors import InputError, NumericalError

X = np.random.RandomState(0).uniform(-2, 2, (12, 2))
TEST = np.random.RandomState(1).uniform(-2, 2, (5, 2))
THREE = np.array([0, 1, 2, 2, 1, 0, 0, 1, 2, 2, 0, 1])
TWO = (X[:, 0] * X[:, 1] > 0).astype(int)


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def kernel(a, b, scale=3.0):
    return scale * np.exp(-((a[:, None] - b) ** 2).sum(-1) / 2)


def brute_force(k, labels, k_td, k_tt, classes):
    """`(log evidence, latent mean, latent covariance)`, of the mode found by scipy, with matrices of all classes."""
    n = len(k)
    one_hot, inverse = np.eye(classes)[labels], np.linalg.inv(k)

    def objective(f):
        f = f.reshape(n, classes)
        value = -np.sum(one_hot * log_softmax(f, 1)) + 0.5 * np.sum(f * (inverse @ f))
        return value, (softmax(f, 1) - one_hot + inverse @ f).ravel()

    found = minimize(objective, np.zeros(n * classes), jac=True, method="BFGS", options={"gtol": 1e-9})
    f = found.x.reshape(n, classes)
    p = softmax(f, 1).T.reshape(-1)  # class by class from here on
    stacked = np.concatenate([np.diag(softmax(f, 1)[:, c]) for c in range(classes)])
    w = np.diag(p) - stacked @ stacked.T
    prior, cross = block_diag(*[k] * classes), block_diag(*[k_td] * classes)
    evidence = -found.fun - 0.5 * np.linalg.slogdet(np.eye(n * classes) + prior @ w)[1]
    solved = np.linalg.solve(prior, cross.T)
    posterior = np.linalg.inv(np.linalg.inv(prior) + w)
    covariance = block_diag(*[k_tt] * classes) - cross @ solved + solved.T @ posterior @ solved
    m = len(k_td)
    own = covariance.reshape(classes, m, classes, m)[:, range(m), :, range(m)]
    return evidence, k_td @ inverse @ f, own


@pytest.mark.parametrize(("labels", "classes"), [(THREE, 3), (TWO, 2), (THREE, 4)])
def test_mode_evidence_and_latent_moments(double, labels, classes):
    k, td, tt = kernel(X, X) + 1e-3 * np.eye(12), kernel(TEST, X), kernel(TEST, TEST)
    predictor = predict.laplace_classification(k, labels, classes)
    evidence, mean, covariance = brute_force(k, labels, td, tt, classes)
    assert predictor.ok
    assert predictor.gradient < 1e-8
    assert 1 < predictor.iterations < 12
    np.testing.assert_allclose(predictor.log_marginal_likelihood, evidence, rtol=1e-8)
    for test in (tt, np.diag(tt)):
        latent = predictor(td, test)
        np.testing.assert_allclose(latent.mean, mean, atol=1e-6)
        np.testing.assert_allclose(latent.covariance, covariance, atol=1e-6)


def test_two_classes_are_those_of_scikit_learn(double):
    """Whose single latent function is the difference of the two here, and has twice their kernel."""
    theirs = GaussianProcessClassifier(6.0 * RBF(1.0), optimizer=None, max_iter_predict=50).fit(X, TWO)
    predictor = predict.laplace_classification(kernel(X, X), TWO)
    np.testing.assert_allclose(predictor.log_marginal_likelihood, theirs.log_marginal_likelihood_value_, rtol=1e-5)
    probabilities = predictor(kernel(TEST, X), np.full(5, 3.0)).probabilities()
    np.testing.assert_allclose(probabilities, theirs.predict_proba(TEST), atol=2e-3)


def test_probabilities_are_means_of_the_softmax(double):
    random = np.random.RandomState(0)
    for classes in (2, 3, 10):
        root = random.standard_normal((4, classes, classes)) / classes**0.5 * 2
        mean = random.standard_normal((4, classes))
        found = predict.Classification(jnp.asarray(mean), jnp.asarray(root @ root.mT)).probabilities()
        np.testing.assert_allclose(found.sum(1), 1, rtol=1e-12)
        if classes == 2:
            nodes, weights = np.polynomial.hermite_e.hermegauss(100)
            deviation = np.sqrt(np.einsum("mcd,c,d->m", root @ root.mT, [-1, 1], [-1, 1]))
            expected = expit((mean[:, 1] - mean[:, 0])[:, None] + deviation[:, None] * nodes) @ weights / weights.sum()
            np.testing.assert_allclose(found[:, 1], expected, atol=1e-3)
        else:
            draws = random.standard_normal((4, 100_000, classes))
            expected = softmax(mean[:, None] + draws @ root.mT, -1).mean(1)
            np.testing.assert_allclose(found, expected, atol=4e-3)


def test_probabilities_are_calibrated():
    """Labels drawn from the model itself are as frequent as they are predicted to be."""
    random = np.random.RandomState(0)
    x = random.uniform(-3, 3, (600, 1))
    f = np.linalg.cholesky(kernel(x, x, 4.0) + 1e-6 * np.eye(600)) @ random.standard_normal((600, 3))
    labels = np.array([random.choice(3, p=p) for p in softmax(f, 1)])
    train, test = np.arange(150), np.arange(150, 600)
    k = kernel(x, x[train], 4.0).astype(np.float32)
    probabilities = predict.laplace_classification(k[train], labels[train])(k[test], np.full(450, 4.0)).probabilities()
    right = np.eye(3)[labels[test]]
    for low, high in ((0, 0.2), (0.2, 0.5), (0.5, 1)):
        chosen = (probabilities >= low) & (probabilities < high)
        assert chosen.sum() > 100
        np.testing.assert_allclose(probabilities[chosen].mean(), right[chosen].mean(), atol=0.05)


def test_singular_kernels_and_single_precision():
    """Duplicated points, in float32: no jitter, and the answer is that of float64."""
    twice = np.repeat(np.arange(6), 2)
    args = (kernel(X, X)[np.ix_(twice, twice)], THREE[twice], 3), (kernel(TEST, X)[:, twice], np.full(5, 3.0))
    with jax.enable_x64(True):
        exact = predict.laplace_classification(*args[0])
        expected = exact(*args[1])
    with jax.enable_x64(False):
        found = predict.laplace_classification(*args[0])
        np.testing.assert_allclose(found.log_marginal_likelihood, exact.log_marginal_likelihood, rtol=1e-5)
        latent = found(*args[1])
        assert latent.mean.dtype == jnp.float32
        np.testing.assert_allclose(latent.mean, expected.mean, atol=2e-5)
        np.testing.assert_allclose(latent.covariance, expected.covariance, atol=2e-5)


def test_large_kernels_need_shorter_steps(double):
    predictor = predict.laplace_classification(1e4 * kernel(X, X), THREE)
    assert predictor.ok
    assert (predictor(1e4 * kernel(X, X), 1e4 * kernel(X, X)).mean.argmax(1) == THREE).all()


def test_gradients_of_the_evidence(double):
    def evidence(log_scale):
        return predict.laplace_classification(
            jnp.exp(log_scale) * kernel(X, X), jnp.asarray(THREE), 3
        ).log_marginal_likelihood

    found = jax.jit(jax.value_and_grad(evidence))(0.3)
    difference = (evidence(0.3 + 1e-5) - evidence(0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(found[0], evidence(0.3), rtol=1e-10)
    np.testing.assert_allclose(found[1], difference, rtol=1e-6)


def test_a_predictor_is_a_pytree(tmp_path):
    Pair = namedtuple("Pair", ("nngp", "ntk"))
    k, td = Pair(kernel(X, X), 2 * kernel(X, X)), Pair(kernel(TEST, X), 2 * kernel(TEST, X))
    predictor = predict.laplace_classification(k, THREE, get="ntk")
    np.savez(tmp_path / "leaves.npz", *jax.tree.leaves(predictor))
    with np.load(tmp_path / "leaves.npz") as file:
        restored = jax.tree.unflatten(jax.tree.structure(predictor), file.values())
    expected = predictor(td, np.full(5, 6.0), get="ntk")
    found = jax.jit(lambda p, k: p(k, jnp.full(5, 6.0), get="ntk"))(restored, td)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), found, expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.eye(3)}, r"of shape \(3,\).*Of one-hot labels take argmax"),
        ({"labels": np.array([0.0, 1.0, 1.0])}, "integers from 0"),
        ({"labels": np.array([0, 1, 3]), "n_classes": 3}, "from 0 to 2; they are from 0 to 3"),
        ({"labels": np.array([0, -1, 1])}, "from -1 to 1"),
        ({"k": np.ones((3, 4))}, "must be square"),
        ({"k": np.ones((3, 3, 2, 2))}, r"\(n1, n2\) was expected"),
        ({"get": "ntkgp"}, 'must be "nngp" or "ntk"'),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"k": np.eye(3), "labels": np.array([0, 1, 1]), "n_classes": None, "get": "nngp"} | change
    with pytest.raises(InputError, match=message):
        predict.laplace_classification(
            arguments["k"], arguments["labels"], arguments["n_classes"], get=arguments["get"]
        )


def test_what_fails_says_so():
    k, labels = np.array([[1.0, 9.0], [9.0, 1.0]]), np.array([0, 1])
    with pytest.raises(NumericalError, match=r"did not find the mode"):
        predict.laplace_classification(k, labels)
    assert not jax.jit(lambda k: predict.laplace_classification(k, labels))(k).ok
    with pytest.raises(NumericalError, match=r"after 1 iterations"):
        predict.laplace_classification(np.eye(2), labels, max_iterations=1)
    with pytest.raises(NumericalError, match=r"k_train_train contains 4 number"):
        predict.laplace_classification(k * np.nan, labels)
    with pytest.raises(InputError, match="give n_classes="):
        jax.jit(lambda y: predict.laplace_classification(np.eye(2), y))(labels)
    predictor = predict.laplace_classification(np.eye(2), labels)
    with pytest.raises(InputError, match=r"\(m, n\), with n = 2"):
        predictor(np.ones((3, 3)), np.ones(3))
    with pytest.raises(InputError, match="a power of 2"):
        predictor(np.eye(2), np.ones(2)).probabilities(1000)
