"""The entries of a block by groups of positions that depend on the same Gaussian variables.

The softmax of a row of T scores is T functions of the same T variables: they are computed together, at the same
points. So a moment of rows i and i' takes one integral over 2 T variables for all T^2 entries.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from infnet.errors import UnsupportedError
from infnet.layout import Layout
from infnet.nodes import Node
from infnet.sampling.channel import Channel
from infnet.sampling.positions import positions_of


class Groups(NamedTuple):
    """Positions of a node, those that are functions of the same Gaussian variables in one row.

    Attributes:
        positions: flat indices `[groups, size]`; a smaller group repeats its first.
        group: in which group each position of the node is found, `[positions]`.
        column: and where in it.
    """

    positions: np.ndarray
    group: np.ndarray
    column: np.ndarray


class Block(NamedTuple):
    """The entries of a block, each a pair of positions in a pair of groups.

    Attributes:
        left, right: the positions of both groups of each pair, flat indices `[pairs, size]`.
        entries: where the entries stand in a flattened array `[pairs, left size, right size]`, in row-major order.
        same: whether both groups are the same in all pairs.
    """

    left: np.ndarray
    right: np.ndarray
    entries: np.ndarray
    same: bool


def grouped(node: Node, channel: int, positions: np.ndarray, refusal: UnsupportedError) -> Groups:
    """The groups of some positions of channel `channel` of a node, flat indices `[n]`; raises as `Channel`."""
    wanted = np.unique(positions)
    slots = Channel(node, channel, wanted[:, None], refusal).slots
    variables = np.concatenate([np.zeros((len(wanted), 1), int), *(slot.positions for slot in slots)], 1)
    _, first, group, size = np.unique(variables, axis=0, return_index=True, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    order = np.argsort(group, kind="stable")
    column = np.empty(len(wanted), int)
    column[order] = np.arange(len(wanted)) - np.repeat(np.cumsum(size) - size, size)
    members = np.repeat(wanted[first][:, None], size.max(), 1)
    members[group, column] = wanted
    places = np.zeros((2, math.prod(node.sizes)), int)
    places[:, wanted] = group, column
    return Groups(members, *places)


def block_of(layout: Layout, left: Groups, right: Groups) -> Block:
    """The entries of a block of two nodes, whose positions are in these groups."""
    i, j = positions_of(layout)
    count = len(right.positions)
    pairs, pair = np.unique(left.group[i] * count + right.group[j], return_inverse=True)
    one, two = pairs // count, pairs % count
    rows, columns = left.positions.shape[1], right.positions.shape[1]
    entries = (pair.reshape(-1) * rows + left.column[i]) * columns + right.column[j]
    return Block(left.positions[one], right.positions[two], entries, bool((one == two).all()))
