"""`explain()`: what each step is, what it takes, and how far off the outputs may be."""

import io
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from finite import Function, dense, examples
from flax import linen as nn
from rich.console import Console

import infnet_flax
from infnet.errors import InputError
from infnet.explanation import Explanation, Row

TOKENS = examples(6, 3, n=4)[0]


def pooled(x):
    return dense(1)(nn.relu(dense(512)(x)).mean(1))


@pytest.fixture(scope="module")
def of_tokens():
    return infnet_flax.kernel_fn(Function(pooled), TOKENS).explain()


def test_rows_name_the_layer_its_line_its_primitive_and_its_layout(of_tokens):
    row = next(row for row in of_tokens.rows if row.rule == "relu")
    assert (row.module, row.primitives, row.offsets, row.exact) == ("Function", ("relu",), "all", "exact")
    assert not row.gaussian
    assert re.search(rf"test_explain\.py:{pooled.__code__.co_firstlineno + 1}:\d+ \(pooled\)", row.line)
    assert [row.primitives for row in of_tokens.rows if row.rule == "dense"] == [("dense",)] * 2
    assert next(row for row in of_tokens.rows if row.rule == "sum over positions").offsets == "scalar"


def test_a_scope_may_have_any_name():
    """Layers of `infnet.stax` hand their line over in the name of a scope; others do not."""

    def body(x):
        with jax.named_scope("one at two"):
            return dense(2)(x)

    (row, *_) = infnet_flax.kernel_fn(Function(body), TOKENS).explain().rows
    assert row.module == "Function/one at two/Dense_0"
    assert "test_explain.py" in row.line


def test_memory_is_that_of_the_results(of_tokens):
    """In float32, of 36 pairs of positions: s of the inputs, s and t of what follows, and after the mean of a pair."""
    rows = {(row.module, row.rule): row.memory for row in of_tokens.rows}
    pair, pairs, both = 4, 36 * 4, 2 * 36 * 4
    sizes = {
        ("Function/Dense_1", "input"): pairs,
        ("Function/Dense_1", "dense"): both,
        ("Function/Dense_1", "bias"): 2 * pair,
        ("Function/Dense_1", "sum"): both,
        ("Function", "relu"): both,
        ("Function", "sum over positions"): 2 * pair,
        ("Function", "scale"): 2 * pair,
        ("Function/Dense_0", "dense"): 2 * pair,
        ("Function/Dense_0", "bias"): 2 * pair,
        ("Function/Dense_0", "sum"): 2 * pair,
    }
    assert rows.keys() == sizes.keys()
    for key, size in sizes.items():
        np.testing.assert_allclose(rows[key], size / sum(sizes.values()), rtol=1e-12, err_msg=str(key))


def linear(width):
    return dense(width, use_bias=False)


def test_time_is_that_of_the_expensive_layer():
    """The same function, of 256 pairs of positions and of a single one."""
    x = examples(16, 3, n=2)[0]
    kernel_fn = infnet_flax.kernel_fn(Function(lambda x: nn.relu(linear(64)(nn.relu(linear(64)(x)).mean(1)))), x)
    explained = kernel_fn.explain(x)
    before, after = (row.time for row in explained.rows if row.rule == "relu")
    assert before > 5 * after
    np.testing.assert_allclose(sum(row.time for row in explained.rows), 1, rtol=1e-9)
    assert not any(row.error for row in explained.rows)
    assert "no step has an error besides rounding" in explained.remarks
    assert all(error.absolute == 0 for error in explained.errors)
    assert all(row.time is None for row in kernel_fn.explain().rows)


# Errors of the outputs


def gated(x):
    x = nn.silu(linear(64)(x))
    return nn.silu(linear(64)(x)) * nn.silu(linear(64)(x))


def test_the_error_is_below_its_bound_and_not_by_far():
    """Of two layers and a product of positions. The truth is the same kernel with more terms."""
    with jax.enable_x64(True):
        x1, x2 = (np.float64(x) for x in examples(2, 3, n=1))
        short = infnet_flax.kernel_fn(Function(gated), x1, tol=1e-2, q_max=1e-2)
        long = infnet_flax.kernel_fn(Function(gated), x1, tol=1e-9)
        explained, names = short.explain(x1, x2), ("nngp", "ntk")
        bounds, kernels = short.error_bounds(x1, x2), short(x1, x2, names)
        for bound, kernel, truth in zip(bounds, kernels, long(x1, x2, names), strict=True):
            error, rounding = np.abs(kernel - truth), 1e-14 * np.abs(truth).max()
            assert bound.shape == kernel.shape == (1, 1, 2, 2)
            assert error.max() > 100 * rounding
            assert (error <= 1.01 * bound + rounding).all()
            assert bound.ravel()[error.argmax()] < 100 * error.max()  # at rho = 1 the bound is loose, and the error 0
        largest = [float(np.abs(kernel).max()) for kernel in kernels]
    for error, bound, size in zip(explained.errors, bounds, largest, strict=True):
        assert error.absolute == bound.max()
        assert error.relative == pytest.approx(bound.max() / size, rel=1e-9)
        assert str(error) in " ".join(explained.remarks)
    row = next(row for row in explained.rows if row.error)
    assert row.accuracy == f"series of 16 terms, {row.error:.0e}"
    assert row.accuracy in str(explained)


def test_what_errors_are_asked_of():
    kernel_fn = infnet_flax.kernel_fn(nn.Dense(2), TOKENS)
    with pytest.raises(InputError, match="errors are of the kernels"):
        kernel_fn.error_bounds(TOKENS, get="ntk_by_param")
    with pytest.raises(InputError, match="must be arrays"):
        kernel_fn.explain(jax.ShapeDtypeStruct((2, 6, 3), jnp.float32))
    with pytest.raises(InputError, match="x1 has shape"):
        kernel_fn.explain(TOKENS[0])


# What it looks like


def test_text_fits_and_says_all(of_tokens):
    lines = str(of_tokens).splitlines()
    assert lines[0].split() == ["module", "rule", "primitive", "positions", "Gaussian", "exact", "memory", "line"]
    assert len(lines) == 2 + len(of_tokens.rows) + len(of_tokens.remarks)
    assert max(map(len, lines[: 2 + len(of_tokens.rows)])) <= 120


def test_a_bias_that_is_not_normal_is_named_where_a_nonlinearity_follows():
    class Biased(nn.Module):
        @nn.compact
        def __call__(self, x):
            normal = nn.initializers.normal(1.0)
            x = nn.relu(nn.Dense(8, kernel_init=normal, bias_init=nn.initializers.truncated_normal(0.5))(x))
            x = nn.relu(nn.Dense(8, kernel_init=normal, bias_init=normal)(x))
            return nn.Dense(1, kernel_init=normal, bias_init=nn.initializers.truncated_normal(0.5))(x)

    x = np.ones((2, 3), np.float32)
    (remark,) = [line for line in str(infnet_flax.kernel_fn(Biased(), x).explain()).splitlines() if "kurtosis" in line]
    assert remark.startswith("Dense_0/bias has excess kurtosis -0.634 and is added before a nonlinearity")


def test_steps_in_sequence_that_look_alike_are_one_row_of_the_table():
    def row(rule, memory, time=None, error=None, exact="exact", module="Norm"):
        return Row(module, "model.py:1 (f)", rule, (), "all", True, exact, memory, time, error)

    rows = row("sum", 0.1), row("sum", 0.2), row("sum", 0.1, module="Dense"), row("sum", 0.3), row("scale", 0.3)
    explained = Explanation(rows, ("a remark",))
    cells = [(module, rule, memory) for module, rule, *_, memory, _ in explained.table[1:]]
    expected = [("Norm", "sum (2)", "30%"), ("Dense", "sum", "10%"), ("Norm", "sum", "30%"), ("Norm", "scale", "30%")]
    assert cells == expected
    assert explained.rows == rows
    assert len(str(explained).splitlines()) == 2 + 4 + 1
    assert explained._repr_html_().count("<tr>") == 1 + 4

    series = "series of 16 terms"
    timed = row("tanh", 0.5, 0.2, 1e-3, series), row("tanh", 0.25, 0.3, 2e-3, series), row("tanh", 0.25, 0.5, 0.0)
    (_, first, second) = Explanation(timed, ()).table
    assert (first[1], *first[5:8]) == ("tanh (2)", f"{series}, 2e-03", "50%", "75%")
    assert (second[1], *second[5:8]) == ("tanh", "exact", "50%", "25%")


def test_html_is_escaped_and_has_no_colours_of_its_own():
    page = infnet_flax.kernel_fn(Function(lambda x: dense(2)(nn.relu(dense(4)(x)))), TOKENS).explain()._repr_html_()
    assert "&lt;lambda&gt;" in page
    assert "<lambda>" not in page
    assert page.count("<tr>") == 1 + len(re.findall("<td", page)) // 8
    assert "<p>warning: a width below 16 is far from the infinite-width limit</p>" in page
    assert not re.search(r"color|background|http|src=|script", page)


def test_in_a_terminal_with_rich(of_tokens):
    output = io.StringIO()
    Console(file=output, width=140).print(of_tokens)
    text = output.getvalue()
    assert all(f" {row.rule} " in text for row in of_tokens.rows)
    assert all(remark[:60] in text for remark in of_tokens.remarks)
