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

from infnet.errors import InputError
from infnet.predict.axes import OutputAxes
from infnet.predict.checks import is_traced, real, require_gaussian, strength
from infnet.predict.gp_inference import named_gaussians
from infnet.predict.gradient_descent_mse import Rule
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
    Kernels are computed, and decomposed, when they are needed first.

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

    def kernels(x1: PyTree, x2: PyTree, names: tuple[str, ...]) -> dict[str, Array]:
        found = kernel_fn(x1, x2, names[0] if len(names) == 1 else names, **kernel_fn_kwargs)
        parts = (found,) if len(names) == 1 else (getattr(found, name) for name in names)
        return {name: real(part, f"the kernel .{name}") for name, part in zip(names, parts, strict=True)}

    return Ensemble(kernels, x_train, y, axes, rule, regularisation)


class Ensemble:
    """A training set, to be called with times or steps and test inputs; kernels of the training set are remembered."""

    def __init__(
        self,
        kernels: Callable[..., dict[str, Array]],
        x_train: PyTree,
        y_train: Array,
        axes: OutputAxes,
        rule: Rule,
        regularisation: tuple[Array, bool],
    ):
        self._kernels, self._x_train, self._y_train = kernels, x_train, y_train
        self._axes, self._rule, self._regularisation = axes, rule, regularisation
        self._matrices: dict[str, Array] = {}
        self._spectra: dict[str, Spectrum] = {}

    def __call__(
        self,
        t: Any = None,
        x_test: PyTree = None,
        get: str | Sequence[str] | None = None,
        compute_cov: bool = False,
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
            compute_cov: whether to compute covariances.
            steps: in place of t: numbers of steps of `optax.sgd`.

        Returns:
            A `Gaussian`: mean `(*times, m, o, ...)`, covariance `(*times, m, m, o, o', ...)` and its diagonal, the
            variance (both None without `compute_cov`).
        """
        names = MODES if get is None else (get,) if isinstance(get, str) else tuple(get)
        if not names or any(name not in MODES for name in names) or len({*names}) < len(names):
            raise InputError(f'get must be "nngp", "ntk", a tuple of these or None; got {get!r}.')
        needed = tuple(name for name in MODES if name in names or (name == "nngp" and compute_cov))
        self._remember(needed)
        if x_test is None:
            gaussians = [self._on_training_set(name, compute_cov, t, steps) for name in names]
        else:
            crosses = self._cross_matrices(x_test, needed)
            own = self._test_matrices(x_test) if compute_cov else None
            gaussians = [self._on_test_set(name, crosses, own, t, steps) for name in names]
        return gaussians[0] if isinstance(get, str) else named_gaussians(names)(*gaussians)

    def _remember(self, names: Sequence[str]) -> None:
        """The kernels of the training set, and their eigenvalues; what is traced is not kept after this call."""
        if is_traced(*jax.tree.leaves((self._matrices, self._spectra))):
            self._matrices, self._spectra = {}, {}
        missing = tuple(name for name in names if name not in self._matrices)
        if not missing:
            return
        for name, kernel in self._kernels(self._x_train, None, missing).items():
            label = f"the kernel .{name} of the training set"
            matrices = train_matrices(kernel, self._axes, len(self._y_train), label)
            self._spectra[name] = decompose(matrices, *self._regularisation, label)
            self._matrices[name] = matrices.astype(self._spectra[name].dtype)

    def _cross_matrices(self, x_test: PyTree, names: tuple[str, ...]) -> dict[str, Array]:
        found = self._kernels(x_test, self._x_train, names)
        n = len(self._y_train)
        return {
            name: cross_matrices(kernel, self._axes, n, f"the kernel .{name} of test and training set")
            for name, kernel in found.items()
        }

    def _test_matrices(self, x_test: PyTree) -> Array:
        kernel = self._kernels(x_test, None, ("nngp",))["nngp"]
        return train_matrices(kernel, self._axes, len(kernel), "the kernel .nngp of the test set")

    def _on_training_set(self, get: str, compute_cov: bool, t: Any, steps: Any) -> Gaussian:
        spectrum, size = self._spectra[get], self._y_train.size
        done = self._rule.filter(spectrum, size, t, steps) * spectrum.values
        mean = spectrum.filtered(done, self._targets(spectrum))
        if not compute_cov:
            return self._gaussian(spectrum, mean, None)
        if get == "nngp":
            return self._gaussian(spectrum, mean, spectrum.matrix(spectrum.values * (1 - done) ** 2))
        left = spectrum.matrix(1 - done)
        return self._gaussian(spectrum, mean, left @ self._matrices["nngp"] @ left.mT)

    def _on_test_set(self, get: str, crosses: dict[str, Array], own: Array | None, t: Any, steps: Any) -> Gaussian:
        spectrum, size = self._spectra[get], self._y_train.size
        k_td = crosses[get].astype(spectrum.dtype)
        factors = self._rule.filter(spectrum, size, t, steps)
        mean = k_td @ spectrum.filtered(factors, self._targets(spectrum))
        if own is None:
            return self._gaussian(spectrum, mean, None)
        k_tt, k_init = own.astype(spectrum.dtype), crosses["nngp"].astype(spectrum.dtype)
        if get == "nngp":
            shrunk = spectrum.matrix(2 * factors - spectrum.values * factors**2)
            return self._gaussian(spectrum, mean, k_tt - k_td @ shrunk @ k_td.mT)
        a = k_td @ spectrum.matrix(factors)
        cross = a @ k_init.mT
        return self._gaussian(spectrum, mean, k_tt + a @ self._matrices["nngp"] @ a.mT - cross - cross.mT)

    def _targets(self, spectrum: Spectrum) -> Array:
        return self._axes.columns(self._y_train.astype(spectrum.dtype))

    def _gaussian(self, spectrum: Spectrum, columns: Array, matrices: Array | None) -> Gaussian:
        """From columns `(..., d, M, t)` and matrices `(..., d, M, M)`."""
        axes, dtype = self._axes, self._y_train.dtype
        mean = axes.outputs(columns)
        ok = jnp.all(jnp.isfinite(self._y_train))
        if matrices is None:
            info = spectrum.info(ok, jnp.zeros((), spectrum.dtype))
            return Gaussian(mean.astype(dtype), None, None, info, axes)
        raw = jnp.diagonal(matrices, axis1=-2, axis2=-1)
        variances = jnp.maximum(raw, 0)
        # symmetric, and not negative on the diagonal
        diagonal = jnp.eye(raw.shape[-1], dtype=bool)
        matrices = jnp.where(diagonal, variances[..., None], (matrices + matrices.mT) / 2)
        info = spectrum.info(ok, jnp.min(raw, initial=0))
        covariance, variance = axes.kernel(matrices).astype(dtype), axes.variances(variances).astype(dtype)
        return Gaussian(mean.astype(dtype), covariance, variance, info, axes)
