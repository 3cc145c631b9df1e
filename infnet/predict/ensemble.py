"""Ensembles of infinitely wide networks during their training: Gaussian processes at all times.

Networks at initialisation are a Gaussian process with covariance K, the NNGP; training moves each of them as
`infnet/predict/filters.py` says, f = f₀ + A (y - f₀) with A = Θ V diag(s(λ)) Vᵀ, linear in f₀. So (Lee et al. 2019,
arXiv:1902.06720, eqs. 13 to 16), with d for the training and t for the test set, and A from d to t,

    mean = A y        cov = K_tt + A K_dd Aᵀ - (A K_dt + K_td Aᵀ)

Θ is the NTK; or, for `get="nngp"`, the NNGP itself, when only the last layer is trained (eqs. 11 and 12). Then the
covariance is K_tt - K_td V diag(2 s - λ s²) Vᵀ K_dt, in which the limit s = 1 / λ is the Bayesian posterior.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.errors import InputError
from infnet.float64 import in_float64
from infnet.predict.axes import OutputAxes
from infnet.predict.checks import (
    diagonals,
    is_traced,
    real,
    require_finite,
    require_gaussian,
    strength,
    test_kernel,
)
from infnet.predict.covariance import completed, covariance_after
from infnet.predict.filters import Filter
from infnet.predict.gp_inference import named_gaussians
from infnet.predict.gradient_descent_mse import Rule, share
from infnet.predict.posterior import Gaussian
from infnet.predict.spectrum import Spectrum, decompose
from infnet.predict.training_set import cross_matrices, train_matrices, train_targets

Array = jax.Array
PyTree = Any
MODES = ("nngp", "ntk")


def gradient_descent_mse_ensemble(
    kernel_fn: Callable[..., Any],
    x_train: PyTree,
    y_train: Any,
    learning_rate: Any = 1.0,
    diag_reg: Any = 0.0,
    diag_reg_absolute_scale: bool = False,
    trace_axes: int | Sequence[int] = (-1,),
    *,
    diagonal_axes: int | Sequence[int] = (),
    momentum: Any = None,
    nesterov: bool = False,
    any_law: bool = False,
    **kernel_fn_kwargs: Any,
) -> Ensemble:
    """Predicts the mean and the covariance of an ensemble of networks that train on the mean squared error.

    Loss, time and steps are those of `gradient_descent_mse`; networks start as random as their initialiser makes them.
    Kernels are computed, and decomposed in float64, when they are needed first.

    With `diag_reg` the kernel that is decomposed is `Θ + diag_reg * mean(diag(Θ)) * I` (or `Θ + diag_reg * I`, with
    `diag_reg_absolute_scale`); no other kernel is regularised, but the NNGP of the training set in `get="nngp"`, where
    it is the same. So, after training forever,

    >>> import jax.numpy as jnp
    >>> from collections import namedtuple
    >>> Kernels = namedtuple("Kernels", ("nngp", "ntk"))
    >>> features = jnp.array([[1.0, 0.0, 0.2], [0.5, 1.0, 0.0], [0.3, 0.3, 0.9]])
    >>> kernels = {"nngp": features @ features.T, "ntk": 2 * features @ features.T + jnp.eye(3)}
    >>> def kernel_fn(x1, x2, get):
    ...     rows, columns = x1, x1 if x2 is None else x2
    ...     blocks = {name: k[rows][:, columns] for name, k in kernels.items()}
    ...     return blocks[get] if isinstance(get, str) else Kernels(*(blocks[name] for name in get))
    >>> train, test, y = jnp.array([0, 1]), jnp.array([2]), jnp.array([1.0, -1.0])
    >>> ensemble = gradient_descent_mse_ensemble(kernel_fn, train, y, diag_reg=0.1)
    >>> gaussian = ensemble(x_test=test, get="ntk", compute_cov=True)

    is, by hand:

    >>> k_dd, k_td, k_tt = (kernel_fn(*pair, "nngp") for pair in ((train, train), (test, train), (test, test)))
    >>> ntk_dd, ntk_td = kernel_fn(train, train, "ntk"), kernel_fn(test, train, "ntk")
    >>> a = ntk_td @ jnp.linalg.inv(ntk_dd + 0.1 * jnp.mean(jnp.diagonal(ntk_dd)) * jnp.eye(2))
    >>> bool(jnp.allclose(gaussian.mean, a @ y, atol=1e-5))
    True
    >>> bool(jnp.allclose(gaussian.covariance, k_tt + a @ k_dd @ a.T - a @ k_td.T - k_td @ a.T, atol=1e-5))
    True

    Args:
        kernel_fn: `kernel_fn(x1, x2, get, **kernel_fn_kwargs)`, where x2=None is x1: a `KernelFn`, or any function
            that returns an array for `get="nngp"` or `"ntk"`, and for both names in a tuple something with attributes
            `.nngp` and `.ntk`, `(n1, n2, o, o', ...)`.
        x_train: inputs, as `kernel_fn` takes them.
        y_train: `(n, o, ...)` targets.
        learning_rate, momentum, nesterov: see `gradient_descent_mse`.
        diag_reg, diag_reg_absolute_scale: see above.
        trace_axes, diagonal_axes: axes of the targets that kernels lack, or have once; see `gradient_descent_mse`.
        any_law: whether to accept a `KernelFn` whose output is not a Gaussian process of mean zero.
        **kernel_fn_kwargs: are passed to `kernel_fn`.

    Returns:
        `predict(t=None, x_test=None, get=None, compute_cov=False, *, steps=None)`, see `Ensemble`.

    Raises:
        InputError: a shape, a dtype or an option is wrong.
        NumericalError: (outside `jit`) a number is not finite, or a kernel is not positive semidefinite.
    """
    if not any_law:
        require_gaussian(kernel_fn, "kernel_fn")
    y = train_targets(y_train)
    axes = OutputAxes.read(y.shape, trace_axes, diagonal_axes)
    rule = Rule.read(learning_rate, momentum, nesterov)
    regularisation = (strength(diag_reg), bool(diag_reg_absolute_scale))

    def own_kernels(x: PyTree) -> Any:
        return diagonals(kernel_fn, x, "nngp", **kernel_fn_kwargs)

    def kernels(x1: PyTree, x2: PyTree, names: tuple[str, ...]) -> dict[str, Array]:
        found = kernel_fn(x1, x2, names[0] if len(names) == 1 else names, **kernel_fn_kwargs)
        parts = (found,) if len(names) == 1 else (getattr(found, name) for name in names)
        return {name: real(part, f"the kernel .{name}") for name, part in zip(names, parts, strict=True)}

    return Ensemble(kernels, own_kernels, x_train, y, axes, rule, regularisation)


class Ensemble:
    """A training set, to be called with times or steps and test inputs; kernels of the training set are remembered."""

    def __init__(
        self,
        kernels: Callable[..., dict[str, Array]],
        own_kernels: Callable[[PyTree], Any],
        x_train: PyTree,
        y_train: Array,
        axes: OutputAxes,
        rule: Rule,
        regularisation: tuple[Array, bool],
    ):
        self._kernels, self._own_kernels = kernels, own_kernels
        self._x_train, self._y_train = x_train, y_train
        self._axes, self._rule, self._regularisation = axes, rule, regularisation
        self._matrices: dict[str, Array] = {}
        self._spectra: dict[str, Spectrum] = {}

    def __call__(
        self,
        t: Any = None,
        x_test: PyTree = None,
        get: str | Sequence[str] | None = None,
        compute_cov: bool | str = False,
        *,
        steps: Any = None,
    ) -> Any:
        """The law of the outputs at times of training.

        Args:
            t: times, of any shape; None is infinity. See `gradient_descent_mse`.
            x_test: inputs; None predicts the training set. Its limit is `y_train`, with `diag_reg` too: for what a
                regularised fit says there, pass `x_test=x_train`.
            get: "ntk" if all layers are trained, "nngp" if the last one is; a tuple of them, or None for both in that
                order ("nngp", "ntk"), gives a namedtuple.
            compute_cov: whether to compute covariances. "diag": only variances, for which m test inputs need no m²
                memory if `kernel_fn` has a method `diag(x, get)`, as a `KernelFn` has.
            steps: in place of t: numbers of steps of `optax.sgd`.

        Returns:
            A `Gaussian`: mean `(*times, m, o, ...)`, covariance `(*times, m, m, o, o', ...)` and its diagonal, the
            variance (None where they are not computed); `info` reports on the eigendecomposition.
        """
        names = MODES if get is None else (get,) if isinstance(get, str) else tuple(get)
        if not names or any(name not in MODES for name in names) or len({*names}) < len(names):
            raise InputError(f'get must be "nngp", "ntk", a tuple of these or None; got {get!r}.')
        if not (isinstance(compute_cov, bool | np.bool) or compute_cov == "diag"):
            raise InputError(f'compute_cov must be True, False or "diag"; got {compute_cov!r}.')
        needed = tuple(name for name in MODES if name in names or (name == "nngp" and compute_cov))
        self._remember(needed, names)
        if x_test is None:
            gaussians = [self._on_training_set(name, compute_cov, t, steps) for name in names]
        else:
            crosses = self._cross_matrices(x_test, needed)
            own = self._test_matrices(x_test, compute_cov == "diag") if compute_cov else None
            gaussians = [self._on_test_set(name, crosses, own, t, steps) for name in names]
        return gaussians[0] if isinstance(get, str) else named_gaussians(names)(*gaussians)

    def _remember(self, needed: Sequence[str], solved: Sequence[str]) -> None:
        """Kernels of the training set, and eigenvalues of those that are `solved`; nothing traced stays for long."""
        if is_traced(*jax.tree.leaves((self._matrices, self._spectra))):
            self._matrices, self._spectra = {}, {}
        missing = tuple(name for name in needed if name not in self._matrices)
        for name, kernel in (self._kernels(self._x_train, None, missing) if missing else {}).items():
            self._matrices[name] = train_matrices(kernel, self._axes, len(self._y_train), _label(name))
        for name in solved:
            if name not in self._spectra:
                self._spectra[name] = decompose(self._matrices[name], *self._regularisation, _label(name))

    def _cross_matrices(self, x_test: PyTree, names: tuple[str, ...]) -> dict[str, Array]:
        found = self._kernels(x_test, self._x_train, names)
        n = len(self._y_train)
        return {
            name: cross_matrices(kernel, self._axes, n, f"the kernel .{name} of test and training set")
            for name, kernel in found.items()
        }

    def _test_matrices(self, x_test: PyTree, diagonal: bool) -> Array:
        """`(d, M, M)`, or only the diagonals, `(d, M)`."""
        label = "the kernel .nngp of the test set"
        if not diagonal:
            kernel = self._kernels(x_test, None, ("nngp",))["nngp"]
            return train_matrices(kernel, self._axes, len(kernel), label)
        found = real(self._own_kernels(x_test), label)
        require_finite(found, label)
        own = test_kernel(found, "nngp", "nngp", self._axes, len(found))
        return own if own.ndim == 2 else jnp.diagonal(own, axis1=-2, axis2=-1)

    def _on_training_set(self, get: str, compute_cov: bool | str, t: Any, steps: Any) -> Gaussian:
        spectrum = self._spectra[get]
        filter_ = self._rule.filter(spectrum, self._y_train.size, t, steps)
        k_dd = self._matrices["nngp"] if compute_cov and get == "ntk" else None
        law = _train_variance if compute_cov == "diag" else _train_covariance if compute_cov else _train_mean
        return self._gaussian(spectrum, *law(spectrum, filter_, self._targets, k_dd))

    def _on_test_set(self, get: str, crosses: dict[str, Array], own: Array | None, t: Any, steps: Any) -> Gaussian:
        spectrum = self._spectra[get]
        filter_ = self._rule.filter(spectrum, self._y_train.size, t, steps)
        initial = (crosses["nngp"], self._matrices["nngp"]) if own is not None and get == "ntk" else (None, None)
        return self._gaussian(spectrum, *_test_law(spectrum, filter_, self._targets, crosses[get], *initial, own))

    @property
    def _targets(self) -> Array:
        return self._axes.columns(self._y_train)

    def _gaussian(
        self, spectrum: Spectrum, columns: Array, covariance: Array | None, variance: Array | None, negative: Array
    ) -> Gaussian:
        """From columns `(..., d, M, t)`, covariances `(..., d, M, M)` and variances `(..., d, M)`."""
        axes, dtype = self._axes, self._y_train.dtype
        mean = axes.outputs(columns).astype(dtype)
        if covariance is not None:
            covariance = axes.kernel(covariance).astype(dtype)
        if variance is not None:
            variance = axes.variances(variance).astype(dtype)
        info = spectrum.info(jnp.all(jnp.isfinite(self._y_train)), negative)
        return Gaussian(mean, covariance, variance, info, axes)


def _label(name: str) -> str:
    return f"the kernel .{name} of the training set"


Law = tuple[Array, Array | None, Array | None, Array]  # the mean, and a `Covariance`


@in_float64
def _test_law(
    spectrum: Spectrum,
    filter_: Filter,
    y: Array,
    k_td: Array,
    cross: Array | None,
    k_dd: Array | None,
    k_tt: Array | None,
) -> Law:
    """`cross`, `k_dd` and `k_tt` are of the networks at initialisation; None if the spectrum is of the same kernel."""
    mean = k_td @ spectrum.filtered(filter_, y)
    if k_tt is None:
        return mean, None, None, jnp.zeros(())
    if cross is None:
        shrunk = spectrum.filtered(filter_, k_td.mT, lambda values, s: 2 * s - values * s**2)
        return mean, *covariance_after(shrunk, k_td, None, k_tt)
    return mean, *covariance_after(spectrum.filtered(filter_, k_td.mT), cross, k_dd, k_tt)


@in_float64
def _train_mean(spectrum: Spectrum, filter_: Filter, y: Array, _: None) -> Law:
    return spectrum.filtered(filter_, y, share), None, None, jnp.zeros(())


@in_float64
def _train_covariance(spectrum: Spectrum, filter_: Filter, y: Array, k_dd: Array | None) -> Law:
    covariance = _among_trained(spectrum, filter_, k_dd)
    return spectrum.filtered(filter_, y, share), *completed(covariance, full=True)


@in_float64
def _train_variance(spectrum: Spectrum, filter_: Filter, y: Array, k_dd: Array | None) -> Law:
    variance = jnp.diagonal(_among_trained(spectrum, filter_, k_dd), axis1=-2, axis2=-1)
    return spectrum.filtered(filter_, y, share), *completed(variance, full=False)


def _among_trained(spectrum: Spectrum, filter_: Filter, k_dd: Array | None) -> Array:
    """(1 - A) K_dd (1 - A)ᵀ on the training set; None stands for the kernel of the spectrum."""
    identity = jnp.eye(spectrum.kernel.shape[-1])
    if k_dd is None:
        return spectrum.filtered(filter_, identity, lambda values, s: values * (1 - values * s) ** 2)
    left = spectrum.filtered(filter_, identity, lambda values, s: 1 - values * s)
    return left @ k_dd @ left.mT
