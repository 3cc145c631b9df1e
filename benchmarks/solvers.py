"""Time and memory of solving (K + noise) x = b, by conjugate gradients and by Cholesky factorisation.

    python benchmarks/solvers.py time [--n 20000] [--classes 10] [--ranks 0 250 ...] [--plot solvers.png]
    python benchmarks/solvers.py memory {cholesky,cg} [--n 20000] [--classes 10]

The problem is fixed: K is the NTK, float32, of a network with two hidden ReLU layers (weights of variance 2 / fan-in)
on scikit-learn's digits, 8 x 8 pixels in [0, 1]; n of them are drawn with seed 0, turned by up to 15 degrees, shifted
by up to 0.7 pixels, and given noise of 0.05 a pixel. The noise on the diagonal is 1e-4 of its mean, b the ten classes
as centred indicators, or the first of them. Every solution is checked by its residual |b - (K + noise) x| / |b| in
float64, the largest of all. `time` compares with LAPACK's potrf, in place, in float32 and in float64; `memory` measures
one solve, with the kernel before it, in a process of its own.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from scipy import ndimage
from scipy.linalg import lapack
from sklearn.datasets import load_digits

import infnet
from infnet import solvers
from infnet.solvers.operators import load

matplotlib.use("Agg")

RANKS = (125, 250, 500, 1000, 2000)
NOISE = 1e-4


def digits(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 64) and indicators of their classes (n, 10)."""
    random = np.random.default_rng(0)
    images, classes = load_digits(return_X_y=True)
    chosen = random.integers(len(images), size=n)
    x = np.empty((n, 8, 8), np.float32)
    for i, image in enumerate(images.reshape(-1, 8, 8)[chosen] / 16):
        turned = ndimage.rotate(image, random.uniform(-15, 15), reshape=False, order=1)
        x[i] = ndimage.shift(turned, random.uniform(-0.7, 0.7, 2), order=1)
    x += 0.05 * random.standard_normal(x.shape, np.float32)
    indicators = np.eye(10)[classes[chosen]]
    return x.reshape(n, 64), indicators - indicators.mean(0)


def matrix_free(x: np.ndarray) -> solvers.MatrixFree:
    """The NTK of the images."""

    def apply(params: Any, x: Any) -> Any:
        for w in params[:-1]:
            x = jax.nn.relu(x @ w)
        return x @ params[-1]

    shapes = [(64, 512), (512, 512), (512, 1)]
    priors = [infnet.Prior(0.0, (2 / shape[0]) ** 0.5, shape=shape, dtype=jnp.float32) for shape in shapes]
    return solvers.MatrixFree(infnet.kernel_fn(apply, priors, x[:2], parameterization="ntk"), x, "ntk")


def residual(kernel: solvers.Operator, noise: float, b: np.ndarray, x: np.ndarray) -> float:
    """The largest relative residual of the columns."""
    left = b - kernel.matmul(x.astype(np.float64)) - noise * x
    return float((np.linalg.norm(left, axis=0) / np.linalg.norm(b, axis=0)).max())


def lapack_solve(kernel: np.ndarray, noise: float, b: np.ndarray, dtype: Any) -> np.ndarray:
    """The solution by LAPACK, which overwrites a copy of the matrix."""
    a = kernel.astype(dtype)
    a[np.diag_indices_from(a)] += noise
    potrf, potrs = lapack.get_lapack_funcs(("potrf", "potrs"), (a,))
    lower, failed = timed("factorisation", lambda: potrf(a.T, lower=0, overwrite_a=1, clean=0))
    assert lower.base is a.T.base or np.shares_memory(lower, a)
    return np.full(b.shape, np.nan) if failed else potrs(lower, b.astype(dtype), lower=0)[0]


def timed(label: str, work: Callable[[], Any]) -> Any:
    """What `work` returns; prints how long it took, by the clock and on all processors together."""
    clock, processors = time.perf_counter(), time.process_time()
    result = work()
    clock, processors = time.perf_counter() - clock, time.process_time() - processors
    print(f"  {label:<14} {clock:8.1f} s   {processors:8.1f} s of processors", flush=True)
    return result


def run_times(n: int, classes: int, ranks: list[int], plot: str | None) -> list[int]:
    """Print times and residuals; returns the iterations at each rank, which are also plotted."""
    x, b = digits(n)
    b = b[:, :classes]
    print(f"n = {n}, {classes} right-hand sides")
    matrix = timed("kernel", lambda: load(matrix_free(x)))
    kernel = solvers.operator(matrix)
    noise = NOISE * float(np.diagonal(matrix).mean())
    for dtype in (np.float32, np.float64):
        print(f"LAPACK, {np.dtype(dtype)}")
        found = timed("in all", lambda dtype=dtype: lapack_solve(matrix, noise, b, dtype))
        print(f"  residual {residual(kernel, noise, b, found):.1e}")
        del found
    iterations = []
    for rank in ranks:
        print(f"conjugate gradients, rank {rank}")
        solver = solvers.ConjugateGradients(rank=rank, tol=1e-6)
        prepared = timed("preconditioner", lambda solver=solver: solver.prepare(matrix, noise))
        solution = timed("iterations", lambda prepared=prepared: prepared.solve(b))
        iterations.append(solution.info.iterations)
        print(f"  {iterations[-1]} iterations, residual {residual(kernel, noise, b, solution.x):.1e}", flush=True)
    print("Cholesky in place")
    solver = solvers.Cholesky(overwrite=True, tol=1e-6)
    prepared = timed("factorisation", lambda: solver.prepare(matrix, noise))
    solution = timed("correction", lambda: prepared.solve(b))
    print(f"  {solution.info.iterations} iterations, residual {solution.info.residual.max():.1e}")
    if plot:
        draw(n, ranks, iterations, plot)
    return iterations


def run_memory(method: str, n: int, classes: int) -> float:
    """Print and return the peak of the process beyond what it held with the data loaded, in bytes."""
    x, b = digits(n)
    b = b[:, :classes]
    free = matrix_free(x)
    before = peak()
    matrix = timed("kernel", lambda: load(free))
    noise = NOISE * float(np.diagonal(matrix).mean())
    solver = solvers.Cholesky(overwrite=True) if method == "cholesky" else solvers.ConjugateGradients()
    solution = timed(method, lambda: solver.prepare(matrix, noise).solve(b))
    more = peak() - before
    print(f"n = {n}: the kernel has {matrix.nbytes / 1e9:.2f} GB; the peak is {more / 1e9:.2f} GB beyond the data")
    print(f"  {solution.info.iterations} iterations, residual {solution.info.residual.max():.1e}")
    return more


def peak() -> float:
    """The largest memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def draw(n: int, ranks: list[int], iterations: list[int], path: str) -> None:
    """Iterations against rank."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.plot(ranks, iterations, "o-")
    for rank, count in zip(ranks, iterations, strict=True):
        axes.annotate(str(count), (rank, count), textcoords="offset points", xytext=(6, 6))
    axes.set(
        xlabel="rank of the preconditioner", ylabel="iterations to a residual of 1e-6", ylim=(0, 1.15 * max(iterations))
    )
    axes.margins(x=0.08)
    axes.set_title(f"NTK of {n:,} digits, noise 1e-4 of the mean diagonal")
    axes.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    times, memory = commands.add_parser("time"), commands.add_parser("memory")
    for command in (times, memory):
        command.add_argument("--n", type=int, default=20000)
        command.add_argument("--classes", type=int, default=10)
    times.add_argument("--ranks", type=int, nargs="+", default=list(RANKS))
    times.add_argument("--plot")
    memory.add_argument("method", choices=("cholesky", "cg"))
    options = parser.parse_args(arguments)
    if options.command == "time":
        run_times(options.n, options.classes, options.ranks, options.plot)
    else:
        run_memory(options.method, options.n, options.classes)


if __name__ == "__main__":
    main()
