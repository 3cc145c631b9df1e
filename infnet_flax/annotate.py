"""`annotate`: an existing linen class or instance, with an extra `.kernel()` and the other `Methods`."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar, cast

import flax.linen as nn

from infnet.errors import InputError
from infnet_flax.methods import Methods

T = TypeVar("T", bound="nn.Module | type[nn.Module]")
METHODS = {name: method for name, method in vars(Methods).items() if not name.startswith("_")}


def annotate(model: T) -> T:
    """Give a linen model the `Methods` of `infnet_flax.methods`; `init`, `apply` and `tabulate` stay as they are.

    Args:
        model: a subclass of `nn.Module` (use it as a decorator), which is extended in place and returned; or an
            instance of any linen class, of which an annotated copy is returned and whose class is left alone.

    Raises:
        infnet.errors.InputError: it is neither; or it has an attribute of its own of one of these names.
    """
    if isinstance(model, type) and issubclass(model, nn.Module):
        for name, method in METHODS.items():
            if getattr(model, name, method) is not method:
                raise InputError(
                    f"{model.__name__} has an attribute {name!r} of its own, which annotation would hide; "
                    "use infnet_flax.kernel_fn(module, example_x) instead"
                )
            setattr(model, name, method)
        return model
    if not isinstance(model, nn.Module):
        raise InputError(f"annotate takes a flax.linen Module class or instance, not {model!r}")
    if all(getattr(type(model), name, None) is method for name, method in METHODS.items()):
        return model
    cls: Any = type(model)
    return cast(T, _annotated_class(cls)(**_fields(model)))


@functools.cache
def _annotated_class(cls: Any) -> Any:
    # The name stays, because linen names parameters after the classes of submodules.
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__, "__doc__": cls.__doc__}
    annotated: Any = annotate(type(cls.__name__, (cls,), names))

    def reduce(self: Any, protocol: Any) -> Any:
        # Nobody who unpickles it would find this class under its name: only the one that it annotates.
        if type(self) is annotated:
            return annotate, (cls(**_fields(self)),)
        return cls.__reduce_ex__(self, protocol)

    annotated.__reduce_ex__ = reduce
    return annotated


def _fields(module: Any) -> dict[str, Any]:
    return {f.name: getattr(module, f.name) for f in dataclasses.fields(module) if f.init and f.name != "parent"}
