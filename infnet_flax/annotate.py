"""`annotate`: an existing linen class or instance, with an extra `.kernel()`."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar, cast

import flax.linen as nn

import infnet
from infnet.errors import InputError
from infnet_flax.kernel import kernel_fn

PyTree = Any
T = TypeVar("T", bound="nn.Module | type[nn.Module]")


def annotate(model: T) -> T:
    """Give a linen model the methods `kernel` and `kernel_fn`; `init`, `apply` and `tabulate` stay as they are.

    Args:
        model: a subclass of `nn.Module` (use it as a decorator), which is extended in place and returned; or an
            instance of any linen class, of which an annotated copy is returned and whose class is left alone.

    Raises:
        infnet.errors.InputError: it is neither.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        for name, method in _METHODS.items():
            if getattr(model, name, method) is not method:
                raise InputError(
                    f"{model.__name__} has an attribute {name!r} of its own, which annotation would hide; "
                    "use infnet_flax.kernel_fn(module, example_x) instead"
                )
            setattr(model, name, method)
        return model
    if not isinstance(model, nn.Module):
        raise InputError(f"annotate takes a flax.linen Module class or instance, not {model!r}")
    if getattr(type(model), "kernel_fn", None) is _METHODS["kernel_fn"]:
        return model
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.init and f.name != "parent"}
    cls: Any = type(model)
    return cast(T, _annotated_class(cls)(**fields))


@functools.cache
def _annotated_class(cls: Any) -> Any:
    # The name stays, because linen names parameters after the classes of submodules.
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    return annotate(type(cls.__name__, (cls,), names))


def _kernel_fn(self: nn.Module, example_x: PyTree, **options: Any) -> infnet.KernelFn:
    """The kernel function of this model (`infnet.KernelFn`); options as `infnet_flax.kernel_fn`."""
    return kernel_fn(self, example_x, **options)


def _kernel(self: nn.Module, x1: PyTree, x2: PyTree = None, get: Any = None, **options: Any) -> Any:
    """The infinite-width kernels of this model between x1 and x2 (x1 itself if None).

    Args:
        x1, x2: inputs `(n1, ...)`, `(n2, ...)`; tuples of inputs if the model takes several.
        get: "nngp", "ntk", a tuple of them, or None for an `infnet.Kernel`.
        **options: `parameterization`, `variables`, `init_kwargs`, `call_kwargs`, ... of `infnet_flax.kernel_fn`.
    """
    return infnet.remembered_kernel_fn(kernel_fn, self, x1, options)(x1, x2, get)


_METHODS = {"kernel": _kernel, "kernel_fn": _kernel_fn}
for _name, _method in _METHODS.items():
    _method.__name__ = _name
