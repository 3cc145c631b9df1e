from __future__ import annotations

import functools
from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet import predict
from infnet.errors import InputError, NumericalError

REFERENCES = Path(__file__).parents[1] / "references"
Kernel = namedtuple("Kernel", ("nngp", "ntk"))
CASES = ("mlp_relu", "conv_global_pool")


@pytest.fixture(params=[True, False], ids=["x64", "x32"])
def x64(request):
    with jax.enable_x64(request.param):
        yield request.param


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def kernels():
    return np.load(REFERENCES / "neural_tangents.npz")


@pytest.fixture(scope="module")
def frozen():
    return np.load(REFERENCES / "neural_tangents_predict.npz")


def problem(n=7, m=4, trailing=(2,), seed=0):
    """Well-conditioned NNGP-like and NTK-like kernels of n training and m test points, and targets."""
    random = np.random.RandomState(seed)
    features = random.standard_normal((2, n + m, 3 * n))
    nngp, ntk = (f @ f.T / (3 * n) + 0.1 * np.eye(n + m) for f in features)
    ntk = nngp + ntk

    def block(rows, columns):
        return Kernel(nngp[rows, columns], ntk[rows, columns])

    train, test = slice(n), slice(n, None)
    y = random.standard_normal((n, *trailing))
    return block(train, train), block(test, train), block(test, test), y


def dense_oracle(get, dd, td, tt, y, diag_reg=0.0, absolute=False):
    """The definition, with explicit inverses."""
    solved = dd.nngp if get == "nngp" else dd.ntk
    cross = td.nngp if get == "nngp" else td.ntk
    scale = 1.0 if absolute else np.trace(solved) / len(solved)
    a = cross @ np.linalg.inv(solved + diag_reg * scale * np.eye(len(solved)))
    mean = np.tensordot(a, y, 1)
    if get == "nngp":
        return mean, tt.nngp - a @ td.nngp.T
    if get == "ntkgp":
        return mean, tt.ntk - a @ td.ntk.T
    return mean, tt.nngp + a @ dd.nngp @ a.T - a @ td.nngp.T - td.nngp @ a.T


def erf_kernel(dtype, n=400):
    """One hidden layer of erf units on a line: smooth, so that its spectrum falls below rounding."""
    x = np.linspace(-np.pi, np.pi, n, dtype=dtype)
    k = dtype(2.25) * x[:, None] * x + dtype(0.01)
    scale = np.sqrt(1 + 2 * np.diag(k))
    k = dtype(2 / np.pi) * np.arcsin(2 * k / (scale[:, None] * scale))
    return x, dtype(2.25) * k + dtype(0.01)


# Values.


@pytest.mark.parametrize(
    ("trailing", "diag_reg", "absolute"),
    [((2,), 0.0, False), ((), 0.3, False), ((2, 3), 0.3, True)],
)
@pytest.mark.parametrize("get", ["nngp", "ntk", "ntkgp"])
def test_dense_formulas(x64, get, trailing, diag_reg, absolute):
    dd, td, tt, y = problem(trailing=trailing)
    mean, covariance = dense_oracle(get, dd, td, tt, y, diag_reg, absolute)
    predict_fn = predict.gp_inference(dd, y, diag_reg, absolute, trace_axes=tuple(range(1, y.ndim)))
    gaussian = predict_fn(get, td, tt)
    check = functools.partial(
        np.testing.assert_allclose,
        rtol=1e-10 if x64 else 1e-4,
        atol=1e-12 if x64 else 2e-5,
    )
    check(gaussian.mean, mean)
    check(gaussian.covariance, covariance)
    check(gaussian.variance, np.diag(covariance))
    assert gaussian.info.ok
    assert gaussian.info.jitter == 0
    assert gaussian.info.dtype == "float64"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("regulariser", ["0.0/relative", "0.1/relative", "0.1/absolute"])
@pytest.mark.parametrize("get", ["nngp", "ntk", "ntkgp"])
def test_neural_tangents(double, kernels, frozen, case, regulariser, get):
    def kernel(which):
        return Kernel(*(kernels[f"{case}/ntk/{moment}/{which}"] for moment in Kernel._fields))

    dd, dt = kernel("x1x1"), kernel("x1x2")
    td = Kernel(dt.nngp.T, dt.ntk.T)
    tt = Kernel(*(frozen[f"{case}/{moment}/x2x2"] for moment in Kernel._fields))
    diag_reg, scale = regulariser.split("/")
    predict_fn = predict.gp_inference(dd, frozen["targets"], float(diag_reg), scale == "absolute")
    gaussian = predict_fn(get, td, tt)
    for what in ("mean", "covariance"):
        expected = frozen[f"{case}/{regulariser}/{get}/{what}"]
        np.testing.assert_allclose(getattr(gaussian, what), expected, rtol=1e-9, atol=1e-11)


def test_training_set(x64):
    dd, _, _, y = problem()
    predict_fn = predict.gp_inference(dd, y, diag_reg=0.5)
    gaussian = predict_fn("ntk", None, True)
    np.testing.assert_allclose(gaussian.mean, y, rtol=1e-6)
    assert gaussian.covariance.shape == (7, 7)
    assert not gaussian.covariance.any()
    assert predict_fn("ntk").covariance is None


def test_diagonal_of_the_test_kernel_gives_the_variance(x64):
    dd, td, tt, y = problem()
    predict_fn = predict.gp_inference(dd, y, diag_reg=0.1)
    for get in ("nngp", "ntk", "ntkgp"):
        full = predict_fn(get, td, tt)
        diagonal = predict_fn(get, td, Kernel(np.diag(tt.nngp), np.diag(tt.ntk)))
        assert diagonal.covariance is None
        np.testing.assert_allclose(diagonal.variance, full.variance, rtol=1e-4, atol=1e-6)
        with pytest.raises(InputError, match="full \\(m, m\\) matrix"):
            diagonal.sample(jax.random.key(0))


def test_get():
    dd, td, tt, y = problem()
    predict_fn = predict.gp_inference(dd, y)
    both = predict_fn(("ntk", "nngp"), td, tt)
    assert both._fields == ("ntk", "nngp")
    np.testing.assert_array_equal(both.ntk.mean, predict_fn("ntk", td).mean)
    assert predict_fn(None, td)._fields == ("nngp", "ntk")
    only = predict.gp_inference(Kernel(dd.nngp, None), y)
    assert only(None, td)._fields == ("nngp",)
    with pytest.raises(InputError, match=r"\.ntk, which k_train_train lacks"):
        only("ntk", td)
    with pytest.raises(InputError, match=r"\.ntk, which k_test_train lacks"):
        predict_fn("ntk", Kernel(td.nngp, None))
    with pytest.raises(InputError, match="'nngpp'"):
        predict_fn("nngpp", td)


def test_bare_arrays():
    dd, td, tt, y = problem()
    predict_fn = predict.gp_inference(dd.ntk, y)
    expected = predict.gp_inference(dd, y)("ntkgp", td, tt)
    for get in (None, "nngp", "ntkgp"):
        gaussian = predict_fn(get, td.ntk, tt.ntk)
        np.testing.assert_allclose(gaussian.mean, expected.mean, rtol=1e-4)
        np.testing.assert_allclose(gaussian.covariance, expected.covariance, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(predict_fn("ntk", td.ntk).mean, expected.mean, rtol=1e-4)
    with pytest.raises(InputError, match="needs the NNGP"):
        predict_fn("ntk", td.ntk, tt.ntk)
    with pytest.raises(InputError, match="needs the NNGP"):
        predict.gp_inference(dd, y)("ntk", td.ntk, tt.nngp)


def test_samples_have_the_moments_of_the_posterior(double):
    dd, td, tt, y = problem()
    gaussian = predict.gp_inference(dd, y)("nngp", td, tt)
    samples = np.asarray(gaussian.sample(jax.random.key(0), 40000))
    assert samples.shape == (40000, 4, 2)
    np.testing.assert_allclose(samples.mean(0), gaussian.mean, atol=0.02)
    for output in range(2):
        np.testing.assert_allclose(np.cov(samples[..., output].T), gaussian.covariance, atol=0.02)


# Small problems.


def test_one_training_example():
    gaussian = predict.gp_inference([[2.0]], [3.0])("nngp", [[1.0], [2.0]], [2.0, 2.0])
    np.testing.assert_allclose(gaussian.mean, [1.5, 3.0])
    np.testing.assert_allclose(gaussian.variance, [1.5, 0.0], atol=1e-6)


def test_no_test_examples():
    dd, _, _, y = problem()
    gaussian = predict.gp_inference(dd.nngp, y)("nngp", np.zeros((0, 7)), np.zeros((0, 0)))
    assert gaussian.mean.shape == (0, 2)
    assert gaussian.covariance.shape == (0, 0)
    assert gaussian.variance.shape == (0,)
    assert gaussian.info.ok


def test_low_precision_kernels_are_factored_in_a_higher_one(x64):
    dd, td, tt, y = problem()
    half = jnp.asarray(dd.nngp, jnp.bfloat16)
    gaussian = predict.gp_inference(half, y, diag_reg=0.1)("nngp", jnp.asarray(td.nngp, half.dtype))
    expected, _ = dense_oracle("nngp", dd, td, tt, y, 0.1)
    np.testing.assert_allclose(gaussian.mean.astype(np.float32), expected, atol=0.1)
    assert gaussian.mean.dtype == jnp.bfloat16
    assert gaussian.info.dtype == "float64"


# Transformations.


def test_jit_and_predictor_as_argument(x64):
    dd, td, tt, y = problem()

    @jax.jit
    def everything(dd, td, tt, y, diag_reg):
        return predict.gp_inference(dd, y, diag_reg)(("nngp", "ntk"), td, tt)

    eager = predict.gp_inference(dd, y, 0.1)
    expected = eager(("nngp", "ntk"), td, tt)
    later = jax.jit(lambda predictor, td, tt: predictor(("nngp", "ntk"), td, tt))
    for result in (everything(dd, td, tt, y, 0.1), later(eager, td, tt)):
        assert result.ntk.info.ok
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5), result, expected)


def test_vmap(double):
    problems = [problem(seed=seed) for seed in range(3)]
    singular = np.ones((7, 7))
    problems[1] = (Kernel(singular, problems[1][0].ntk), *problems[1][1:])

    def mean(dd, td, tt, y):
        gaussian = predict.gp_inference(dd, y)("nngp", td, tt)
        return gaussian.mean, gaussian.info.jitter

    means, jitters = jax.vmap(mean)(*jax.tree.map(lambda *leaves: np.stack(leaves), *problems))
    for i, arguments in enumerate(problems):
        expected, jitter = mean(*arguments)
        np.testing.assert_allclose(means[i], expected, rtol=1e-5)
        np.testing.assert_allclose(jitters[i], jitter)
    assert jitters[1] > 0
    assert jitters[0] == jitters[2] == 0


def test_gradients(double):
    dd, td, tt, y = problem(trailing=())

    def loss(scale, diag_reg):
        k = Kernel(dd.nngp * scale + jnp.diag(jnp.arange(7.0)) * scale**2, dd.ntk)
        gaussian = predict.gp_inference(k, y, diag_reg)("nngp", td, tt)
        return jnp.sum(gaussian.mean**2) + jnp.sum(gaussian.variance)

    gradients = jax.grad(loss, (0, 1))(1.0, 0.1)
    for i, gradient in enumerate(gradients):
        steps = np.eye(2)[i] * 1e-6
        arguments = np.array([1.0, 0.1])
        difference = loss(*(arguments + steps)) - loss(*(arguments - steps))
        np.testing.assert_allclose(gradient, difference / 2e-6, rtol=1e-5)


# Matrices that cannot be factored as they are.


def test_smooth_kernel_in_single_precision(x64):
    """Neural Tangents gives NaN here, or negative variances with diag_reg=1e-4."""
    x, k = erf_kernel(np.float32)
    assert np.linalg.eigvalsh(k)[0] < 0
    y = np.sin(x)
    for diag_reg in (0.0, 1e-6, 1e-4):
        gaussian = predict.gp_inference(k, y, diag_reg)("nngp", k, k)
        assert np.isfinite(gaussian.mean).all()
        assert (gaussian.variance >= 0).all()
        assert (np.diag(gaussian.covariance) >= 0).all()
        assert np.abs(gaussian.mean - y).max() < 0.05
        info = gaussian.info
        assert info.ok
        assert 0 <= info.jitter <= 1e-3 * np.diag(k).mean()
        assert 100 < info.condition < 1e9
    assert predict.gp_inference(k, y)("nngp", k).info.jitter > 0


def test_smooth_kernel_in_double_precision(double):
    x, k = erf_kernel(np.float64)
    gaussian = predict.gp_inference(k, np.sin(x), 1e-12)("nngp", k, k)
    assert gaussian.info.jitter <= 1e-11 * np.diag(k).mean()
    np.testing.assert_allclose(gaussian.mean, np.sin(x), atol=1e-4)


def test_duplicated_examples(x64):
    dd, td, _, y = problem(trailing=())
    twice = np.repeat(np.arange(7), 2)
    predict_fn = predict.gp_inference(dd.nngp[np.ix_(twice, twice)], y[twice])
    gaussian = predict_fn("nngp", td.nngp[:, twice])
    expected = td.nngp @ np.linalg.solve(dd.nngp, y)
    assert gaussian.info.jitter > 0
    np.testing.assert_allclose(gaussian.mean, expected, rtol=1e-6 if x64 else 1e-2, atol=1e-3)


def test_eigenvalue_estimates(double):
    dd, td, _, y = problem()
    info = predict.gp_inference(dd.nngp, y, 0.1)("nngp", td.nngp).info
    shift = 0.1 * np.trace(dd.nngp) / 7
    eigenvalues = np.linalg.eigvalsh(dd.nngp) + shift
    np.testing.assert_allclose(info.diag_reg, shift)
    np.testing.assert_allclose(info.eigenvalue_min, eigenvalues[0], rtol=0.1)
    np.testing.assert_allclose(info.eigenvalue_max, eigenvalues[-1], rtol=0.1)


def test_negative_variances_are_raised_to_zero_and_reported(x64):
    dd, td, tt, y = problem()
    gaussian = predict.gp_inference(dd.nngp, y)("nngp", td.nngp, 0.01 * tt.nngp)
    _, covariance = dense_oracle("nngp", dd, td, Kernel(0.01 * tt.nngp, None), y)
    lowest = np.diag(covariance).min()
    assert lowest < 0
    assert (gaussian.variance >= 0).all()
    np.testing.assert_allclose(gaussian.info.negative_variance, lowest, rtol=1e-3)


def test_indefinite_matrices_are_refused():
    matrix, y = np.array([[1.0, 3.0], [3.0, 1.0]]), np.ones(2)
    with pytest.raises(NumericalError, match=r"k_train_train is not positive definite.*diag_reg"):
        predict.gp_inference(matrix, y)
    with pytest.raises(NumericalError, match=r"k_train_train\.ntk"):
        predict.gp_inference(Kernel(np.eye(2), matrix), y)
    traced = jax.jit(lambda k: predict.gp_inference(k, y)("nngp", k))(matrix)
    assert not traced.info.ok


def test_zero_kernel_needs_an_absolute_regulariser():
    zeros, y = np.zeros((2, 2)), np.ones(2)
    with pytest.raises(NumericalError):
        predict.gp_inference(zeros, y, 0.1)
    assert not predict.gp_inference(zeros, y, 0.1, True)("nngp", zeros).mean.any()


# Numbers that are not finite.


def spoiled(array, *index):
    array = np.array(array)
    array[index] = np.nan
    return array


def test_non_finite_numbers_are_named():
    dd, td, tt, y = problem()
    with pytest.raises(NumericalError, match=r"k_train_train\.ntk contains 1 .* at \(2, 3\).*whole row"):
        predict.gp_inference(Kernel(dd.nngp, spoiled(dd.ntk, 2, 3)), y)
    with pytest.raises(NumericalError, match=r"y_train contains 2 .* at \(5, 0\), \(5, 1\). No prediction"):
        predict.gp_inference(dd, spoiled(y, 5))
    predict_fn = predict.gp_inference(dd, y)
    with pytest.raises(NumericalError, match=r"k_test_train contains 1 .* at \(1, 6\)"):
        predict_fn("nngp", spoiled(td.nngp, 1, 6))
    with pytest.raises(NumericalError, match=r"k_test_test contains 1 .* at \(0, 0\)"):
        predict_fn("nngp", td, Kernel(spoiled(tt.nngp, 0, 0), None))


def test_non_finite_numbers_under_jit_are_flagged():
    dd, td, tt, y = problem()

    @jax.jit
    def posterior(dd, td, tt, y):
        return predict.gp_inference(dd, y)("ntk", td, tt)

    assert posterior(dd, td, tt, y).info.ok
    assert not posterior(Kernel(dd.nngp, spoiled(dd.ntk, 2, 3)), td, tt, y).info.ok
    assert not posterior(dd, td, tt, spoiled(y, 0)).info.ok
    one_row = posterior(dd, Kernel(td.nngp, spoiled(td.ntk, 1, 0)), tt, y)
    assert not one_row.info.ok
    np.testing.assert_array_equal(np.isnan(one_row.mean).all(1), [False, True, False, False])
    np.testing.assert_array_equal(np.isnan(one_row.variance), [False, True, False, False])


# Shapes and options.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": np.ones((3, 4))}, r"square, \(n, n\).*got shape \(3, 4\)"),
        ({"k": np.ones((0, 0))}, "n >= 1"),
        ({"k": np.ones((3, 3, 2, 2))}, r"\(n1, n2\) was expected"),
        ({"k": np.eye(3) + 0.1 * np.eye(3, k=1)}, r"symmetric.*\(0, 1\) and \(1, 0\)"),
        ({"k": 1j * np.eye(3)}, "must be real"),
        ({"k": object()}, "got object"),
        ({"y": np.ones(4)}, r"n = 3.*got \(4,\)"),
        ({"y": np.ones(())}, r"got \(\)"),
        ({"trace_axes": (0,)}, "axis 0 of the outputs"),
        ({"trace_axes": (), "y": np.ones((3, 2))}, r"trace_axes=\(1,\) would fit"),
        ({"diag_reg": -0.1}, "non-negative"),
        ({"diag_reg": np.nan}, "finite"),
        ({"diag_reg": np.ones(3)}, "scalar"),
    ],
)
def test_bad_arguments(change, message):
    arguments = {"k": np.eye(3), "y": np.ones(3), "diag_reg": 0.0, "trace_axes": (-1,)} | change
    with pytest.raises(InputError, match=message):
        predict.gp_inference(arguments["k"], arguments["y"], arguments["diag_reg"], trace_axes=arguments["trace_axes"])


def test_bad_test_kernels():
    predict_fn = predict.gp_inference(np.eye(3), np.ones(3), trace_axes=())
    with pytest.raises(InputError, match=r"n = 3 training points; got \(3, 2\)"):
        predict_fn("nngp", np.ones((3, 2)))
    with pytest.raises(InputError, match=r"\(2, 2\), or \(2,\).*m = 2.*got \(3, 3\)"):
        predict_fn("nngp", np.ones((2, 3)), np.ones((3, 3)))
