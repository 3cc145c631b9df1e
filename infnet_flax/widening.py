"""Which fields of a linen module are its hidden widths and numbers of heads, found from the shapes of its arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax

import infnet
from infnet.errors import InputError

PyTree = Any
Slot = tuple[str | int, ...]  # the way to a number: names of fields, and places in tuples, lists and dictionaries
Shape = tuple[int, ...]
NOT_FIELDS = ("parent", "name")


def widen(
    module: nn.Module,
    multiplier: int,
    example_x: PyTree,
    *,
    init_kwargs: Mapping[str, Any] | None = None,
    call_kwargs: Mapping[str, Any] | None = None,
    method: Any = None,
    heads: bool = False,
) -> nn.Module:
    """A linen module with its hidden widths multiplied.

    A field is taken for a width if it is an integer, in the module or in modules that its fields hold, and as it is
    multiplied, the axis of channels of some parameter is, no axis of a parameter changes otherwise, and the output
    keeps its shape. So sizes of outputs, windows and vocabularies, numbers of layers and of heads stay as they are.
    Fields that can only change together, as of residual branches, are found if they have the same value.

    With `heads=True`, numbers of heads are multiplied by the multiplier, and widths by its square. So the sizes of
    heads, widths / numbers of heads, are multiplied by the multiplier too. A field is taken for a number of heads if,
    with the widths multiplied, it changes no output and no array as a whole, but splits the factor of an axis between
    that and the one beside it: 8 heads of 16 channels become 16 of 32 instead of 8 of 64, if the multiplier is 2.

    Args:
        module: it is not changed.
        multiplier: what widths are multiplied with.
        example_x: an input, or a tuple of inputs. Only shapes and dtypes count.
        init_kwargs, call_kwargs, method: as of `infnet_flax.kernel_fn`.
        heads: whether numbers and sizes of heads are multiplied. Softmax attention whose scores are divided by the
            root of the size of heads has its limit where both are infinite.

    Raises:
        infnet.errors.InputError: no field is a width, or with `heads=True` a number of heads, as where these are
            numbers in the code of the module.
    """
    keywords = {**(call_kwargs or {}), **({} if method is None else {"method": method}), **(init_kwargs or {})}
    shapes = _Shapes(example_x, keywords)
    before = shapes.of(module)
    if isinstance(before, Exception):
        raise before
    widths = _widths(module, shapes, before, multiplier**2 if heads else multiplier)
    return _with(module, {**widths, **_heads(module, shapes, widths, multiplier)} if heads else widths)


def _widths(module: nn.Module, shapes: _Shapes, before: _Found, multiplier: int) -> dict[Slot, int]:
    """The fields that are hidden widths, multiplied."""
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
        wide, after = tried(widths), tried([*widths, *group])
        # Numbers of heads that do not divide a width can change with it alone.
        if _is_wider(before, after, multiplier) and not _has_more_heads(wide, after, multiplier):
            widths.extend(group)
    if not widths or not _is_wider(before, tried(widths), multiplier):
        raise InputError(
            f"no field of {type(module).__name__} is found to be a hidden width, so it cannot be made wider: make "
            "widths fields of the module, or say how it is done: widen=lambda multiplier: Model(width=64 * multiplier)"
        )
    return {slot: multiplier * slots[slot] for slot in widths}


def _heads(module: nn.Module, shapes: _Shapes, widths: dict[Slot, int], multiplier: int) -> dict[Slot, int]:
    """The fields that are numbers of heads, multiplied; the widths are multiplied by the square."""
    others = {slot: multiplier * value for slot, value in _slots(module) if slot not in widths}
    wide = shapes.of(_with(module, widths))

    def have_more(chosen: dict[Slot, int]) -> bool:
        return _has_more_heads(wide, shapes.of(_with(module, {**widths, **chosen})), multiplier)

    heads = {slot: value for slot, value in others.items() if have_more({slot: value})}
    if not heads or not have_more(heads):
        raise InputError(
            f"no field of {type(module).__name__} is found to be a number of heads: make it a field of the module, or "
            "say how the model is made wider: widen=lambda m: Model(width=64 * m**2, num_heads=8 * m)"
        )
    return heads


class _Found(NamedTuple):
    """Shapes: of outputs and variables, pytrees; and of all arrays that are computed, in order."""

    outputs: PyTree
    variables: PyTree
    arrays: list[Shape]


class _Shapes:
    """The shapes of parameters and outputs of modules, for inputs and keyword arguments."""

    def __init__(self, example_x: PyTree, keywords: dict[str, Any]):
        self._inputs = infnet.example_args(example_x)
        self._rngs = keywords.pop("rngs", None) or {}
        self._keywords = keywords

    def of(self, module: nn.Module) -> Any:
        """`_Found`; or the error, of a module that cannot be."""

        def init(key: jax.Array, inputs: PyTree) -> Any:
            return module.init_with_output({**self._rngs, "params": key}, *inputs, **self._keywords)

        try:
            jaxpr, found = jax.make_jaxpr(init, return_shape=True)(jax.random.key(0), self._inputs)
        except Exception as error:  # of any kind: modules of other people at sizes that they were not made for
            return error
        arrays = [var.aval.shape for equation in jaxpr.eqns for var in equation.outvars]
        outputs, variables = jax.tree.map(lambda leaf: leaf.shape, found)
        return _Found(outputs, variables, arrays)


def _is_wider(before: Any, after: Any, multiplier: int) -> bool:
    """Whether these are the shapes of the same model with more channels in hidden layers."""
    if isinstance(after, Exception):
        return False
    pairs = _variables(before, after)
    if before.outputs != after.outputs or pairs is None:
        return False
    channels = False
    for old, new in pairs:
        if len(old) != len(new) or any(b not in (a, a * multiplier) for a, b in zip(old, new, strict=True)):
            return False
        channels = channels or (bool(old) and old[-1] != new[-1])
    return channels


def _has_more_heads(wide: Any, after: Any, multiplier: int) -> bool:
    """Whether these are the shapes of the same model with more, smaller heads."""
    if isinstance(wide, Exception) or isinstance(after, Exception) or wide.outputs != after.outputs:
        return False
    pairs = _variables(wide, after)
    if pairs is None or len(wide.arrays) != len(after.arrays):
        return False
    return all(old == new or _is_split(old, new, multiplier) for old, new in pairs) and any(
        _is_split(old, new, multiplier) for old, new in zip(wide.arrays, after.arrays, strict=True)
    )


def _is_split(old: Shape, new: Shape, multiplier: int) -> bool:
    """Whether one axis is larger, one beside it smaller by the same factor, and all others are as they are."""
    if len(old) != len(new):
        return False
    changed = [axis for axis, (a, b) in enumerate(zip(old, new, strict=True)) if a != b]
    if len(changed) != 2 or changed[1] - changed[0] != 1:
        return False
    (a, b), (new_a, new_b) = ([shape[axis] for axis in changed] for shape in (old, new))
    return (new_a, multiplier * new_b) == (multiplier * a, b) or (multiplier * new_a, new_b) == (a, multiplier * b)


def _variables(before: _Found, after: _Found) -> list[tuple[Shape, Shape]] | None:
    """The shapes of the variables of two models, in pairs; None if they have others."""
    trees = (before.variables, after.variables)
    structures: list[Any] = [jax.tree.structure(tree, is_leaf=_is_shape) for tree in trees]
    if structures[0] != structures[1]:
        return None
    leaves = [jax.tree.leaves(tree, is_leaf=_is_shape) for tree in trees]
    return list(zip(*leaves, strict=True))


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
