"""The training that faults are done to: a small one on data made on the spot, started as a person would."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from rwkvctl.base.files import write_bytes
from rwkvctl.launch.chaos import processes
from rwkvctl.runs import samples_seen

WORKERS = 2
STEPS_AN_EPOCH = 12
PACE = 0.25
"""Seconds between two steps, so that faults strike among them on any machine."""
SLOW_PACE = 2.0
"""The same when few steps are left."""
OTHERS = (
    "RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RWKVCTL_STORAGE", "RWKVCTL_DATA_ROOT", "RANK", "WORLD_SIZE",
    "TORCHELASTIC_RUN_ID", "RWKVCTL_ADDRESS",
)  # fmt: skip
"""Variables of a user's that would lead the training elsewhere."""
SETTINGS = [
    "model.name=rwkv_unet_xt", "data.image_size=32", "data.dataset=chaos", "train.batch_size=4",
    "train.log_steps=1", "train.checkpoint_steps=3", "train.validate_every=2",
    "optimizer.lr=1e-3", "tracking.register_as=", "cluster.max_failures=6",
]  # fmt: skip


class Training:
    """A run of its own name, which can be started again and again.

    Args:
        folder: everything that it leaves is below it, the run's own folder excepted.
        storage: where the run's folder is.
        steps: how many it takes at least.
        loaders: processes that read the data of each worker.
    """

    def __init__(self, name: str, folder: Path, storage: Path, steps: int, loaders: int):
        self.name, self.folder, self.run_dir = name, folder, storage / name
        self.home = folder / "home"
        self.epochs = max(1, -(-steps // STEPS_AN_EPOCH))
        self.seen, self.log = folder / f"seen-{name}", folder / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        self.struck = (0.0, 0)
        self.settings = [*SETTINGS, f"data.workers={loaders}", f"train.epochs={self.epochs}"]
        self.environment = {key: value for key, value in os.environ.items() if key not in OTHERS} | {
            "RWKVCTL_HOME": str(self.home),
            "RWKVCTL_STORAGE": str(storage),
            "RAY_TMPDIR": str(folder),
            "TMPDIR": str(folder),
            "CUDA_VISIBLE_DEVICES": "",
            samples_seen.VARIABLE: str(self.seen),
        }
        self.seen.mkdir()

    @property
    def steps(self) -> int:
        """Of the whole training."""
        return self.epochs * STEPS_AN_EPOCH

    def command(self) -> list[str]:
        """What a person would type: to start it, or to go on with it."""
        if (self.run_dir / "spec.yaml").exists():
            return ["run", "resume", str(self.run_dir)]
        words = ["finetune", "binary", "--data", str(self.folder / "shards"), "--name", self.name]
        return [*words, "--workers", str(WORKERS), *(word for each in self.settings for word in ("--set", each))]

    def start(self) -> None:
        """Begin the run, or go on with it."""
        self.starts += 1
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                rwkvctl(*self.command()),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def code(self) -> int | None:
        """The exit code of the last start; None while it goes on."""
        return None if self.process is None else self.process.poll()

    def slow_down(self, faults: int) -> None:
        """So that it is not at its end before so many faults were done to it."""
        left = self.steps - self.reached()
        write_bytes(self.seen / samples_seen.PACE, str(PACE if left > 4 * faults else SLOW_PACE).encode())

    def hurry(self) -> None:
        (self.seen / samples_seen.PACE).unlink(missing_ok=True)

    def mark(self) -> None:
        """Note when and at which step a fault is done, in this very moment."""
        self.struck = time.time(), self.reached()

    def reached(self) -> int:
        """The largest step that the optimiser has been given."""
        return max((life.steps[-1].number for life in samples_seen.lives(self.seen) if life.steps), default=0)

    def first_step_since(self, moment: float) -> float | None:
        """When a worker that was started after a moment was given its first step."""
        found = [life.steps[0].at for life in samples_seen.lives(self.seen) if life.began > moment and life.steps]
        return min(found, default=None)

    def next_step_after(self, moment: float) -> float | None:
        """When a worker, whenever it was started, was given its first step after a moment."""
        found = [step.at for life in samples_seen.lives(self.seen) for step in life.steps if step.at > moment]
        return min(found, default=None)

    def last_words(self, lines: int = 3) -> str:
        """What the run has printed last."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return " | ".join(line.strip() for line in text.splitlines()[-lines:])

    def cast(self) -> processes.Cast:
        """All its processes that live."""
        return processes.cast(samples_seen.VARIABLE, str(self.seen))

    def until_gone(self, seconds: float) -> list[str]:
        """Wait until none of its processes is left; what is left after so many seconds."""
        deadline = time.monotonic() + seconds
        while (left := self.cast().everyone) and time.monotonic() < deadline:
            time.sleep(0.1)
        return [processes.described(process) for process in left]

    def kill(self) -> None:
        """End all of its processes."""
        deadline = time.monotonic() + 30
        while (left := self.cast().everyone) and time.monotonic() < deadline:
            for process in left:
                processes.kill(process)
            time.sleep(0.1)
        if self.process is not None:
            self.process.wait()


def rwkvctl(*words: str) -> list[str]:
    """The command line, as this process runs it."""
    return [sys.executable, "-P", "-m", "rwkvctl.cli.app", *words]


def make_data(folder: Path, seed: int) -> None:
    """Pictures of blobs, as many as make an epoch of `STEPS_AN_EPOCH` batches."""
    from rwkvctl.data.convert.prepare import prepare
    from rwkvctl.data.convert.synth import phantom

    raw = phantom.write_polyps(folder / "raw", n=64, size=40, seed=seed)
    prepare("folder", [raw], folder / "shards", seeds=[41], ratio="75:25:0", workers=1)
