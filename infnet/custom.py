"""`custom_kernel`: an operation whose kernel rule its author gives, as `jax.custom_jvp` lets them give a derivative."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from infnet._jax import Primitive, ad, batching, mlir, register_exclusion
from infnet.errors import InputError
from infnet.kernel import Kernel

register_exclusion(__file__)  # errors name the line that applies an operation, not the one here that binds it
KernelRule = Callable[..., Kernel]


class Weight(NamedTuple):
    """What a kernel rule is told of a parameter.

    Attributes:
        variance: of its elements.
        gradient: what the NTK gains per element: 1 where gradients are with respect to the parameter itself, the
            variance in the "ntk" parameterization, times the relative learning rate.
    """

    variance: jax.Array
    gradient: jax.Array


class custom_kernel:
    """Decorator: an operation of a model with a kernel rule of its own.

    The operation takes a feature `x` of shape `(n, *positions, channels)`, and perhaps parameters. It must act on each
    example and each position alike and by itself, and returns `(n, *positions, new channels)`. Differentiation, `jit`
    and `vmap` see the function as it is.

    `@op.def_kernel` gives it its rule, a function `rule(kernel, *weights) -> kernel`: the `Kernel` of x for one pair
    of examples and positions to that of the result. Of the argument, `nngp` is E x_c x'_c for a channel c, `cov1` and
    `cov2` are the same for each of the two with itself, `ntk` is the tangent kernel and `width` the number of channels;
    all are arrays that broadcast. Of the result, `nngp` and `ntk` are used (`dataclasses.replace` makes it). The rule
    must be differentiable by JAX if kernels are to be differentiated. `weights` holds a `Weight` for each parameter.

    Without parameters, x is Gaussian with mean zero, and its channels are independent; the result is taken as not
    Gaussian. With parameters, the result must be linear in one of them, with mean zero, and is taken as Gaussian.
    """

    def __init__(self, function: Callable[..., jax.Array]):
        functools.update_wrapper(self, function)
        self.function = function
        self.rule: KernelRule | None = None

    def def_kernel(self, rule: KernelRule) -> KernelRule:
        """Give the operation its kernel rule; usable as a decorator."""
        self.rule = rule
        return rule

    def __call__(self, *args: Any) -> jax.Array:
        """Apply the operation."""
        arrays = [jnp.asarray(a) for a in args]
        return custom_kernel_p.bind(*arrays, operation=self)

    def __repr__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


custom_kernel_p = Primitive("custom_kernel")


def _eager(*args: jax.Array, operation: custom_kernel) -> jax.Array:
    return operation.function(*args)


@custom_kernel_p.def_abstract_eval
def _shape(*avals: Any, operation: custom_kernel) -> Any:
    result = jax.eval_shape(operation.function, *(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals))
    if not isinstance(result, jax.ShapeDtypeStruct):
        raise InputError(f"an operation with a custom kernel returns one array, but {operation!r} returns {result}")
    return jax.core.ShapedArray(result.shape, result.dtype)


def _jvp(primals: Sequence[Any], tangents: Sequence[Any], operation: custom_kernel) -> tuple[Any, Any]:
    return jax.jvp(operation.function, tuple(primals), tuple(ad.instantiate_zeros(t) for t in tangents))


def _batch(args: Sequence[Any], axes: Sequence[int | None], operation: custom_kernel) -> tuple[Any, int]:
    return jax.vmap(operation.function, tuple(axes))(*args), 0


custom_kernel_p.def_impl(_eager)
ad.primitive_jvps[custom_kernel_p] = _jvp
batching.primitive_batchers[custom_kernel_p] = _batch
mlir.register_lowering(custom_kernel_p, mlir.lower_fun(_eager, multiple_results=False))
