"""The kernels inside of two libraries for Gaussian processes, as docs/gp_libraries.md has them."""

import gpjax
import tinygp
from documents import GP_LIBRARIES, run_document


def test_the_document_runs():
    assert gpjax.__name__
    assert tinygp.__name__
    run_document(GP_LIBRARIES)
