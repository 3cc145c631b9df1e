"""benchmarks/random_features.py predicts with small arguments, and what it prints is measured."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import flax  # noqa: F401 - the benchmark needs it

ROOT = Path(__file__).parent.parent


def test_predictions(capsys):
    spec = importlib.util.spec_from_file_location("benchmark_of_features", ROOT / "benchmarks/random_features.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main(["predict", "--n", "900", "--columns", "128", "--exact", "300"])
    shown = capsys.readouterr().out
    many, few, exact = (float(found) for found in re.findall(r"error (\S+?),?\s", shown))
    between = float(re.search(r"from this one (\S+)", shown).group(1))
    assert many < few < 1  # the values have variance 1
    assert exact < few
    assert 0 < between <= few + exact
