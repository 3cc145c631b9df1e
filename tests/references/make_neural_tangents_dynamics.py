"""Freezes predictions of training as Neural Tangents 0.6.5 computes them.

Run it in an environment of its own (neural-tangents 0.6.5, jax 0.4.25, numpy < 2):

    python tests/references/make_neural_tangents_dynamics.py

It writes `neural_tangents_dynamics.npz` beside itself, float64. Of an infinitely wide network, `wide/`: its kernels
`dd`, `td` and `tt` (4 training and 3 test points), targets `y`, outputs before training `f_train` and `f_test`; of
another one of finite width, with the outputs (n, 2, 3), `narrow/` the same, its exact NTK; of each, results by name.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np
from neural_tangents import predict, stax

jax.config.update("jax_enable_x64", True)

TIMES = np.array([[0.0, 0.5], [3.0, 40.0]])
RATE = 0.7
REGULARISERS = {"none": (0.0, False), "relative": (0.1, False), "absolute": (0.1, True)}


def cross_entropy(fx, y):
    return -jnp.mean(jax.nn.log_softmax(fx) * y)


def mse(fx, y):
    return 0.5 * jnp.mean((fx - y) ** 2)


def kernels(kernel_fn, x, x_test):
    pairs = {"dd": (x, None), "td": (x_test, x), "tt": (x_test, None)}
    return {f"{name}/{get}": kernel_fn(*pair, get) for name, pair in pairs.items() for get in ("nngp", "ntk")}


def closed_forms(saved, trace_axes):
    """`gradient_descent_mse`."""
    start = (saved["f_train"], saved["f_test"], saved["td/ntk"])
    found = {}
    for name, (diag_reg, absolute) in REGULARISERS.items():
        fn = predict.gradient_descent_mse(saved["dd/ntk"], saved["y"], RATE, diag_reg, absolute, trace_axes)
        for when, t in {"forever": None, "times": TIMES}.items():
            found[f"mse/{name}/{when}/train"], found[f"mse/{name}/{when}/test"] = fn(t, *start)
    return found


def ensembles(saved, trace_axes):
    """`gradient_descent_mse_ensemble`, of kernels that are looked up; inputs are the numbers 0 and 1."""
    table = {(0, 0): "dd", (1, 0): "td", (1, 1): "tt"}
    kernel_type = nt._src.predict._Kernel

    def kernel_fn(x1, x2, get):
        name = table[int(x1[0]), int(x1[0] if x2 is None else x2[0])]
        return saved[f"{name}/{get}"] if isinstance(get, str) else kernel_type(*(saved[f"{name}/{g}"] for g in get))

    found = {}
    for name, (diag_reg, absolute) in REGULARISERS.items():
        zero, one = jnp.zeros(1), jnp.ones(1)
        fn = predict.gradient_descent_mse_ensemble(kernel_fn, zero, saved["y"], RATE, diag_reg, absolute, trace_axes)
        for when, t in {"forever": None, "times": TIMES}.items():
            for which, x in {"train": None, "test": one}.items():
                gaussians = fn(t, x, ("nngp", "ntk"), True)
                for get, gaussian in gaussians._asdict().items():
                    place = f"ensemble/{name}/{when}/{which}/{get}"
                    found[f"{place}/mean"], found[f"{place}/covariance"] = gaussian
    return found


def solved(saved, trace_axes):
    """`gradient_descent`."""
    start = (saved["f_train"], saved["f_test"], saved["td/ntk"])
    found = {}
    for loss in (mse, cross_entropy):
        for momentum in (None, 0.9):
            fn = predict.gradient_descent(loss, saved["dd/ntk"], saved["y"], RATE, momentum, trace_axes)
            name = f"ode/{loss.__name__}/{momentum}"
            found[f"{name}/train"], found[f"{name}/test"] = fn(TIMES.ravel(), *start)
    return found


def wide(random):
    _, _, kernel_fn = stax.serial(stax.Dense(8, 1.5, 0.1), stax.Erf(), stax.Dense(2, 1.5, 0.1))
    x, x_test = random.standard_normal((4, 3)), random.standard_normal((3, 3))
    shapes = {"y": (4, 2), "f_train": (4, 2), "f_test": (3, 2)}
    return kernels(kernel_fn, x, x_test) | {name: random.standard_normal(s) for name, s in shapes.items()}


def narrow(random):
    params = {"a": random.standard_normal((3, 5)), "b": random.standard_normal((5, 6))}

    def f(params, x):
        return (jnp.tanh(x @ params["a"]) @ params["b"]).reshape(-1, 2, 3)

    kernel_fn = nt.empirical_kernel_fn(f, trace_axes=())
    x, x_test = random.standard_normal((4, 3)), random.standard_normal((2, 3))
    saved = kernels(lambda x1, x2, get: kernel_fn(x1, x2, get, params), x, x_test)
    return saved | {"y": random.standard_normal((4, 2, 3)), "f_train": f(params, x), "f_test": f(params, x_test)}


def main():
    random = np.random.RandomState(0)
    frozen = {"times": TIMES, "rate": RATE}
    for name, saved, trace_axes in (("wide", wide(random), (-1,)), ("narrow", narrow(random), ())):
        found = closed_forms(saved, trace_axes) | solved(saved, trace_axes)
        if name == "wide":
            found |= ensembles(saved, trace_axes)
        frozen |= {f"{name}/{key}": np.asarray(value) for key, value in (saved | found).items()}
    path = Path(__file__).with_name("neural_tangents_dynamics.npz")
    np.savez_compressed(path, **frozen)
    print(f"{path.name}: {len(frozen)} arrays, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
