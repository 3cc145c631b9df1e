"""Processes that are killed, disks that are full, tiles that are torn: nothing is lost, and nothing is mixed."""

from __future__ import annotations

import json
import random
import re
import resource
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest
import stores

import infnet
from infnet.batching.tiles import Tiles
from infnet.errors import NumericalError, StorageError
from infnet.storage import claims as claims_module
from infnet.storage.claims import Claims, Owner
from infnet.storage.store import Store

X = np.float32(np.random.RandomState(1).randint(-9, 10, (10, 3)))  # products are exact, in whatever order


def kernel_fn(x1, x2=None, scale=1.0):
    return scale * (x1 @ (x1 if x2 is None else x2).T)


def compute(store, x=X, **options):
    options = {"batch_size": 4, "progress": False, **options}
    return infnet.compute(kernel_fn, x, store=store, **options)


@pytest.fixture
def computed(monkeypatch):
    """The tiles that are computed."""
    found, whole = [], Tiles.__call__

    def logged(self, tile):
        found.append((tile.rows.start, tile.columns.start))
        return whole(self, tile)

    monkeypatch.setattr(Tiles, "__call__", logged)
    return found


@pytest.mark.optimised  # as in the processes
def test_two_processes_killed_and_resumed(tmp_path, computed):
    """The kernel is that of a run that was never interrupted; only tiles in flight are computed again."""
    store, log, moment = tmp_path / "store", tmp_path / "log", random.Random(0)
    in_flight = [stores.interrupted(store, log, moment) for _ in range(2)]
    assert min(in_flight) >= 0
    begun = stores.lines(log)
    assert begun > 0
    found = stores.compute(store)
    report = infnet.status(store, verify=True)
    assert report.complete
    assert report.damaged == []
    assert not report.in_flight
    assert begun + len(computed) <= report.total + sum(in_flight)
    assert len(computed) < report.total
    np.testing.assert_array_equal(found, infnet.batch(stores.kernel_fn(), stores.SIDE)(stores.X, get="ntk"))


@pytest.mark.parametrize("damage", ["torn", "changed", "lost", "mark", "another tile"])
def test_a_damaged_tile_is_computed_again(tmp_path, computed, damage):
    compute(tmp_path)
    computed.clear()
    chunk = tmp_path / "kernel/c/1/2"
    data = chunk.read_bytes()
    if damage == "torn":
        chunk.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        chunk.write_bytes(data[:5] + bytes([data[5] ^ 1]) + data[6:])
    elif damage == "lost":
        chunk.unlink()
    elif damage == "another tile":
        chunk.write_bytes((tmp_path / "kernel/c/0/1").read_bytes())  # valid by itself
    else:
        (tmp_path / "tiles/1-2").write_text("{")
    before = infnet.status(tmp_path, verify=True)
    assert before.damaged == ["1-2"]
    assert (before.done, before.total) == (5, 6)
    assert "damaged    1-2" in str(before)
    np.testing.assert_array_equal(compute(tmp_path), X @ X.T)
    assert computed == [(4, 8)]
    assert infnet.status(tmp_path, verify=True).damaged == []


def test_a_tile_that_is_not_verified_is_an_error_when_it_is_read(tmp_path, computed):
    compute(tmp_path)
    chunk = tmp_path / "kernel/c/1/2"
    chunk.write_bytes(chunk.read_bytes()[:-9])
    computed.clear()
    kernel = compute(tmp_path, verify=False)
    assert not computed
    np.testing.assert_array_equal(kernel[:4], X[:4] @ X.T)
    with pytest.raises(StorageError, match="cannot be read"):
        np.asarray(kernel)


@pytest.mark.parametrize(("lost", "again"), [("zarr.json", 0), ("c", 6)])
def test_lost_arrays_are_computed_again_but_not_for_their_metadata(tmp_path, computed, lost, again):
    compute(tmp_path)
    (tmp_path / "kernel" / lost).rename(tmp_path / "kernel/elsewhere")
    computed.clear()
    np.testing.assert_array_equal(compute(tmp_path), X @ X.T)
    assert len(computed) == again


def test_a_full_disk(tmp_path, monkeypatch):
    """The operating system refuses to write more than some bytes of a file, in the middle of the computation."""
    from infnet.storage.work import Work

    limits, collect, collected = resource.getrlimit(resource.RLIMIT_FSIZE), Work._collect, []

    def limited(self, writer, name, *rest):
        collected.append(name)
        if len(collected) == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (40, limits[1]))
        collect(self, writer, name, *rest)

    try:
        monkeypatch.setattr(Work, "_collect", limited)
        with pytest.raises(StorageError) as caught:
            compute(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        monkeypatch.undo()
    text = str(caught.value)
    assert str(tmp_path) in text
    assert re.search(r"needed: [\d,]+ bytes; free: [\d,]+ bytes", text)
    assert "nothing that was complete is lost" in text
    report = infnet.status(tmp_path, verify=True)
    assert 0 < report.done < report.total
    assert report.damaged == []
    assert not report.in_flight
    np.testing.assert_array_equal(compute(tmp_path), X @ X.T)


def test_too_little_space_is_noticed_before(tmp_path, monkeypatch, computed):
    usage = type("usage", (), {"free": 100})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    with pytest.raises(StorageError, match=r"needed: 400 bytes; free: 100 bytes"):
        compute(tmp_path / "store")
    assert not computed
    usage.free = 10**6
    np.testing.assert_array_equal(compute(tmp_path / "store"), X @ X.T)
    usage.free = 100
    compute(tmp_path / "store")  # nothing is missing


def test_a_folder_that_cannot_be_written():
    with pytest.raises(StorageError, match="/proc/nothing cannot be used as a store"):
        compute("/proc/nothing")


@pytest.mark.parametrize("error", [KeyboardInterrupt, NumericalError])
def test_an_interrupted_call_leaves_no_claims(tmp_path, monkeypatch, computed, error):
    from infnet.storage.work import Work

    collect = Work._collect

    def interrupted(self, writer, name, *rest):
        if name == "1-1":
            raise error("stop")
        collect(self, writer, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Work, "_collect", interrupted)
        with pytest.raises(error):
            compute(tmp_path)
    assert not list((tmp_path / "claims").iterdir())
    begun = len(computed)
    done = infnet.status(tmp_path).done
    np.testing.assert_array_equal(compute(tmp_path), X @ X.T)
    assert len(computed) == begun + 6 - done


def test_claims_of_other_machines_are_taken_over_when_they_are_not_touched(tmp_path, monkeypatch, computed):
    compute(tmp_path)
    (tmp_path / "tiles/0-1").unlink()
    computed.clear()
    elsewhere = Owner("elsewhere", "elsewhere", 1, "", "their run")
    assert not elsewhere.is_gone
    claim = tmp_path / "claims/0-1"
    claim.write_text(json.dumps(elsewhere.__dict__))
    assert infnet.status(tmp_path).in_flight == {"0-1": "elsewhere:1"}
    monkeypatch.setattr(claims_module, "STALE_AFTER", 0.3)
    began = time.monotonic()
    compute(tmp_path)
    assert time.monotonic() - began > 0.3
    assert computed == [(0, 4)]
    assert not list((tmp_path / "claims").iterdir())


def test_a_call_waits_for_the_tiles_of_others(tmp_path, monkeypatch, computed):
    """Another run has claimed a tile, touches its claim, and completes it at last."""
    compute(tmp_path)
    mark = (tmp_path / "tiles/0-1").read_text()
    (tmp_path / "tiles/0-1").unlink()
    computed.clear()
    monkeypatch.setattr(claims_module, "STALE_AFTER", 0.2)
    monkeypatch.setattr(claims_module, "HEARTBEAT", 0.02)
    slept, sleep = [], time.sleep
    with Claims(tmp_path / "claims", Owner.here()) as claims:
        assert claims.take("0-1")

        def sleep_or_finish(seconds):
            slept.append(seconds)
            sleep(seconds)
            if sum(slept) > 0.5:
                (tmp_path / "tiles/0-1").write_text(mark)

        monkeypatch.setattr("infnet.storage.work.time.sleep", sleep_or_finish)
        compute(tmp_path)
    assert not computed
    assert sum(slept) > 0.5


def test_claims_are_exclusive_and_only_stale_ones_are_replaced(tmp_path, monkeypatch):
    one, two = Claims(tmp_path, Owner.here()), Claims(tmp_path, Owner.here())
    assert one.take("a")
    assert not two.take("a")
    one.release("a")
    assert two.take("a")
    assert one.held == frozenset()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = Owner(**{**Owner.here().__dict__, "process": gone.pid})
    reused = Owner(**{**Owner.here().__dict__, "began": "before"})
    assert dead.is_gone
    assert reused.is_gone
    assert not Owner.here().is_gone
    (tmp_path / "b").write_text(json.dumps(dead.__dict__))
    # Somebody takes it over first: the new claim is not removed, although the old one was found to be stale.
    assert two.take("b")
    assert not one._remove("b", json.dumps(dead.__dict__))
    assert two.is_mine("b")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_a_run_that_lost_its_claim_writes_nothing(tmp_path, monkeypatch):
    compute(tmp_path)
    (tmp_path / "tiles/0-0").unlink()
    written = []
    monkeypatch.setattr(Store, "write", lambda self, name, *rest: written.append(name))
    mine = Claims.is_mine
    lost = []

    def taken_over(self, name):
        if not lost:
            lost.append(name)
            (tmp_path / "tiles/0-0").write_text("{}")  # complete, by somebody else
            return False
        return mine(self, name)

    monkeypatch.setattr(Claims, "is_mine", taken_over)
    compute(tmp_path)
    assert lost == ["0-0"]
    assert not written


def test_examples_that_fail_raise_and_leave_the_rest(tmp_path):
    import jax

    priors = [infnet.Prior(0.0, 1.0, shape=(3, 1), dtype=jnp.float32)]
    k = infnet.kernel_fn(lambda params, x: x @ params[0], priors, jax.ShapeDtypeStruct((2, 3), X.dtype))
    bad = X.copy()
    bad[9] = 1e30  # overflows
    with pytest.raises(NumericalError):
        infnet.compute(k, bad, store=tmp_path / "bad", get="nngp", batch_size=4, progress=False)
    report = infnet.status(tmp_path / "bad", verify=True)
    assert report.done < report.total
    assert not report.in_flight
    with pytest.raises(NumericalError):
        infnet.compute(k, bad, store=tmp_path / "bad", get="nngp", batch_size=4, progress=False)
