"""The memory that kernels take, as the system measures it, beside what was estimated; run by test_estimate.py."""

import ctypes
import json
from pathlib import Path

import jax
import numpy as np
from flax import linen as nn

import infnet_flax


class Dense(nn.Module):
    @nn.compact
    def __call__(self, x):
        for _ in range(3):
            x = nn.relu(nn.Dense(32)(x))
        return nn.Dense(1)(x)


class Images(nn.Module):
    pooled: bool

    @nn.compact
    def __call__(self, x):
        for _ in range(2):
            x = nn.relu(nn.Conv(16, (3, 3))(x))
        return nn.Dense(1)(x.mean((1, 2)) if self.pooled else x.reshape((x.shape[0], -1)))


MODELS = {
    "dense": (Dense(), (3000, 20)),
    "flatten": (Images(False), (2000, 8, 8, 3)),
    "pool": (Images(True), (300, 8, 8, 3)),
}


def growth(run):
    """Bytes by which a run raises the peak of this process."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = status("VmRSS")
    run()
    return status("VmHWM") - before


def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def report(model, shape):
    x = np.random.RandomState(0).randn(*shape).astype(np.float32)
    kernel_fn = infnet_flax.kernel_fn(model, x[:2])
    found = kernel_fn.estimate(x, None, ("nngp", "ntk"))  # which compiles what is called now
    grown = growth(lambda: jax.block_until_ready(kernel_fn(x, None, ("nngp", "ntk"))))
    return {"measured": grown, "estimated": found.peak_bytes, "output": found.output_bytes, "flops": found.flops}


print(json.dumps({name: report(*case) for name, case in MODELS.items()}))
