"""The catalogue of refusals: every entry is met by a model, with the text that docs/refusals.md shows."""

import ast
import re

import numpy as np
import pytest
from documents import ROOT
from refusal_page import PAGE, names, raised, sections

import infnet
from infnet import nodes
from infnet.errors import CATALOGUE, Refusal, UnsupportedError, Where, programs
from infnet.rules.words import WORDS

TEXT = PAGE.read_text()
SECTIONS = {section.name: section for section in sections(TEXT)}
KINDS = "RefusalError", "PriorError", "UnsupportedError", "NonGaussianError", "BatchAxisError"


@pytest.fixture(scope="module")
def defined():
    return names(TEXT)


@pytest.mark.parametrize("name", SECTIONS)
def test_the_page_shows_what_is_raised(name, defined):
    section = SECTIONS[name]
    error = raised(section, defined)
    assert error is not None
    assert error.refusal is CATALOGUE[name]
    assert f"{error}\n" == section.text


@pytest.mark.parametrize("name", [name for name, entry in CATALOGUE.items() if entry.sampled])
def test_what_offers_to_sample_can_be_sampled(name, defined):
    found = []

    def kernel(body, x, get=None, **options):
        few = infnet.Sampling(points=16, replicates=2)
        kernel_fn = defined["infnet_flax"].kernel_fn(defined["Model"](body), x, on_unsupported=few, **options)
        found.append(kernel_fn(x[:1], get=("nngp", "ntk")))

    assert raised(SECTIONS[name], {**defined, "kernel": kernel}) is None
    (estimates,) = found
    for estimate in estimates:
        assert np.isfinite(estimate.mean).all()
        assert np.asarray(estimate.standard_error).any()


def test_the_page_has_every_entry_once_in_the_order_of_the_catalogue():
    assert [section.name for section in sections(TEXT)] == list(CATALOGUE)


def test_entries_say_what_why_and_what_to_do():
    for name, entry in CATALOGUE.items():
        assert entry.what, name
        assert len(entry.why) > 20 or entry.why == "{why}", name
        assert entry.remedy or entry.monte_carlo, name


def test_no_refusal_is_written_outside_of_the_catalogue():
    for path in ROOT.glob("infnet*/**/*.py"):
        if path.is_relative_to(ROOT / "infnet/errors"):
            continue
        made = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        assert not {getattr(f, "id", getattr(f, "attr", "")) for f in made} & set(KINDS), path


def test_the_calls_in_a_remedy_run_as_they_are(defined):
    """With `init` and `apply` of the model, or with the model, annotated."""
    error = raised(SECTIONS["MAX_POOL"], defined)
    calls = [line.strip() for line in str(error).splitlines() if re.match(r" +(infnet|model)\.", line)]
    assert len(calls) == 2
    nn, x = defined["nn"], defined["images"][:, :2, :2]
    model = defined["infnet_flax"].annotate(defined["Model"](lambda x: nn.Dense(1)(nn.max_pool(x, (2, 2)))))
    given = {**defined, "init": model.init, "apply": model.apply, "model": model, "x1": x, "x2": x[:1]}
    of_functions, of_model = (eval(call, given) for call in calls)
    assert of_functions.ntk.mean.shape == (2, 1, 1, 1, 1, 1)
    assert of_functions.ntk.mean.tolist() == of_model.ntk.mean.tolist()
    assert of_functions.ntk.n_samples == 100


def test_every_kind_of_node_has_words_in_errors():
    named_by_their_functions = {nodes.Elementwise, nodes.Custom}
    kinds = {kind for kind in vars(nodes).values() if isinstance(kind, type) and issubclass(kind, nodes.Node)}
    assert set(WORDS) == kinds - {nodes.Node} - named_by_their_functions


def test_facts_are_filled_in_and_the_operation_is_named():
    entry = Refusal("{what} is done", "{why}", "do {more}", monte_carlo=False)
    error = entry.at(Where("Model", "model.py:1"), what="this {x}", why="that", more="something else")
    assert str(error).splitlines() == [
        "this {x} is done",
        "  where:  Model at model.py:1",
        "  why:    that",
        "  remedy: do something else",
    ]
    assert isinstance(programs.EXAMPLES_MIXED.at(Where()), UnsupportedError)
