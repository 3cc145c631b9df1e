"""Random features next to the exact kernel: their error, what an example costs, and predictions of many examples.

    python benchmarks/random_features.py kernels [--n 1000]
    python benchmarks/random_features.py predict [--n 1000000] [--columns 2048] [--exact 4000]

`kernels`, for dense networks of three hidden layers on 100 numbers: the error of K_ij over sqrt(K_ii K_jj) (root mean
square over n examples, and mean over 3 draws); this times the root of the number of features, which should not change
from row to row; the time to compute the features of an example; that of a row of the exact kernel with a million
examples (n^2 entries are timed), both in this run; and their ratio. Solving with m features takes n m^2 operations
more.

`predict`: regression on n examples of 30 numbers, of a random network of one hidden layer (64 units of tanh, values of
variance 1) with noise of standard deviation 0.1, by features of the NTK of the relu network above. Errors are root mean
squares over 1000 examples more, without noise: of all n; of the first few of them, by the exact kernel and by features;
and between the means of these two.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import infnet
import infnet_flax
from infnet.predict import feature_inference, gp_inference

MILLION = 1_000_000
TESTED = 1000
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": nn.relu,
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "erf": jax.scipy.special.erf,
}


def network(activation: Callable[[jax.Array], jax.Array]) -> nn.Module:
    """A dense network."""
    initialiser = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    layers: list[Any] = []
    for _ in range(3):
        layers += [nn.Dense(512, kernel_init=initialiser, bias_init=nn.initializers.normal(0.1)), activation]
    return nn.Sequential([*layers, nn.Dense(1)])


def seconds(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> float:
    """The best of 3 runs, after one that compiles."""
    runs = []
    for _ in range(4):
        start = time.perf_counter()
        jax.block_until_ready(function(x))
        runs.append(time.perf_counter() - start)
    return min(runs[1:])


def run_kernels(n: int) -> None:
    """Print a row for each network, kernel and number of features."""
    rng = np.random.RandomState(0)
    x = jnp.asarray(rng.standard_normal((n, 100)) * rng.uniform(0.5, 1.5, (n, 1)), jnp.float32)
    print("network  get    columns  error  x root  us/example   us/row  ratio")
    for name, activation in ACTIVATIONS.items():
        kernel_fn = infnet_flax.kernel_fn(network(activation), x)
        for get in ("nngp", "ntk"):
            exact = kernel_fn(x, get=get)
            scale = np.sqrt(np.outer(np.diagonal(exact), np.diagonal(exact)))
            row = seconds(partial(kernel_fn, x, get=get), x) / n**2 * MILLION
            for count in (512, 2048, 8192):
                features = infnet.random_features(kernel_fn, jax.random.key(0), count, get)
                own = seconds(features, x) / n
                drawn = [features.redraw(jax.random.key(seed)).kernel(x) for seed in range(3)]
                error = np.mean([np.sqrt(np.mean(np.square((k - exact) / scale))) for k in drawn])
                print(
                    f"{name:8} {get:5} {features.n_features:8} {error:6.4f} {error * features.n_features**0.5:7.2f} "
                    f"{own * 1e6:11.1f} {row * 1e6:8.0f} {row / own:6.0f}",
                    flush=True,
                )


def problem(n: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs (n + 1000, 30), values without noise, and with it."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n + TESTED, 30), np.float32)
    hidden, out = rng.standard_normal((30, 64), np.float32) / 30**0.5, rng.standard_normal(64, np.float32)
    values = np.tanh(x @ hidden) @ out
    values = (values - values.mean()) / values.std()
    return x, values, values + np.float32(0.1) * rng.standard_normal(len(x), np.float32)


def timed(label: str, work: Callable[[], Any]) -> Any:
    """What `work` returns; prints how long it took, by the clock and on all processors together."""
    clock, processors = time.perf_counter(), time.process_time()
    result = work()
    clock, processors = time.perf_counter() - clock, time.process_time() - processors
    print(f"{label:32} {clock:8.1f} s   {processors:8.1f} s of processors", flush=True)
    return result


def run_predict(n: int, columns: int, few: int) -> None:
    """Print times, errors and the peak of memory."""
    x, truth, y = problem(n)
    test, wanted = x[n:], truth[n:]
    kernel_fn = infnet_flax.kernel_fn(network(nn.relu), x[:2])
    features = infnet.random_features(kernel_fn, jax.random.key(0), columns, "ntk")

    def predicted(size: int) -> np.ndarray:
        return np.asarray(feature_inference(features, x[:size], y[:size], noise=0.01)(test).mean)

    def exactly(size: int) -> np.ndarray:
        train = kernel_fn(x[:size], get="ntk")
        cross, diagonal = kernel_fn(test, x[:size], get="ntk"), kernel_fn.diag(test, "ntk")
        return np.asarray(gp_inference(train, y[:size], noise=0.01)("ntkgp", cross, diagonal).mean)

    def error(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(a - b))))

    print(f"n = {n}, {features.n_features} features; the data have {(x.nbytes + y.nbytes) / 1e9:.2f} GB")
    own = timed(f"features of {n} examples", lambda: predicted(n))
    print(f"  error {error(own, wanted):.4f}, peak of the whole process {peak() / 1e9:.2f} GB")
    some = timed(f"features of {few} examples", lambda: predicted(few))
    print(f"  error {error(some, wanted):.4f}")
    exact = timed(f"exact kernel of {few} examples", lambda: exactly(few))
    print(f"  error {error(exact, wanted):.4f}, of the features' mean from this one {error(some, exact):.4f}")


def peak() -> float:
    """The largest memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def main(arguments: list[str] | None = None) -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("kernels").add_argument("--n", type=int, default=1000)
    predict = commands.add_parser("predict")
    predict.add_argument("--n", type=int, default=MILLION)
    predict.add_argument("--columns", type=int, default=2048)
    predict.add_argument("--exact", type=int, default=4000)
    options = parser.parse_args(arguments)
    if options.command == "kernels":
        run_kernels(options.n)
    else:
        run_predict(options.n, options.columns, options.exact)


if __name__ == "__main__":
    main()
