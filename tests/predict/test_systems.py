"""`gp_inference` with stores and solvers gives the posterior of the dense matrix."""

from __future__ import annotations

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet import predict, solvers
from infnet.errors import InputError, NumericalError

Kernel = namedtuple("Kernel", ("nngp", "ntk"))
N, M = 60, 5
SOLVERS = [solvers.ConjugateGradients(rank=20, tol=1e-9), solvers.Cholesky(block=16, tol=1e-9)]


class Store:
    """What can be read by rows and nothing else."""

    def __init__(self, array):
        self._array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        return self._array[rows]


@pytest.fixture(scope="module")
def problem():
    random = np.random.default_rng(0)
    features = random.standard_normal((2, N + M, 90)).astype(np.float32)
    nngp, ntk = (f @ f.T / 90 for f in features)
    kernels = nngp, nngp + ntk

    def block(rows, columns):
        return Kernel(*(k[rows, columns] for k in kernels))

    train, test = slice(N), slice(N, None)
    y = random.standard_normal((N, 3)).astype(np.float32)
    return block(train, train), block(test, train), block(test, test), y


def kinds(dd):
    yield Kernel(*map(Store, dd)), "cholesky"
    for solver in SOLVERS:
        yield dd, solver
        yield Kernel(*map(Store, dd)), solver


@pytest.mark.parametrize("full", [True, False])
def test_posteriors_are_the_dense_ones(problem, full):
    dd, td, tt, y = problem
    tt = tt if full else Kernel(*map(np.diagonal, tt))
    options = {"diag_reg": 1e-3, "noise": np.linspace(0.01, 0.1, N)}
    names = ("nngp", "ntk", "ntkgp")
    wanted = predict.gp_inference(dd, y, **options)(names, td, tt)
    for kernel, solver in kinds(dd):
        found = predict.gp_inference(kernel, y, **options, solver=solver)(names, td, tt)
        for name in names:
            one, other = getattr(found, name), getattr(wanted, name)
            for field in ("mean", "variance", "covariance"):
                if getattr(other, field) is None:
                    assert getattr(one, field) is None
                else:
                    np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=2e-5, atol=2e-6)
            assert one.info.ok
            assert float(one.info.residual) <= 1.1e-6
            np.testing.assert_allclose(one.info.diag_reg, other.info.diag_reg, rtol=1e-6)
            assert np.isnan(one.info.condition)


def test_a_kernel_function_that_is_never_a_matrix(problem):
    x = np.random.default_rng(3).standard_normal((N + M, 4)).astype(np.float32)

    def kernel_fn(x1, x2, get):
        return jnp.exp(-jnp.square(x1[:, None] - x2).sum(-1) / 4)

    y, cross = problem[-1], kernel_fn(x[N:], x[:N], "nngp")
    wanted = predict.gp_inference(kernel_fn(x[:N], x[:N], "nngp"), y, noise=0.01)("nngp", cross)
    operator = solvers.MatrixFree(kernel_fn, x[:N], "nngp", strip=25)
    found = predict.gp_inference(operator, y, noise=0.01, solver=SOLVERS[0])("nngp", cross)
    np.testing.assert_allclose(found.mean, wanted.mean, atol=1e-4)


def test_the_training_set_and_info(problem):
    dd, _, _, y = problem
    fitted = predict.gp_inference(Store(dd.nngp), y, noise=0.1)
    assert np.array_equal(fitted().mean, y)
    assert fitted.factors["bare"].targets.info.rank == N
    assert predict.gp_inference(dd, y, noise=0.1)("nngp").info.residual is None


def test_what_does_not_converge_is_not_ok(problem):
    dd, td, _, y = problem
    solver = solvers.ConjugateGradients(rank=0, max_iterations=2)
    with pytest.raises(NumericalError, match="in 2 iterations"):
        predict.gp_inference(dd, y, noise=1e-3, solver=solver)
    solver = solvers.ConjugateGradients(rank=0, max_iterations=2, require_convergence=False)
    assert not predict.gp_inference(dd, y, noise=1e-3, solver=solver)("nngp", td).info.ok


def test_refusals(problem):
    dd, _, _, y = problem
    store = Store(dd.nngp)
    for arguments, message in (
        ({"solver": "lu"}, 'solver must be "cholesky".*ConjugateGradients.*lu'),
        ({"solver": SOLVERS[0]}, "noise must be finite and positive"),
        ({"trace_axes": ()}, r"one \(n, n\) matrix.*trace_axes=\(1,\)"),
        ({"noise": -1.0}, "not negative"),
    ):
        with pytest.raises(InputError, match=message):
            predict.gp_inference(store, y, **arguments)
    with pytest.raises(InputError, match="square"):
        predict.gp_inference(Store(dd.nngp[:, :7]), y)
    with pytest.raises(InputError, match=r"\(n, …\) with n = 60"):
        predict.gp_inference(store, y[:7])
    with pytest.raises(InputError, match="needs the determinant"):
        predict.log_marginal_likelihood(store, None, y, 0.1)
    for traced in (
        lambda k: predict.gp_inference(k, y, noise=0.1, solver=SOLVERS[0])("nngp", k).mean,
        lambda k: predict.gp_inference(dd.nngp, k[:, :3], noise=0.1, solver=SOLVERS[0])("nngp", k).mean,
    ):
        with pytest.raises(InputError, match="outside of jit"):
            jax.jit(traced)(dd.nngp)
