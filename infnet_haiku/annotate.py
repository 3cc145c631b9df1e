"""`annotate`: an existing Haiku transform, with an extra `.kernel()` and the other `Methods`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, overload

import haiku as hk

from infnet.errors import InputError
from infnet_haiku.methods import Methods


class Transformed(hk.Transformed, Methods):
    """What `hk.transform` returns, with more methods."""

    __slots__ = ()


class TransformedWithState(hk.TransformedWithState, Methods):
    """What `hk.transform_with_state` returns, with more methods."""

    __slots__ = ()


@overload
def annotate(transformed: hk.Transformed) -> Transformed: ...


@overload
def annotate(transformed: hk.TransformedWithState) -> TransformedWithState: ...


def annotate(transformed: Any) -> Any:
    """Give a Haiku transform the `Methods` of `infnet_haiku.methods`; `init` and `apply` stay as they are.

    Args:
        transformed: what `hk.transform` or `hk.transform_with_state` returns, with or without `hk.without_apply_rng`.

    Raises:
        infnet.errors.InputError: it is something else.
    """
    if isinstance(transformed, Transformed | TransformedWithState):
        return transformed
    if isinstance(transformed, hk.Transformed):
        return Transformed(*transformed)
    if isinstance(transformed, hk.TransformedWithState):
        return TransformedWithState(*transformed)
    raise InputError(f"annotate takes the result of hk.transform or hk.transform_with_state, not {transformed!r}")


def transform(f: Callable[..., Any], *, apply_rng: bool = True) -> Transformed:
    """`hk.transform`, annotated.

    Args:
        f: a function that makes and calls Haiku modules.
        apply_rng: whether `apply` takes a key: `apply(params, rng, *inputs)`.
    """
    transformed = hk.transform(f)
    return annotate(transformed if apply_rng else hk.without_apply_rng(transformed))


def transform_with_state(f: Callable[..., Any]) -> TransformedWithState:
    """`hk.transform_with_state`, annotated.

    Args:
        f: a function that makes and calls Haiku modules.
    """
    return annotate(hk.transform_with_state(f))
