"""One of several processes of `jax.distributed` that compute a kernel together; run by test_devices.py.

python processes.py NUMBER COUNT PORT
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

import infnet

X1, X2 = np.random.RandomState(0).randn(23, 3), np.random.RandomState(1).randn(4, 3)
COMPUTED = []


def gaussian(x1, x2):
    """An ordinary function, whose blocks are calls."""
    jax.debug.callback(lambda: COMPUTED.append(1))
    return jnp.exp(-((x1[:, None] - (x1 if x2 is None else x2)) ** 2).sum(-1))


def report(x2):
    """How far the kernel is off in this process, and how many tiles it has computed."""
    COMPUTED.clear()
    found = infnet.batch(gaussian, 5)(X1, x2)
    wanted = np.exp(-((X1[:, None] - (X1 if x2 is None else x2)) ** 2).sum(-1))
    return {"error": float(np.abs(found - wanted).max()), "tiles": len(COMPUTED)}


def main(number, count, port):
    jax.distributed.initialize(f"localhost:{port}", count, number)
    print(json.dumps({"own": report(None), "both": report(X2)}))


main(*map(int, sys.argv[1:]))
