"""Time kernels with tiles of different sizes, to choose `infnet.tiling.TILE_ENTRIES`.

    python benchmarks/tiles.py [case ...]

The cases are those of `kernels.py`. The last row, 2^40 entries, is one tile for everything.
"""

from __future__ import annotations

import sys
import time
from functools import partial

import jax
import numpy as np
from kernels import CASES, infnet_kernel

from infnet import tiling


def main() -> None:
    """Print seconds (best of 3) for each case and tile size."""
    for name in sys.argv[1:] or ["fcn5", "cnn4_flatten"]:
        *network, shape, symmetric = CASES[name]
        x = jax.numpy.asarray(np.random.RandomState(0).randn(*shape).astype("float32"))
        for log2 in (14, 16, 18, 20, 40):
            tiling.TILE_ENTRIES = 2**log2
            k = infnet_kernel(*network)(x)
            arguments = (x,) if symmetric else (x, x + 0.01)
            f = jax.jit(partial(k, get="ntk")).lower(*arguments).compile()
            runs = []
            for _ in range(3):
                start = time.perf_counter()
                jax.block_until_ready(f(*arguments))
                runs.append(time.perf_counter() - start)
            print(f"{name:16} 2^{log2:<3} entries  {min(runs):8.3f} s", flush=True)


if __name__ == "__main__":
    main()
