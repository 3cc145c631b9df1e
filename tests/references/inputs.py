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
