"""Kernels with standard errors: as wide networks are, calibrated, the same however they are asked for, or refused."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from post_activation import DRAWS, Network, images

import infnet
import infnet_flax
from infnet.errors import InputError, UnsupportedError
from infnet.predict import gp_inference

REFERENCE = Path(__file__).parents[1] / "references/post_activation.npz"
FEW = infnet.Sampling(points=16, replicates=8)
BOTH = ("nngp", "ntk")


class Dense(nn.Module):
    """A post-activation block without positions."""

    @nn.compact
    def __call__(self, x):
        h = nn.relu(nn.Dense(16)(x))
        h = nn.relu(h + nn.Dense(16)(h))
        return nn.Dense(2)(h)


def inputs(n, seed=0):
    return np.random.RandomState(seed).randn(n, 3).astype(np.float32)


@pytest.fixture(scope="module")
def kernel_fn():
    return infnet_flax.kernel_fn(Dense(), inputs(2), on_unsupported=FEW)


def test_the_stated_intervals_cover_wide_networks():
    """The 95 % intervals at 20 draws of two images and of the points, for the unmodified block of a ResNet.

    They are widened by the standard error of the random networks, 512 wide, which is much smaller; so is what these
    differ from infinitely wide ones.
    """
    reference, pairs = np.load(REFERENCE), images()
    covered = {name: 0 for name in BOTH}
    for draw, (one, two) in enumerate(pairs):
        sampling = infnet.Sampling(points=32, replicates=16, seed=draw)
        kernel_fn = infnet_flax.kernel_fn(Network(512), pairs[0], on_unsupported=sampling)
        for name, estimate in zip(BOTH, kernel_fn(one[None], two[None], get=BOTH), strict=True):
            mean, error = (reference[key][draw, 0, 1] for key in (name, f"{name}_error"))
            own = float(estimate.standard_error[0, 0])
            assert error < own / 2
            half = float(estimate.interval(0.95)[1][0, 0] - estimate.mean[0, 0]) * np.hypot(1, error / own)
            covered[name] += abs(mean - float(estimate.mean[0, 0])) <= half
    assert all(count >= 0.85 * DRAWS for count in covered.values()), covered


def test_the_kernel_holds_standard_errors(kernel_fn):
    kernel = kernel_fn(inputs(3))
    assert set(kernel.standard_errors) == {"nngp", "ntk", "cov1", "cov2"}
    assert kernel.standard_errors["ntk"].shape == kernel.ntk.shape
    assert np.all(np.asarray(kernel.standard_errors["nngp"]) > 0)
    np.testing.assert_array_equal(np.diag(kernel.nngp), kernel.cov1)
    np.testing.assert_array_equal(kernel.ntk, kernel.ntk.T)
    assert repr(kernel).count("an estimate") == 4
    posterior = gp_inference(kernel, inputs(3), diag_reg=1e-2)("ntk")
    assert np.isfinite(posterior.mean).all()


def test_predictions_ask_for_the_kernel_in_an_estimate(kernel_fn):
    for get in ("ntk", BOTH):
        with pytest.raises(InputError, match=r"Estimate.*\.mean"):
            gp_inference(kernel_fn(inputs(3), get=get), inputs(3))


def test_ways_to_ask_agree(kernel_fn):
    x = inputs(5)
    whole = kernel_fn(x, get="ntk")
    assert isinstance(whole, infnet.Estimate)
    assert whole.n_samples == FEW.replicates
    close = {"rtol": 2e-5, "atol": 1e-6}
    pair = kernel_fn(x[:2], x, get=BOTH)
    np.testing.assert_allclose(kernel_fn.diag(x, "ntk").mean, jnp.diag(whole.mean), **close)
    tiled = kernel_fn(x[:2], x, get=BOTH, batch_size=3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), tiled, pair)
    shares = jax.tree.leaves(kernel_fn(x, get="ntk_by_param"), is_leaf=lambda x: isinstance(x, infnet.Estimate))
    np.testing.assert_allclose(sum(share.mean for share in shares), whole.mean, **close)


def test_own_examples_in_tiles_are_symmetric(kernel_fn):
    tiled = kernel_fn(inputs(3), get="ntk", batch_size=2).mean
    np.testing.assert_array_equal(tiled, tiled.T)


def test_another_seed_and_another_precision():
    """Another seed is another estimate; float64 is another rounding of the same."""
    x = inputs(2)
    few, other, exact = (
        infnet_flax.kernel_fn(Dense(), x, on_unsupported=sampling, **options).diag(x, "nngp")
        for sampling, options in ((FEW, {}), (infnet.Sampling(16, 8, seed=1), {}), (FEW, {"precision": "highest"}))
    )
    assert np.all(few.mean != other.mean)
    np.testing.assert_allclose(exact.mean, few.mean, rtol=1e-5)


def test_what_has_a_closed_form_has_no_error():
    found = infnet_flax.kernel_fn(nn.Dense(2), inputs(2), on_unsupported="sample")(inputs(2), get="nngp")
    np.testing.assert_array_equal(found.standard_error, 0)


# Queries, keys and values out of one layer


class Attention(nn.Module):
    """Softmax attention; `cut` makes queries, keys and values `(n, tokens, 4 heads, 2)` of x."""

    cut: Callable

    @nn.compact
    def __call__(self, x):
        query, key, value = self.cut(x)
        weights = jax.nn.softmax(jnp.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(2))
        x = nn.DenseGeneral(8, axis=(-2, -1))(jnp.einsum("nhqk,nkhd->nqhd", weights, value))
        return nn.Dense(1)(nn.relu(x).mean(1))


def biased(features):
    return nn.DenseGeneral(features, bias_init=nn.initializers.normal(1.0))


def of_three_layers(x):
    return tuple(biased((4, 2))(x) for _ in range(3))


def split(x):
    return tuple(part.reshape(*x.shape[:2], 4, 2) for part in jnp.split(biased(24)(x), 3, -1))


def indexed(x):
    projected = biased((3, 4, 2))(x)
    return tuple(projected[:, :, k] for k in range(3))


def unpacked(x):
    return biased(24)(x).reshape(*x.shape[:2], 3, 4, 2).transpose(2, 0, 1, 3, 4)


def test_queries_keys_and_values_of_one_layer_are_those_of_three():
    x = inputs(6).reshape(2, 3, -1)
    three = infnet_flax.kernel_fn(Attention(of_three_layers), x, on_unsupported=FEW)(x, get=BOTH)
    for cut in (split, indexed, unpacked):
        one = infnet_flax.kernel_fn(Attention(cut), x, on_unsupported=FEW)(x, get=BOTH)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), one, three)


def test_keys_that_are_the_values_are_refused():
    def shared(x):
        query, key = jnp.split(biased(16)(x).reshape(*x.shape[:2], 8, 2), 2, 2)
        return query, key, key

    x = inputs(6).reshape(2, 3, -1)
    with pytest.raises(UnsupportedError, match="cannot be sampled"):
        infnet_flax.kernel_fn(Attention(shared), x, on_unsupported=FEW)


# Refused


def test_derivatives_are_refused(kernel_fn):
    def size(stds):
        return kernel_fn.with_hyperparameters(stds)(inputs(2), get="nngp").mean.sum()

    with pytest.raises(UnsupportedError, match="derivative of a kernel that is sampled"):
        jax.grad(size)(kernel_fn.hyperparameters)


def test_composition_is_refused(kernel_fn):
    kernel = kernel_fn(inputs(2))
    after = infnet_flax.kernel_fn(nn.Dense(3), kernel)
    with pytest.raises(InputError, match="is an estimate"):
        after(kernel)


def test_random_features_are_refused(kernel_fn):
    with pytest.raises(InputError, match="sampled"):
        infnet.random_features(kernel_fn, jax.random.key(0), 16)


def test_what_is_no_function_of_single_channels_is_refused():
    class Grouped(nn.Module):
        @nn.compact
        def __call__(self, x):
            h = nn.Conv(8, (3,))(x)
            h = nn.relu(nn.Conv(8, (3,), feature_group_count=4)(h))
            return nn.Dense(1)(h.mean(1))

    with pytest.raises(UnsupportedError, match="and it cannot be sampled") as caught:
        infnet_flax.kernel_fn(Grouped(), np.ones((2, 5, 3), np.float32), on_unsupported="sample")
    assert "a depthwise or grouped convolution" in caught.value.why


def test_two_gaussian_fields_whose_moment_has_no_rule_are_refused():
    """Sampling is of the joint law of the Gaussian fields, which is what is missing."""

    class Regrouped(nn.Module):
        @nn.compact
        def __call__(self, x):
            h, shared = nn.Dense(8, use_bias=False)(x), nn.Dense(3, use_bias=False)
            return shared(h.reshape(-1, 2, 4)) + shared(jnp.stack([h[:, :4], h[:, 4:]], 1))

    with pytest.raises(UnsupportedError, match="the joint moment of") as caught:
        infnet_flax.kernel_fn(Regrouped(), inputs(2), on_unsupported="sample")
    assert "on_unsupported" not in caught.value.remedy


def test_too_many_positions_are_refused_before_anything_runs():
    x = jax.ShapeDtypeStruct((2, 96, 96, 3), np.float32)
    with pytest.raises(UnsupportedError, match="too large to be sampled") as caught:
        infnet_flax.kernel_fn(Network(8), x, on_unsupported="sample")
    assert "GiB" in caught.value.why


@pytest.mark.parametrize(
    "options", [{"points": 100}, {"points": 0}, {"points": 2.0}, {"replicates": 1}, {"seed": -1}, {"points": True}]
)
def test_senseless_numbers_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        infnet.Sampling(**options)


def test_the_option_is_checked():
    with pytest.raises(InputError, match="on_unsupported"):
        infnet_flax.kernel_fn(nn.Dense(1), inputs(2), on_unsupported="guess")
