"""What annotation adds to a Haiku transform: methods that say where a transform keeps what `infnet` needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

import infnet
import infnet_haiku.kernel
import infnet_haiku.verification

PyTree = Any


class Methods:
    """What a Haiku transform has once it is annotated."""

    def kernel_fn(self: Any, example_x: PyTree, **options: Any) -> infnet.KernelFn:
        """The kernel function of this model, which has `explain()`, `hyperparameters`, ...

        Args:
            example_x: an input `(n, ...)`, a tuple of several, or the `infnet.Kernel` of the model before.
            **options: `parameterization`, `state`, `init_kwargs`, `call_kwargs`, ... of `infnet_haiku.kernel_fn`.

        Raises:
            infnet.errors.InfnetError: as `infnet_haiku.kernel_fn`.
        """
        return infnet_haiku.kernel.kernel_fn(self, example_x, **options)

    def kernel(self: Any, x1: PyTree, x2: PyTree = None, get: Any = None, **options: Any) -> Any:
        """The infinite-width kernels of this model between x1 and x2 (x1 itself if None).

        Args:
            x1, x2: inputs `(n1, ...)`, `(n2, ...)`; tuples of inputs if the model takes several. Or x1 is the
                `infnet.Kernel` of the model before, which the kernel is then mapped from.
            get: "nngp", "ntk", "ntk_by_param", a tuple of them, or None for an `infnet.Kernel`.
            **options: of `infnet_haiku.kernel_fn`, and of `infnet.batch`, to compute in tiles.

        Raises:
            infnet.errors.InfnetError: as `infnet_haiku.kernel_fn` and `infnet.KernelFn`.
        """
        return infnet.remembered_kernel(infnet_haiku.kernel.kernel_fn, self, x1, x2, get, options)

    def empirical_kernel(
        self: Any,
        params: PyTree,
        x1: PyTree,
        x2: PyTree = None,
        get: Any = None,
        *,
        state: Mapping[str, Any] | None = None,
        rng: jax.Array | None = None,
        call_kwargs: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Any:
        """The kernels of this finite network, with these parameters.

        Args:
            params: what `init` returns or training has made of it.
            x1, x2: inputs `(n1, ...)`, `(n2, ...)`; tuples of inputs if the model takes several; None for x1 itself.
            get: "nngp", "ntk", or a tuple of them; None for both.
            state: of a transform with state, a constant.
            rng: the key that `apply` is called with.
            call_kwargs: keyword arguments of `apply` (`{"is_training": False}`).
            **options: of `infnet.empirical_kernel_fn` (`trace_axes`, `diagonal_axes`, `implementation`, ...).

        Raises:
            infnet.errors.InputError: as `infnet.empirical_kernel_fn`.
        """
        kernel_fn = infnet.remembered(_empirical_kernel_fn, self, **options)
        return kernel_fn(x1, x2, get, params, state=state or {}, rng=rng, call_kwargs=dict(call_kwargs or {}))

    def linearize(self: Any, params: PyTree) -> Callable[..., PyTree]:
        """`apply`, linearized in the parameters around `params`; it takes the same arguments as `apply`."""
        return infnet.linearize(self.apply, params)

    def taylor_expand(self: Any, params: PyTree, degree: int) -> Callable[..., PyTree]:
        """`apply` as its Taylor polynomial in the parameters around `params`, with its arguments.

        Raises:
            infnet.errors.InputError: as `infnet.taylor_expand`.
        """
        return infnet.taylor_expand(self.apply, params, degree)

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
            **options: `state`, `rng`, `init_kwargs` and `call_kwargs` of `infnet_haiku.kernel_fn`, and
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
            **options: of `infnet_haiku.verify`: `widen`, ...

        Raises:
            infnet.errors.InfnetError: as `infnet_haiku.verify`.
        """
        return infnet_haiku.verification.verify(self, x, key, **options)


def _monte_carlo_kernel_fn(
    transformed: Any,
    example_x: PyTree,
    *,
    state: Mapping[str, Any] | None = None,
    rng: jax.Array | None = None,
    init_kwargs: Mapping[str, Any] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    **options: Any,
) -> infnet.MonteCarloKernelFn:
    """The mean kernels of random networks, of a number that `with_samples` says."""
    model = infnet_haiku.kernel.functions(
        transformed,
        example_x,
        state=state,
        rng=rng,
        init_kwargs=init_kwargs,
        call_kwargs=call_kwargs,
    )
    return infnet.monte_carlo_kernel_fn(model.init, model.apply, jax.random.key(0), 1, **options)


def _empirical_kernel_fn(transformed: Any, **options: Any) -> Callable[..., Any]:
    """The empirical kernel function of a transform, for any parameters, state and key."""

    def f(
        params: PyTree, x: PyTree, *, state: Mapping[str, Any], rng: jax.Array | None, call_kwargs: Mapping[str, Any]
    ) -> PyTree:
        apply = infnet_haiku.kernel.pure_apply(transformed, state, rng)
        return apply(params, *infnet.example_args(x), **call_kwargs)

    return infnet.empirical_kernel_fn(f, **options)
