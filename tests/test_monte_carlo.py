"""Infinite-width kernels against finite networks, through `oracles.py`, and that oracle itself.

Sampled in float32 at widths n and 4n and fitted as K + c / n. The sample sizes give standard errors below 1 % at
infinite width, dominated by the NNGP of the wider networks.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import assert_ratio_is_one, extrapolate, finite_width_kernels, fit_inverse_width
from quick import quick_keys
from references import inputs
from zoo import BY_NAME

import infnet_flax

REFERENCES = Path(__file__).parent / "references"

WIDTHS = (1, 4)
OUTPUTS = 64  # many: the NNGP averages over them
STANDARD = {1: "standard", 4: "standard_x4"}  # the names of frozen references of these widths

# name -> number of samples at each of WIDTHS
AGAINST_ENGINE = {
    "mlp_zero_biases": (5500, 4000),
    "conv_same_flatten": (3000, 2600),
    "conv_global_pool": (2200, 1800),
    "residual_mlp": (5500, 4500),
    "concatenated": (4500, 3200),
    "sum_of_relus": (5800, 4200),
    "shared_branch": (5800, 4200),
}


@pytest.fixture(autouse=True)
def _x64():
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def frozen():
    return np.load(REFERENCES / "neural_tangents.npz")


def examples(case):
    """2 x 2 pairs, and small images: the formulas do not depend on how many there are."""
    shape = (4, 4, 3) if len(case.shape) == 3 else case.shape
    return tuple(x[:2] for x in inputs.make(shape))


def sampled(case, outputs=OUTPUTS):
    """What makes a network of the zoo, for `extrapolate`: in float32, whose rounding is far below the noise."""
    return functools.partial(case.make, outputs=outputs, dtype=jnp.float32)


@pytest.mark.parametrize("name", AGAINST_ENGINE)
def test_kernels_are_limits_of_finite_networks(name):
    case = BY_NAME[name]
    x1, x2 = examples(case)

    def analytic(multiplier):
        kernel_fn = infnet_flax.kernel_fn(case.make(multiplier), x1[:1], parameterization="as_model")
        return tuple(kernel_fn(x1, x2, get=("nngp", "ntk")))

    fits = extrapolate(
        sampled(case),
        np.float32(x1),
        np.float32(x2),
        jax.random.key(1),
        widths=WIDTHS,
        n_samples=AGAINST_ENGINE[name],
        analytic=analytic,
    )
    for fit in fits:
        assert_ratio_is_one(fit)


# The oracle itself, against Neural Tangents and against arithmetic.


def test_oracle_agrees_with_neural_tangents(frozen):
    case = BY_NAME["mlp_relu"]

    def analytic(multiplier):
        prefix = f"mlp_relu/{STANDARD[multiplier]}"
        return tuple(frozen[f"{prefix}/{moment}/x1x2"][:2, :2] for moment in ("nngp", "ntk"))

    fits = extrapolate(
        sampled(case),
        *map(np.float32, examples(case)),
        jax.random.key(2),
        widths=WIDTHS,
        n_samples=(5000, 3600),
        analytic=analytic,
    )
    for fit in fits:
        assert_ratio_is_one(fit)


def is_bias(path):
    return path[-1].key == "bias"


def test_biases_initialised_at_zero_train(frozen):
    """Their NTK share, 1 for each bias, is too small a part of the whole to be seen there."""
    case = BY_NAME["mlp_zero_biases"]

    def share(multiplier):
        kernels = (
            frozen[f"{name}/{STANDARD[multiplier]}/ntk/x1x2"][:2, :2] for name in ("mlp_zero_biases", "mlp_no_bias")
        )
        with_biases, without = kernels
        return 1.0, with_biases - without

    fits = extrapolate(
        sampled(case, outputs=4),
        *map(np.float32, examples(case)),
        jax.random.key(3),
        widths=WIDTHS,
        n_samples=(8000, 4000),
        analytic=share,
        trainable=is_bias,
    )
    assert_ratio_is_one(fits.ntk)


def test_ntk_sample_is_the_contraction_of_jacobians():
    case = BY_NAME["concatenated"]
    module, (x1, x2), key = case.make(), examples(case), jax.random.key(4)
    sample = finite_width_kernels(module, x1, x2, key, 1)
    params = module.init(quick_keys(key, 1)[0], x1)
    jacobian = jax.jit(jax.jacobian(lambda p, x: module.apply(p, x)[:, 0]))
    j1, j2 = jacobian(params, x1), jacobian(params, x2)
    leaves = zip(jax.tree.leaves(j1), jax.tree.leaves(j2), strict=True)
    ntk = sum(np.reshape(a, (2, -1)) @ np.reshape(b, (2, -1)).T for a, b in leaves)
    nngp = np.mean(module.apply(params, x1)[:, None] * module.apply(params, x2), -1)
    np.testing.assert_allclose(sample.ntk[0], ntk, rtol=1e-12)
    np.testing.assert_allclose(sample.nngp[0], nngp, rtol=1e-12)


def test_fit_recovers_the_limit_and_its_error():
    widths, errors = np.array([1.0, 2.0, 4.0]), np.array([0.3, 0.2, 0.1])
    exact = 5.0 + 2.0 / widths
    noise = np.random.RandomState(0).standard_normal((3, 20000)) * errors[:, None]
    fit = fit_inverse_width(widths, exact[:, None] + noise, np.broadcast_to(errors[:, None], noise.shape))
    np.testing.assert_allclose(fit_inverse_width(widths, exact, errors).value, 5.0, rtol=1e-12)
    np.testing.assert_allclose(fit.value.mean(), 5.0, atol=0.01)
    np.testing.assert_allclose(fit.value.std(), fit.standard_error[0], rtol=0.02)


def test_quick_random_numbers_are_normal_and_independent():
    """Of one key, of keys split or folded from one, and of the keys of the samples."""
    n, few = 20000, 30
    keys = {
        "samples": quick_keys(jax.random.key(5), n),
        "split": jax.random.split(quick_keys(jax.random.key(6), 1)[0], n),
        "folded": jax.vmap(jax.random.fold_in, (None, 0))(quick_keys(jax.random.key(7), 1)[0], jnp.arange(n)),
    }
    for of in keys.values():
        z = np.asarray(jax.jit(jax.vmap(lambda key: jax.random.normal(key, (few,), jnp.float32)))(of), float)
        correlations = z.T @ z / n - np.eye(few)
        assert abs(correlations).max() < 5 * np.sqrt(2 / n)
        assert abs(z.mean(0)).max() < 5 / np.sqrt(n)
        assert abs((z**4).mean() - 3) < 5 * np.sqrt(96 / z.size)
