"""Solvers with what is optional: arrays of TensorStore, and progress bars."""

from __future__ import annotations

import sys

import pytest
import tensorstore
import tqdm.auto
from test_solvers import NOISE, SOLVERS, N, b, matrices, points, true_residual  # noqa: F401 - fixtures

from infnet import solvers
from infnet.errors import InputError


def test_zarr_is_read_by_tensorstore(matrices, b, tmp_path):  # noqa: F811
    store = tensorstore.open(
        {"driver": "zarr3", "kvstore": f"file://{tmp_path}/kernel"},
        create=True,
        dtype=tensorstore.float32,
        shape=[N, N],
        chunk_layout=tensorstore.ChunkLayout(chunk_shape=[32, 64]),
    ).result()
    store.write(matrices["float32"]).result()
    assert solvers.operator(store).strip % 32 in (0, N % 32)
    for solver in (SOLVERS["rpcholesky"], SOLVERS["cholesky"]):
        x = solvers.solve(store, b, NOISE, solver).x
        assert (true_residual(matrices["float32"], NOISE, b, x) < 1e-6).all()


def test_progress(matrices, b, capsys, monkeypatch):  # noqa: F811
    for solver in (solvers.ConjugateGradients(20, progress=True), solvers.Cholesky(progress=True)):
        solvers.solve(matrices["float32"], b, NOISE, solver)
    shown = capsys.readouterr().err
    assert all(word in shown for word in ("preconditioner", "conjugate gradients", "Cholesky", "residual"))
    monkeypatch.setitem(sys.modules, tqdm.auto.__name__, None)
    with pytest.raises(InputError, match="needs tqdm"):
        solvers.solve(matrices["float32"], b, NOISE, solvers.ConjugateGradients(20, progress=True))
