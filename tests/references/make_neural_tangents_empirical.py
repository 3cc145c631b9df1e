"""Freezes empirical kernels of a small network as Neural Tangents 0.6.5 computes them.

Run it in an environment of its own (neural-tangents 0.6.5, jax 0.4.25, numpy < 2):

    python tests/references/make_neural_tangents_empirical.py

It writes `empirical_nt.npz` beside itself, float64: the inputs x1 and x2, the parameters a and b of
`tanh(x @ a) @ b`, and `trace axes/diagonal axes/kernel` for outputs with the axes (examples, positions, channels).
"""

from __future__ import annotations

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import neural_tangents as nt
import numpy as np

jax.config.update("jax_enable_x64", True)


def f(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"]


rng = np.random.RandomState(0)
x1, x2 = rng.standard_normal((2, 2, 3, 2))
params = {"a": rng.standard_normal((2, 4)), "b": rng.standard_normal((4, 5))}
saved = {"x1": x1, "x2": x2, **params}
for kinds in itertools.product(["free", "trace", "diagonal"], repeat=2):
    trace, diagonal = (tuple(k + 1 for k in range(2) if kinds[k] == kind) for kind in ("trace", "diagonal"))
    name = "/".join(" ".join(map(str, axes)) for axes in (trace, diagonal))
    kernels = nt.empirical_kernel_fn(f, trace, diagonal)(x1, x2, ("nngp", "ntk"), params)
    saved |= {f"{name}/nngp": kernels.nngp, f"{name}/ntk": kernels.ntk}
np.savez_compressed(Path(__file__).with_name("empirical_nt.npz"), **saved)
