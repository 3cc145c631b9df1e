"""Kernels of infnet against finite networks of the same, unmodified module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from oracles import extrapolate
from quick import unoptimised

import infnet_flax

normal = nn.initializers.variance_scaling(1.0, "fan_in", "normal")
biases = nn.initializers.normal(0.3)


def _settings() -> dict[str, Any]:
    return {"kernel_init": normal, "bias_init": biases, "param_dtype": jnp.result_type(float)}


def dense(width: int, **options: Any) -> nn.Dense:
    return nn.Dense(width, **{**_settings(), **options})


def conv(width: int, window: tuple[int, ...] = (3, 3), **options: Any) -> nn.Conv:
    return nn.Conv(width, window, **{**_settings(), **options})


def examples(*shape: int, n: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Two sets of examples with entries of size 1, in float32, correlated so that kernels are not near zero."""
    rng = np.random.RandomState(sum(shape))
    common = rng.standard_normal(shape)
    return tuple(np.float32(common + 0.7 * rng.standard_normal((n, *shape))) for _ in range(2))


class Function(nn.Module):
    """A function of arrays that makes its layers as it goes, as a module."""

    function: Callable[..., jax.Array]

    @nn.compact
    def __call__(self, *args):
        return self.function(*args)


class Model(nn.Module):
    """`body(width)` as a module of `width` channels, read out by a Dense layer of many outputs."""

    body: Callable[[Any, int, jax.Array], jax.Array]
    width: int
    outputs: int = 32

    @nn.compact
    def __call__(self, x):
        return dense(self.outputs)(self.body(self, self.width, x))


def trainable_by_name(only: str) -> dict[str, Any]:
    """Options of both sides that restrict the NTK to parameters with `only` in their path."""
    return {"trainable": lambda path: only in (path if isinstance(path, str) else jax.tree_util.keystr(path))}


def assert_limit_of_finite_networks(
    make: Callable[[int], nn.Module],
    x1: Any,
    x2: Any,
    *,
    n_samples: tuple[int, int] = (800, 400),
    widths: tuple[int, int] = (1, 4),
    key: int = 0,
    largest_error: float = 0.06,
    only: str | None = None,
) -> None:
    """Sampled / claimed kernels at two widths, extrapolated to infinite width, are 1 within 4 standard errors.

    No standard error may be larger than `largest_error`, so that a wrong formula cannot hide in the noise.
    """
    options = {} if only is None else trainable_by_name(only)

    def claimed(width: int) -> tuple[np.ndarray, np.ndarray]:
        one = jax.tree.map(lambda x: x[:1], x1)
        kernel_fn = infnet_flax.kernel_fn(make(width), one, precision="highest", **options)
        with unoptimised():
            kernels = kernel_fn(x1, x2, ("nngp", "ntk"))
        return np.asarray(kernels.nngp), np.asarray(kernels.ntk)

    fits = extrapolate(
        make, x1, x2, jax.random.key(key), widths=widths, n_samples=n_samples, analytic=claimed, **options
    )
    for name, fit in zip(("nngp", "ntk"), fits, strict=True):
        assert fit.standard_error.max() <= largest_error, (name, fit)
        assert np.abs(fit.z_scores(1.0)).max() <= 4.0, (name, fit)


def flat(kernel: Any, count: int) -> np.ndarray:
    """(n1, n2, h, h', w, w', ...) as (n1, n2, positions, positions)."""
    kernel = np.asarray(kernel)
    k = (kernel.ndim - 2) // 2
    order = [0, 1, *range(2, 2 + 2 * k, 2), *range(3, 3 + 2 * k, 2)]
    return np.transpose(kernel, order).reshape(*kernel.shape[:2], count, count)


def relu_kernels(q12: jax.Array, q11: jax.Array, q22: jax.Array) -> tuple[jax.Array, jax.Array]:
    """E relu relu and E relu' relu' (Cho & Saul 2009, eq. 5-6), written for this test."""
    root = jnp.sqrt(q11 * q22)
    angle = jnp.arccos(q12 / root)
    return (jnp.sin(angle) * root + (jnp.pi - angle) * q12) / (2 * jnp.pi), (jnp.pi - angle) / (2 * jnp.pi)
