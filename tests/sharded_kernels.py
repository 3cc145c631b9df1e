"""Compiles kernel functions for eight virtual devices and prints what their HLO does; run by test_sharding.py."""

import json
import math
import os
import re
import sys
from pathlib import Path

from xla_flags import code_generation

# How an array is split is decided before code is generated: that may be done in the quickest way (quick.py).
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8" + code_generation(quick=True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import infnet
import infnet.tiling

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import activations

COLLECTIVE = re.compile(r"= *\(?\w+\[([\d,]*)\][^=\n]*? (?:all-gather|all-reduce|all-to-all|collective-permute)")
N = 64


def dense(params, x):
    for w in params[:-1]:
        x = jax.nn.relu(x @ w)
    return x @ params[-1]


def convolutional(params, x):
    numbers = ("NHWC", "HWIO", "NHWC")
    x = jax.nn.relu(jax.lax.conv_general_dilated(x, params[0], (1, 1), "SAME", dimension_numbers=numbers))
    return x.mean((1, 2)) @ params[1]


def priors(*shapes):
    return [infnet.Prior(0.0, 0.5, shape=shape, dtype=jnp.float32) for shape in shapes]


MODELS = {
    "dense": (dense, priors((4, 16), (16, 16), (16, 1)), (4,)),
    "deep": (dense, priors((4, 16), *[(16, 16)] * 10, (16, 1)), (4,)),
    "convolutional": (convolutional, priors((3, 3, 2, 16), (16, 1)), (4, 4, 2)),
}


def shards(arrays):
    """The number of different parts that each array is in."""
    return [len({str(s.index) for s in a.addressable_shards}) for a in arrays]


def moved(compiled):
    """The size of the largest array that devices exchange."""
    sizes = [[int(n) for n in dims.split(",") if n] for dims in COLLECTIVE.findall(compiled.as_text())]
    return max(map(math.prod, sizes), default=0)


def report(name, tile_entries, x2):
    """What one kernel function does with rows on eight devices, x2 given (on all of them) or x1 itself."""
    infnet.tiling.TILE_ENTRIES = int(tile_entries)
    several = x2 == "x2"
    apply, laws, shape = MODELS[name]
    x = jax.random.normal(jax.random.key(0), (N, *shape))
    kernel_fn = infnet.kernel_fn(apply, laws, x)
    mesh = Mesh(jax.devices(), ("rows",))
    rows = jax.device_put(x, NamedSharding(mesh, PartitionSpec("rows")))
    everywhere = jax.device_put(x[::-1], NamedSharding(mesh, PartitionSpec()))
    arguments = (rows, everywhere) if several else (rows,)
    compiled = jax.jit(lambda *args: kernel_fn(*args, get=("nngp", "ntk"))).lower(*arguments).compile()
    found = compiled(*arguments)
    wanted = kernel_fn(x, x[::-1] if several else None, get=("nngp", "ntk"))
    eager = kernel_fn(*arguments, get=("nngp", "ntk"))
    results = (*found, *eager)
    return {
        "shards": shards(results),
        "moved": moved(compiled),
        "error": max(float(jnp.abs(a / b - 1).max()) for a, b in zip(results, (*wanted, *wanted), strict=True)),
    }


def report_activations(name):
    """What the kernel of one activation does with a matrix of pairs whose rows are on eight devices."""
    activation = activations.activation_of(activations.CASES[name])
    mesh = Mesh(jax.devices(), ("rows",))
    rows, columns = NamedSharding(mesh, PartitionSpec("rows")), NamedSharding(mesh, PartitionSpec())
    q = [
        jax.device_put(x, where)
        for x, where in zip(activations.gram(N, N, "float32"), (rows, rows, columns), strict=True)
    ]
    compiled = jax.jit(lambda *q: activation.kernel(*q, True)).lower(*q).compile()
    return {"shards": shards(compiled(*q)), "moved": moved(compiled)}


reports = {case: report(*case.split()) for case in sys.argv[1:]}
print(json.dumps({**reports, **{name: report_activations(name) for name in activations.CASES}}))
