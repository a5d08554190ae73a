"""kill -9 of a sweep at random moments: is anything lost, doubled, or another after it went on?

    python benchmarks/kill_sweeps.py [--kills 10] [--seed 1] [--trials 4] [--launcher process|ray]

A sweep runs undisturbed, then as often again as there are kills, each in a home of its own. Its command and its driver
are killed at a moment that is drawn evenly from the time that the undisturbed one took, from the first instruction of
the command to its last line; then it is started again as one types it, with --resume, or as before where no run had
been made yet. Everything is compared with the undisturbed sweep: the study's trials, their parameters and states, the
folders, MLflow's runs with their metrics, and the weights of every trial, byte by byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import optuna

from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.runs import mlflow_client
from rwkvctl.runs.journal import read

SETTINGS = (
    "data.image_size=32 data.workers=0 train.batch_size=2 train.epochs=2 train.epoch_steps=15 train.checkpoint_steps=3 "
    "train.log_steps=1"
)
SPACE = "params:\n  model.ccm_hidden_rate: {int: [1, 4]}\n  optimizer.lr: {float: [1.0e-4, 1.0e-2], log: true}\n"


class Sweep:
    """One sweep in a home of its own."""

    def __init__(self, home: Path, data: Path, space: Path, trials: int, launcher: str, database: Path):
        self.home, self.trials = home, trials
        home.mkdir()
        shutil.copy(database, home / "mlflow.db")
        settings = [word for each in (*SETTINGS.split(), f"cluster.launcher={launcher}") for word in ("--set", each)]
        words = ["tune", "--space", str(space), "--variant", "xt", "--data", str(data), "--trials", str(trials)]
        self.begin = [*words, "--concurrency", "1", "--sampler", "random", "--name", "s", *settings]
        self.go_on = ["tune", "--space", str(space), "--resume", "s"]
        self.folder = home / "runs" / "s"

    def start(self, words: list[str]) -> subprocess.Popen[bytes]:
        log = (self.home / "log").open("ab")
        with log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "rwkvctl.cli.app", *words],
                env=os.environ | {"RWKVCTL_HOME": str(self.home)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, words: list[str]) -> int:
        return self.start(words).wait()

    def kill_after(self, seconds: float) -> str:
        """Kill command and driver; where that was."""
        process = self.start(self.begin)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            was = self.where()
            for pid in [process.pid, *drivers(self.home)]:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            process.wait()
            return was
        return "after its end"

    def where(self) -> str:
        """What the sweep is at."""
        if not self.folder.exists():
            return "before there is a run"
        states = [trial.state.name for trial in self.study_trials()]
        done, running = states.count("COMPLETE"), states.count("RUNNING")
        if running:
            steps = [entry["step"] for entry in self.journal(done) if entry["kind"] == "metrics"]
            return f"trial {done}, " + (f"step {max(steps)}" if steps else "before its first step")
        return f"{done} trials told, none running"

    def study_trials(self) -> list[Any]:
        if not (self.folder / "study.db").exists():
            return []
        try:
            return optuna.load_study(study_name="s", storage=f"sqlite:///{self.folder / 'study.db'}").trials
        except Exception:  # it is being made
            return []

    def journal(self, number: int) -> list[dict[str, Any]]:
        path = self.folder / "trials" / f"s-{number:04d}" / "journal.jsonl"
        return read(path)[0] if path.exists() else []

    def outcome(self) -> dict[str, Any]:
        """All that has to be the same in two sweeps."""
        client = mlflow_client.connect(f"sqlite:///{self.home / 'mlflow.db'}")
        runs = client.search_runs([experiment.experiment_id for experiment in client.search_experiments()])
        children = {run.data.tags["mlflow.runName"]: run for run in runs if "mlflow.parentRunId" in run.data.tags}
        histories = {
            name: [(point.step, point.value) for point in client.get_metric_history(run.info.run_id, "train/loss")]
            for name, run in children.items()
        }
        rows = json.loads((self.folder / "artifacts" / "trials.json").read_text())["trials"]
        trials = self.study_trials()
        return {
            "trials of the study": [(trial.number, trial.state.name, trial.params) for trial in trials],
            "values": [trial.value for trial in trials],
            "folders": sorted(path.name for path in (self.folder / "trials").iterdir()),
            "rows of the table": sorted(row["run"] for row in rows),
            "runs of MLflow": (len(runs), sorted((name, run.info.status) for name, run in children.items())),
            "losses in MLflow": {name: sorted(points) for name, points in sorted(histories.items())},
            "weights": {
                path.parents[1].name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(self.folder.glob("trials/*/model/weights.safetensors"))
            },
        }


def drivers(home: Path) -> list[int]:
    """The jobs that run in a home."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            command, environment = (path / "cmdline").read_bytes(), (path / "environ").read_bytes()
        except OSError:
            continue
        if b"rwkv_jobs.tune" in command and f"RWKVCTL_HOME={home}".encode() in environment.split(b"\0"):
            found.append(int(path.name))
    return found


def main() -> int:
    """A line a kill; exit code 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--trials", type=int, default=4)
    parser.add_argument("--launcher", choices=["process", "ray"], default="process")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    differing = 0
    with tempfile.TemporaryDirectory(prefix="ks-", dir="/tmp") as name:
        place = Path(name)
        synth.write("clinicdb", place / "raw")
        prepare("clinicdb", [place / "raw"], place / "data", allow_partial=True)
        (place / "own.yaml").write_text(SPACE)
        mlflow_client.connect(f"sqlite:///{place / 'empty.db'}")

        def sweep(home: str) -> Sweep:
            own = place / "data", place / "own.yaml", arguments.trials, arguments.launcher, place / "empty.db"
            return Sweep(place / home, *own)

        whole = sweep("whole")
        began = time.monotonic()
        assert whole.run(whole.begin) == 0, (whole.home / "log").read_text()[-2000:]
        duration = time.monotonic() - began
        wanted = whole.outcome()
        print(f"undisturbed: {arguments.trials} trials in {duration:.1f} s, launcher {arguments.launcher}", flush=True)
        moments = random.Random(arguments.seed)
        for number in range(arguments.kills):
            one = sweep(f"k{number}")
            moment = moments.uniform(0, duration)
            was = one.kill_after(moment)
            code = one.run(one.go_on if one.folder.exists() else one.begin)
            found = one.outcome() if code == 0 else {}
            wrong = [what for what in wanted if found.get(what) != wanted[what]]
            differing += bool(wrong)
            said = f"exit code {code}, {', '.join(wrong)} differ" if wrong else "the same"
            print(f"kill {number + 1:2}  at {moment:5.1f} s  {was:32} {said}", flush=True)
            if wrong:
                print((one.home / "log").read_text()[-1500:], flush=True)
                for what in wrong[:2]:
                    print(f"  {what}: {str(found.get(what))[:600]}\n  wanted: {str(wanted[what])[:600]}", flush=True)
    print(
        f"seed {arguments.seed}: {arguments.kills - differing} of {arguments.kills} sweeps ended as the undisturbed one"
    )
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
