"""`monte_carlo_kernel_fn` against samples averaged in numpy, and against the kernels of the infinite width."""

from __future__ import annotations

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tqdm.auto
from finite import examples
from quick import quick_keys

import infnet
from infnet.errors import InputError

WIDTH = 32
X1, X2 = examples(4, n=3)
KEYS = quick_keys(jax.random.key(0), 2)


def init(key, x):
    keys = jax.random.split(key, 2)
    shapes = {"w": (x.shape[-1], WIDTH), "v": (WIDTH, 16)}
    return {n: jax.random.normal(k, s) * s[0] ** -0.5 for k, (n, s) in zip(keys, shapes.items(), strict=True)}


def apply(params, x):
    return jax.nn.relu(x @ params["w"]) @ params["v"]


def test_is_the_mean_of_samples():
    """The k-th network has the k-th key; the error is that of the mean of independent numbers."""
    key = KEYS[0]
    estimates = infnet.monte_carlo_kernel_fn(init, apply, key, [1, 2, 7])(X1, X2)
    finite = infnet.empirical_kernel_fn(apply, trace_axes=-1)
    samples = [finite(X1, X2, None, init(jax.random.fold_in(key, k), X1)) for k in range(7)]
    for n, estimate in zip([1, 2, 7], estimates, strict=True):
        for name in ("nngp", "ntk"):
            values = np.array([getattr(s, name) for s in samples[:n]], np.float64)
            found = getattr(estimate, name)
            assert found.n_samples == n
            np.testing.assert_allclose(found.mean, values.mean(0), rtol=1e-4, atol=1e-6)
            error = np.std(values, 0, ddof=1) / n**0.5 if n > 1 else np.inf
            np.testing.assert_allclose(found.standard_error, np.broadcast_to(error, (3, 3)), rtol=1e-3)


def test_of_the_infinite_width():
    """The mean NNGP of this network is that of its limit at every width, and so is its NTK."""
    found = infnet.monte_carlo_kernel_fn(init, apply, KEYS[0], 1000)(X1, X2)
    kernel = infnet.kernel_fn(apply, infnet.infer_priors(init, X1), X1)(X1, X2)
    for name in ("nngp", "ntk"):
        estimate, limit = getattr(found, name), getattr(kernel, name)
        assert estimate.mean.shape == limit.shape
        assert np.max(estimate.standard_error / np.abs(limit)) < 0.1
        assert np.max(np.abs(estimate.mean - limit) / estimate.standard_error) < 4


def test_a_fixed_key_gives_a_fixed_result():
    def nngp(key):
        return infnet.monte_carlo_kernel_fn(lambda key, x: jax.random.normal(key, (4, 1)), lambda w, x: x @ w, key, 3)(
            X1, get="nngp"
        ).mean

    first, again, other = (nngp(KEYS[k]) for k in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_options_several_inputs_and_outputs():
    def init(key, a, b):
        return {"w": jax.random.normal(key, (a.shape[1], 5)), "fixed": jnp.ones(5)}

    def apply(params, a, b):
        return {"one": (a + b) @ params["w"] + params["fixed"], "two": a @ params["w"]}

    kernel_fn = infnet.monte_carlo_kernel_fn(init, apply, KEYS[0], 4, trainable=lambda path: path == "w")
    found = kernel_fn((X1, X2), get="ntk_by_param")
    np.testing.assert_allclose(found["one"]["w"].mean, (X1 + X2) @ (X1 + X2).T, rtol=1e-5)
    np.testing.assert_allclose(found["two"]["w"].mean, X1 @ X1.T, rtol=1e-5)
    assert not np.any(found["one"]["fixed"].mean)
    assert np.all(found["one"]["w"].standard_error == 0)  # it does not depend on the parameters


@pytest.fixture(scope="module")
def limit():
    return infnet.kernel_fn(apply, infnet.infer_priors(init, X1), X1)(X1, X2)


@pytest.fixture(scope="module")
def kernel_fn():
    return infnet.monte_carlo_kernel_fn(init, apply, KEYS[0], 8)


REPETITIONS = quick_keys(jax.random.key(9), 200)


def coverage(repeated, expected):
    """The share of 95 % intervals, of all repetitions and entries, that cover what is expected."""
    low, high = repeated.interval(0.95)
    return float(np.mean((low <= expected) & (expected <= high)))


@pytest.mark.parametrize("n_samples", [5, 40])
def test_intervals_cover_the_limit(kernel_fn, limit, n_samples):
    """The mean kernels of this network are those of its limit, so nothing but noise is between them.

    With 5 samples, 1.96 standard errors would cover 88 %: the quantile of Student's t is 2.78.
    """

    @jax.jit
    @jax.vmap
    def repeated(key):
        return kernel_fn.with_samples(key, n_samples)(X1, X2)

    found = repeated(REPETITIONS)
    for name in ("nngp", "ntk"):
        assert 0.9 < coverage(getattr(found, name), getattr(limit, name)) < 0.98


def test_intervals_cover_the_limit_where_the_target_decides(kernel_fn, limit):
    found = [kernel_fn.with_samples(key, target_error=0.04)(X1, X2, "nngp") for key in REPETITIONS]
    assert all(estimate.target_reached and estimate.relative_error <= 0.04 for estimate in found)
    counts = {estimate.n_samples for estimate in found}
    assert 64 < min(counts) < max(counts) < 1000
    covered = np.mean([coverage(estimate, limit.nngp) for estimate in found])
    assert 0.9 < covered < 0.98


def test_a_target_that_is_not_reached_says_so(kernel_fn):
    found = kernel_fn.with_samples(KEYS[1], 100, target_error=1e-3)(X1)
    assert [e.target_reached for e in found] == [False, False]
    assert [e.n_samples for e in found] == [100, 100]
    fixed = kernel_fn.with_samples(KEYS[1], 100)(X1)
    np.testing.assert_allclose(found.ntk.mean, fixed.ntk.mean, rtol=1e-5)  # the same networks
    assert fixed.ntk.target_reached is None
    size, error = (np.linalg.norm(x) for x in (found.ntk.mean, found.ntk.standard_error))
    assert np.isclose(found.ntk.relative_error, error / size)


def test_intervals_are_those_of_student():
    """Quantiles of the table of t: 12.706 for one degree of freedom, 2.776 for four, 1.960 in the limit."""
    for n, quantile in ((2, 12.706), (5, 2.776), (10**6, 1.960)):
        low, high = infnet.Estimate(jnp.ones(2), jnp.full(2, 0.5), n).interval()
        np.testing.assert_allclose([low, high], [[1 - quantile / 2] * 2, [1 + quantile / 2] * 2], rtol=1e-3)
    assert np.isinf(infnet.Estimate(jnp.ones(2), jnp.full(2, jnp.inf), 1).interval(0.5)).all()
    for level in (0, 1, 95, True):
        with pytest.raises(InputError, match="probability"):
            infnet.Estimate(jnp.ones(2), jnp.ones(2), 5).interval(level)


def linear(params, x):
    return x @ params


@pytest.mark.parametrize("options", [{"n_samples": [2, 7]}, {"target_error": 0.5}])
def test_in_tiles(options):
    """The same networks, also for one number of them after another, or to a target; given at the call or before."""

    def made(**more):
        return infnet.monte_carlo_kernel_fn(
            lambda key, x: jax.random.normal(key, (4, 2)),
            linear,
            KEYS[0],
            implementation="jacobian_contraction",
            **more,
        )

    whole = made(**options)
    for tiled in (whole(X1, X2, batch_size=(2, 1)), made(batch_size=2, **options)(X1, X2)):
        pairs = [(tiled, whole(X1, X2))] if "target_error" in options else list(zip(tiled, whole(X1, X2), strict=True))
        for found, estimate in pairs:
            assert jax.tree.structure(found) == jax.tree.structure(estimate)
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(estimate), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_a_bar_counts_networks(kernel_fn, capsys, monkeypatch):
    shown = kernel_fn.with_samples(KEYS[0], 20, progress=True)(X1)
    assert "20/20" in capsys.readouterr().err
    silent = kernel_fn.with_samples(KEYS[0], 20)(X1)
    assert not capsys.readouterr().err
    for name in ("nngp", "ntk"):
        one, other = getattr(shown, name), getattr(silent, name)
        np.testing.assert_allclose(one.mean, other.mean, rtol=1e-5)
        np.testing.assert_allclose(one.standard_error, other.standard_error, rtol=1e-4)
    monkeypatch.setitem(sys.modules, tqdm.auto.__name__, None)
    with pytest.raises(InputError, match="needs tqdm"):
        kernel_fn.with_samples(KEYS[0], 2, progress=True)(X1)


def test_refusals(kernel_fn):
    for n_samples in (0, 1.5, [], [2, 1], [1, 1], True, "many", None):
        with pytest.raises(InputError, match="n_samples must be"):
            infnet.monte_carlo_kernel_fn(init, apply, KEYS[0], n_samples)
    for target in (0, -1, "small", True):
        with pytest.raises(InputError, match="target_error must be a positive number"):
            infnet.monte_carlo_kernel_fn(init, apply, KEYS[0], target_error=target)
    with pytest.raises(InputError, match="the largest number"):
        kernel_fn.with_samples(KEYS[0], [1, 2], target_error=0.1)
    to_target = kernel_fn.with_samples(KEYS[0], target_error=0.1)
    with pytest.raises(InputError, match=r"give n_samples instead"):
        jax.jit(to_target)(X1)
    with pytest.raises(InputError, match="without target_error"):
        infnet.batch(to_target)(X1)
    with pytest.raises(InputError, match="unknown option 'batchsize'"):
        kernel_fn(X1, batchsize=2)
    with pytest.raises(InputError, match="get must be"):
        kernel_fn(X1, get="kernel")
