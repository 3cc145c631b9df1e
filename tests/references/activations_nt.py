"""Freezes the kernels of every activation as Neural Tangents 0.6.5 computes them.

Run it in an environment of its own (neural-tangents 0.6.5, jax 0.4.25, numpy < 2):

    python tests/references/activations_nt.py

It writes `activations_nt.npz` beside itself. Each network is Dense, activation, Dense, in "ntk" parameterization, the
first Dense without bias, so that parallel and antiparallel inputs stay so. Arrays, all float64:

    x, x_unit         six inputs: the fifth repeats the first, the sixth is minus the second; x_unit has variance 1
    case/nngp         shape (6, 6), of x with itself; "hermite" of x_unit with the first W_std = 1
    case/ntk          the same

Not all of it is right: at parallel inputs Neural Tangents takes the square root of a rounding error, and the
derivatives of rectified monomials are NaN there.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import inputs
import jax
import numpy as np
from neural_tangents import stax

jax.config.update("jax_enable_x64", True)
warnings.filterwarnings("ignore", message="Inputs to this layer are assumed")

W_STD, B_STD = 1.4, 0.3
ACTIVATIONS = {
    "abrelu": stax.ABRelu(-0.3, 1.2),
    "relu": stax.Relu(),
    "leaky_relu": stax.LeakyRelu(0.1),
    "abs": stax.Abs(),
    "sign": stax.Sign(),
    "erf": stax.Erf(1.3, 0.7, 0.2),
    "sigmoid_like": stax.Sigmoid_like(),
    "gelu": stax.Gelu(),
    "sin": stax.Sin(1.3, 0.7, 0.4),
    "cos": stax.Cos(0.8, 1.1, 0.3),
    "rbf": stax.Rbf(0.6),
    "exp": stax.Exp(1.1, 0.4),
    "exp_normalized": stax.ExpNormalized(0.8, -0.7, do_clip=True),
    "gaussian": stax.Gaussian(1.2, -0.6),
    "gabor": stax.Gabor(),
    **{f"hermite{n}": stax.Hermite(n) for n in (1, 2, 3, 4)},
    **{f"monomial{n}": stax.Monomial(n) for n in range(6)},
    **{f"rectified_monomial{n}": stax.RectifiedMonomial(n) for n in range(4)},
    "polynomial": stax.Polynomial([0.3, -1.0, 0.5, 0.2]),
}


def main():
    x = np.concatenate(inputs.make((5,)))[:6]
    x[4], x[5] = x[0], -x[1]
    x_unit = x / np.sqrt((x**2).mean(1, keepdims=True))
    arrays = {"x": x, "x_unit": x_unit}
    for name, activation in ACTIVATIONS.items():
        unit = name.startswith("hermite")
        first = stax.Dense(32, W_std=1.0 if unit else W_STD, b_std=None)
        _, _, kernel_fn = stax.serial(first, activation, stax.Dense(1, W_std=W_STD, b_std=B_STD))
        kernel = kernel_fn(x_unit if unit else x, None, ("nngp", "ntk"))
        for moment in ("nngp", "ntk"):
            arrays[f"{name}/{moment}"] = np.asarray(getattr(kernel, moment))
            print(f"{name}/{moment}", arrays[f"{name}/{moment}"].dtype, np.isnan(arrays[f"{name}/{moment}"]).sum())
    path = Path(__file__).with_name("activations_nt.npz")
    np.savez_compressed(path, **arrays)
    print(f"{path}: {len(arrays)} arrays, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
