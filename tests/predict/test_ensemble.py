"""Ensembles of networks during their training."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.linalg import expm
from jax.scipy.special import erf

import infnet
from infnet import predict
from infnet.errors import InputError, NumericalError

FROZEN = np.load(Path(__file__).parents[1] / "references/neural_tangents_dynamics.npz")
Kernel = namedtuple("Kernel", ("nngp", "ntk"))
REGULARISERS = {"none": (0.0, False), "relative": (0.1, False), "absolute": (0.1, True)}
TRAIN, TEST = np.zeros(1), np.ones(1)


@pytest.fixture(autouse=True)
def double():
    with jax.enable_x64(True):
        yield


def looked_up(blocks):
    """A kernel function of the inputs TRAIN and TEST."""
    table = {(0, 0): "dd", (1, 0): "td", (1, 1): "tt"}

    def kernel_fn(x1, x2, get):
        block = blocks[table[int(x1[0]), int(x1[0] if x2 is None else x2[0])]]
        return getattr(block, get) if isinstance(get, str) else block

    return kernel_fn


def problem(n=5, m=3, axes=(), seed=0):
    """An NNGP and an NTK, of outputs with `axes`, and targets."""
    random = np.random.RandomState(seed)
    size = int(np.prod(axes))
    initial, more = random.standard_normal((2, (n + m) * size, 3 * n * size)) / 3

    def blocks(gram):
        order = (
            *range(0, 2 * len(axes) + 2, len(axes) + 1),
            *(k for i in range(len(axes)) for k in (1 + i, 2 + i + len(axes))),
        )
        kernel = gram.reshape(2 * (n + m, *axes)).transpose(order)
        return {"dd": kernel[:n, :n], "td": kernel[n:, :n], "tt": kernel[n:, n:]}

    nngp, ntk = blocks(initial @ initial.T), blocks(initial @ initial.T + more @ more.T)
    y = random.standard_normal((n, *axes)) if axes else random.standard_normal((n, 2))
    return {name: Kernel(nngp[name], ntk[name]) for name in nngp}, y


@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_neural_tangents(regulariser):
    blocks = {name: Kernel(*(FROZEN[f"wide/{name}/{get}"] for get in Kernel._fields)) for name in ("dd", "td", "tt")}
    fn = predict.gradient_descent_mse_ensemble(
        looked_up(blocks), TRAIN, FROZEN["wide/y"], FROZEN["rate"], *REGULARISERS[regulariser]
    )
    for when, t in {"forever": None, "times": FROZEN["times"]}.items():
        for which, x in {"train": None, "test": TEST}.items():
            gaussians = fn(t, x, compute_cov=True)
            for get, gaussian in gaussians._asdict().items():
                place = f"wide/ensemble/{regulariser}/{when}/{which}/{get}"
                np.testing.assert_allclose(gaussian.mean, FROZEN[f"{place}/mean"], rtol=1e-9, atol=1e-10)
                np.testing.assert_allclose(gaussian.covariance, FROZEN[f"{place}/covariance"], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_five_hundred_linearised_networks(get):
    """Each trains on its own tangent kernel, at two times; all layers, or the last one."""
    width, n_networks, rate = 256, 500, 2.0
    x, x_test = jax.random.normal(jax.random.key(0), (4, 2)), jax.random.normal(jax.random.key(1), (2, 2))
    y, both = jnp.sin(2 * x[:, :1]), jnp.concatenate([x, x_test])
    times = jnp.array([0.5, 4.0])

    def network(params, x):
        return erf(x @ params["in"]) @ params["out"] / width**0.5

    def trained(key):
        keys = jax.random.split(key)
        params = {"in": jax.random.normal(keys[0], (2, width)), "out": jax.random.normal(keys[1], (width, 1))}
        moving = {"out": params["out"]} if get == "nngp" else params
        jacobian = jax.jacobian(lambda p: network(params | p, both)[:, 0])(moving)
        jacobian = jnp.concatenate([leaf.reshape(6, -1) for leaf in jax.tree.leaves(jacobian)], 1)
        ntk, start = jacobian @ jacobian.T, network(params, both)[:, 0]
        # d/dt (f, 1) of all outputs, those of the test set too: the generator is affine in the training outputs
        generator = jnp.zeros((7, 7)).at[:6, :4].set(-ntk[:, :4]).at[:6, 6].set(ntk[:, :4] @ y[:, 0]) * rate / y.size
        return jnp.stack([expm(generator * t)[:6] @ jnp.append(start, 1.0) for t in times])

    outputs = np.asarray(jax.lax.map(trained, jax.random.split(jax.random.key(2), n_networks), batch_size=50))
    shapes = {"in": (2, width), "out": (width, 1)}
    priors = {name: infnet.Prior(0.0, 1.0, shape=shape, dtype=x.dtype) for name, shape in shapes.items()}
    kernel_fn = infnet.kernel_fn(network, priors, x)
    ensemble = predict.gradient_descent_mse_ensemble(kernel_fn, x, y, rate)
    for inputs, place in ((None, slice(0, 4)), (x_test, slice(4, 6))):
        gaussian, found = ensemble(times, inputs, get, compute_cov=True), outputs[:, :, place]
        variance = np.asarray(gaussian.variance)
        deviations = np.abs(found.mean(0) - gaussian.mean[..., 0]) / np.sqrt(variance / n_networks + 1e-4**2)
        assert deviations.max() < 4
        for k in range(2):
            errors = np.sqrt((np.outer(variance[k], variance[k]) + np.square(gaussian.covariance[k])) / n_networks)
            deviations = np.abs(np.cov(found[:, k].T) - gaussian.covariance[k]) / (errors + 1e-4)
            assert deviations.max() < 4
        np.testing.assert_allclose(ensemble(times, inputs, get, "diag").variance, variance, rtol=1e-9)


@pytest.mark.parametrize(
    ("axes", "trace_axes", "rule"),
    [((), (-1,), {}), ((2, 3), (), {"momentum": 0.8}), ((), (-1,), {"momentum": 0.8, "nesterov": True})],
)
def test_moments_are_those_of_trained_members(axes, trace_axes, rule):
    """Training is affine in the outputs at initialisation: it maps their mean and covariance."""
    blocks, y = problem(axes=axes)
    n, m = 5, 3
    steps = {"steps": np.array([1, 7])} if rule else {"t": np.array([0.3, 5.0])}
    ensemble = predict.gradient_descent_mse_ensemble(looked_up(blocks), TRAIN, y, 0.5, trace_axes=trace_axes, **rule)
    single = predict.gradient_descent_mse(blocks["dd"].ntk, y, 0.5, trace_axes=trace_axes, **rule)
    gaussian = ensemble(x_test=TEST, get="ntk", compute_cov=True, **steps)

    def trained(start):  # of the outputs of both sets
        train, test = start[: n * y[0].size].reshape(y.shape), start[n * y[0].size :].reshape(m, *y.shape[1:])
        return single(fx_train_0=train, fx_test_0=test, k_test_train=blocks["td"].ntk, **steps)[1].reshape(2, -1)

    zero = np.zeros((n + m) * y[0].size)
    np.testing.assert_allclose(gaussian.mean.reshape(2, -1), trained(zero), atol=1e-10)
    maps = jax.jacobian(trained)(zero)
    joint = {(i, j): blocks[name].nngp for (i, j), name in {(0, 0): "dd", (1, 0): "td", (1, 1): "tt"}.items()}
    reader = predict.axes.OutputAxes.read(y.shape, trace_axes)
    of_block = {place: np.asarray(reader.matrix(k)[0]) for place, k in joint.items()}
    initial = np.block([[of_block[0, 0], of_block[1, 0].T], [of_block[1, 0], of_block[1, 1]]])
    if not axes:  # two independent outputs
        initial = np.kron(initial, np.eye(2))
    expected = np.einsum("tij,jk,tlk->til", maps, initial, maps)
    found = np.asarray(reader.matrix(gaussian.covariance[0])[0]), np.asarray(reader.matrix(gaussian.covariance[1])[0])
    for got, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(np.kron(got, np.eye(2)) if not axes else got, wanted, atol=1e-9)


class Diagonal:
    """A kernel function with `diag`, which is not asked for more than that of the test set."""

    def __init__(self, kernel_fn):
        self.kernel_fn = kernel_fn

    def __call__(self, x1, x2, get):
        assert x2 is not None or int(x1[0]) == 0
        return self.kernel_fn(x1, x2, get)

    def diag(self, x, get):
        return jnp.einsum("nn...->n...", self.kernel_fn(x, None, get))


@pytest.mark.parametrize(("axes", "options"), [((), {}), ((2, 3), {"trace_axes": (), "diagonal_axes": 2})])
def test_variances_alone(axes, options):
    blocks, y = problem(axes=axes)
    if "diagonal_axes" in options:
        blocks = {name: Kernel(*(np.einsum("nmabpp->nmabp", k) for k in kernels)) for name, kernels in blocks.items()}
    steps = np.array([1, 7])
    full, alone = (
        predict.gradient_descent_mse_ensemble(kernel_fn, TRAIN, y, 0.5, 0.01, **options)
        for kernel_fn in (looked_up(blocks), Diagonal(looked_up(blocks)))
    )
    for x in (TEST, None):
        expected, found = full(None, x, None, True, steps=steps), alone(None, x, None, "diag", steps=steps)
        for a, b in zip(found, expected, strict=True):
            assert a.covariance is None
            np.testing.assert_allclose(a.variance, b.variance, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)
    same = full(None, TEST, None, "diag", steps=steps)  # without `diag`, from the whole kernel
    jax.tree.map(np.testing.assert_array_equal, same, alone(None, TEST, None, "diag", steps=steps))


def test_variances_alone_need_no_square_of_the_number_of_test_points():
    """No array of the compiled program has the number of test points, 1009, twice."""

    class Linear:
        def __call__(self, x1, x2, get):
            k = x1 @ (x1 if x2 is None else x2).T
            return k if isinstance(get, str) else Kernel(k, k + 1)

        def diag(self, x, get):
            return jnp.sum(x * x, 1)

    x, x_test = np.eye(3), np.ones((1009, 3))

    def program(compute_cov):
        def variances(x_test):
            ensemble = predict.gradient_descent_mse_ensemble(Linear(), x, np.ones((3, 1)))
            return [gaussian.variance for gaussian in ensemble(np.array([1.0, 2.0]), x_test, None, compute_cov)]

        return jax.jit(variances).lower(x_test).as_text()

    assert "1009x1009" in program(True)
    assert "1009x1009" not in program("diag")


def test_the_limit_is_the_posterior():
    blocks, y = problem(axes=(2,))
    fn = predict.gradient_descent_mse_ensemble(looked_up(blocks), TRAIN, y, diag_reg=0.1, trace_axes=())
    expected = predict.gp_inference(blocks["dd"], y, 0.1, trace_axes=())(
        ("nngp", "ntk"), blocks["td"], Kernel(blocks["tt"].nngp, None)
    )
    for found, wanted in zip(fn(None, TEST, compute_cov=True), expected, strict=True):
        for name in ("mean", "covariance", "variance"):
            np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), atol=1e-9)


def test_samples_at_several_times():
    blocks, y = problem()
    fn = predict.gradient_descent_mse_ensemble(looked_up(blocks), TRAIN, y)
    gaussian = fn(np.array([0.1, 3.0]), TEST, "ntk", True)
    samples = np.asarray(gaussian.sample(jax.random.key(0), 20000))
    assert samples.shape == (20000, 2, 3, 2)
    np.testing.assert_allclose(samples.mean(0), gaussian.mean, atol=0.06)
    for k in range(2):
        np.testing.assert_allclose(np.cov(samples[:, k, :, 1].T), gaussian.covariance[k], atol=0.2)


def test_kernels_are_computed_once_and_only_those_needed():
    blocks, y = problem()
    asked = []

    def kernel_fn(x1, x2, get, extra):
        assert extra == 3
        asked.append((int(x1[0]), x2 is None, get))
        return looked_up(blocks)(x1, x2, get)

    fn = predict.gradient_descent_mse_ensemble(kernel_fn, TRAIN, y, extra=3)
    gaussian = fn(1.0, TEST, "ntk")
    assert gaussian.covariance is None
    assert gaussian.variance is None
    assert asked == [(0, True, "ntk"), (1, False, "ntk")]
    asked.clear()
    assert fn(2.0, TEST, "ntk", True).info.ok
    assert asked == [(0, True, "nngp"), (1, False, ("nngp", "ntk")), (1, True, "nngp")]
    asked.clear()
    assert fn(2.0)._fields == ("nngp", "ntk")
    assert not asked


def test_under_jit_nothing_traced_is_kept():
    blocks, y = problem()
    fn = predict.gradient_descent_mse_ensemble(looked_up(blocks), TRAIN, y)

    @jax.jit
    def variance(scale):
        scaled = jax.tree.map(lambda k: k * scale, blocks)
        inner = predict.gradient_descent_mse_ensemble(looked_up(scaled), TRAIN, y)
        return inner(1.0, TEST, "ntk", True).variance, inner(2.0, TEST, "ntk", True).variance

    expected = fn(1.0, TEST, "ntk", True).variance, fn(2.0, TEST, "ntk", True).variance
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), variance(1.0), expected)


def test_networks_that_end_in_a_nonlinearity_are_refused():
    prior = {"w": infnet.Prior(0.0, 1.0, shape=(2, 8), dtype=jnp.zeros(()).dtype)}
    x, y = np.eye(2), np.ones((2, 8))
    kernel_fn = infnet.kernel_fn(lambda p, x: erf(x @ p["w"]), prior, x)
    with pytest.raises(InputError, match=r"kernel_fn is the kernel of an output that is not.*(?s:.*)any_law=True"):
        predict.gradient_descent_mse_ensemble(kernel_fn, x, y)
    assert predict.gradient_descent_mse_ensemble(kernel_fn, x, y, any_law=True)(get="nngp").info.ok


def test_bad_arguments():
    blocks, y = problem()
    fn = predict.gradient_descent_mse_ensemble(looked_up(blocks), TRAIN, y)
    with pytest.raises(InputError, match="'ntkgp'"):
        fn(1.0, TEST, "ntkgp")
    with pytest.raises(InputError, match="not both"):
        fn(1.0, TEST, steps=1)
    with pytest.raises(InputError, match="compute_cov must be"):
        fn(1.0, TEST, compute_cov="diagonal")
    with pytest.raises(InputError, match=r"\.ntk of the training set has shape.*trace_axes=\(1,\) would fit"):
        predict.gradient_descent_mse_ensemble(looked_up(blocks), TRAIN, y, trace_axes=())(get="ntk")
    bad = blocks | {"td": Kernel(blocks["td"].nngp, np.full((3, 5), np.nan))}
    with pytest.raises(NumericalError, match=r"\.ntk of test and training set contains 15"):
        predict.gradient_descent_mse_ensemble(looked_up(bad), TRAIN, y)(1.0, TEST)
