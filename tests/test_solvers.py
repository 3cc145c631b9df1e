"""Solutions against NumPy's dense ones; what is in memory is never more than was promised."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infnet import Prior, kernel_fn, solvers
from infnet.errors import InputError, NumericalError
from infnet.solvers import low_rank, operators, products

ROOT = Path(__file__).parent.parent
N, NOISE = 200, 1e-3
SOLVERS = {
    "rpcholesky": solvers.ConjugateGradients(rank=40),
    "nystrom": solvers.ConjugateGradients(rank=40, preconditioner="nystrom"),
    "none": solvers.ConjugateGradients(rank=0),
    "cholesky": solvers.Cholesky(),
}


def arccos_kernel(x1, x2=None, get="ntk"):
    """One hidden ReLU layer (Cho & Saul 2009): long-tailed, as the kernels of networks are."""
    x2 = x1 if x2 is None else x2
    norms = jnp.linalg.norm(x1, axis=1)[:, None] * jnp.linalg.norm(x2, axis=1)
    cosine = jnp.clip(x1 @ x2.T / norms, -1, 1)
    angle = jnp.arccos(cosine)
    return norms * (jnp.sqrt(1 - cosine**2) + (jnp.pi - angle) * cosine) / jnp.pi


@pytest.fixture(scope="module")
def points():
    return np.random.default_rng(0).standard_normal((N, 8))


@pytest.fixture(scope="module")
def matrices(points):
    with jax.enable_x64(True):
        kernel = np.asarray(arccos_kernel(points))
    kernel = (kernel + kernel.T) / 2
    return {"float64": kernel, "float32": kernel.astype(np.float32)}


@pytest.fixture(scope="module")
def b():
    return np.random.default_rng(1).standard_normal((N, 3))


def dense(kernel, b, noise=NOISE):
    return np.linalg.solve(kernel.astype(np.float64) + np.diag(np.broadcast_to(noise, len(kernel))), b)


def true_residual(kernel, noise, b, x):
    left = b - (kernel.astype(np.float64) @ x + np.broadcast_to(noise, len(b))[:, None] * x)
    return np.linalg.norm(left, axis=0) / np.linalg.norm(b, axis=0)


class Store:
    """What can be read by rows and nothing else; counts the rows that are read at once."""

    def __init__(self, array):
        self._array, self.shape, self.dtype, self.most = array, array.shape, array.dtype, 0

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.most = max(self.most, rows.stop - rows.start)
        return self._array[rows]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", SOLVERS)
def test_the_residual_that_was_promised_is_reached(matrices, b, name, dtype):
    kernel = matrices[dtype]
    solution = solvers.solve(kernel, b, NOISE, SOLVERS[name])
    info = solution.info
    promised = {"float64": 1e-10, "float32": 1e-6}[dtype]
    found = true_residual(kernel, NOISE, b, solution.x)
    assert info.converged
    assert (found <= promised).all()
    np.testing.assert_allclose(info.residual, found, rtol=0.05, atol=1e-13)
    assert (info.dtype, len(info.history)) == (dtype, info.iterations)
    np.testing.assert_allclose(solution.x, dense(kernel, b), atol=promised * np.abs(solution.x).max() / NOISE)


def test_a_preconditioner_saves_iterations(matrices, b):
    counts = {
        rank: solvers.solve(matrices["float64"], b, NOISE, solvers.ConjugateGradients(rank=rank)).info.iterations
        for rank in (0, 25, 100)
    }
    assert counts[0] > 1.5 * counts[25] > 3 * counts[100]


@pytest.mark.parametrize("name", ["rpcholesky", "cholesky"])
def test_every_row_may_have_noise_of_its_own(matrices, b, name):
    noise = np.geomspace(1e-3, 1e-1, N)
    x = solvers.solve(matrices["float64"], b[:, 0], noise, SOLVERS[name]).x
    np.testing.assert_allclose(x, dense(matrices["float64"], b[:, 0], noise), rtol=1e-6, atol=1e-6)


def test_right_hand_sides_of_any_scale_and_zero(matrices, b):
    scales = np.array([1e-30, 0.0, 1e20])
    x = solvers.solve(matrices["float64"], b * scales, NOISE, SOLVERS["rpcholesky"]).x
    np.testing.assert_allclose(x, dense(matrices["float64"], b) * scales, rtol=1e-6)


def test_the_same_key_gives_the_same_solution(matrices, b):
    def run(seed):
        return solvers.solve(matrices["float32"], b, NOISE, solvers.ConjugateGradients(20, key=jax.random.key(seed))).x

    assert np.array_equal(run(0), run(0))
    assert not np.array_equal(run(0), run(1))


# Operators.


@pytest.fixture(scope="module")
def network():
    """A kernel function of infnet's."""
    shapes = [(8, 64), (64, 1)]
    laws = [Prior(0.0, 0.2, shape=shape, dtype=jnp.float32) for shape in shapes]
    return kernel_fn(lambda w, x: jax.nn.relu(x @ w[0]) @ w[1], laws, jnp.ones((2, 8)))


def operators_of(kernel, points, network, path):
    np.save(path, kernel)
    yield solvers.operator(kernel, strip=70)
    yield solvers.operator(np.load(path, mmap_mode="r"))
    yield solvers.operator(jnp.asarray(kernel))
    yield solvers.operator(Store(kernel), strip=33)
    yield operators.Sharded(jnp.asarray(kernel))
    yield solvers.MatrixFree(network, points, "ntk", strip=48)


def test_operators_are_their_matrices(points, network, tmp_path):
    points = points.astype(np.float32)
    kernel = np.asarray(network(points, get="ntk"))
    v, indices = np.random.default_rng(2).standard_normal((N, 2)), np.array([5, 199, 0, 5, 64])
    for operator in operators_of(kernel, points, network, tmp_path / "kernel.npy"):
        assert (operator.shape, operator.dtype) == (kernel.shape, kernel.dtype)
        # A kernel that is computed by strips is rounded in another order.
        close = partial(np.testing.assert_allclose, rtol=2e-5 if isinstance(operator, solvers.MatrixFree) else 1e-12)
        close(operator.diagonal(), np.diagonal(kernel))
        close(operator.columns(indices), kernel[:, indices], atol=1e-6)
        close(operator.matmul(v), kernel.astype(np.float64) @ v, atol=1e-4 * np.abs(kernel).max())


def test_a_kernel_function_without_diag_is_an_operator_too(points, matrices):
    with jax.enable_x64(True):
        operator = solvers.MatrixFree(arccos_kernel, points, strip=150)
        np.testing.assert_allclose(operator.diagonal(), np.diagonal(matrices["float64"]), rtol=1e-6)
        v = np.eye(N)[:, [3, 180]]
        np.testing.assert_allclose(operator.matmul(v), matrices["float64"] @ v, rtol=1e-6, atol=1e-6)


def test_what_is_computed_is_above_the_diagonal(points, network):
    points = points.astype(np.float32)
    pairs = []

    def counted(x1, x2, get):
        pairs.append(len(x1) * len(x2))
        return network(x1, x2, get)

    free = solvers.MatrixFree(counted, points, strip=18)  # 7 tiles a side, of 29 examples
    free.diagonal()
    pairs.clear()
    loaded = operators.load(free)
    assert set(pairs) == {29**2}
    assert len(pairs) == 28
    np.testing.assert_allclose(loaded, network(points, get="ntk"), rtol=2e-4, atol=1e-6)


def test_stores_are_read_by_strips(matrices, b):
    store = Store(matrices["float32"])
    solvers.solve(solvers.operator(store, strip=16), b, NOISE, SOLVERS["rpcholesky"])
    assert store.most == 16


def test_stores_are_read_in_whole_chunks(monkeypatch):
    monkeypatch.setattr(operators, "STRIP_BYTES", 60 * 50 * 8)

    class Chunked(Store):
        chunks = (7, 20)

    assert solvers.operator(Chunked(np.eye(50))).strip == 50
    assert solvers.operator(Chunked(np.eye(100))).strip == 28


@pytest.mark.parametrize("installed", [True, False])
def test_several_threads_multiply_where_threadpoolctl_is_installed(matrices, b, installed, monkeypatch):
    controller = products._controller() if installed else None
    monkeypatch.setattr(products, "SMALL", 0)
    monkeypatch.setattr(products, "_controller", lambda: controller)
    kernel = matrices["float64"]
    rows = [(0, 0, kernel[:150]), (150, 0, kernel[150:])]
    tiles = [(0, 0, kernel[:90, :90]), (0, 90, kernel[:90, 90:]), (90, 90, kernel[90:, 90:])]
    close = partial(np.testing.assert_allclose, desired=kernel @ b, rtol=1e-12, atol=1e-12)
    for blocks in (rows, tiles):
        close(products.symmetric_product(iter(blocks), np.diagonal(kernel), b))
    for found in products.both_products(iter(rows), b):
        close(found)


# Low rank.


@pytest.mark.parametrize("name", low_rank.APPROXIMATIONS)
def test_approximations_leave_a_positive_semidefinite_rest(matrices, name):
    kernel = matrices["float64"]
    eigenvalues = np.linalg.eigvalsh(kernel)[::-1]
    for best in (5, 20):
        # The bound of arXiv:2207.06503, theorem 2.3, for the expectation, with epsilon = 1.
        tail = eigenvalues[best:].sum()
        rank = int(np.ceil(best * (1 + np.log(eigenvalues.sum() / tail))))
        factor = low_rank.APPROXIMATIONS[name](solvers.operator(kernel), rank, jax.random.key(3), lambda _: None)
        rest = np.linalg.eigvalsh(kernel - factor @ factor.T)
        assert rest[0] > -1e-10
        assert rest.sum() < 2 * tail


def test_pivots_follow_their_law():
    # Of a diagonal matrix pivots are drawn in proportion to the diagonal, without replacement.
    kernel, first = np.diag([4.0, 2.0, 1.0, 1.0]), np.zeros(4)
    for seed in range(400):
        factor = low_rank.randomly_pivoted_cholesky(solvers.operator(kernel), 1, jax.random.key(seed), lambda _: None)
        first[np.flatnonzero(factor[:, 0])] += 1
    expected = 400 * np.array([0.5, 0.25, 0.125, 0.125])
    assert (np.square(first - expected) / expected).sum() < 16.3  # chi squared, 3 degrees of freedom: p = 0.001


def test_pivots_in_blocks_follow_their_law_too():
    # With rejection the third pivot's law is that of three draws one by one; without, twins are drawn together.
    twins = np.kron(np.diag([3.0, 2.0, 1.0, 1.0]), np.ones((2, 2)))
    random, counts = np.random.default_rng(0), np.zeros(3)
    for _ in range(300):
        proposed = random.choice(8, 16, p=np.diagonal(twins) / np.trace(twins))
        kept = proposed[low_rank._accepted(twins[np.ix_(proposed, proposed)], random, 1e-9)]
        assert len(set(kept // 2)) == len(kept)  # the twin of a pivot has nothing left to explain
        counts[0] += kept[0] // 2 == 0
    assert abs(counts[0] / 300 - 3 / 7) < 0.1


def test_a_kernel_of_low_rank_needs_no_more_columns():
    x = np.random.default_rng(0).standard_normal((N, 5))
    factor = low_rank.randomly_pivoted_cholesky(solvers.operator(x @ x.T), 50, jax.random.key(0), lambda _: None)
    assert factor.shape[1] == 5
    np.testing.assert_allclose(factor @ factor.T, x @ x.T, atol=1e-10)


# Cholesky.


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_cholesky_in_place(matrices, order, dtype):
    kernel = matrices[dtype]
    a = np.array(kernel, order=order)
    solvers.Cholesky(overwrite=True).prepare(a, NOISE)
    lower, above = (np.tril(a), np.triu(a, 1)) if order == "C" else (np.tril(a.T), np.triu(a.T, 1))
    wanted = np.linalg.cholesky(kernel + NOISE * np.eye(N))
    close = {"float64": 1e-10, "float32": 1e-4}[dtype]
    np.testing.assert_allclose(lower, wanted, rtol=100 * close, atol=close)
    assert np.array_equal(above, np.triu(kernel, 1))


def test_a_memory_map_is_factored_in_its_file(matrices, b, tmp_path):
    np.save(tmp_path / "kernel.npy", matrices["float32"])
    mapped = np.load(tmp_path / "kernel.npy", mmap_mode="r+")
    x = solvers.solve(mapped, b, NOISE, solvers.Cholesky(overwrite=True)).x
    assert (true_residual(matrices["float32"], NOISE, b, x) < 1e-6).all()
    assert not np.array_equal(np.load(tmp_path / "kernel.npy"), matrices["float32"])


def test_what_is_not_overwritten_stays(matrices, b):
    kernel = matrices["float32"].copy()
    solvers.solve(kernel, b, NOISE, solvers.Cholesky())
    assert np.array_equal(kernel, matrices["float32"])


def test_cholesky_of_a_float32_kernel_is_corrected(matrices, b):
    # At this condition number, 1e8, a float32 factor alone gives no digit.
    x = np.linspace(-1, 1, N)
    kernel = np.exp(-np.square(x[:, None] - x)).astype(np.float32)
    noise = 2e-6
    solution = solvers.solve(kernel, b, noise, solvers.Cholesky())
    assert (true_residual(kernel, noise, b, solution.x) <= 1e-6).all()


# Refusals.


def test_kernels_that_are_none_are_refused(matrices):
    solver = SOLVERS["rpcholesky"]
    for kernel, message in (
        (np.ones((3, 4)), r"square.*\(3, 4\)"),
        (np.ones((0, 0)), "square"),
        (np.ones((2, 2), complex), "real floating-point.*complex128"),
        (np.ones((2, 2), int), "real floating-point.*int64"),
    ):
        with pytest.raises(InputError, match=message):
            solver.prepare(kernel, 1.0)


@pytest.mark.parametrize("make", [lambda k: k, lambda k: operators.Sharded(jnp.asarray(k)), Store])
def test_bad_entries_are_named(matrices, make):
    kernel = matrices["float32"].copy()
    kernel[3, 150] += 0.5
    with pytest.raises(InputError, match=r"\((3, 150|150, 3)\) and \((150, 3|3, 150)\)"):
        SOLVERS["rpcholesky"].prepare(make(kernel), NOISE)
    kernel[120, 7] = np.nan
    with pytest.raises(NumericalError, match=r"not finite, the first at \(120, 7\)"):
        SOLVERS["cholesky"].prepare(make(kernel), NOISE)


def test_products_that_overflow_are_named(matrices):
    system = SOLVERS["rpcholesky"].prepare(matrices["float64"], NOISE)
    largest = np.zeros((N, 1))
    largest[5:7] = np.finfo(float).max
    with np.errstate(over="ignore"), pytest.raises(NumericalError, match=r"not finite in row \d+: .*divide it"):
        system.matmul(largest)


def test_entries_that_a_function_computes_are_named_too(points):
    points = points.astype(np.float32)
    points[11] = np.nan
    with pytest.raises(NumericalError, match=r"\(11, "):
        solvers.solve(solvers.MatrixFree(arccos_kernel, points, strip=50), np.ones(N), NOISE)


@pytest.mark.parametrize(
    ("arguments", "noise", "message"),
    [
        ({"rank": -1}, 1.0, "rank.*-1"),
        ({"rank": 2.5}, 1.0, "rank.*2.5"),
        ({"tol": 0.0}, 1.0, "tol"),
        ({"tol": np.nan}, 1.0, "tol"),
        ({"preconditioner": "jacobi"}, 1.0, "rpcholesky, nystrom.*jacobi"),
        ({"max_iterations": 0}, 1.0, "max_iterations"),
        ({}, 0.0, "positive.*0.0.*singular"),
        ({}, -1.0, "positive.*-1.0"),
        ({}, np.nan, "finite and positive"),
        ({}, np.ones(4), r"\(3,\).*\(4,\)"),
    ],
)
def test_arguments_of_conjugate_gradients(arguments, noise, message):
    with pytest.raises(InputError, match=message):
        solvers.ConjugateGradients(**arguments).prepare(np.eye(3), noise)


def test_arguments_of_cholesky():
    for arguments, message in (({"block": 0}, "block"), ({"max_iterations": 1.5}, "max_iterations")):
        with pytest.raises(InputError, match=message):
            solvers.Cholesky(**arguments).prepare(np.eye(3))
    with pytest.raises(InputError, match="not negative"):
        solvers.Cholesky().prepare(np.eye(3), -1.0)
    for array in (
        Store(np.eye(3)),
        np.eye(3, dtype=np.float16),
        np.broadcast_to(np.eye(3), (3, 3)),
        np.eye(6)[::2, ::2],
        np.frombuffer(bytearray(4 + 9 * 8), np.float64, 9, offset=4).reshape(3, 3),  # not aligned
    ):
        with pytest.raises(InputError, match="in place"):
            solvers.Cholesky(overwrite=True).prepare(array)


def test_right_hand_sides_are_checked():
    prepared = solvers.ConjugateGradients().prepare(np.eye(3), 1.0)
    for b in (np.ones(4), np.ones((3, 1, 1)), np.ones(3, complex), 1.0):
        with pytest.raises(InputError, match=r"b must be real, of shape \(3,\)"):
            prepared.solve(b)
    with pytest.raises(InputError, match=r"not finite at index \(1,\)"):
        prepared.solve([0.0, np.inf, 0.0])


def test_inputs_of_kernel_functions_are_checked(points):
    for x in ({"a": np.ones((3, 2)), "b": np.ones((4, 2))}, np.ones((0, 2)), 1.0):
        with pytest.raises(InputError, match="examples first"):
            solvers.MatrixFree(arccos_kernel, x)
    with pytest.raises(InputError, match="one kernel"):
        solvers.MatrixFree(arccos_kernel, points, ("nngp", "ntk"))
    with pytest.raises(InputError, match=r"\(1, 1\).*\(1,\)"):
        solvers.MatrixFree(lambda x1, x2, get: jnp.ones(len(x1)), points)
    with pytest.raises(InputError, match="strip"):
        solvers.MatrixFree(arccos_kernel, points, strip=0)


def test_what_does_not_converge_says_what_to_do(matrices, b):
    limited = solvers.ConjugateGradients(rank=10, max_iterations=5)
    with pytest.raises(NumericalError, match=r"in 5 iterations.*rank 10.*higher rank.*add noise"):
        solvers.solve(matrices["float64"], b, NOISE, limited)
    as_it_is = solvers.ConjugateGradients(rank=10, max_iterations=5, require_convergence=False)
    solution = solvers.solve(matrices["float64"], b, NOISE, as_it_is)
    assert not solution.info.converged
    np.testing.assert_allclose(solution.info.residual, true_residual(matrices["float64"], NOISE, b, solution.x))


def test_a_limit_of_rounding_is_reported_as_one(b):
    # The residual cannot be smaller than about 1e-16 |K| |x|.
    x = np.linspace(-1, 1, N)
    kernel = 1e6 * np.exp(-np.square(x[:, None] - x))
    with pytest.raises(NumericalError, match="limit of float64"):
        solvers.solve(kernel, b, 1e-7, solvers.ConjugateGradients(rank=50, tol=1e-14))


@pytest.mark.parametrize("solver", [SOLVERS["none"], SOLVERS["cholesky"]])
def test_an_indefinite_matrix_is_refused(solver, b):
    kernel = np.eye(N)
    kernel[:2, :2] = [[1, 3], [3, 1]]
    with pytest.raises(NumericalError, match="not positive definite"):
        solvers.solve(kernel, b, NOISE, solver)
