"""Is the kernel of my model right? `verify` compares it with random networks of the model, at growing widths.

The model has an activation of its own, a wave, and two rules for its kernel. One is right. The other one uses the
geometric mean of two variances where their arithmetic mean belongs: it agrees for inputs of the same size, and for
every input with itself, so that it may go unnoticed for long. Run it: `python examples/verify_my_model.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

import infnet
import infnet_flax


def wave_with(mean_variance: Callable[[jax.Array, jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """sin(x), whose kernel is given by hand.

    For Gaussian u and v, E sin u sin v = exp(-(q11 + q22) / 2) sinh(q12): `mean_variance` is that of q11 and q22.
    """

    @infnet.custom_kernel
    def wave(x):
        return jnp.sin(x)

    @wave.def_kernel
    def rule(kernel):
        shrunk = jnp.exp(-mean_variance(kernel.cov1, kernel.cov2))
        nngp, slopes = shrunk * jnp.sinh(kernel.nngp), shrunk * jnp.cosh(kernel.nngp)
        return dataclasses.replace(kernel, nngp=nngp, ntk=slopes * kernel.ntk)

    return wave


WAVES = {
    "the right rule": wave_with(lambda q11, q22: (q11 + q22) / 2),
    "the wrong rule": wave_with(lambda q11, q22: jnp.sqrt(q11 * q22)),
}


class WaveNet(nn.Module):
    """A small CNN for 8x8 images. Its widths are fields, so that `verify` can make it wider."""

    wave: Callable[[jax.Array], jax.Array]
    channels: int = 32
    features: int = 64
    classes: int = 10

    @nn.compact
    def __call__(self, x):
        x = nn.avg_pool(x, (2, 2), (2, 2))
        x = self.wave(nn.Conv(self.channels, (3, 3))(x))
        x = nn.avg_pool(x, (2, 2), (2, 2)).reshape(len(x), -1)
        return nn.Dense(self.classes)(self.wave(nn.Dense(self.features)(x)))


def digits(n: int) -> np.ndarray:
    """n images (n, 8, 8, 1) of scikit-learn's digits, some fainter than others."""
    images = load_digits().images[:n, ..., None] / 8
    return np.float32(images * np.linspace(0.6, 1.1, n)[:, None, None, None])


def run(fast: bool) -> dict[str, infnet.Verification]:
    """The report for each rule."""
    x, reports = digits(2 if fast else 3), {}
    for name, wave in WAVES.items():
        model = infnet_flax.annotate(WaveNet(wave))
        options = {"multipliers": (1, 4), "resolution": 0.1, "n_samples": 1000} if fast else {}
        # Flax draws weights from truncated normal laws: of 3x3 pixels, the first layer would not be Gaussian.
        reports[name] = model.verify(x, jax.random.key(0), gaussian_first_layer=True, **options)
    return reports


def draw(reports: dict[str, infnet.Verification], path: Path) -> None:
    """Deviations by width and z-scores, a row for each rule."""
    figure = Figure(figsize=(20, 9.5), dpi=110, layout="constrained")
    for part, (name, report) in zip(figure.subfigures(len(reports), 1), reports.items(), strict=True):
        infnet.plot.verification(report, figure=part, title=f"{name}: {report.verdict}")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def main(argv: Sequence[str] | None = None) -> dict[str, infnet.Verification]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fast", action="store_true", help="fewer networks: for a quick look")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="where the picture goes")
    options = parser.parse_args(argv)
    reports = run(options.fast)
    for name, report in reports.items():
        print(f"\n{name}\n\n{report}")
    draw(reports, options.out)
    print(f"\npicture: {options.out}")
    return reports


if __name__ == "__main__":
    main()
