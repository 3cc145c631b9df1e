"""The examples run, and show what they promise."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def run_digits(tmp_path_factory):
    """The results of a fast run, and the picture it wrote."""
    picture = tmp_path_factory.mktemp("digits") / "new" / "digits.png"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        spec = importlib.util.spec_from_file_location("digits_example", EXAMPLES / "digits.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        results = module.main(["--fast", "--out", str(picture)])
    return module, results, picture


def test_all_three_methods_read_digits(run_digits):
    module, results, _ = run_digits
    accuracy = {method: np.mean(values) for method, values in results.accuracy.items()}
    assert accuracy.keys() == {module.NETWORK, module.NNGP, module.NTK}
    assert accuracy[module.NETWORK] > 0.5  # 5 epochs on 256 images
    assert min(accuracy[module.NNGP], accuracy[module.NTK]) > 0.9


def test_predictions_are_finite_and_uncertain(run_digits):
    _, results, _ = run_digits
    (split,) = results.splits
    assert len(set(split.test)) == len(split.test) == 64
    assert np.all(split.deviations > 0)
    assert all(np.isfinite(scores).all() for scores in split.scores.values())


def test_the_picture_is_written(run_digits):
    from matplotlib.image import imread

    _, _, picture = run_digits
    pixels = imread(picture)
    assert pixels.shape[0] > 600
    assert pixels.shape[1] > 1500
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 1000


def test_the_model_imports_only_flax():
    tree = ast.parse((EXAMPLES / "digits_model.py").read_text())
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    assert [ast.unparse(node) for node in imports] == ["import flax.linen as nn"]
