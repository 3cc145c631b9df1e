"""The weights of a linearised network while it is trained on the mean squared error, in closed form.

With the Jacobian J of the outputs f0 at the parameters θ0 and Θ = J Jᵀ, gradient flow on (1 / 2N) |f - y|², where N is
the number of elements of y, is solved by

    θ(t) = θ0 - Jᵀ Θ⁻¹ (1 - exp(-η Θ t / N)) (f0 - y)        (Lee et al. 2019, arXiv:1902.06720, eq. 8)

where the function of Θ is defined without the inverse: at an eigenvalue of zero it is η t / N. It is the filter of
gradient flow in `infnet/predict/filters.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from infnet.arguments import positive
from infnet.empirical.kernels import empirical_ntk_fn
from infnet.empirical.model import Model
from infnet.errors import InputError
from infnet.float64 import in_float64
from infnet.predict.filters import Filter
from infnet.predict.gradient_descent_mse import Rule
from infnet.predict.spectrum import Spectrum, decompose
from infnet.predict.training_set import times

PyTree = Any


def linearized_gradient_descent_mse(
    f: Callable[..., PyTree],
    params: PyTree,
    x_train: PyTree,
    y_train: PyTree,
    learning_rate: float = 1.0,
    *,
    trainable: Any = None,
    lr_scale: Any = None,
    **kwargs: Any,
) -> Callable[..., PyTree]:
    """The parameters of `infnet.linearize(f, params)` while gradient flow trains it on the mean squared error.

    The loss is half the mean over all elements of the outputs, `0.5 * mean((f - y)**2)`, and time is measured in steps
    of gradient descent of this learning rate: small steps come close to it. The NTK of the training set is formed in
    the precision of the outputs, and its eigenvectors are found once, in float64.

    Args:
        f: `(params, x, **kwargs) -> outputs`, any JAX function. x and the outputs are pytrees of real arrays; all
            outputs have the examples on axis 0.
        params: the parameters θ0 at which `f` is linearised and training begins.
        x_train: the training inputs.
        y_train: the targets, of the structure and shapes of the outputs.
        learning_rate: η, positive.
        trainable, lr_scale: as in `infnet.empirical_kernel_fn`; what is not trained stays.
        **kwargs: passed to `f`.

    Returns:
        `params_at(t=None)`: the parameters at time t, for which `infnet.linearize(f, params)(params_at(t), x)` is the
        trained network. None is infinity: the solution closest to θ0, as `lr_scale` measures distances. For an array
        of times, parameters have its axes first.

    Raises:
        InputError: the targets are of another structure or other shapes than the outputs, or something is complex.
    """
    rate = positive("learning_rate", learning_rate)
    model = Model(_joined(f), params, kwargs, trainable, lr_scale)
    targets = _join(Model(f, params, kwargs).leaves_like_outputs("y_train", y_train, x_train))
    if jnp.iscomplexobj(targets) or any(map(jnp.iscomplexobj, model.leaves)):
        raise InputError("linearized_gradient_descent_mse takes real parameters and targets, not complex ones")
    outputs, pullback = jax.vjp(lambda leaves: model.outputs(leaves, x_train)[0], model.leaves)
    ntk = empirical_ntk_fn(_joined(f), trainable=trainable, lr_scale=lr_scale)(x_train, None, params, **kwargs)
    n, rule = outputs.size, Rule.read(rate, None, False)
    ntk = ntk.swapaxes(1, 2).reshape(1, n, n)
    spectrum = decompose(ntk, jnp.zeros(()), True, "the NTK of the training set")
    errors = (targets - outputs).reshape(1, n, 1)

    def params_at(t: Any = None) -> PyTree:
        if t is not None and jnp.ndim(t):
            return jax.vmap(params_at)(times(t))
        coefficients = _filtered(spectrum, rule.filter(spectrum, n, t, None), errors)
        (steps,) = pullback(coefficients.reshape(outputs.shape).astype(outputs.dtype))
        return model.params_with([p + r * step for p, r, step in zip(model.leaves, model.rates, steps, strict=True)])

    return params_at


@in_float64
def _filtered(spectrum: Spectrum, filter_: Filter, errors: jax.Array) -> jax.Array:
    return spectrum.filtered(filter_, errors)


def _joined(f: Callable[..., PyTree]) -> Callable[..., jax.Array]:
    """A model with all of its outputs in one array."""
    return lambda params, x, **kwargs: _join(jax.tree.leaves(f(params, x, **kwargs)))


def _join(leaves: list[jax.Array]) -> jax.Array:
    """`(n, elements of all)` of arrays `(n, ...)`."""
    if len({leaf.shape[:1] for leaf in leaves} | {()}) != 2:
        raise InputError(f"all outputs must have the examples on axis 0, but have {[leaf.shape for leaf in leaves]}")
    return jnp.concatenate([leaf.reshape(len(leaf), -1) for leaf in leaves], axis=1)
