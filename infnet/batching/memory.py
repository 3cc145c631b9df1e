"""How much memory there is, and how much a kernel will take."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from infnet.cost import Program, memory_of

# Where Linux says what a container may use, and does.
LIMIT, USED = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")


@dataclass(frozen=True)
class Footprint:
    """What a kernel takes, by XLA's analysis of the compiled program; print it, or read its fields.

    Attributes:
        output_bytes: of the result.
        peak_bytes: the most on one device at a time: arguments, result if it stays there, and all in between.
        flops: floating-point operations, of all tiles.
        tile: numbers of examples (rows, columns) that are computed at a time.
        tiles: their number.
        on_host: whether the result is collected in the memory of the host.
    """

    output_bytes: int
    peak_bytes: int
    flops: float
    tile: tuple[int, int]
    tiles: int
    on_host: bool

    def __str__(self) -> str:
        where = "host" if self.on_host else "device"
        return "\n".join(
            [
                f"result          {self.output_bytes / 1e6:12.1f} MB, on the {where}",
                f"device, at most {self.peak_bytes / 1e6:12.1f} MB",
                f"operations      {self.flops / 1e9:12.1f} GFLOP",
                f"tiles           {self.tiles:12d} of {self.tile[0]} x {self.tile[1]} examples",
            ]
        )


def footprint_of(function: Any, shared: Any, x1: Any, x2: Any) -> Footprint:
    """What a jitted function `(shared, x1, x2)` takes at once; x2 may be x1."""
    program = Program(function, (shared, x1, x2))
    n1, n2 = (len(jax.tree.leaves(x)[0]) for x in (x1, x2))
    output = bytes_of(jax.eval_shape(function, shared, x1, x2))
    arguments = bytes_of((shared, x1)) + (0 if x2 is x1 else bytes_of(x2))
    peak = arguments + memory_of(program.compiled)
    return Footprint(output, peak, program.compiled_cost.flops, (n1, n2), 1, on_host=False)


def bytes_of(shapes: Any) -> int:
    """The size of a pytree of arrays, or of their shapes."""
    return sum(math.prod(np.shape(s)) * jnp.result_type(s).itemsize for s in jax.tree.leaves(shapes))


def available_bytes(device: jax.Device) -> int:
    """The memory that is free on a device; that of the host is shared by all of its processors."""
    statistics = device.memory_stats() if device.platform != "cpu" else None
    if statistics and "bytes_limit" in statistics:
        return int(statistics["bytes_limit"] - statistics.get("bytes_in_use", 0))
    return host_bytes() // len(jax.local_devices(backend=device.platform))


def host_bytes() -> int:
    """The memory that is free on this machine, or in this container."""
    names = os.sysconf_names
    pages = os.sysconf("SC_AVPHYS_PAGES" if "SC_AVPHYS_PAGES" in names else "SC_PHYS_PAGES")
    free = pages * os.sysconf("SC_PAGE_SIZE")
    with suppress(OSError, ValueError, StopIteration):
        # Linux counts files that it has read as used, although it drops them on demand.
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    with suppress(OSError, ValueError):  # "max" where there is no limit
        free = min(free, int(LIMIT.read_text()) - int(USED.read_text()))
    return free
