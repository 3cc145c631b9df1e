"""Order and chaos of a whole model: how alike its outputs are for two inputs, over the scale of its parameters."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.diagnostics.phase import grid
from infnet.errors import InputError
from infnet.priors import path_name

PyTree = Any
WEIGHTS, BIASES = ("*kernel*", "*w", "*W"), ("*bias*", "*b")


@dataclass(frozen=True)
class CorrelationDiagram:
    """The outputs of a model for two inputs, over the scale of its parameters.

    Attributes:
        w_scale: by what the weights of the model are multiplied, `(m,)`.
        b_std: the standard deviation of biases, `(k,)`.
        correlation: of the outputs for two inputs, `(k, m)` float64; NaN where a variance is 0 or not finite, or where
            the series of an activation may be off by more than `tol`, as beyond the variances that it was made for.
        variance: of the output for the first input, `(k, m)`; finite there too, as it is no series.
        input_correlation: the cosine of the angle between both inputs; NaN if one of them is zero.
    """

    w_scale: np.ndarray
    b_std: np.ndarray
    correlation: np.ndarray
    variance: np.ndarray
    input_correlation: float


def correlation_diagram(
    kernel_fn: Any,
    x: Any,
    w_scale: Any,
    b_std: Any,
    *,
    weights: str | Sequence[str] = WEIGHTS,
    biases: str | Sequence[str] = BIASES,
    tol: float = 1e-4,
) -> CorrelationDiagram:
    """The correlation of a model's outputs for two inputs, from its NNGP, over the scale of its weights and biases.

    In deep ordered networks it goes to 1, whatever the inputs; in chaotic ones small differences grow (Poole et al.
    2016, arXiv:1606.05340). It is that of the model as it is: of its depth, its residual connections and its norms.

    An activation without a closed form, such as tanh, is a series with as many terms as the example inputs of
    `kernel_fn` need at the model's own weights, or as variances up to its `q_max` need. Its error grows with the
    variances; where they come to be so large that it may be above `tol`, the correlation is NaN. To see more, make
    `kernel_fn` with a larger `q_max=`, and a `tol=` that can be reached there; or accept a larger `tol`.

    Args:
        kernel_fn: an `infnet.KernelFn`, whose hyperparameters are those of the model.
        x: two inputs of the model, `(2, ...)`.
        w_scale: factors of the standard deviations of weights, `(m,)` ascending. If the model has LeCun's
            initialisation, or layers with `w_std=1`, they are w_std.
        b_std: standard deviations of biases, `(k,)` ascending, which replace those of the model. They are those of the
            parameters: layers that multiply these by a `b_std` of their own should have 1 there.
        weights, biases: globs of the paths of the parameters that are scaled; others stay as they are.
        tol: the largest error of a series (see `Kernel.error`) that is accepted.

    Raises:
        InputError: the grid is not one, `x` does not hold two inputs, globs match no parameter or match one twice, the
            biases have no effect, or the model has several outputs or positions.
    """
    factors, stds = grid(w_scale, b_std, "w_scale")
    if not hasattr(kernel_fn, "with_hyperparameters"):
        raise InputError(f"kernel_fn must be an infnet.KernelFn, whose parameters can be scaled, not {kernel_fn!r}")
    own = kernel_fn.hyperparameters
    roles = _roles(own, weights, biases)

    def at(factor: jax.Array, std: jax.Array) -> Any:
        def scaled(leaf: Any, role: str) -> Any:
            leaf = jnp.asarray(leaf, float)
            return factor * leaf if role == "weight" else std + 0 * leaf if role == "bias" else leaf

        return kernel_fn.with_hyperparameters(jax.tree.map(scaled, own, roles))(x)

    shape = jax.eval_shape(at, jnp.ones(()), jnp.ones(()))
    if getattr(shape, "nngp", None) is None or shape.nngp.shape != (2, 2):
        raise InputError(
            "correlation_diagram needs two inputs x (2, ...), and a model with one output without positions; the "
            f"kernel has the shape {jax.tree.map(lambda leaf: leaf.shape, getattr(shape, 'nngp', shape))}"
        )
    by_column = jax.vmap(at, (0, None))
    kernel = jax.jit(jax.vmap(by_column, (None, 0)))(jnp.asarray(factors, float), jnp.asarray(stds, float))
    nngp, error = np.asarray(kernel.nngp, np.float64), np.asarray(kernel.error, np.float64)
    if np.array_equal(nngp[0], nngp[-1], equal_nan=True):
        raise InputError(
            f"the biases that biases={biases!r} matches have no effect on the outputs, as where a layer multiplies "
            "them by b_std=0: make it with b_std=1"
        )
    q1, q2 = nngp[..., 0, 0], nngp[..., 1, 1]
    product = q1 * q2
    good = np.isfinite(product) & (product > 0) & (error <= tol)
    correlation = np.where(good, nngp[..., 0, 1] / np.sqrt(np.where(good, product, 1)), np.nan)
    return CorrelationDiagram(factors, stds, correlation, q1, _cosine(x))


def _roles(own: PyTree, weights: str | Sequence[str], biases: str | Sequence[str]) -> PyTree:
    leaves, tree = jax.tree_util.tree_flatten_with_path(own)
    paths = [path_name(path) for path, _ in leaves]
    found = []
    for path in paths:
        roles = [role for role, globs in (("weight", weights), ("bias", biases)) if _matches(path, globs)]
        if len(roles) > 1:
            raise InputError(f"{path!r} is both a weight and a bias, by weights={weights!r} and biases={biases!r}")
        found.append(roles[0] if roles else "")
    for role, name, globs in (("weight", "weights", weights), ("bias", "biases", biases)):
        if role not in found:
            raise InputError(f"{name}={globs!r} matches no parameter; the parameters are {', '.join(paths)}")
    return jax.tree.unflatten(tree, found)


def _matches(path: str, globs: str | Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(path, glob) for glob in ([globs] if isinstance(globs, str) else globs))


def _cosine(x: Any) -> float:
    leaves = [np.asarray(leaf, np.float64).reshape(len(leaf), -1) for leaf in jax.tree.leaves(x)]
    one, two = np.concatenate(leaves, axis=1)
    norms = np.sqrt((one @ one) * (two @ two))
    return float(one @ two / norms) if norms > 0 else float("nan")
