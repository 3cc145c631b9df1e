"""Products in float32 save time where they are enough, and are given up where they are not."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from test_solvers import NOISE, N, Store, arccos_kernel, b, dense, matrices, points, true_residual  # noqa: F401

from infnet import solvers
from infnet.errors import NumericalError
from infnet.solvers import conjugate_gradients, operators, products


class Counting:
    """A kernel that notes the precision of its products; those in float64 can be made float32 too."""

    def __init__(self, kernel, always_rough=False):
        self.inner, self.always_rough, self.products = solvers.operator(kernel), always_rough, []
        self.shape, self.dtype, self.in_memory = self.inner.shape, self.inner.dtype, True
        self.diagonal, self.columns = self.inner.diagonal, self.inner.columns

    def matmul(self, v):
        self.products.append(str(v.dtype))
        return self.inner.matmul(v.astype(np.float32) if self.always_rough else v)


@pytest.fixture
def ill_conditioned():
    """At a condition number of 1e8 a product in float32 is wrong by as much as the noise."""
    x = np.linspace(-1, 1, N)
    return np.exp(-np.square(x[:, None] - x)).astype(np.float32), 2e-6


def test_products_in_float32(matrices, points, b):  # noqa: F811
    kernel = matrices["float32"]
    exact = kernel.astype(np.float64) @ b
    for operator in (
        solvers.operator(kernel, strip=150),
        solvers.operator(Store(kernel.astype(np.float16).astype(np.float32)), strip=33),
        operators.Sharded(jnp.asarray(kernel)),
        solvers.MatrixFree(arccos_kernel, points.astype(np.float32), strip=20),
    ):
        found = operator.matmul(b.astype(np.float32))
        assert found.dtype == np.float64
        error = np.abs(found - exact).max()
        assert 1e-8 < error < (0.05 if hasattr(operator, "array") and isinstance(operator.array, Store) else 2e-3)


def test_few_terms_are_added_up_in_float32():
    # Of 1 + 2**-24 float32 keeps the 1 only: what is added to a sum of that size is lost.
    n = 8 * products.PIECE
    row = np.full((1, n), 2.0**-24, np.float32)
    row[0, :: products.PIECE] = 1
    v = np.ones((n, 1), np.float32)
    found = products._in_pieces(row, v)
    assert abs(found[0, 0] - row.astype(np.float64).sum()) <= 8 * products.PIECE * 2.0**-24


def test_most_products_are_in_float32(matrices, b):  # noqa: F811
    # There are hardly more than of those in float64 alone, which are one for every decimal, and one for the solution.
    kernel = matrices["float32"]
    counting = Counting(kernel)
    info = solvers.solve(counting, b[:, 0], NOISE, solvers.ConjugateGradients(rank=80)).info
    solver = solvers.ConjugateGradients(rank=80, tol=1e-6)
    alone = solvers.solve(kernel.astype(np.float64), b[:, 0], NOISE, solver).info
    assert counting.products.count("float32") == info.iterations
    assert counting.products.count("float64") <= 7
    assert info.iterations <= 1.15 * alone.iterations
    assert info.restarts == 0


def test_many_products_are_not(matrices, b, monkeypatch):  # noqa: F811
    monkeypatch.setattr(conjugate_gradients, "LONG", 7)
    counting = Counting(matrices["float32"])
    info = solvers.solve(counting, b, NOISE, solvers.ConjugateGradients(rank=20)).info
    assert counting.products.count("float32") == 7 < info.iterations


def test_products_that_need_reading_are_in_float64(matrices, points):  # noqa: F811
    # Each of the others would be another reading.
    kernel = matrices["float32"]
    for array, expected in ((kernel, True), (Store(kernel), False), (kernel.view(np.memmap), False)):
        assert solvers.ConjugateGradients(rank=5).prepare(array, NOISE).float32_may_do == expected
    free = solvers.MatrixFree(arccos_kernel, points.astype(np.float32))
    assert not solvers.ConjugateGradients(rank=5).prepare(free, NOISE).float32_may_do
    assert not solvers.Cholesky().prepare(kernel, NOISE).float32_may_do


def test_no_product_of_a_float64_kernel_is_in_float32(matrices, b):  # noqa: F811
    counting = Counting(matrices["float64"])
    solvers.solve(counting, b, NOISE, solvers.ConjugateGradients(rank=10))
    assert set(counting.products) == {"float64"}


def test_where_float32_stalls_float64_goes_on(ill_conditioned, b):  # noqa: F811
    kernel, noise = ill_conditioned
    solver = solvers.ConjugateGradients(rank=5)
    with pytest.raises(NumericalError, match="reached a relative residual of"):
        solvers.solve(Counting(kernel, always_rough=True), b, noise, solver)
    counting = Counting(kernel)
    solution = solvers.solve(counting, b, noise, solver)
    assert (true_residual(kernel, noise, b, solution.x) <= 1e-6).all()
    assert counting.products[0] == "float32"
    assert counting.products[-2:] == ["float64", "float64"]


@pytest.mark.parametrize("scale", [1e-30, 1e36])
def test_kernels_of_any_scale(matrices, b, scale):  # noqa: F811
    kernel = matrices["float32"] * np.float32(scale)
    noise = NOISE * scale
    solution = solvers.solve(kernel, b, noise, solvers.ConjugateGradients(rank=40))
    assert (true_residual(kernel, noise, b, solution.x) <= 1e-6).all()


@pytest.mark.parametrize("rank", [0, 5])
def test_an_indefinite_float32_matrix_is_refused(rank, b):  # noqa: F811
    kernel = np.eye(N, dtype=np.float32)
    kernel[:2, :2] = [[1, 3], [3, 1]]
    with pytest.raises(NumericalError, match="not positive definite"):
        solvers.solve(kernel, b, NOISE, solvers.ConjugateGradients(rank=rank))
