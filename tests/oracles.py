"""Monte Carlo kernels of finite networks: the oracle that shares no code with infnet.

A network f(θ, x) with outputs f_o, initialised at a random θ, gives one sample each of

    nngp(x, x') = mean_o f_o(x) f_o(x'),        ntk(x, x') = Σ_θ ∂f_0(x)/∂θ ∂f_0(x')/∂θ

whose means over θ tend to the infinite-width kernels like 1 / width (Dyer & Gur-Ari, arXiv:1909.11304).
`extrapolate` removes that term by a weighted least-squares fit of K + c / width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from quick import quick_keys


class Fit(NamedTuple):
    """The value at infinite width and its standard error, entry by entry."""

    value: np.ndarray
    standard_error: np.ndarray

    def z_scores(self, expected: np.ndarray | float) -> np.ndarray:
        return (self.value - expected) / self.standard_error


class Kernels(NamedTuple):
    nngp: Any
    ntk: Any


def everything(path: tuple[Any, ...]) -> bool:
    return True


def one_sample(
    module: nn.Module,
    x1: Any,
    x2: Any,
    key: jax.Array,
    trainable: Callable[[tuple[Any, ...]], bool] = everything,
) -> Kernels:
    """NNGP and NTK, (n1, n2) each, of the network drawn with `key`; the NTK is that of its "params" alone."""
    state, params = flax.core.pop(module.init(key, x1), "params")

    def outputs(p: Any, example: Any) -> tuple[jax.Array, jax.Array]:
        y = module.apply({**state, "params": p}, jax.tree.map(lambda leaf: leaf[None], example))[0]
        return y[0], y

    def of_example(example: Any) -> tuple[Any, jax.Array]:
        return jax.grad(outputs, has_aux=True)(params, example)

    def products(values: jax.Array) -> jax.Array:
        values = values.reshape(len(values), -1)
        return values[:n1] @ values[n1:].T

    # one program for the examples of both sets, and for both kernels: what these tests wait for is the compiler
    n1 = len(jax.tree.leaves(x1)[0])
    gradients, y = jax.lax.map(of_example, jax.tree.map(lambda *xs: jnp.concatenate(xs), x1, x2))
    ntk = sum(products(g) for path, g in jax.tree.leaves_with_path(gradients) if trainable(path))
    return Kernels(products(y) / y.shape[1], ntk)


def draws(sample: Callable[[jax.Array], Any], key: jax.Array, n_samples: int) -> Any:
    """`sample` of as many keys, stacked."""
    # the lower level compiles in two thirds of the time, to code that is as fast
    mapped = jax.jit(partial(jax.lax.map, sample), compiler_options={"xla_backend_optimization_level": 1})
    return mapped(quick_keys(key, n_samples))


def finite_width_kernels(
    module: nn.Module,
    x1: Any,
    x2: Any,
    key: jax.Array,
    n_samples: int,
    *,
    trainable: Callable[[tuple[Any, ...]], bool] = everything,
) -> Kernels:
    """`n_samples` draws of both kernels, arrays (n_samples, n1, n2).

    The inputs are arrays or pytrees of them; the module's outputs must be (n, channels). All channels are
    averaged in the NNGP, where they are independent given the last features; the NTK is that of output 0,
    all of them being nearly equal. `trainable`, of a parameter's path, restricts the NTK's sum over parameters.
    """
    x1, x2 = jax.tree.map(jnp.asarray, (x1, x2))
    # a closure: modules need not be hashable (nn.Sequential of a list is not)
    sample = partial(one_sample, module, x1, x2, trainable=trainable)
    return Kernels(*(np.asarray(s, np.float64) for s in draws(sample, key, n_samples)))


def fit_inverse_width(widths: Sequence[float], means: np.ndarray, standard_errors: np.ndarray) -> Fit:
    """Weighted least squares of means[i] = K + c / widths[i], elementwise; the law of K.

    With weights w = 1 / se², S_k = Σ w x^k and x = 1 / width, the normal equations give
    K = Σ w (S_2 - S_1 x) y / D and var K = S_2 / D, where D = S_0 S_2 - S_1².
    """
    x = 1 / np.asarray(widths, float).reshape(-1, *[1] * (means.ndim - 1))
    w = standard_errors**-2
    s0, s1, s2 = (np.sum(w * x**k, 0) for k in range(3))
    determinant = s0 * s2 - s1**2
    value = np.sum(w * (s2 - s1 * x) * means, 0) / determinant
    return Fit(value, np.sqrt(s2 / determinant))


def extrapolate(
    make: Callable[[int], nn.Module],
    x1: Any,
    x2: Any,
    key: jax.Array,
    *,
    widths: Sequence[int] = (1, 4),
    n_samples: int | Sequence[int] = 1000,
    analytic: Callable[[int], tuple[np.ndarray, np.ndarray]] | None = None,
    **options: Any,
) -> Kernels:
    """A `Fit` of each kernel at infinite width, from networks `make(multiplier)` of several widths.

    With `analytic`, which gives the kernels claimed at each multiplier, the *ratio* sampled / claimed is
    fitted, and should be 1: the NTK of a model as written grows with its widths and has no limit of its
    own. `options` go to `finite_width_kernels`.
    """
    counts = [n_samples] * len(widths) if isinstance(n_samples, int) else list(n_samples)
    means, errors = [], []
    for width, count, subkey in zip(widths, counts, jax.random.split(key, len(widths)), strict=True):
        samples = finite_width_kernels(make(width), x1, x2, subkey, count, **options)
        claimed = (1.0, 1.0) if analytic is None else analytic(width)
        ratios = [s / np.asarray(c) for s, c in zip(samples, claimed, strict=True)]
        means.append([r.mean(0) for r in ratios])
        errors.append([r.std(0, ddof=1) / np.sqrt(count) for r in ratios])
    fits = zip(np.swapaxes(means, 0, 1), np.swapaxes(errors, 0, 1), strict=True)
    return Kernels(*(fit_inverse_width(widths, m, e) for m, e in fits))


def assert_ratio_is_one(fit: Fit, *, largest_error: float = 0.01) -> None:
    """Within 4 standard errors, none of which is large enough to hide a mistake."""
    assert fit.standard_error.max() <= largest_error
    assert np.abs(fit.z_scores(1.0)).max() <= 4.0, (fit.value, fit.standard_error)
