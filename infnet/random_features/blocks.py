"""Feature maps of random fields as direct sums of blocks, which are known by name before any number is.

The feature map of a node is a list of blocks `coefficient(x) * base(x)`, each in a space of its own, so that

    <map(a), map(b)> = sum over blocks of coefficient(a) coefficient(b) <base(a), base(b)>.

The map of a sum of fields is the sum of their maps, block by block; fields that are independent share no space. A
coefficient is a polynomial in *scalars*, numbers of each example that are known exactly, such as a mean.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Space = Hashable


class Scalar(NamedTuple):
    """A number of each example: such as the "mean" of the node with this number, or of the known field."""

    kind: str
    which: int


class Base(NamedTuple):
    """What blocks are multiples of.

    The number "one", the "known" values of a field, what was "sampled" or "mixed" at a node, or blocks "compressed".
    """

    kind: str
    which: Any = None


ONE = Base("one")
Product = tuple[Scalar, ...]  # sorted


@dataclass(frozen=True)
class Block:
    """A base times a sum of products of scalars, each with a factor."""

    base: Base
    coefficient: Mapping[Product, Any]

    @classmethod
    def of(cls, base: Base, factor: Any = 1.0, *scalars: Scalar) -> Block:
        """With a single product."""
        return cls(base, {tuple(sorted(scalars)): factor})

    def times(self, factor: Any, *scalars: Scalar) -> Block:
        """A multiple."""
        products = {tuple(sorted((*p, *scalars))): factor * f for p, f in self.coefficient.items()}
        return Block(self.base, products)

    def plus(self, other: Block) -> Block:
        """The sum with a block of the same space, and so of the same base."""
        assert self.base == other.base
        total = dict(self.coefficient)
        for product, factor in other.coefficient.items():
            total[product] = total[product] + factor if product in total else factor
        return Block(self.base, total)


Map = Mapping[Space, Block]


def added(maps: Iterable[Map]) -> dict[Space, Block]:
    """The map of a sum of fields."""
    total: dict[Space, Block] = {}
    for one in maps:
        for space, block in one.items():
            total[space] = total[space].plus(block) if space in total else block
    return total


def scaled(one: Map, factor: Any, *scalars: Scalar) -> dict[Space, Block]:
    """The map of a multiple of a field."""
    return {space: block.times(factor, *scalars) for space, block in one.items()}


def merged(blocks: Iterable[Block]) -> list[Block]:
    """Fewer blocks with the same inner products: f p * base and g p * base are sqrt(f^2 + g^2) p * base."""
    factors: dict[tuple[Base, Product], list[Any]] = {}
    rest = []
    for block in blocks:
        if len(block.coefficient) == 1:
            ((product, factor),) = block.coefficient.items()
            factors.setdefault((block.base, product), []).append(factor)
        else:
            rest.append(block)
    return [Block.of(base, _root_of_squares(f), *product) for (base, product), f in factors.items()] + rest


def _root_of_squares(factors: Sequence[Any]) -> Any:
    return factors[0] if len(factors) == 1 else sum(f * f for f in factors) ** 0.5


def width(blocks: Iterable[Block], width_of: Callable[[Base], int]) -> int:
    """The number of columns of `columns(blocks, ...)`."""
    return sum(width_of(block.base) for block in merged(blocks))


def coefficient(block: Block, scalars: Mapping[Scalar, jax.Array]) -> jax.Array:
    """The coefficient for each example, `(n, 1)`, or a number if no scalar is in it."""
    total: Any = 0.0
    for product, factor in block.coefficient.items():
        for scalar in product:
            factor = factor * scalars[scalar]
        total = total + factor
    total = jnp.asarray(total)
    return total[:, None] if total.ndim else total


def columns(blocks: Iterable[Block], bases: Mapping[Base, jax.Array], scalars: Mapping[Scalar, jax.Array]) -> jax.Array:
    """The features, `(n, columns)`, of blocks in spaces of their own."""
    parts = [(coefficient(block, scalars) * bases[block.base]) for block in merged(blocks)]
    n, dtype = bases[ONE].shape[0], bases[ONE].dtype
    return jnp.concatenate([jnp.zeros((n, 0), dtype), *(part.astype(dtype) for part in parts)], axis=1)
