"""Kernels of wide post-activation residual networks, by Jacobians of random networks and nothing else.

From the root: `PYTHONPATH=.:tests/sampling python tests/references/make_post_activation.py` (minutes).

Of one network with readout weights of variance 1 / width, the NNGP averaged over these weights is the mean of the
products of its features; the NTK is that of the network as it is.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from post_activation import Network, images

WIDTH, NETWORKS = 512, 300


@jax.jit
def kernels(key, x):
    """NNGP and NTK of each pair of images, `(draws, 2, 2)`."""
    network = Network(WIDTH)
    variables = network.init(key, x[0])
    params = variables.pop("params")

    def output(params, image):
        return network.apply({**variables, "params": params}, image[None])[0, 0]

    def of_pair(pair):
        gradients = [jax.grad(output)(params, one) for one in pair]
        flat = jnp.stack([jnp.concatenate([g.ravel() for g in jax.tree.leaves(gradient)]) for gradient in gradients])
        # The gradient in the readout weights is the vector of features.
        h = jnp.stack([gradient["Dense_0"]["kernel"][:, 0] for gradient in gradients])
        return h @ h.T / WIDTH, flat @ flat.T

    return jax.lax.map(of_pair, x)


if __name__ == "__main__":
    found = [kernels(key, images()) for key in jax.random.split(jax.random.key(0), NETWORKS)]
    arrays = {}
    for name, samples in zip(("nngp", "ntk"), zip(*found, strict=True), strict=True):
        samples = np.asarray(samples, np.float64)
        arrays[name], arrays[f"{name}_error"] = samples.mean(0), samples.std(0, ddof=1) / np.sqrt(len(samples))
    np.savez(Path(__file__).with_name("post_activation.npz"), **arrays)
