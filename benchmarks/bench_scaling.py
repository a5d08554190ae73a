"""What the launcher costs: the same training on this machine alone, on a Ray cluster of one node, and under torchrun.

    python benchmarks/bench_scaling.py [--workers 2] [--repeats 3] [--json FILE]

All sides run the whole job as a user starts it, on 64 phantom images of 32 px; the cluster runs already. Printed are
the seconds from the command to the end of the first step, the median step, their ratios to torchrun's, and how long it
takes until a new step is done after SIGKILL of a worker, and of the driver with `rwkvctl run resume`. Last comes a
model of what 4 nodes of 8 GPUs exchange; it is arithmetic, not a measurement.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rwkvctl.runs.journal import read

SPEC = [
    "model.name=rwkv_unet_xt", "data.image_size=32", "data.workers=0", "train.batch_size=8", "train.log_steps=1",
    "train.validate_every=0", "train.checkpoint_steps=5", "tracking.register_as=",
]  # fmt: skip
WARM = 5
"""Steps that the median leaves out."""


class Bench:
    """One folder for data, runs and tracking of all sides."""

    def __init__(self, folder: Path, workers: int):
        self.folder, self.workers = folder, workers
        self.environment = os.environ | {"RWKVCTL_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
        for name in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RWKVCTL_STORAGE", "RWKVCTL_DATA_ROOT"):
            self.environment.pop(name, None)

    def prepare(self) -> None:
        from rwkvctl.data.convert.prepare import prepare
        from rwkvctl.data.convert.synth import phantom

        phantom.write_polyps(self.folder / "raw", n=64, size=40)
        prepare("folder", [self.folder / "raw"], self.folder / "shards", seeds=[41])

    def sets(self, *more: str) -> list[str]:
        return [word for field in (*SPEC, *more) for word in ("--set", field)]

    def alone(self, name: str, epochs: int) -> list[str]:
        data = ["--data", str(self.folder / "shards"), "--workers", str(self.workers), "--name", name]
        command = [sys.executable, "-P", "-m", "rwkvctl.cli.app", "finetune", "binary", *data]
        return command + self.sets(f"train.epochs={epochs}")

    def cluster(self, name: str, epochs: int) -> list[str]:
        return [*self.alone(name, epochs), "--address", f"127.0.0.1:{self.port}"]

    def torchrun(self, name: str, epochs: int) -> list[str]:
        own = [f"name={name}", f"data.path={self.folder / 'shards'}", "data.dataset=shards", f"train.epochs={epochs}"]
        own += [f"cluster.workers={self.workers}", "cluster.launcher=process"]
        start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(self.workers)]
        return [*start, "-m", "rwkv_jobs.finetune", "binary", *self.sets(*own)]

    @contextlib.contextmanager
    def head(self) -> Iterator[None]:
        """A Ray cluster of this machine while the block runs."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        node = ["--node-ip-address=127.0.0.1", f"--port={self.port}", "--include-dashboard=false", "--num-cpus=4"]
        process = self.start(
            [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats", *node]
        )
        try:
            while True:
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", self.port), 1).close()
                    break
                time.sleep(0.1)
            time.sleep(10)  # its daemons go on starting for a while
            yield
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()

    def resume(self, name: str) -> list[str]:
        return [sys.executable, "-P", "-m", "rwkvctl.cli.app", "run", "resume", name]

    def start(self, command: list[str]) -> subprocess.Popen[bytes]:
        quiet = subprocess.DEVNULL
        return subprocess.Popen(command, env=self.environment, stdout=quiet, stderr=quiet, start_new_session=True)

    def steps(self, name: str) -> list[tuple[int, float, float]]:
        """Number, time of day and duration of every step that the journal has."""
        path = self.folder / "home" / "runs" / name / "journal.jsonl"
        if not path.exists():
            return []
        entries = [entry for entry in read(path)[0] if "train/loss" in entry.get("values", {})]
        return [(e["step"], e["t"] / 1000, e["values"]["train/seconds_per_step"]) for e in entries]

    def wait_for_step(self, name: str, step: int, process: subprocess.Popen[bytes]) -> float:
        """When that step was done."""
        while True:
            for number, at, _ in self.steps(name):
                if number >= step:
                    return at
            if process.poll() is not None:
                raise SystemExit(f"{name} ended with code {process.returncode} before step {step}")
            time.sleep(0.05)


def whole_run(bench: Bench, name: str, command: list[str]) -> dict[str, float]:
    """Seconds to the first step, and of the median step."""
    begun = time.time()
    process = bench.start(command)
    if process.wait() != 0:
        raise SystemExit(f"{name} ended with code {process.returncode}: {' '.join(command)}")
    steps = bench.steps(name)
    return {"first_step": steps[0][1] - begun, "step": statistics.median(seconds for *_, seconds in steps[WARM:])}


def recovery(bench: Bench, name: str, command: list[str]) -> dict[str, float]:
    """Seconds from a SIGKILL to the next step that had not been done before."""
    process = bench.start(command)
    bench.wait_for_step(name, 8, process)
    found = {}
    try:
        lease = json.loads((bench.folder / "home" / "runs" / name / "lease.json").read_text())
        last, killed = bench.steps(name)[-1][0], time.time()
        os.kill(lease["pid"], signal.SIGKILL)
        found["worker"] = bench.wait_for_step(name, last + 1, process) - killed
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        last, killed = bench.steps(name)[-1][0], time.time()
        process = bench.start(bench.resume(name))
        found["driver"] = bench.wait_for_step(name, last + 1, process) - killed
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()
    return found


def communication(count: int, nodes: int = 4, gpus: int = 8) -> dict[str, Any]:
    """What a step of data-parallel training exchanges: DDP adds up fp32 gradients in a ring.

    Each GPU sends and receives 2 (n - 1) / n times the bytes of the gradients. Between nodes they go through the
    node's links, which its GPUs share; buckets start while the backward pass goes on, so only the last is not hidden.
    """
    n = nodes * gpus
    size = 4 * count
    moved = 2 * (n - 1) / n * size
    links = {"25 Gbit/s Ethernet": 25e9 / 8, "100 Gbit/s RoCE": 100e9 / 8, "8 x 400 Gbit/s InfiniBand": 8 * 400e9 / 8}
    bucket = 25 * 2**20
    return {
        "gradient_bytes": size,
        "moved_bytes_per_gpu": moved,
        "buckets_of_25_MiB": -(-size // bucket),
        "seconds": {name: moved / speed for name, speed in links.items()},
        "not_hidden_seconds": {name: 2 * (n - 1) / n * min(size, bucket) / speed for name, speed in links.items()},
    }


def parameters(name: str) -> int:
    import torch

    import rwkv_unet

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in rwkv_unet.create_model(name, num_classes=1).parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", dest="out")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="scaling-", ignore_cleanup_errors=True) as folder:
        bench = Bench(Path(folder), arguments.workers)
        bench.prepare()
        rows: dict[str, list[dict[str, float]]] = {"alone": [], "cluster": [], "torchrun": []}
        with bench.head():
            for number in range(arguments.repeats):  # in turns, so that all meet the same machine
                for side, found in rows.items():
                    name = f"{side}{number}"
                    found.append(whole_run(bench, name, getattr(bench, side)(name, 8)))
            again = {side: recovery(bench, f"killed-{side}", getattr(bench, side)(f"killed-{side}", 1000))
                     for side in ("alone", "cluster")}  # fmt: skip
        medians = {
            side: {key: statistics.median(row[key] for row in found) for key in found[0]}
            for side, found in rows.items()
        }
        title = f"{arguments.workers} workers, median of {arguments.repeats}"
        print(f"{title:30}{'alone':>10}{'cluster':>10}{'torchrun':>10}{'ratios':>14}")
        for key, unit, factor in (("first_step", "s to the first step", 1), ("step", "ms a step", 1000)):
            alone, cluster, theirs = (medians[side][key] * factor for side in rows)
            print(f"{unit:30}{alone:10.1f}{cluster:10.1f}{theirs:10.1f}{alone / theirs:7.2f}{cluster / theirs:7.2f}")
        for fault in ("worker", "driver"):
            print(f"s to a new step, {fault} killed".ljust(30) + "".join(f"{x[fault]:10.1f}" for x in again.values()))
    model = {name: communication(parameters(name)) for name in ("rwkv_unet_t", "rwkv_unet_b")}
    for name, found in model.items():
        times = ", ".join(f"{link} {seconds * 1000:.1f} ms" for link, seconds in found["seconds"].items())
        print(f"4 x 8 GPUs, {name}: {found['moved_bytes_per_gpu'] / 1e6:.0f} MB a GPU and step (model): {times}")
    if arguments.out:
        Path(arguments.out).write_text(
            json.dumps({"medians": medians, "rows": rows, "recovery": again, "model": model})
        )


if __name__ == "__main__":
    main()
