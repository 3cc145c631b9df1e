"""The examples run, and show what they promise."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, folder):
    """The module of an example, the results of a fast run, and the picture it wrote."""
    picture = folder / "new" / f"{name}.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        spec = importlib.util.spec_from_file_location(f"{name}_example", EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        results = module.main(["--fast", "--out", str(picture)])
    return module, results, picture


def assert_is_a_picture(path):
    from matplotlib.image import imread

    pixels = imread(path)
    assert pixels.shape[0] > 500
    assert pixels.shape[1] > 1500
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 500


@pytest.fixture(scope="module")
def run_digits(tmp_path_factory):
    return run("digits", tmp_path_factory.mktemp("digits"))


@pytest.mark.optimised
def test_all_three_methods_read_digits(run_digits):
    module, results, _ = run_digits
    accuracy = {method: np.mean(values) for method, values in results.accuracy.items()}
    assert accuracy.keys() == {module.NETWORK, module.NNGP, module.NTK}
    assert accuracy[module.NETWORK] > 0.5  # 5 epochs on 256 images
    assert min(accuracy[module.NNGP], accuracy[module.NTK]) > 0.9


@pytest.mark.optimised
def test_predictions_are_finite_and_uncertain(run_digits):
    _, results, _ = run_digits
    (split,) = results.splits
    assert len(set(split.test)) == len(split.test) == 64
    assert np.all(split.deviations > 0)
    assert all(np.isfinite(scores).all() for scores in split.scores.values())


@pytest.mark.optimised
def test_the_picture_is_written(run_digits):
    assert_is_a_picture(run_digits[2])


@pytest.mark.parametrize("name", ["digits_model.py", "preactivation_resnet.py", "resnet.py"])
def test_the_models_import_only_flax(name):
    tree = ast.parse((EXAMPLES / name).read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["import flax.linen as nn"]


@pytest.mark.optimised  # what it runs takes longer than what it compiles
def test_an_existing_flax_model_is_annotated(tmp_path):
    module, results, picture = run("annotate_existing_flax_model", tmp_path)
    assert results.accuracy.keys() == module.TRAINED.keys()
    assert min(results.accuracy.values()) > 0.6  # 60 training images
    assert results.network > 0.2  # 60 steps
    assert np.isclose(sum(results.shares.values()), 1)
    narrow, wide = (np.mean(results.deviations[width]) for width in (8, 16))
    assert wide < narrow < 1
    assert_is_a_picture(picture)


def test_a_haiku_pipeline_follows_its_kernel(tmp_path):
    module, results, picture = run("haiku_pipeline", tmp_path)
    assert min(map(results.accuracy, module.COLORS)) > 0.8
    network, linearized, limit = (results.predictions[method] for method in module.COLORS)
    assert np.abs(network - linearized).mean() < 0.3  # of width 64
    assert np.abs(linearized - limit).mean() < 0.3
    for losses in results.losses.values():
        assert np.all(np.diff(losses) < 1e-6)
    assert_is_a_picture(picture)


def test_a_resnet_has_one_ntk_by_every_method(tmp_path):
    module, results, picture = run("empirical_ntk_resnet", tmp_path)
    auto = results.methods.pop("auto")
    assert results.methods.keys() == module.COLORS.keys()
    scale = np.abs(auto.ntk).max()
    for measured in results.methods.values():
        assert measured.ntk.shape == (4, 4, 10, 10)
        np.testing.assert_allclose(measured.ntk, auto.ntk, atol=1e-4 * scale)
    # What "auto" takes is, by the analysis that it reads, about as cheap as the cheapest of the three.
    assert auto.cost.work < 1.2 * min(measured.cost.work for measured in results.methods.values())
    assert auto.cost.work == results.methods[auto.implementation].cost.work
    assert results.accuracies[-1] > 0.6  # 150 steps
    assert results.alignments[-1] > results.alignments[0] + 0.03
    assert_is_a_picture(picture)


def test_training_with_optax_follows_its_prediction(tmp_path):
    module, results, picture = run("train_with_optax", tmp_path)
    assert results.trained.keys() == results.predicted.keys() == module.RULES.keys()
    for name, trained in results.trained.items():
        predicted = results.predicted[name]
        np.testing.assert_allclose(predicted.train[0], trained.train[0], atol=1e-5)
        moved = np.square(trained.test[-1] - trained.test[0]).mean() ** 0.5
        distance = np.square(trained.test - predicted.test).mean((1, 2)) ** 0.5
        # of width 256, which follows less closely where momentum overshoots
        assert distance.max() < (0.7 if name.startswith("momentum") else 0.3) * moved
        assert distance[-1] < 0.35 * moved
    assert_is_a_picture(picture)


def test_a_large_kernel_is_computed_and_taken_up_again(tmp_path):
    _, results, picture = run("large_kernel", tmp_path)
    assert results.status.complete
    assert results.status.total == 10
    assert results.ntk.shape == (400, 400)
    assert max(results.accuracies.values()) > 0.85
    assert_is_a_picture(picture)
    for name in ("0-0", "1-3"):
        (picture.with_suffix(".zarr") / "tiles" / name).unlink()
    _, again, _ = run("large_kernel", tmp_path)
    assert sorted(map(len, again.status.runs.values())) == [2, 8]
    assert again.accuracies == results.accuracies


def test_tuned_priors_make_test_data_more_likely(tmp_path):
    _, results, picture = run("tune_hyperparameters", tmp_path)
    assert results.train[-1] > results.train[0] + 0.5
    assert results.test[-1] > results.test[0] + 0.5
    assert len(results.stds) == 7
    mean, deviation = results.predictions["after"]
    assert 0.7 < np.std((results.truth - mean) / deviation) < 1.3
    assert_is_a_picture(picture)


def test_random_networks_have_the_phases_of_the_diagram(tmp_path):
    _, results, picture = run("phase_diagram", tmp_path)
    scales = results.scales
    assert scales.phase.tolist() == ["ordered", "ordered", "chaotic"]
    assert np.abs(results.measured[:, -1] - scales.c_star).max() < 0.1  # width 200
    # Where distances are small, and random networks not yet all there is to them.
    for k, (first, last) in enumerate([(3, 10), (8, 18)]):
        distances = results.distances[k]
        assert np.isclose(np.log(distances[first] / distances[last]) / (last - first), 1 / scales.xi_c[k], rtol=0.1)
    assert_is_a_picture(picture)
    assert_is_a_picture(picture.with_stem("phase_diagram_networks"))


def test_my_model_is_verified(tmp_path):
    _, results, picture = run("verify_my_model", tmp_path)
    right, wrong = results["the right rule"], results["the wrong rule"]
    assert right.passed, str(right)
    assert wrong.verdict.startswith("failed: ")
    for report in (right, wrong):  # the wrong rule is right for an image with itself
        scores = np.diagonal(report.z_scores["nngp"])
        assert np.abs(scores).max() < report.threshold
    assert_is_a_picture(picture)
