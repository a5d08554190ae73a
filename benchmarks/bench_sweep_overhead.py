"""What a trial of a sweep costs beside its training: one-step trials, one at a time, in a process that is kept.

python benchmarks/bench_sweep_overhead.py [DATA] [--trials 12]

DATA is a prepared data set; without it, pictures are made. Between two
trials: from the last line of a trial's journal to the first of the next (told, asked, written, sent to the process).
Of its own: from there to its plan, which is the set-up of the same training alone. Whole: wall time a trial, training
and scoring included.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.runs.journal import read

TINY = "data.image_size=32 data.workers=0 train.batch_size=2 train.epochs=1 train.epoch_steps=1 train.log_steps=1"


def sweep(data: Path, trials: int, home: Path) -> list[list[dict[str, Any]]]:
    """The journals of the trials, in order."""
    space = home / "seeds.yaml"
    space.write_text("cover: true\nparams: {seed: {int: [1, 1000]}}\n")
    settings = [word for assignment in TINY.split() for word in ("--set", assignment)]
    words = ["tune", "--space", str(space), "--variant", "xt", "--data", str(data.absolute()), "--trials", str(trials)]
    command = [sys.executable, "-m", "rwkvctl.cli.app", *words, "--concurrency", "1", "--name", "s", *settings]
    subprocess.run(command, check=True, env=os.environ | {"RWKVCTL_HOME": str(home)}, stdout=subprocess.DEVNULL)
    return [read(path)[0] for path in sorted((home / "runs" / "s" / "trials").glob("*/journal.jsonl"))]


def main() -> None:
    """Medians in seconds; the first trial, which starts the process, is left out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--trials", type=int, default=12)
    arguments = parser.parse_args()
    began = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="so-", dir="/tmp") as home:
        data = arguments.data
        if data is None:
            synth.write("clinicdb", Path(home) / "raw")
            data = prepare("clinicdb", [Path(home) / "raw"], Path(home) / "data", allow_partial=True).root
        since = time.monotonic()
        journals = sweep(data, arguments.trials, Path(home))
        whole = time.monotonic() - since
    first, last = ([journal[at]["t"] / 1000 for journal in journals] for at in (0, -1))
    plan = [next(e["t"] / 1000 for e in journal if e.get("event") == "plan") for journal in journals]
    between = [first[i] - last[i - 1] for i in range(1, len(journals))]
    own = [plan[i] - first[i] for i in range(1, len(journals))]
    each = (last[-1] - last[0]) / (len(journals) - 1)
    print(f"load {began:.1f} before, {os.getloadavg()[0]:.1f} after, on {os.cpu_count()} CPUs")
    print(f"between two trials {statistics.median(between):.2f} s (largest {max(between):.2f} s)")
    print(f"set-up of a trial's own {statistics.median(own):.2f} s")
    print(f"whole {each:.2f} s a trial; {whole:.0f} s for {len(journals)} trials with all starts")


if __name__ == "__main__":
    main()
