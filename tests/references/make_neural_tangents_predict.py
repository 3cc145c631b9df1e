"""Freezes posteriors as Neural Tangents 0.6.5 computes them from the frozen kernels of two networks.

Run it, after `make_neural_tangents.py`, in the same environment. It writes
`neural_tangents_predict.npz` beside itself, under `case/diag_reg/scale/get/what`:

    case      a name in `neural_tangents.npz`; the kernels are its "ntk" convention, x1 being the
              training set and x2 (three points) the test set, targets from `targets()`
    diag_reg  the number;   scale  "relative" or "absolute"
    get       "nngp", "ntk" or "ntkgp"
    what      "mean" or "covariance"

and the test-test kernels, which the other file lacks, under `case/moment/x2x2`.
"""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path

import inputs
import jax
import numpy as np
from make_neural_tangents import networks
from neural_tangents import predict

jax.config.update("jax_enable_x64", True)

HERE = Path(__file__).parent
CASES = ("mlp_relu", "conv_global_pool")
REGULARISERS = {"0.0/relative": (0.0, False), "0.1/relative": (0.1, False), "0.1/absolute": (0.1, True)}
MODES = ("nngp", "ntk", "ntkgp")

Kernel = namedtuple("Kernel", ("nngp", "ntk"))


def targets():
    """Targets of the four training points, two outputs."""
    return np.random.RandomState(1).standard_normal((inputs.N1, 2))


def freeze(case):
    network, shape = networks("ntk", 1)[case]
    x1, x2 = inputs.make(shape)
    dd, td, tt = (Kernel(*network[2](*pair, ("nngp", "ntk"))) for pair in ((x1, None), (x2, x1), (x2, None)))
    frozen = {f"{case}/{moment}/x2x2": np.asarray(k) for moment, k in tt._asdict().items()}
    for name, (diag_reg, absolute) in REGULARISERS.items():
        predict_fn = predict.gp_inference(dd, targets(), diag_reg, absolute)
        for get, gaussian in zip(MODES, predict_fn(MODES, td, tt), strict=True):
            frozen[f"{case}/{name}/{get}/mean"] = np.asarray(gaussian.mean)
            frozen[f"{case}/{name}/{get}/covariance"] = np.asarray(gaussian.covariance)
    return frozen


def main():
    arrays = {"targets": targets()}
    for case in CASES:
        arrays |= freeze(case)
    path = HERE / "neural_tangents_predict.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
