"""Two processes compute a kernel into a store and are killed at a random moment; it is resumed, and compared.

For every moment: how many tiles were complete and in flight when the processes were killed, how many were computed in
all, and whether the kernel is, bit by bit, that of a run that was not interrupted. Run it: `python
benchmarks/interrupted_stores.py --moments 20`.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

import numpy as np

import infnet

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import stores


def main() -> None:
    """Print a line for every moment."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--moments", type=int, default=20, help="how often (default 20)")
    options = parser.parse_args()
    moment, wrong = random.Random(1), 0
    expected = np.asarray(infnet.batch(stores.kernel_fn(), stores.SIDE)(stores.X, get="ntk"))
    print("moment  complete  in flight  begun before  begun after  of  equal", flush=True)
    for number in range(options.moments):
        with tempfile.TemporaryDirectory() as folder:
            store, log, after = (Path(folder) / name for name in ("store", "log", "after"))
            in_flight = stores.interrupted(store, log, moment)
            begun, total = stores.lines(log), len(stores.GRID)
            complete = infnet.status(store).done if store.exists() else 0
            stores.log_tiles(after)
            equal = np.array_equal(stores.compute(store), expected)
            again = stores.lines(after)
            row = number, complete, in_flight, begun, again, total, equal
            print("{:6} {:9} {:10} {:13} {:12} {:3}  {}".format(*row), flush=True)
            report = infnet.status(store, verify=True)
            whole = report.complete and not report.damaged and not report.in_flight
            wrong += not (equal and whole and again == total - complete and begun + again <= total + max(in_flight, 0))
    print(f"{options.moments - wrong} of {options.moments} as they should be")


if __name__ == "__main__":
    main()
