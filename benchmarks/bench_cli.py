"""Wall seconds of `rwkvctl --help` beside `python -c "import typer"`, the least that a typer program can take.

    python benchmarks/bench_cli.py [runs]

Both are started in turn, so that a machine whose speed drifts slows both; the medians and their ratio are printed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

COMMANDS = {
    "rwkvctl --help": [sys.executable, "-m", "rwkvctl.cli.app", "--help"],
    "python -c 'import typer'": [sys.executable, "-c", "import typer"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def seconds(command: list[str]) -> float:
    """Wall seconds of one run."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    for command in COMMANDS.values():
        seconds(command)  # the first start reads from disk
    taken = {name: [] for name in COMMANDS}  # type: dict[str, list[float]]
    for _ in range(runs):
        for name, command in COMMANDS.items():
            taken[name].append(seconds(command))
    base = statistics.median(taken["python -c 'import typer'"])
    print(f"{'command':28} {'min':>7} {'median':>7} {'max':>7}  of import typer")
    for name, values in taken.items():
        median = statistics.median(values)
        print(f"{name:28} {min(values):7.3f} {median:7.3f} {max(values):7.3f}  {median / base:.2f} x")


if __name__ == "__main__":
    main()
