"""The inputs of the frozen references, made in the same way by every program that needs them.

Only numpy, and only `RandomState`, whose stream numpy has promised never to change:

    x = RandomState(seed).standard_normal((n1 + n2, *shape)) + 0.5,    x1 = x[:n1],    x2 = x[n1:]

The shift keeps the examples positively correlated, so that no kernel entry is close to zero and
entries may be compared by their ratios.
"""

from __future__ import annotations

import numpy as np

N1, N2 = 4, 3


def make(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`(x1, x2)`, float64, of shapes `(4, *shape)` and `(3, *shape)`."""
    x = np.random.RandomState(seed).standard_normal((N1 + N2, *shape)) + 0.5
    return x[:N1], x[N1:]


MASKED = 10.0
"""Neural Tangents' `mask_constant`: positions with this value are not there."""


def few(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """`(x1, x2)` of shapes `(3, *shape)` and `(2, *shape)`."""
    x1, x2 = make(shape)
    return x1[:3], x2[:2]


def masked(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """`few`, a third of the positions set to `MASKED` in all channels; the first position of an axis never."""
    random, sets = np.random.RandomState(1), few(shape)
    for x in sets:
        where = random.uniform(size=x.shape[:-1]) < 1 / 3
        where[:, 0] = False
        x[where] = MASKED
    return sets


def graphs(shape: tuple[int, ...], axes: tuple[int, ...] = (1,)) -> tuple[dict, dict]:
    """`few` as "nodes", and weighted adjacencies "pattern" of shape `(n, *sizes of axes, *sizes of axes)`."""
    random = np.random.RandomState(2)

    def graph(x: np.ndarray) -> dict[str, np.ndarray]:
        sizes = tuple(x.shape[axis] for axis in axes)
        weights = random.uniform(0.5, 1.5, (len(x), *sizes, *sizes))
        return {"nodes": x, "pattern": weights * (random.uniform(size=weights.shape) < 0.6)}

    x1, x2 = few(shape)
    return graph(x1), graph(x2)


def edges(shape: tuple[int, ...], number: int = 9) -> tuple[dict, dict]:
    """`few` as "nodes", and "edges" of shape `(n, number, 2)` from node `[..., 0]` to node `[..., 1]`."""
    random = np.random.RandomState(3)
    return tuple({"nodes": x, "edges": random.randint(0, x.shape[1], (len(x), number, 2))} for x in few(shape))
