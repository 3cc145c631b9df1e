"""Well-known architectures: their kernels against finite networks, and the plans of their kernels.

`python tests/architectures.py` writes the plans again, after a change that is meant to change them.
"""

import re

import pytest
from architectures import CASES, STEPS, steps
from finite import assert_limit_of_finite_networks
from flax import linen as nn

IMAGES_OUT = ("UNet", "Autoencoder", "VAEDecoder")


class OneRow(nn.Module):
    """The mean over a row of the output: it contains the covariances between different pixels."""

    model: nn.Module

    def __call__(self, x):
        return self.model(x)[:, 1].mean(1)


@pytest.mark.parametrize("name", CASES)
def test_limit_of_finite_networks(name):
    case = CASES[name]

    def make(multiplier):
        model = case.module(case.width * multiplier, outputs=32)
        return OneRow(model) if name in IMAGES_OUT else model

    assert_limit_of_finite_networks(make, *case.examples(), n_samples=(400, 200), largest_error=0.1)


def frozen():
    """name -> steps, as written by `python tests/architectures.py`."""
    heads = list(re.finditer(r"^(\w+)\n\n", STEPS.read_text(), re.MULTILINE))
    text, ends = STEPS.read_text(), [h.start() for h in heads[1:]] + [None]
    return {h[1]: text[h.end() : end].strip("\n") for h, end in zip(heads, ends, strict=True)}


def test_every_architecture_has_frozen_steps():
    assert list(frozen()) == list(CASES)


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_reviewed(name):
    assert steps(CASES[name]) == frozen()[name]
