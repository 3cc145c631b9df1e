"""Which fields of a linen module are its hidden widths, found from the shapes of its parameters."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import flax.linen as nn
import jax

import infnet
from infnet.errors import InputError

PyTree = Any
Slot = tuple[str | int, ...]  # the way to a number: names of fields, and places in tuples, lists and dictionaries
NOT_FIELDS = ("parent", "name")


def widen(
    module: nn.Module,
    multiplier: int,
    example_x: PyTree,
    *,
    init_kwargs: Mapping[str, Any] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    method: Any = None,
) -> nn.Module:
    """A linen module with its hidden widths multiplied.

    A field is taken for a width if it is an integer, in the module or in modules that its fields hold, and as it is
    multiplied, the axis of channels of some parameter is, no axis of a parameter changes otherwise, and the output
    keeps its shape. So sizes of outputs, windows and vocabularies, numbers of layers and of heads stay as they are.
    Fields that can only change together, as of residual branches, are found if they have the same value.

    Args:
        module: it is not changed.
        multiplier: what widths are multiplied with.
        example_x: an input, or a tuple of inputs. Only shapes and dtypes count.
        init_kwargs, call_kwargs, method: as of `infnet_flax.kernel_fn`.

    Raises:
        infnet.errors.InputError: no field is a width, as where widths are numbers in the code of the module.
    """
    keywords = {**(call_kwargs or {}), **({} if method is None else {"method": method}), **(init_kwargs or {})}
    shapes = _Shapes(example_x, keywords)
    before = shapes.of(module)
    if isinstance(before, Exception):
        raise before
    slots = dict(_slots(module))

    def tried(chosen: list[Slot]) -> Any:
        return shapes.of(_with(module, {slot: multiplier * slots[slot] for slot in chosen}))

    alone = {slot: tried([slot]) for slot in slots}
    widths = [slot for slot, after in alone.items() if _is_wider(before, after, multiplier)]
    together: dict[int, list[Slot]] = {}
    for slot, after in alone.items():
        if isinstance(after, Exception):
            together.setdefault(slots[slot], []).append(slot)
    for group in together.values():
        if _is_wider(before, tried([*widths, *group]), multiplier):
            widths.extend(group)
    if not widths or not _is_wider(before, tried(widths), multiplier):
        raise InputError(
            f"no field of {type(module).__name__} is found to be a hidden width, so it cannot be made wider: make "
            "widths fields of the module, or say how it is done: widen=lambda multiplier: Model(width=64 * multiplier)"
        )
    return _with(module, {slot: multiplier * slots[slot] for slot in widths})


class _Shapes:
    """The shapes of parameters and outputs of modules, for inputs and keyword arguments."""

    def __init__(self, example_x: PyTree, keywords: dict[str, Any]):
        self._inputs = infnet.example_args(example_x)
        self._rngs = keywords.pop("rngs", None) or {}
        self._keywords = keywords

    def of(self, module: nn.Module) -> Any:
        """`(outputs, variables)` as shapes; or the error, of a module that cannot be."""

        def init(key: jax.Array, inputs: PyTree) -> Any:
            return module.init_with_output({**self._rngs, "params": key}, *inputs, **self._keywords)

        try:
            found = jax.eval_shape(init, jax.random.key(0), self._inputs)
        except Exception as error:  # of any kind: modules of other people at sizes that they were not made for
            return error
        return jax.tree.map(lambda leaf: leaf.shape, found)


def _is_wider(before: Any, after: Any, multiplier: int) -> bool:
    """Whether these are the shapes of the same model with more channels in hidden layers."""
    if isinstance(after, Exception):
        return False
    (outputs, variables), (new_outputs, new_variables) = before, after
    structures: list[Any] = [jax.tree.structure(tree, is_leaf=_is_shape) for tree in (variables, new_variables)]
    if outputs != new_outputs or structures[0] != structures[1]:
        return False
    leaves = [jax.tree.leaves(tree, is_leaf=_is_shape) for tree in (variables, new_variables)]
    channels = False
    for old, new in zip(*leaves, strict=True):
        if len(old) != len(new) or any(b not in (a, a * multiplier) for a, b in zip(old, new, strict=True)):
            return False
        channels = channels or (bool(old) and old[-1] != new[-1])
    return channels


def _is_shape(x: Any) -> bool:
    return isinstance(x, tuple) and all(isinstance(n, int) for n in x)


def _slots(value: Any, way: Slot = ()) -> Iterator[tuple[Slot, int]]:
    """All integers in a module, with the ways to them."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield way, value
    for name, inner in _parts(value):
        yield from _slots(inner, (*way, name))


def _parts(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, nn.Module):
        names = [f.name for f in dataclasses.fields(value) if f.init and f.name not in NOT_FIELDS]
        return [(name, getattr(value, name)) for name in names]
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if type(value) in (tuple, list) else []


def _with(value: Any, numbers: Mapping[Slot, int]) -> Any:
    """A module with other integers at the ends of these ways."""
    if () in numbers:
        return numbers[()]
    changed = {}
    for name, inner in _parts(value):
        below = {way[1:]: number for way, number in numbers.items() if way[0] == name}
        if below:
            changed[name] = _with(inner, below)
    if isinstance(value, nn.Module):
        return value.clone(**changed)
    if isinstance(value, Mapping):
        return {**value, **changed}
    return type(value)(changed.get(k, inner) for k, inner in enumerate(value))
