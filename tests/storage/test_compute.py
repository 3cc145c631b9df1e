"""A kernel in a store is what the kernel function returns; what a store accepts, and what it refuses."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore
import tqdm

import infnet
from infnet import stax
from infnet.batching.tiles import Tiles
from infnet.errors import InputError
from infnet.storage.fingerprint import program_hash

RNG = np.random.RandomState(0)
X1, X2 = (np.float32(RNG.standard_normal((n, 4))) for n in (11, 7))
POSITIONED = np.float32(RNG.standard_normal((5, 3, 4)))
PARAMS = {"in": np.float32(RNG.standard_normal((4, 6))), "out": np.float32(RNG.standard_normal((6, 2)))}
TWO = np.array(2.0, np.float32)
OPTIONS = {"progress": False, "batch_size": 3}

assert tqdm  # is needed too


def prior(*shape):
    return infnet.Prior(0.0, 0.7, shape=shape, dtype=jnp.float32)


def analytic(x=X1, activation=jax.nn.relu, **options):
    def network(params, x):
        return activation(x @ params[0]) @ params[1]

    return infnet.kernel_fn(network, [prior(4, 8), prior(8, 1)], jax.ShapeDtypeStruct(x.shape, x.dtype), **options)


def network(params, x):
    return jnp.tanh(x @ params["in"]) @ params["out"]


def two_kernels(x1, x2=None, scale=1.0, *, power=1):
    """A kernel function of somebody else."""
    products = x1 @ (x1 if x2 is None else x2).T
    return {"linear": scale * products, "powers": (1 + products) ** power}


KERNEL_FN = analytic()
CALLS = {
    "a Kernel": (KERNEL_FN, (X1,), {"get": None}),
    "one array": (KERNEL_FN, (X1, X2), {"get": "ntk"}),
    "a tuple": (KERNEL_FN, (X1,), {"get": ("ntk", "nngp")}),
    "positions": (analytic(POSITIONED), (POSITIONED, POSITIONED[:2]), {"get": "nngp"}),
    "shares": (KERNEL_FN, (X1,), {"get": "ntk_by_param"}),
    "batched": (infnet.batch(KERNEL_FN, 5), (X1,), {"get": "nngp"}),
    "no examples": (KERNEL_FN, (X1[:0], X2), {"get": ("nngp", "ntk")}),
    "empirical": (infnet.empirical_kernel_fn(network), (X1, X2, PARAMS), {"get": ("nngp", "ntk")}),
    "empirical, symmetric": (infnet.empirical_kernel_fn(network), (X1, None), {"get": "ntk", "params": PARAMS}),
    "empirical, of one kind": (infnet.empirical_ntk_fn(network, trace_axes=()), (X1, None, PARAMS), {}),
    "any function": (two_kernels, (X1, None, TWO), {"power": 2}),
}


@pytest.mark.parametrize("name", CALLS)
def test_the_kernel_is_that_of_the_function(name, tmp_path):
    kernel_fn, args, kwargs = CALLS[name]
    found = infnet.compute(kernel_fn, *args, store=tmp_path, **kwargs, **OPTIONS)
    if isinstance(kernel_fn, type(infnet.empirical_kernel_fn(network))):
        x1, x2, *params = args
        kwargs = {"params": params[0] if params else None, **kwargs}
        expected = kernel_fn(x1, x2, **kwargs)
    else:
        expected = kernel_fn(*args, **kwargs)
    arrays = jax.tree.leaves(found)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    assert any(isinstance(array, infnet.StoredArray) for array in arrays)
    for array, other in zip(arrays, jax.tree.leaves(expected), strict=True):
        assert array.shape == other.shape
        assert array.dtype == other.dtype
        np.testing.assert_allclose(array, other, rtol=1e-5, atol=1e-5)
    if isinstance(found, infnet.Kernel):
        assert repr(found) == repr(expected)
        assert found.symmetric == expected.symmetric


@pytest.mark.parametrize("dtype", ["complex64", "bfloat16", "float16", "int32", "bool"])
def test_every_dtype_is_stored(tmp_path, dtype):
    def cast(x1, x2):
        return (x1 @ (x1 if x2 is None else x2).T).astype(dtype)

    found = infnet.compute(cast, X1, store=tmp_path, **OPTIONS)
    assert found.dtype == jnp.dtype(dtype)
    np.testing.assert_allclose(np.asarray(found, "complex64"), np.asarray(cast(X1, None), "complex64"), rtol=1e-2)
    assert infnet.status(tmp_path, verify=True).damaged == []


def test_a_finished_store_computes_no_tile(tmp_path, monkeypatch):
    first = infnet.compute(KERNEL_FN, X1, store=tmp_path, **OPTIONS)
    monkeypatch.setattr(Tiles, "__call__", None)
    again = infnet.compute(KERNEL_FN, X1, store=str(tmp_path), progress=False)  # another size of tiles
    np.testing.assert_array_equal(first.ntk, again.ntk)
    assert infnet.status(tmp_path).manifest.rows == 3


def test_only_what_is_missing_is_computed(tmp_path, monkeypatch):
    infnet.compute(KERNEL_FN, X1, X2, store=tmp_path, get="ntk", **OPTIONS)
    for name in ("0-1", "3-2"):
        (tmp_path / "tiles" / name).unlink()
    assert infnet.status(tmp_path).done == 10
    computed, whole = [], Tiles.__call__
    monkeypatch.setattr(Tiles, "__call__", lambda self, tile: (computed.append(tile.rows.start), whole(self, tile))[1])
    kernel = infnet.compute(KERNEL_FN, X1, X2, store=tmp_path, get="ntk", progress=False)
    assert sorted(computed) == [0, 9]
    np.testing.assert_allclose(kernel, KERNEL_FN(X1, X2, "ntk"), rtol=1e-5, atol=1e-6)


OTHERS = {
    "model": ((analytic(activation=jnp.abs), X1), {}, "another kernel function"),
    "parameterization": ((analytic(parameterization="ntk"), X1), {}, "another kernel function"),
    "hyperparameters": (
        (KERNEL_FN.with_hyperparameters([0.7, 0.8]), X1),
        {},
        "another kernel function",
    ),
    "data": ((KERNEL_FN, X1 + 1), {}, "x1: other data; there 11 examples, here 11"),
    "fewer data": ((KERNEL_FN, X1[:9]), {}, "x1: other data; there 11 examples, here 9"),
    "x2": ((KERNEL_FN, X1, X1), {}, "x2: there x1 itself, here given"),
    "get": ((KERNEL_FN, X1), {"get": "ntk"}, "get: there ('nngp', 'ntk'), here 'ntk'"),
}


def test_another_kernel_is_refused(tmp_path):
    infnet.compute(KERNEL_FN, X1, store=tmp_path, **OPTIONS)
    for args, kwargs, what in OTHERS.values():
        with pytest.raises(InputError) as caught:
            infnet.compute(*args, store=tmp_path, **kwargs, **OPTIONS)
        first, *lines, last = str(caught.value).splitlines()
        assert first == f"{tmp_path} holds another kernel"
        assert [line.strip()[: len(what)] for line in lines] == [what]
        assert "remedy: pass another store=, or delete the folder" in last


def test_another_dtype_other_arguments_and_other_versions_are_named(tmp_path):
    infnet.compute(two_kernels, X1, None, TWO, store=tmp_path, **OPTIONS)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    with pytest.raises(InputError, match="other arguments, such as parameters"):
        infnet.compute(two_kernels, X1, None, TWO + 1, store=tmp_path, **OPTIONS)
    with pytest.raises(InputError, match="another kernel function"):
        infnet.compute(two_kernels, X1, None, TWO, power=2, store=tmp_path, **OPTIONS)
    with jax.enable_x64(True), pytest.raises(InputError, match="x1: other data"):
        infnet.compute(two_kernels, np.float64(X1), None, TWO, store=tmp_path, **OPTIONS)

    def half(*args):
        return jax.tree.map(lambda a: a.astype(jnp.float16), two_kernels(*args))

    with pytest.raises(InputError, match=r"arrays: there linear \(11, 11\) float32.*float16"):
        infnet.compute(half, X1, None, TWO, store=tmp_path, **OPTIONS)
    manifest["versions"]["jax"] = "0.9.0"
    manifest["function"] = "of another version"
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=rf"begun with jax 0.9.0 \(here {jax.__version__}\)"):
        infnet.compute(two_kernels, X1, None, TWO, store=tmp_path, **OPTIONS)


def test_what_is_no_store_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    refusals = {
        "exists and is not a store: it holds file": tmp_path,
        "is a file": tmp_path / "file",
        "must be the path of a folder": "gs://bucket/kernel",
        "must be the path of a folder, not 3": 3,
    }
    for message, path in refusals.items():
        with pytest.raises(InputError, match=message):
            infnet.compute(two_kernels, X1, store=path, **OPTIONS)
    with pytest.raises(InputError, match="is not a store"):
        infnet.status(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]
    for text in ("{", "[]", '{"format": 1}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(InputError, match="is not the manifest"):
            infnet.status(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="format 99"):
        infnet.status(tmp_path)


def test_wrong_arguments(tmp_path):
    store = tmp_path / "store"
    wrong = {
        "no argument of this name": {"get": "ntk"},
        "progress must be": {"progress": 3},
        "batch_size must be": {"batch_size": 0},
        "device_count": {"device_count": 99},
    }
    for message, options in wrong.items():
        with pytest.raises(InputError, match=message):
            infnet.compute(two_kernels, X1, store=store, **{**OPTIONS, **options})
    with pytest.raises(InputError, match="pass these once"):
        infnet.compute(infnet.empirical_kernel_fn(network), X1, X2, PARAMS, params=PARAMS, store=store, **OPTIONS)
    with pytest.raises(InputError, match=r"must have the shape \(n1, n2, ...\)"):
        infnet.compute(lambda x1, x2: x1.sum(1), X1, X2, store=store, **OPTIONS)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with pytest.raises(ImportError, match=r'tqdm: pip install "infnet\[large\]"'):
        infnet.compute(two_kernels, X1, store=tmp_path)
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(ImportError, match=r'tensorstore: pip install "infnet\[large\]"'):
        infnet.compute(two_kernels, X1, store=tmp_path, progress=False)


ELSEWHERE = """
import sys
import jax, jax.numpy as jnp, numpy as np
import infnet
from infnet import stax
from infnet.storage.fingerprint import program_hash
prior = lambda *shape: infnet.Prior(0.0, 0.7, shape=shape, dtype=jnp.float32)
x = jax.ShapeDtypeStruct((6, 4), jnp.float32)
k = infnet.kernel_fn(lambda p, x: jnp.tanh(x @ p[0]) @ p[1], [prior(4, 8), prior(8, 1)], x)
names = {"alpha", "beta", "gamma", "delta"}
def other(a, b, weights):
    called = jax.pure_callback(np.sin, jax.ShapeDtypeStruct(a.shape, a.dtype), a, vmap_method="sequential")
    return sum(called @ (a if b is None else b).T * weights[n].sum() for n in sorted(names))
weights = {n: jnp.ones(3) for n in names}
x = np.ones((6, 4), np.float32)
print(program_hash(k, x, None, ("nngp",), {}), program_hash(other, x, x, (weights,), {}))
def products(x1, x2):
    return x1 @ x2.T
x = np.float32(np.arange(40).reshape(10, 4)) / 40
side = 4 if len(jax.devices()) == 1 else 1
kernel = infnet.compute(products, x, x[:5], store=sys.argv[1], progress=False, batch_size=side)
assert np.allclose(kernel, x @ x[:5].T)
"""


def test_processes_with_other_seeds_and_devices_know_each_others_stores(tmp_path):
    """Fingerprints are the same, and so are tiles, which as many devices share as can."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])
    found = []
    for seed, devices in ((1, 1), (2, 6)):
        flags = {"PYTHONHASHSEED": str(seed), "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        environment = {**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu", **flags}
        command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "store")]
        result = subprocess.run(command, capture_output=True, text=True, cwd=root, env=environment)
        assert result.returncode == 0, result.stderr
        found.append(result.stdout)
        report = infnet.status(tmp_path / "store", verify=True)
        assert (report.complete, report.damaged, report.manifest.rows) == (True, [], 4)
        for mark in (tmp_path / "store/tiles").glob("*-0"):
            mark.unlink()
    assert len(found[0].split()) == 2
    assert found[0] == found[1]


def test_fingerprints_tell_constants_and_earlier_stages_apart():
    big = np.arange(3000.0, dtype=np.float32)
    changed = big.copy()
    changed[1500] += 1

    def with_constant(constant):
        return program_hash(lambda a, b: a @ b.T * (jnp.asarray(constant) ** 2).sum(), X1, X2, (), {})

    assert with_constant(big) == with_constant(big.copy()) != with_constant(changed)

    # What is computed of single examples, before any pair.
    def prepared(function):
        k = infnet.kernel_fn(lambda p, x: function(x) @ p[0], [prior(4, 1)], jax.ShapeDtypeStruct((6, 4), jnp.float32))
        return program_hash(k, X1, None, ("nngp",), {})

    assert prepared(jnp.sin) == prepared(jnp.sin) != prepared(jnp.cos)


def test_a_series_does_not_depend_on_what_was_computed_before():
    x = jax.ShapeDtypeStruct(X1.shape, X1.dtype)
    k = infnet.kernel_fn(lambda p, x: jnp.tanh(x @ p[0]) @ p[1], [prior(4, 8), prior(8, 1)], x)

    def fingerprint():
        fresh = k.anew()
        fresh.blocks(0.1 * X1, None, "nngp")
        return program_hash(fresh, 0.1 * X1, None, ("nngp",), {})

    before = fingerprint()
    k.blocks(0.5 * X1, None, "nngp")  # needs more terms
    assert fingerprint() == before
    assert program_hash(k, 0.1 * X1, None, ("nngp",), {}) != before


def test_a_series_of_a_stax_network_does_not_either():
    _, _, k = stax.serial(stax.Dense(8), stax.Elementwise(jnp.tanh), stax.Dense(1))

    def fingerprint():
        fresh = k.anew()
        fresh.blocks(0.1 * X1, None, "nngp")
        return program_hash(fresh, 0.1 * X1, None, (), {"get": "nngp"})

    before = fingerprint()
    k(0.5 * X1, None, "nngp")  # needs more terms
    assert fingerprint() == before


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return infnet.compute(two_kernels, X1, store=tmp_path_factory.mktemp("stored"), **OPTIONS)["linear"]


@pytest.mark.parametrize(
    "key",
    [
        3,
        -1,
        (2, -3),
        slice(None),
        slice(-4, 99, 3),
        slice(5, 2),
        (..., 2),
        (slice(2, 5), None, slice(None)),
        [4, -1, 4],
        (slice(None), np.array([0, -2])),
        (np.array([1, 2]), np.array([3, 4])),
        np.ix_([1, -1], [0, 5, 6]),
        np.arange(11) % 2 == 0,
        (np.array([], int), slice(2)),
        np.int64(3),
        (),
    ],
)
def test_a_stored_array_is_indexed_as_in_numpy(stored, key):
    expected = np.asarray(stored)[key]
    found = stored[key]
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def test_a_stored_array_is_an_array(stored):
    assert (stored.shape, stored.ndim, len(stored), stored.size, stored.nbytes) == ((11, 11), 2, 11, 121, 484)
    assert stored.dtype == np.float32
    assert "shape=(11, 11), dtype=float32" in repr(stored)
    np.testing.assert_allclose(stored, X1 @ X1.T, rtol=1e-5)
    np.testing.assert_allclose(jnp.asarray(stored), X1 @ X1.T, rtol=1e-5)
    assert np.asarray(stored, np.float64).dtype == np.float64
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(stored)), stored)
    with pytest.raises(ValueError, match="without a copy"):
        np.asarray(stored, copy=False)
    for key in (11, -12, (0, 0, 0), 1.5, slice(None, None, -1), [99]):
        with pytest.raises(IndexError):
            stored[key]


def test_other_programs_read_it(stored):
    """As a Zarr array: chunks are tiles, and what is not there yet is NaN."""
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(stored.folder)}}
    array = tensorstore.open(spec).result()
    assert array.chunk_layout.read_chunk.shape == (3, 3)
    assert np.isnan(array.fill_value)
    assert json.loads((stored.folder.parent / "zarr.json").read_text())["node_type"] == "group"


def test_the_progress_bar_counts_what_was_there(tmp_path, monkeypatch, capsys):
    infnet.compute(two_kernels, X1, X2, store=tmp_path, progress="always", batch_size=4)
    assert "77.0/77.0" in capsys.readouterr().err
    (tmp_path / "tiles/0-0").unlink()
    texts = io.StringIO()
    monkeypatch.setattr(sys, "stderr", texts)
    infnet.compute(two_kernels, X1, X2, store=tmp_path)  # not a terminal
    assert texts.getvalue() == ""
    (tmp_path / "tiles/0-0").unlink()
    infnet.compute(two_kernels, X1, X2, store=tmp_path, progress="always")
    text = texts.getvalue()
    assert "61.0/77.0" in text
    assert "77.0/77.0" in text
    assert "6 of 6 tiles, 616B of 616B" in text


def test_status_says_how_far_it_is(tmp_path):
    infnet.compute(KERNEL_FN, X1, store=tmp_path, **OPTIONS)
    report = infnet.status(tmp_path)
    assert report.complete
    assert (report.done, report.total, report.in_flight, report.damaged) == (10, 10, {}, None)
    assert report.bytes_done == report.bytes_total == 2 * 484
    assert report.rate > 0
    assert report.seconds_left is None
    lines = str(report).splitlines()
    assert lines[:4] == [
        f"store      {tmp_path}",
        "arrays     nngp (11, 11) float32, ntk (11, 11) float32",
        "tiles      10 of 10 complete, 0 in flight, 0 waiting; 3 x 3 examples",
        "bytes      968 of 968",
    ]
    assert any(line.startswith("x2         x1") for line in lines)
    (tmp_path / "tiles/1-2").unlink()
    partial = infnet.status(tmp_path, verify=True)
    assert (partial.done, partial.complete, partial.damaged) == (9, False, [])
    assert partial.bytes_done == 968 - 2 * 2 * 36
