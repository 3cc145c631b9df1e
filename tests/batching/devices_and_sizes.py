"""Kernels in tiles on 1, 2 and 8 virtual devices against kernels at once; run by test_devices.py."""

import itertools
import json
import os

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_ENABLE_X64"] = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import infnet

SIZES = (0, 1, 2, 7, 101, 128)
TILES = (5, (3, 8), 64)
DEVICES = (1, 2, 8)
ON_DEVICE = (((3, 8), 2), (64, 8))  # tiles and devices
RNG = np.random.RandomState(0)
X1, X2 = RNG.randn(max(SIZES), 3), RNG.randn(max(SIZES), 3)


def gaussian(x1, x2, scale):
    """An ordinary function, whose blocks are calls."""
    x2 = x1 if x2 is None else x2
    return jnp.exp(-scale * ((x1[:, None] - x2) ** 2).sum(-1))


def network(params, x):
    h = jax.nn.relu(jnp.where(x["mask"], x["a"], 0) @ params["a"] + params["b"])
    return jax.lax.erf(h @ params["w"]) @ params["v"]


def prior(*shape):
    return infnet.Prior(0.0, 0.4, shape=shape, dtype=jnp.float64)


PRIORS = {"a": prior(3, 8), "b": prior(8), "w": prior(8, 8), "v": prior(8, 1)}


def differing(found, wanted):
    """What is wrong with a result: another structure, another shape, or the largest difference."""
    if jax.tree.structure(found) != jax.tree.structure(wanted):
        return f"{jax.tree.structure(found)}, not {jax.tree.structure(wanted)}"
    leaves = list(zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True))
    if any(a.shape != b.shape or a.dtype != b.dtype for a, b in leaves):
        return f"{[a.shape for a, _ in leaves]}, not {[b.shape for _, b in leaves]}"
    worst = max((float(np.abs(np.asarray(a) - np.asarray(b)).max(initial=0)) for a, b in leaves), default=0.0)
    return None if worst < 1e-12 else worst


def every_size():
    """All sizes, with and without x2, in all tiles, on all devices; some put together on a device."""
    whole, own = (np.asarray(gaussian(X1, x2, 0.3)) for x2 in (X2, None))
    cases = [(n1, n2) for n1 in SIZES for n2 in (*SIZES, None)]
    for tile, devices in itertools.product(TILES, DEVICES):
        batched = infnet.batch(gaussian, tile, devices, store_on_device=(tile, devices) in ON_DEVICE)
        for n1, n2 in cases:
            wanted = own[:n1, :n1] if n2 is None else whole[:n1, :n2]
            found = batched(X1[:n1], None if n2 is None else X2[:n2], 0.3)
            yield f"{n1} {n2} in {tile} on {devices}", differing(found, wanted)


def every_kernel():
    """Kernels of a model with a pytree of inputs; in tiles that are not square, on a mesh of two axes, or of one."""
    x1, x2 = ({"a": x[:13], "mask": x[:13] > 0} for x in (X1, X2))
    kernel_fn = infnet.kernel_fn(network, PRIORS, x1)
    devices = np.array(jax.devices())
    by_both = infnet.batch(kernel_fn, (3, 2), mesh=Mesh(devices.reshape(4, 2), ("rows", "columns")))
    by_rows = infnet.batch(kernel_fn, 4, mesh=Mesh(devices[:2], "rows"))
    asked = [
        (by_both, x2, None),
        (by_both, None, "ntk_by_param"),
        (by_rows, None, None),
        (by_rows, x2, ("ntk", "nngp")),
    ]
    for batched, other, get in asked:
        yield f"{get} {other is None}", differing(batched(x1, other, get), kernel_fn(x1, other, get))


def every_network():
    """Monte Carlo: devices that share the networks, or with tiles the examples."""

    def init(key, x):
        return jax.tree.map(lambda p: jax.random.normal(key, p.shape), PRIORS, is_leaf=lambda p: hasattr(p, "shape"))

    x = {"a": X1[:5], "mask": X1[:5] > 0}
    kernel_fn = infnet.monte_carlo_kernel_fn(init, network, jax.random.key(0), [3, 11])
    for options in ({"device_count": 8}, {"device_count": 2}, {"batch_size": 2, "device_count": 2}):
        yield f"Monte Carlo {options}", differing(list(kernel_fn(x, **options)), list(kernel_fn(x)))


def main():
    """Print what differs, by case."""
    found = dict(itertools.chain(every_size(), every_kernel(), every_network()))
    print(json.dumps({"cases": len(found), "wrong": {name: what for name, what in found.items() if what is not None}}))


if __name__ == "__main__":
    main()
