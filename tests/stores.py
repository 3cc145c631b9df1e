"""A kernel that processes compute into a store together, and are killed at; `python tests/stores.py STORE LOG`."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tensorstore  # every test file that uses this one needs it

import infnet
from infnet.batching.grid import Grid
from infnet.batching.tiles import Tiles

assert tensorstore
whole = Tiles.__call__
N, SIDE = 90, 5
GRID = Grid(N, N, SIDE, SIDE, mirrored=True)
RNG = np.random.RandomState(0)
X = np.float32(RNG.standard_normal((N, 4)))
PRIORS = [infnet.Prior(0.0, s, shape=shape, dtype=jnp.float32) for s, shape in ((0.5, (4, 64)), (0.2, (64, 1)))]


def network(params, x):
    return jax.nn.relu(x @ params[0]) @ params[1]


def kernel_fn():
    return infnet.kernel_fn(network, PRIORS, jax.ShapeDtypeStruct(X.shape, X.dtype))


def compute(store):
    return infnet.compute(kernel_fn(), X, store=store, get="ntk", batch_size=SIDE, progress=False)


def log_tiles(log: Path) -> None:
    """From now on, there is a line in the log for every tile that this process begins."""

    def logged(self, tile):
        with log.open("a") as file:
            file.write(f"{os.getpid()} {tile.rows.start} {tile.columns.start}\n")
        return whole(self, tile)

    Tiles.__call__ = logged


def start(store: Path, log: Path) -> subprocess.Popen:
    """A process that computes."""
    root = Path(__file__).parents[1]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, __file__, str(store), str(log)]
    return subprocess.Popen(command, cwd=root, env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"})


def lines(log: Path) -> int:
    """How many tiles have been begun."""
    return len(log.read_text().splitlines()) if log.exists() else 0


def interrupted(store: Path, log: Path, moment: random.Random) -> int:
    """Two processes, killed at a random moment; how many tiles were in flight. -1 if they had finished before."""
    goal = lines(log) + moment.randrange(max(1, len(GRID) - lines(log)))
    workers = [start(store, log) for _ in range(2)]
    while lines(log) < goal and any(worker.poll() is None for worker in workers):
        time.sleep(0.002)
    time.sleep(moment.uniform(0, 0.02))
    finished = all(worker.poll() is not None for worker in workers)
    for number in (signal.SIGSTOP, signal.SIGKILL):  # at once: the second one would take over the tiles of the first
        for worker in workers:
            worker.send_signal(number)
    for worker in workers:
        worker.wait()
    claims = store / "claims"
    return -1 if finished else len(list(claims.iterdir())) if claims.exists() else 0


if __name__ == "__main__":
    log_tiles(Path(sys.argv[2]))
    compute(sys.argv[1])
