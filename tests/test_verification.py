"""The parts of `verify`: the fit and its statistics, first layers, options, what it refuses, its picture."""

from __future__ import annotations

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import examples
from matplotlib.figure import Figure
from quick import quick_keys
from scipy import stats

import infnet
from infnet.errors import InputError
from infnet.verification import function, trend
from infnet.verification.first_layer import not_gaussian
from infnet.verification.networks import Functions
from infnet.verification.structure import last_leaves

(KEY,) = quick_keys(jax.random.key(4), 1)
MULTIPLIERS, COUNTS, ERRORS = (1, 2, 4), (900, 500, 300), np.array([0.01, 0.012, 0.015])


# The fit.


def fits(deviation, slope, entries=20_000, curvature=0.0):
    """Of as many independent entries with this deviation and slope."""
    x = 1 / np.array(MULTIPLIERS)[:, None]
    noise = np.random.RandomState(0).standard_normal((3, entries)) * ERRORS[:, None]
    errors = np.broadcast_to(ERRORS[:, None], noise.shape)
    return trend.fit(MULTIPLIERS, COUNTS, deviation + slope * x + curvature * x**2 + noise, errors, errors**2)


def test_the_fit_is_that_of_least_squares():
    found = fits(0.1, 0.3, entries=5)
    x, y = 1 / np.array(MULTIPLIERS), 0.1 + 0.3 / np.array(MULTIPLIERS)
    noise = np.random.RandomState(0).standard_normal((3, 5)) * ERRORS[:, None]
    root = np.sqrt(np.array(COUNTS) * MULTIPLIERS)[:, None]
    inverse = np.linalg.pinv(np.stack([np.ones(3), x], 1) * root) * root[:, 0]
    np.testing.assert_allclose([found.intercept, found.slope], inverse @ (y[:, None] + noise), rtol=1e-9)
    np.testing.assert_allclose(found.standard_error, np.sqrt(inverse[0] ** 2 @ ERRORS**2), rtol=1e-9)


def test_scores_are_those_of_the_noise():
    found = fits(0.0, 0.0)
    assert np.isclose(np.std(found.intercept / found.standard_error), 1, atol=0.02)
    limit = trend.threshold(0.01, 1, 10**6)
    assert np.mean(np.abs(found.z_scores) > limit) < 0.012


def test_a_curved_trend_is_allowed_for():
    """Of the product of factors 1 + O(1 / width), exp(c / m) - 1."""
    slope = 0.3
    exact = np.expm1(slope / np.array(MULTIPLIERS))[:, None]
    errors = np.full((3, 1), 1e-4)
    found = trend.fit(MULTIPLIERS, COUNTS, exact, errors, errors**2)
    assert abs(found.intercept[0]) > 50 * found.standard_error[0]
    assert found.z_scores[0] == 0
    # but not so much that a deviation of that size hides
    assert trend.fit(MULTIPLIERS, COUNTS, exact + 0.1, errors, errors**2).z_scores[0] > 50


def test_widths_that_grow_as_the_square_are_allowed_for():
    """Of two layers whose widths grow as m, and one of the same width that grows as m²."""
    x = 1 / np.array(MULTIPLIERS)[:, None]
    errors = np.full((3, 1), 1e-6)
    deviations = 0.02 * (x + 0.5 * x**2)
    assert abs(trend.fit(MULTIPLIERS, COUNTS, deviations, errors, errors**2).z_scores[0]) > 50
    assert trend.fit(MULTIPLIERS, COUNTS, deviations, errors, errors**2, 0.5).z_scores[0] == 0
    # with the steepest of all entries, and in proportion to it
    found = trend.fit(MULTIPLIERS, COUNTS, 0.02 * np.concatenate([x, 3 * x], 1), 0 * errors, errors**2, 0.5)
    without = trend.fit(MULTIPLIERS, COUNTS, 0.02 * np.concatenate([x, 3 * x], 1), 0 * errors, errors**2)
    np.testing.assert_allclose(without.allowance / 0.06**2, found.allowance / (0.06**2 + 0.03), rtol=1e-9)


def test_what_is_said_to_be_detectable_is_detected():
    limit = trend.threshold(1e-3, 18, 200)
    noise, allowance = trend.detectable([fits(0.0, 0.0)], limit)
    found = fits(noise + allowance, 0.0)
    assert 0.88 < np.mean(np.abs(found.z_scores) > limit) < 0.93


def test_the_threshold_is_that_of_bonferroni():
    assert np.isclose(trend.threshold(1e-3, 18, 200), stats.t(199).isf(1e-3 / 36))
    assert np.isclose(trend.threshold(0.05, 1, 10**7), 1.95996, rtol=1e-4)


def test_the_threshold_holds_for_standard_errors_from_few_samples():
    samples = np.random.default_rng(0).standard_normal((4, 20_000))
    errors = samples.std(0, ddof=1) / 2 * trend.counted_for(0.05, 1, 4)
    exceed = np.abs(samples.mean(0)) > trend.threshold(0.05, 1, 10**6) * errors
    assert 0.045 < exceed.mean() < 0.055


def test_of_one_width_the_variance_is_allowed_for():
    found = trend.fit((1,), (900,), np.full((1, 2), 0.1), np.full((1, 2), 0.001), np.array([[0.02, 0.04]]))
    np.testing.assert_allclose(found.z_scores, [60, 60])


def test_entries_without_noise_are_compared_exactly():
    zeros = np.zeros((3, 2))
    found = trend.fit(MULTIPLIERS, COUNTS, zeros, zeros, zeros)
    assert not found.z_scores.any()
    wrong = trend.fit(MULTIPLIERS, COUNTS, zeros + np.array([0, 0.1]), zeros, zeros)
    assert wrong.z_scores[0] == 0
    assert wrong.z_scores[1] > 1e6


def test_deviations_are_relative_to_the_diagonal():
    """Of each kernel; where that is zero, of what there is: of shares of zero, the NTK."""
    rng = np.random.RandomState(0)
    root = rng.standard_normal((2, 3, 7))  # examples, positions
    kernel = np.einsum("ihc,jkc->ijhk", root, root)
    size = np.linalg.norm(root, axis=-1)
    expected = size[:, None, :, None] * size[None, :, None, :]
    np.testing.assert_allclose(function._scale(kernel, kernel), expected)
    np.testing.assert_allclose(function._scale(1e-3 * kernel, kernel), 1e-3 * expected)
    np.testing.assert_allclose(function._scale(0 * kernel, kernel), expected)
    np.testing.assert_allclose(function._scale(0 * kernel, 0 * kernel), 1)


# Models.


def model(width, law=jax.random.normal, outputs=8):
    """Two outputs: of two positions, and without an axis of channels."""

    def init(key, x):
        k1, k2, k3 = jax.random.split(key, 3)
        return {
            "first": 0.7 * law(k1, (x.shape[-1], width)),
            "image": jax.random.normal(k2, (width, outputs)) / width**0.5,
            "number": jax.random.normal(k3, (width, 1)) / width**0.5,
        }

    def apply(params, x):
        h = jax.nn.relu(x @ params["first"])
        return {"image": h @ params["image"], "number": (h.mean(1) @ params["number"])[:, 0]}

    return init, apply


def truncated(key, shape):
    """Of variance 0.774, and excess kurtosis -0.634."""
    return jax.random.truncated_normal(key, -2, 2, shape)


X = examples(2, 3)[0]


def kernel_of(init, apply, **options):
    return infnet.kernel_fn(apply, infnet.infer_priors(init, X), X, **options)


@pytest.mark.parametrize("parameterization", ["as_model", "ntk"])
def test_several_outputs_with_positions(parameterization):
    """Two widths; the second has a kernel function that is made as the first was."""
    init, apply = model(16)
    kernel_fn = kernel_of(
        init,
        apply,
        parameterization=parameterization,
        trainable={"number": False},
        output=lambda y: (y["image"], y["number"]),
    )
    report = infnet.verify(
        kernel_fn, init, apply, X, KEY, widen=lambda m: model(16 * m), multipliers=(1, 3), n_samples=600
    )
    names = {"nngp, 0", "ntk, 0", "ntk share of first, 0", "ntk share of image, 0"}
    names |= {"nngp, 1", "ntk, 1", "ntk share of first, 1"}
    assert report.z_scores.keys() == names
    assert report.z_scores["ntk, 0"].shape == (2, 2, 2, 2)
    assert report.z_scores["nngp, 1"].shape == (2, 2)
    assert not report.deviates, str(report)
    assert report.n_samples == (600, 200)
    text = str(report).splitlines()
    assert text[-1] == report.verdict
    assert sum("infinite" in line for line in text) == 5  # and the share with the largest score


def test_first_layers_that_are_not_gaussian():
    init, apply = model(64, truncated)
    kernel_fn = kernel_of(init, apply)
    (found,) = not_gaussian(Functions(init, apply, kernel_fn), X)
    assert (found.leaf, found.path) == (0, "first")
    # an output of the second position is not looked at by the gradient of the first one
    ratio = np.max((X[:, 0] ** 4).sum(-1) / (X[:, 0] ** 2).sum(-1) ** 2)
    assert 0.5 * ratio < found.effect * 24**0.5 / 0.634 < 2 * ratio
    kept, replaced = (
        infnet.verify(kernel_fn, init, apply, X, KEY, n_samples=200, gaussian_first_layer=replace)
        for replace in (False, True)
    )
    assert "first meets the inputs directly and is not normal (excess kurtosis -0.63): networks" in str(kept)
    assert "first meets the inputs directly and is not normal (excess kurtosis -0.63): it was drawn" in str(replaced)
    assert kept.resolution > replaced.resolution + 0.9 * found.effect
    assert not kept.deviates
    assert not replaced.deviates
    assert "networks of one width" in str(kept)
    assert str(kept).splitlines()[-1].startswith("inconclusive: no deviation was found, but only ")
    assert not kept.passed


def test_the_last_leaves_are_those_of_the_readout():
    init, apply = model(4)
    assert last_leaves(kernel_of(init, apply, output=lambda y: y["image"])) == [1]


def deep(*widths):
    """A function of an input of size 2 with these hidden widths."""
    sizes = [2, *widths, 1]

    def init(key, x):
        return [jax.random.normal(key, (n, m)) / n**0.5 for n, m in itertools.pairwise(sizes)]

    def apply(params, x):
        for w in params[:-1]:
            x = jax.nn.relu(x @ w)
        return x @ params[-1]

    return init, apply


def test_every_width_is_multiplied_by_the_multiplier_or_its_square():
    x = X[:, 0, :2]

    def made(*widths):
        init, apply = deep(*widths)
        return infnet.kernel_fn(apply, infnet.infer_priors(init, x), x)

    narrow = made(4, 6, 5)
    assert function.check_wider(narrow, made(8, 12, 10), 2) == [1, 1, 1]
    assert function.check_wider(narrow, made(12, 54, 45), 3) == [1, 2, 2]
    assert function._ratio(narrow, {2: made(8, 12, 10)}) == 0
    ratio = function._ratio(narrow, {2: made(16, 12, 20), 3: made(36, 18, 45)})
    assert np.isclose(ratio, (1 / 4 + 1 / 5) / (1 / 6))
    for message, wider in {
        "multiplied by 2, but all are by its square: say how": {2: made(16, 24, 20)},
        "multiplied by 2, but what .* goes from 6 to 18: say how": {2: made(8, 18, 10)},
        "heads is multiplied by 4 of 2, by 4 of 4": {2: made(8, 24, 10), 4: made(16, 24, 20)},
        "same 3 hidden layers, but it has 2": {2: made(8, 12)},
    }.items():
        with pytest.raises(InputError, match=message):
            function._ratio(narrow, wider)


def test_kernels_that_are_not_finite_fail():
    init, _ = model(4)
    kernel_fn = kernel_of(init, lambda p, x: jax.nn.relu(x[:, 0] @ p["first"]) @ p["image"])

    def broken(params, x):
        return jnp.log(-1 - (x[:, 0] @ params["first"]) ** 2) @ params["image"]

    report = infnet.verify(kernel_fn, init, broken, X, KEY, n_samples=200)
    assert not report.passed
    assert str(report).splitlines()[-1] == "failed: a kernel, or that of a random network, is not finite"


def test_refusals():
    init, apply = model(4)
    kernel_fn = kernel_of(init, apply)
    for message, changes in {
        "must be an infnet.KernelFn": {"kernel_fn": lambda x: x},
        "multipliers must be positive integers": {"multipliers": (1, 0)},
        "multipliers must increase": {"multipliers": (2, 1)},
        "n_samples must be at least 200": {"n_samples": 100},
        "level must be a probability": {"level": 5},
        "resolution must be a positive number": {"resolution": 0},
        r"widen must return \(init_fn, apply_fn\)": {"widen": lambda m: 3},
        "from 4 to 12": {"widen": lambda m: model(6 * m)},
    }.items():
        arguments = {"kernel_fn": kernel_fn, "init_fn": init, "apply_fn": apply, "x": X, "key": KEY} | changes
        with pytest.raises(InputError, match=message):
            infnet.verify(**arguments)
    crossed = kernel_of(init, apply, cross=True, output=lambda y: (y["image"], 2 * y["image"]))
    with pytest.raises(InputError, match="leave out cross=True"):
        infnet.verify(crossed, init, apply, X, KEY, n_samples=200)
    columns = X[:, 0].T
    prior = infnet.Prior(0.0, 1.0, shape=(3, 4), dtype=jnp.float32)
    transposed = infnet.kernel_fn(lambda w, x: x.T @ w, prior, columns, batch_axis=1)
    with pytest.raises(InputError, match="examples are on axis 0"):
        infnet.verify(transposed, init, apply, columns, KEY)
    picked = kernel_of(init, apply, output=lambda y: jnp.moveaxis(y["image"], 1, 2))
    with pytest.raises(InputError, match="the channels must be the last axis"):
        infnet.verify(picked, init, apply, X, KEY, n_samples=200)


def test_the_picture(tmp_path, monkeypatch):
    shape = (2, 2)
    rng = np.random.RandomState(0)
    errors = np.full((3, *shape), 0.01)
    comparisons = tuple(
        infnet.verification.Comparison(
            name,
            d := 0.01 * rng.standard_normal((3, *shape)),
            errors,
            trend.fit(MULTIPLIERS, COUNTS, d, errors, errors),
        )
        for name in ("nngp", "ntk", "ntk share of a", "ntk share of b")
    )
    report = infnet.Verification(comparisons, (1.0, 2.0, 4.0), (9, 8, 7), 1e-3, 4.0, 0.05, ("a remark",), True)
    path = tmp_path / "new" / "picture.png"
    figure = report.plot(path)
    assert isinstance(figure, Figure)
    assert path.stat().st_size > 10_000
    assert len(figure.axes) == 4  # two kernels, one share, and the scores of all
    assert figure.get_suptitle() == report.verdict
    assert [line.get_label() for line in figure.axes[-1].lines][:3] == ["nngp", "ntk", "ntk shares of all parameters"]
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"infnet\[plot\]"):
        report.plot()
