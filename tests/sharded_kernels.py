"""Compiles kernel functions for eight virtual devices and prints what their HLO does; run by test_sharding.py."""

import json
import os
import re
import sys

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import infnet
import infnet.tiling

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
    "convolutional": (convolutional, priors((3, 3, 2, 16), (16, 1)), (4, 4, 2)),
}


def report(name, tile_entries, several):
    """What one kernel function does with rows on eight devices, x2 given (on all of them) or x1 itself."""
    infnet.tiling.TILE_ENTRIES = tile_entries
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
    moved = [[int(n) for n in dims.split(",") if n] for dims in COLLECTIVE.findall(compiled.as_text())]
    return {
        "shards": [len({str(s.index) for s in k.addressable_shards}) for k in (*found, *eager)],
        "moved": max((int(jnp.prod(jnp.array(dims))) for dims in moved), default=0),
        "error": max(
            float(jnp.abs(a / b - 1).max()) for a, b in zip((*found, *eager), (*wanted, *wanted), strict=True)
        ),
    }


print(
    json.dumps([report(name, int(entries), several == "x2") for name, entries, several in map(str.split, sys.argv[1:])])
)
