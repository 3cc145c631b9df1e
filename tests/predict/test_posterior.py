"""The posterior as an object: noise, the law of the output, precision, saving and restoring."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from scipy.linalg import cho_factor, cho_solve

import infnet
from infnet import Prior, predict
from infnet.errors import InputError, NumericalError

Pair = namedtuple("Pair", ("nngp", "ntk"))
DRAWS = np.random.RandomState(0)


@pytest.fixture(params=[True, False], ids=["x64", "x32"])
def x64(request):
    with jax.enable_x64(request.param):
        yield request.param


def problem(n=6, m=3):
    """Kernels of n training and m test points, targets, and variances of noise."""
    random = np.random.RandomState(1)
    f = random.standard_normal((n + m, 2 * n))
    k = f @ f.T / n
    return k[:n, :n], k[n:, :n], k[n:, n:], random.standard_normal((n, 2)), random.uniform(0.1, 2, n)


def smooth(x1, x2, dtype=np.float32):
    """A kernel of many correlated points."""
    return np.exp(-((x1[:, None] - x2) ** 2)).astype(dtype)


# Noise.


@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_noise_of_each_point_is_added_to_the_diagonal(x64, get):
    dd, td, tt, y, noise = problem()
    pair = [Pair(k, 2 * k) for k in (dd, td, tt)]
    gaussian = predict.gp_inference(pair[0], y, diag_reg=0.1, noise=noise)(get, *pair[1:])
    factor = 1 if get == "nngp" else 2
    a = factor * td @ np.linalg.inv(factor * dd + np.diag(noise + 0.1 * factor * np.trace(dd) / 6))
    covariance = tt + a @ dd @ a.T - a @ td.T - td @ a.T if get == "ntk" else tt - a @ td.T
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if x64 else {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(gaussian.mean, a @ y, **tolerance)
    np.testing.assert_allclose(gaussian.covariance, covariance, **tolerance)


def test_noise_pulls_less_where_it_is_large():
    dd, _, _, y, _ = problem()
    mean = predict.gp_inference(dd, y, noise=[1e-6, 1e6, 1e-6, 1e-6, 1e-6, 1e-6])("nngp", dd).mean
    others = [0, 2, 3, 4, 5]
    without = dd[:, others] @ np.linalg.solve(dd[np.ix_(others, others)], y[others])
    np.testing.assert_allclose(mean, without, atol=1e-3)


@pytest.mark.parametrize(
    ("noise", "message"),
    [(np.ones(5), r"n = 6 .*\(6,\); got shape \(5,\)"), (-np.eye(6)[2], "not negative; the smallest is -1.0")],
)
def test_bad_noise(noise, message):
    dd, _, _, y, _ = problem()
    with pytest.raises(InputError, match=message):
        predict.gp_inference(dd, y, noise=noise)
    with pytest.raises(NumericalError, match=r"noise contains 1 .* at \(3\,\)"):
        predict.gp_inference(dd, y, noise=np.where(np.arange(6) == 3, np.nan, 1.0))


# The law of the output.


def prior(*shape, mean=0.0, std=1.0):
    return Prior(mean, std, shape=shape, dtype=np.float32)


def kernel_of(apply, *priors):
    x = DRAWS.standard_normal((4, 3)).astype(np.float32)
    return infnet.kernel_fn(apply, dict(zip("wbv", priors, strict=False)), x)(x)


def test_outputs_that_are_no_gaussian_process_of_mean_zero_are_refused():
    w, y = prior(3, 64), np.ones(4)
    head = kernel_of(lambda p, x: jax.nn.relu(x @ p["w"]), w)
    with pytest.raises(InputError, match=r"not a Gaussian process.*\n.*ends in a nonlinearity.*\n.*any_law=True"):
        predict.gp_inference(head, y)
    assert predict.gp_inference(head, y, any_law=True)("nngp", head).info.ok
    dense = kernel_of(lambda p, x: jax.nn.relu(x @ p["w"]) @ p["v"], w, prior(1), prior(64, 1))
    assert predict.gp_inference(dense, y)("nngp", dense).info.ok
    biased = kernel_of(lambda p, x: x @ p["w"] + p["b"], w, prior(64, mean=1.0, std=0.0))
    with pytest.raises(InputError, match="its mean is not zero"):
        predict.gp_inference(biased, y)


# Precision.


def test_float32_kernels_are_solved_in_float64(x64):
    x = np.linspace(-3, 3, 60)
    k, test = smooth(x, x) + np.eye(60, dtype=np.float32) * np.float32(1e-5), smooth(np.array([0.3, 2.9]), x)
    y = DRAWS.standard_normal(60).astype(np.float32)
    exact = np.float64(test) @ cho_solve(cho_factor(np.float64(k)), np.float64(y))
    in_float32 = test @ cho_solve(cho_factor(k), y)
    assert np.abs(in_float32 - exact).max() > 1e-3

    def posterior(k, y):
        return predict.gp_inference(k, y)("nngp", test, np.ones(2, np.float32))

    for gaussian in (posterior(k, y), jax.jit(posterior)(k, y)):
        assert gaussian.info.jitter == 0
        assert gaussian.info.dtype == "float64"
        np.testing.assert_allclose(gaussian.mean, exact, atol=3e-7)
        np.testing.assert_allclose(
            gaussian.variance, 1 - np.sum(test * np.linalg.solve(np.float64(k), test.T).T, 1), atol=3e-7
        )


def test_a_singular_kernel_without_targets_predicts_zero(x64):
    gaussian = predict.gp_inference(np.ones((5, 5)), np.zeros(5))("nngp", np.ones((2, 5)), np.ones((2, 2)))
    assert not gaussian.mean.any()
    assert gaussian.info.jitter > 0
    np.testing.assert_allclose(gaussian.variance, 0, atol=1e-5)


# Saving and restoring.


def test_predictors_are_restored_from_files(x64, tmp_path):
    dd, td, tt, y, noise = problem()

    def fit(k, y):
        return predict.gp_inference(Pair(k, 2 * k), y, noise=noise)

    fitted, like = fit(jnp.asarray(dd), y), jax.eval_shape(fit, jnp.asarray(dd), y)
    np.savez(tmp_path / "leaves.npz", *jax.tree.leaves(fitted))
    with np.load(tmp_path / "leaves.npz") as file:
        from_numpy = jax.tree.unflatten(jax.tree.structure(like), file.values())
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "orbax", fitted)
        checkpointer.wait_until_finished()
        from_orbax = checkpointer.restore(tmp_path / "orbax", like)
    expected = fitted(("nngp", "ntk"), Pair(td, 2 * td), tt)
    for restored in (from_numpy, from_orbax):
        found = restored(("nngp", "ntk"), Pair(td, 2 * td), tt)
        jax.tree.map(np.testing.assert_array_equal, found, expected)

    def program(f, *args):
        return jax.jit(f).lower(*args).as_text()

    assert "potrf" in program(fit, dd, y)  # LAPACK's name of the Cholesky factorisation
    assert "potrf" not in program(lambda p, k: p("nngp", k, tt), from_numpy, td)


def test_a_predictor_that_lost_half_of_its_digits_is_refused():
    dd, td, _, y, _ = problem()
    with jax.enable_x64(True):
        predictor = predict.gp_inference(dd, y)
        leaves, tree = jax.tree.flatten(predictor)
    with pytest.raises(InputError, match="made with x64 on"):
        jax.tree.unflatten(tree, [np.asarray(x) for x in leaves])("nngp", td)


# Documentation.


def test_the_formulas_in_docstrings_hold():
    names = [f"infnet.predict.{m.name}" for m in pkgutil.iter_modules(predict.__path__)]
    results = [doctest.testmod(importlib.import_module(name)) for name in names]
    assert sum(r.attempted for r in results) > 10
    assert not any(r.failed for r in results)


# Kernels with axes of the outputs.


@pytest.fixture
def several():
    """Kernels of three outputs of 4 training and 2 test points, (n1, n2, o, o'); targets (n, o, 2)."""
    f = np.random.RandomState(2).standard_normal((18, 30))
    k = (f @ f.T / 18).reshape(6, 3, 6, 3).transpose(0, 2, 1, 3)
    return k[:4, :4], k[4:, :4], k[4:, 4:], np.random.RandomState(3).standard_normal((4, 3, 2))


def flat(kernel):
    return kernel.transpose(0, 2, 1, 3).reshape(3 * len(kernel), -1)


@pytest.mark.parametrize("noise", [None, np.arange(4.0), np.arange(12.0).reshape(4, 3)])
def test_outputs_are_predicted_jointly(x64, several, noise):
    dd, td, tt, y = several
    rows = np.zeros(12) if noise is None else np.broadcast_to(noise.reshape(4, -1), (4, 3)).ravel()
    a = flat(td) @ np.linalg.inv(flat(dd) + np.diag(rows + 0.1))
    covariance = flat(tt) - a @ flat(td).T
    predict_fn = predict.gp_inference(dd, y, 0.1, True, trace_axes=-1, noise=noise)
    tolerance = {"rtol": 1e-9, "atol": 1e-11} if x64 else {"rtol": 1e-3, "atol": 1e-5}
    full = predict_fn("nngp", td, tt)
    of_each = np.einsum("nnab->nab", tt)
    for test in (tt, of_each, np.einsum("naa->na", of_each)):
        found = predict_fn("nngp", td, test)
        np.testing.assert_allclose(found.mean, (a @ y.reshape(12, 2)).reshape(2, 3, 2), **tolerance)
        np.testing.assert_allclose(found.variance, np.diag(covariance).reshape(2, 3), **tolerance)
    np.testing.assert_allclose(flat(np.asarray(full.covariance)), covariance, **tolerance)
    with pytest.raises(InputError, match=r"\(2, 2, 3, 3\), or \(2, 3\)"):
        predict_fn("nngp", td, np.eye(2))


def test_samples_have_the_moments_of_joint_outputs(several):
    dd, td, tt, y = several
    gaussian = predict.gp_inference(dd, y)("nngp", td, tt)
    samples = np.asarray(gaussian.sample(jax.random.key(0), 20000))
    assert samples.shape == (20000, 2, 3, 2)
    np.testing.assert_allclose(samples.mean(0), gaussian.mean, atol=0.05)
    for column in range(2):
        found = np.cov(samples[..., column].reshape(-1, 6).T)
        np.testing.assert_allclose(found, flat(np.asarray(gaussian.covariance)), atol=0.1)
