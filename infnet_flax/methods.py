"""What annotation adds to a linen module: methods that say where a module keeps what `infnet` needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax

import infnet
import infnet_flax.kernel
import infnet_flax.verification
from infnet.errors import InputError

PyTree = Any


class Methods:
    """What a linen module has once it is annotated."""

    def kernel_fn(self: Any, example_x: PyTree, **options: Any) -> infnet.KernelFn:
        """The kernel function of this model, which has `explain()`, `hyperparameters`, ...

        Args:
            example_x: an input `(n, ...)`, a tuple of several, or the `infnet.Kernel` of the model before.
            **options: `parameterization`, `variables`, `init_kwargs`, `call_kwargs`, ... of `infnet_flax.kernel_fn`.

        Raises:
            infnet.errors.InfnetError: as `infnet_flax.kernel_fn`.
        """
        return infnet_flax.kernel.kernel_fn(self, example_x, **options)

    def kernel(self: Any, x1: PyTree, x2: PyTree = None, get: Any = None, **options: Any) -> Any:
        """The infinite-width kernels of this model between x1 and x2 (x1 itself if None).

        Args:
            x1, x2: inputs `(n1, ...)`, `(n2, ...)`; tuples of inputs if the model takes several. Or x1 is the
                `infnet.Kernel` of the model before, which the kernel is then mapped from.
            get: "nngp", "ntk", "ntk_by_param", a tuple of them, or None for an `infnet.Kernel`.
            **options: of `infnet_flax.kernel_fn`, and of `infnet.batch`, to compute in tiles.

        Raises:
            infnet.errors.InfnetError: as `infnet_flax.kernel_fn` and `infnet.KernelFn`.
        """
        return infnet.remembered_kernel(infnet_flax.kernel.kernel_fn, self, x1, x2, get, options)

    def empirical_kernel(
        self: Any,
        variables: Mapping[str, Any],
        x1: PyTree,
        x2: PyTree = None,
        get: Any = None,
        *,
        call_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """The kernels of this finite network, with these parameters.

        Args:
            variables: what `init` returns or training has made of it; collections other than "params" are constants.
            x1, x2: inputs `(n1, ...)`, `(n2, ...)`; tuples of inputs if the model takes several; None for x1 itself.
            get: "nngp", "ntk", or a tuple of them; None for both.
            call_kwargs: keyword arguments of `apply` (`{"train": False}`, `{"rngs": ...}`, `{"method": ...}`).
            **options: of `infnet.empirical_kernel_fn` (`trace_axes`, `diagonal_axes`, `implementation`, ...).

        Raises:
            infnet.errors.InputError: as `infnet.empirical_kernel_fn`; or `variables` has no "params".
        """
        params, state = _parts(variables)
        kernel_fn = infnet.remembered(_empirical_kernel_fn, self, **options)
        return kernel_fn(x1, x2, get, params, state=state, call_kwargs=dict(call_kwargs or {}))

    def linearize(self: Any, variables: Mapping[str, Any]) -> Callable[..., PyTree]:
        """`apply`, linearized in the parameters around those in `variables`; it takes the same arguments as `apply`.

        Raises:
            infnet.errors.InputError: `variables` has no "params".
        """
        params, _ = _parts(variables)
        return _of_variables(infnet.linearize(_by_params(self), params))

    def taylor_expand(self: Any, variables: Mapping[str, Any], degree: int) -> Callable[..., PyTree]:
        """`apply` as its Taylor polynomial in the parameters around those in `variables`, with its arguments.

        Raises:
            infnet.errors.InputError: `variables` has no "params"; or as `infnet.taylor_expand`.
        """
        params, _ = _parts(variables)
        return _of_variables(infnet.taylor_expand(_by_params(self), params, degree))

    def monte_carlo_kernel(
        self: Any,
        key: jax.Array,
        x1: PyTree,
        x2: PyTree = None,
        n_samples: Any = None,
        get: Any = None,
        **options: Any,
    ) -> Any:
        """The kernels of this finite network, on average over initialisations, with standard errors.

        Args:
            key: of the random numbers.
            x1, x2, get: as of `kernel`.
            n_samples: how many initialisations, 100 by default; a sequence of numbers for running estimates.
            **options: `variables`, `method`, `init_kwargs` and `call_kwargs` of `infnet_flax.kernel_fn`, and
                options of `infnet.monte_carlo_kernel_fn` (`target_error`, `progress`, `trainable`, `batch_size`, ...).

        Raises:
            infnet.errors.InputError: as `infnet.monte_carlo_kernel_fn`.
        """
        return infnet.remembered_monte_carlo_kernel(_monte_carlo_kernel_fn, self, key, x1, x2, n_samples, get, options)

    def verify(self: Any, x: PyTree, key: jax.Array, **options: Any) -> infnet.Verification:
        """Compare the kernel of this model with those of random networks of it, at growing widths.

        Args:
            x: a few examples, an input or a tuple of inputs.
            key: of the random networks.
            **options: of `infnet_flax.verify`.

        Raises:
            infnet.errors.InfnetError: as `infnet_flax.verify`.
        """
        return infnet_flax.verification.verify(self, x, key, **options)


def _monte_carlo_kernel_fn(
    module: nn.Module,
    example_x: PyTree,
    *,
    variables: Mapping[str, Any] | None = None,
    method: str | Callable[..., PyTree] | None = None,
    init_kwargs: Mapping[str, Any] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> infnet.MonteCarloKernelFn:
    """The mean kernels of random networks, of a number that `with_samples` says."""
    model = infnet_flax.kernel.functions(
        module,
        example_x,
        variables=variables,
        method=method,
        init_kwargs=init_kwargs,
        call_kwargs=call_kwargs,
    )
    return infnet.monte_carlo_kernel_fn(model.init, model.apply, jax.random.key(0), 1, **options)


def _empirical_kernel_fn(module: nn.Module, **options: Any) -> Callable[..., Any]:
    """The empirical kernel function of a module, for any parameters and other collections."""

    def f(params: PyTree, x: PyTree, *, state: Mapping[str, Any], call_kwargs: Mapping[str, Any]) -> PyTree:
        return infnet_flax.kernel.pure_apply(module, state)(params, *infnet.example_args(x), **call_kwargs)

    return infnet.empirical_kernel_fn(f, **options)


def _parts(variables: Mapping[str, Any]) -> tuple[PyTree, dict[str, Any]]:
    """The parameters and the other collections."""
    if not isinstance(variables, Mapping) or "params" not in variables:
        found = sorted(variables) if isinstance(variables, Mapping) else variables
        raise InputError(f'variables must be what `init` returns, {{"params": ..., ...}}, not {found!r}')
    return variables["params"], {name: tree for name, tree in variables.items() if name != "params"}


def _by_params(module: nn.Module) -> Callable[..., PyTree]:
    def apply(params: PyTree, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> PyTree:
        return module.apply({**state, "params": params}, *args, **kwargs)

    return apply


def _of_variables(function: Callable[..., PyTree]) -> Callable[..., PyTree]:
    def apply(variables: Mapping[str, Any], *args: Any, **kwargs: Any) -> PyTree:
        return function(*_parts(variables), *args, **kwargs)

    return apply
