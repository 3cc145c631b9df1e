"""One of several processes of `jax.distributed` that compute a kernel together; run by test_devices.py.

    python processes.py NUMBER COUNT PORT
"""

import json
import sys

import jax

NUMBER, COUNT, PORT = map(int, sys.argv[1:])
jax.distributed.initialize(f"localhost:{PORT}", COUNT, NUMBER)

import jax.numpy as jnp
import numpy as np

import infnet

X1, X2 = np.random.RandomState(0).randn(23, 3), np.random.RandomState(1).randn(4, 3)
computed = []


def gaussian(x1, x2):
    """An ordinary function, whose blocks are calls."""
    jax.debug.callback(lambda: computed.append(1))
    return jnp.exp(-((x1[:, None] - (x1 if x2 is None else x2)) ** 2).sum(-1))


report = {}
for name, x2 in (("own", None), ("both", X2)):
    found = infnet.batch(gaussian, 5)(X1, x2)
    wanted = np.exp(-((X1[:, None] - (X1 if x2 is None else x2)) ** 2).sum(-1))
    report[name] = {"error": float(np.abs(found - wanted).max()), "tiles": len(computed)}
    computed.clear()
print(json.dumps(report))
