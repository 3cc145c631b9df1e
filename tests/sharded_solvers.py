"""Factors kernels on eight virtual devices and prints what each holds; run by test_solvers_sharded.py."""

import json
import math
import os
import re

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from infnet import predict, solvers
from infnet.errors import InputError, NumericalError
from infnet.solvers import sharded_cholesky
from infnet.solvers.sharded_cholesky import Layout

N, BLOCK, NOISE = 240, 16, 1e-2
ARRAY = re.compile(r"f32\[([\d,]+)\]")
# Blocks that do not divide the columns of a device, and one that is wider than they are.
CASES = {"4x2": ((4, 2), ("r", "c"), 50), "rows": ((8, 1), ("r", None), 64), "columns": ((1, 8), (None, "c"), 64)}


def message(function):
    try:
        function()
    except (InputError, NumericalError) as error:
        return str(error)
    return ""


def problem():
    random = np.random.default_rng(0)
    x = random.standard_normal((N, 30))
    kernel = (x @ x.T / 30).astype(np.float32)
    return (kernel + kernel.T) / 2, random.standard_normal((N, 2))


def place(kernel, shape, axes):
    mesh = Mesh(np.array(jax.devices()).reshape(shape), ("r", "c"))
    return jax.device_put(kernel, NamedSharding(mesh, PartitionSpec(*axes)))


def report(shape, axes, block):
    """The errors of factor and solution."""
    kernel, b = problem()
    placed = place(kernel, shape, axes)
    factor = np.asarray(sharded_cholesky.factor(placed, np.full(N, NOISE), block, False), np.float64)
    wanted = np.linalg.cholesky(kernel.astype(np.float64) + NOISE * np.eye(N))
    solution = solvers.solve(placed, b, NOISE, solvers.Cholesky(block=block))
    left = b - kernel.astype(np.float64) @ solution.x - NOISE * solution.x
    return {
        "factor": float(np.abs(np.tril(factor) - wanted).max()),
        "above": float(np.abs(np.triu(factor - kernel, 1)).max()),
        "residual": float((np.linalg.norm(left, axis=0) / np.linalg.norm(b, axis=0)).max()),
        "iterations": solution.info.iterations,
    }


def memory():
    """The largest arrays in the compiled programs, and XLA's own count of what a device needs, in numbers."""
    placed = place(problem()[0], (4, 2), ("r", "c"))
    layout = Layout.of(placed, BLOCK)
    key = layout.mesh, layout.rows, layout.columns, layout.n, layout.block
    factor = sharded_cholesky._compiled_factor(*key, True).lower(placed, jnp.ones(N)).compile()
    solve = sharded_cholesky._compiled_substitution(*key).lower(placed, jnp.ones((N, 2))).compile()
    found = {}
    for name, compiled in (("factor", factor), ("solve", solve)):
        sizes = [math.prod(map(int, dims.split(","))) for dims in ARRAY.findall(compiled.as_text())]
        analysis = compiled.memory_analysis()
        found[name] = {"largest": max(sizes), "temporary": analysis.temp_size_in_bytes / 4}
    overwritten = sharded_cholesky.factor(placed, np.full(N, NOISE), BLOCK, True)
    shards = {s.data.shape for s in overwritten.addressable_shards}
    return found | {"shards": sorted(shards), "given_up": placed.is_deleted()}


def predictions():
    """A posterior from a kernel on a mesh, against the dense one."""
    kernel, _ = problem()
    y, cross = np.sin(np.arange(N, dtype=np.float32))[:, None], kernel[:5]
    wanted = cross @ np.linalg.solve(kernel.astype(np.float64) + 0.1 * np.eye(N), y)
    placed = place(kernel, (4, 2), ("r", "c"))
    chosen = solvers.Cholesky(block=50), solvers.ConjugateGradients(rank=40)
    found = [predict.gp_inference(placed, y, noise=0.1, solver=s)("nngp", cross).mean for s in chosen]
    return max(float(np.abs(mean - wanted).max()) for mean in found)


def refusals():
    """What is said of matrices that have no factor, or are not on a mesh."""
    kernel, _ = problem()
    indefinite = place(kernel - 2 * np.eye(N, dtype=np.float32), (4, 2), ("r", "c"))
    positions = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    return {
        "indefinite": message(lambda: sharded_cholesky.factor(indefinite, np.full(N, NOISE), 50, False)),
        "no mesh": message(lambda: Layout.of(jax.device_put(kernel, positions), 16)),
    }


found = {"memory": memory()}  # of the optimised programs; the others need not be
jax.config.update("jax_disable_most_optimizations", True)
found |= {name: report(*case) for name, case in CASES.items()}
print(json.dumps(found | {"predictions": predictions(), "refusals": refusals()}))
