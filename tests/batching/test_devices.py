"""Kernels in tiles on several devices, and by several processes; each in processes of their own."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "JAX_PLATFORMS": "cpu"}


def start(script, *arguments):
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)


def printed(process):
    """What a process has printed last, as JSON."""
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(out.splitlines()[-1])


def test_every_size_on_every_number_of_devices():
    report = printed(start("devices_and_sizes.py"))
    assert report["cases"] == 378 + 4 + 3
    assert report["wrong"] == {}


@pytest.mark.parametrize("count", [2, 4])
def test_processes_share_the_tiles_and_all_have_the_kernel(count):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    reports = [printed(p) for p in [start("processes.py", number, count, port) for number in range(count)]]
    rounds = {"own": -(-15 // count), "both": -(-5 // count)}  # 15 tiles of 5 x 5 on and above the diagonal
    for report in reports:
        assert {name: found["tiles"] for name, found in report.items()} == rounds
        assert max(found["error"] for found in report.values()) < 1e-6
