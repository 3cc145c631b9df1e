"""Outputs with axes as columns, their kernels as matrices."""

from __future__ import annotations

import numpy as np
import pytest

from infnet.errors import InputError
from infnet.predict.axes import OutputAxes

SHAPE = (3, 2, 4, 5)
# traced, diagonal, how `(n1 a b c), (n2 a' b' c')` become a kernel, how its product with outputs is written by hand
CASES = [
    ((), (), "nmaAbBcC", "nmaAbBcC,mABC->nabc"),
    ((-1,), (), "nmaAbB", "nmaAbB,mABc->nabc"),
    ((1,), (), "nmbBcC", "nmbBcC,maBC->nabc"),
    ((1, 3), (), "nmbB", "nmbB,maBc->nabc"),
    ((1, 2, 3), (), "nm", "nm,mabc->nabc"),
    ((), (2,), "nmaAbcC", "nmaAbcC,mAbC->nabc"),
    ((3,), (1,), "nmabB", "nmabB,maBc->nabc"),
    ((), (1, 2, 3), "nmabc", "nmabc,mabc->nabc"),
]
SIZES = dict(zip("nmaAbBcC", (7, 3, 2, 2, 4, 4, 5, 5), strict=True))


@pytest.mark.parametrize(("traced", "diagonal", "labels", "product"), CASES)
def test_products_are_those_of_einsum(traced, diagonal, labels, product):
    random = np.random.RandomState(0)
    kernel, y = random.standard_normal([SIZES[k] for k in labels]), random.standard_normal(SHAPE)
    axes = OutputAxes.read(SHAPE, traced, diagonal)
    matrix, columns = axes.matrix(kernel), axes.columns(y)
    assert kernel.shape == axes.kernel_shape(7, 3)
    np.testing.assert_allclose(axes.outputs(matrix @ columns), np.einsum(product, kernel, y), rtol=1e-12)
    np.testing.assert_array_equal(axes.kernel(matrix), kernel)
    np.testing.assert_array_equal(axes.outputs(columns), y)


def test_axes_of_times_stay_in_front():
    random = np.random.RandomState(0)
    kernels, y = random.standard_normal((6, 9, 7, 3, 2, 2, 4, 5, 5)), random.standard_normal((6, 9, *SHAPE))
    axes = OutputAxes.read(SHAPE, (), (2,))
    matrices = np.stack([[axes.matrix(k) for k in row] for row in kernels])
    np.testing.assert_array_equal(axes.kernel(matrices), kernels)
    columns = axes.columns(y)
    np.testing.assert_array_equal(columns[3, 4], axes.columns(y[3, 4]))
    np.testing.assert_array_equal(axes.outputs(columns), y)


def test_variances_have_no_traced_axes():
    kernel = np.random.RandomState(0).standard_normal((3, 3, 2, 2, 4))
    axes = OutputAxes.read(SHAPE, (3,), (2,))
    diagonals = np.diagonal(axes.matrix(kernel), axis1=-2, axis2=-1)
    np.testing.assert_array_equal(axes.variances(diagonals), np.einsum("nnaab->nab", kernel))


def test_no_examples():
    axes = OutputAxes.read((0, 2))
    assert axes.matrix(np.zeros((0, 3))).shape == (1, 0, 3)
    assert axes.outputs(axes.columns(np.zeros((0, 2)))).shape == (0, 2)


def test_outputs_without_axes_have_none_to_trace():
    assert OutputAxes.read((3,)) == OutputAxes((), (), ())
    assert OutputAxes.read((3,)).matrix(np.eye(3)).shape == (1, 3, 3)


@pytest.mark.parametrize(
    ("shape", "trace_axes", "kernel", "message"),
    [
        (
            (3, 2),
            (-1,),
            (3, 3, 2, 2),
            r"shape \(3, 3, 2, 2\), but \(n1, n2\).*\(n, 2\).*trace_axes=\(\) would fit .*exact",
        ),
        ((3, 2), (), (3, 3), r"\(n1, n2, 2, 2\) was expected.*axes 1 appear twice.*trace_axes=\(1,\) would fit"),
        ((3, 2, 4), (-1,), (3, 3), r"trace_axes=\(1, 2\) would fit"),
        ((3, 2, 4), (1,), (3, 3, 2, 2), r"trace_axes=\(2,\) would fit"),
        ((3, 2), (-1,), (3, 3, 4, 4), "No trace_axes fit"),
        ((3,), (-1,), (3, 3, 1, 1), "one for each pair"),
        ((3, 2), (-1,), (3,), r"\(n1, n2\) was expected.*No trace_axes fit"),
    ],
)
def test_a_mismatch_is_explained(shape, trace_axes, kernel, message):
    with pytest.raises(InputError, match=message):
        OutputAxes.read(shape, trace_axes).matrix(np.zeros(kernel))


@pytest.mark.parametrize(
    ("trace_axes", "diagonal_axes", "message"),
    [
        ((4,), (), "the array of outputs has 4 axes"),
        ((0,), (), "axis 0 of the outputs"),
        ((), (-4,), "axis 0 of the outputs"),
        ((1, -3), (), "twice"),
        ((1,), (1,), "choose one"),
        ("channels", (), "must be an axis"),
        ((True,), (), "must be an axis"),
    ],
)
def test_axes_that_cannot_be(trace_axes, diagonal_axes, message):
    with pytest.raises(InputError, match=message):
        OutputAxes.read(SHAPE, trace_axes, diagonal_axes)
