"""Whole jobs on tiny data: shards of 32 px phantoms, RWKV-UNet-XT, a real MLflow on SQLite."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from rwkvctl.base import files

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_worker_niceness", "0")  # at Ray's 15, a worker on a busy machine hardly gets to run
PATIENCE = 900.0
"""Seconds until a test gives up on an event: a machine that is busy with other things is slow, not broken."""
VARIABLES = ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RWKVCTL_DATA_ROOT", "RWKVCTL_STORAGE", "RWKVCTL_MIRRORS")
TINY = {
    # 12 polyps, 24 slices of hearts or 24 textures to train on: three steps an epoch.
    "finetune": ["model.name=rwkv_unet_xt", "train.epochs=2", "train.batch_size=4"],
    "hearts": ["model.name=rwkv_unet_xt", "train.epochs=1", "train.batch_size=4"],
    # Four patches of each of 4 volumes: four steps an epoch.
    "volumes": [
        "model.name=rwkv_unet_3d_xt", "train.epochs=2", "train.batch_size=4", "volumes.patch=[8, 32, 32]",
        "volumes.patches_per_case=4",
    ],
    # 12 labeled and 24 unlabeled images.
    "cervix": [
        "model.name=rwkv_unet_xt", "train.epochs=2", "train.batch_size=4", "train.epoch_steps=4",
        "consistency.batch_size=4", "consistency.ramp_epochs=1",
    ],
    "pretrain": [
        "model.name=rwkv_unet_enc_xt", "train.epochs=2", "train.batch_size=8", "optimizer.lr_reference_batch=8",
    ],
}  # fmt: skip
COMMON = ["data.image_size=32", "data.workers=0", "train.log_steps=1", "train.checkpoint_steps=2"]


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data sets `polyps`, `hearts`, `chests` (thicker volumes) and `textures`. Tests must not change them."""
    from rwkvctl.data.convert import synth
    from rwkvctl.data.convert.prepare import prepare
    from rwkvctl.data.convert.synth import phantom

    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("shards")
    phantom.write_polyps(raw / "polyps", n=16, size=40)
    phantom.write_volumes(raw / "hearts", n_patients=4, size=32, depth=3)
    phantom.write_textures(raw / "textures", classes=3, per_class=8, size=32)
    prepare("folder", [raw / "polyps"], out / "polyps", seeds=[41])
    prepare("acdc", [raw / "hearts"], out / "hearts")
    phantom.write_volumes(raw / "chests", n_patients=4, size=36, depth=10)
    prepare("acdc", [raw / "chests"], out / "chests")
    prepare("imagefolder", [raw / "textures"], out / "textures")
    synth.write("fugc", raw / "cervix")
    prepare("fugc", [raw / "cervix"], out / "cervix", allow_partial=True)
    return out


@pytest.fixture(autouse=True)
def home(migrated_database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of the test's own."""
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("RWKVCTL_HOME", str(home))
    shutil.copy(migrated_database, home / "mlflow.db")
    return home


class Jobs:
    """Starts jobs as a user's script would, and reads what they leave."""

    def __init__(self, shards: Path, home: Path):
        self.shards, self.home, self.runs = shards, home, home / "runs"

    def settings(self, kind: str, *assignments: str, data: Path | None = None) -> tuple[str, list[str]]:
        """The recipe and its overrides for a tiny job of a kind of TINY."""
        recipe, folder = {
            "finetune": ("binary", "polyps"), "hearts": ("acdc", "hearts"), "cervix": ("fugc", "cervix"),
            "volumes": ("acdc", "chests"), "pretrain": ("imagefolder", "textures"),
        }[kind]  # fmt: skip
        own = [f"data.path={data or self.shards / folder}", f"data.dataset={folder}", "cluster.launcher=process"]
        return recipe, [*own, *COMMON, *TINY[kind], *assignments]

    def new(self, kind: str, name: str, *assignments: str, data: Path | None = None) -> Path:
        """A run folder, ready to be started."""
        from rwkv_jobs.entry import resolve

        recipe, own = self.settings(kind, f"name={name}", *assignments, data=data)
        return resolve(job_of(kind), recipe, own)[1]

    def run(self, kind: str, target: str | Path, *assignments: str) -> int:
        """A job in this process; returns its exit code. Targets are a run folder, or the name of a new run."""
        from rwkv_jobs.entry import guarded

        if isinstance(target, str):
            target = self.new(kind, target, *assignments)
        return guarded(job_of(kind), str(target), [])

    def start(self, kind: str, run_dir: Path, before: str = "", **environment: str) -> Any:
        """A job in a process of its own, which writes to `<run>.log`; `before` is Python that it runs first."""
        code = PROCESS.format(
            environment=dict(os.environ) | {"RWKVCTL_HOME": str(self.home)} | environment,
            log=str(run_dir.with_suffix(".log")),
            arguments=[f"rwkv_jobs.{job_of(kind)}", str(run_dir)],
            before=before,
            job=job_of(kind),
        )
        process = server().Process(target=exec, args=(code, {}))
        process.start()
        return process


PRELOAD = ["mlflow.pyfunc", "mlflow.store.tracking.sqlalchemy_store", "rwkv_jobs.finetune", "rwkv_jobs.pretrain"]
PROCESS = """
import os, signal, sys
os.setsid()
signal.signal(signal.SIGINT, signal.default_int_handler)  # where the tests run in the background it is ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)
os.environ.clear()
os.environ.update({environment!r})
log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(log, 1)
os.dup2(log, 2)
sys.argv = {arguments!r}
{before}
from rwkv_jobs.entry import main
main({job!r})
"""


def server() -> Any:
    """Processes come from a fork server that has imported everything: starting one costs milliseconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context


@pytest.fixture(autouse=True)
def one_ray(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests that start Ray wait for one another: two of them on two cores only make each other time out."""
    if request.node.get_closest_marker("ray") is None:
        yield
        return
    with files.locked(tmp_path_factory.getbasetemp().parent / "ray"):
        yield


@pytest.fixture
def jobs(shards: Path, home: Path) -> Jobs:
    return Jobs(shards, home)


@pytest.fixture(scope="session")
def uninterrupted(
    shards: Path, migrated_database: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The run folder of a job of a kind to which nothing happened; made once."""

    @cache
    def run(kind: str) -> Path:
        home = tmp_path_factory.mktemp("uninterrupted")
        shutil.copy(migrated_database, home / "mlflow.db")
        jobs = Jobs(shards, home)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("RWKVCTL_HOME", str(home))
            assert jobs.run(kind, "straight") == 0
        return jobs.runs / "straight"

    return run


def job_of(kind: str) -> str:
    return "finetune" if kind in ("hearts", "cervix", "volumes") else kind


# What a run leaves --------------------------------------------------------------------------------------------------


def weights(run_dir: Path) -> dict[str, bytes]:
    """Every tensor of the model folder and of the last checkpoint, as bytes."""
    files = [run_dir / "model" / "weights.safetensors", *sorted(latest(run_dir).glob("*.safetensors"))]
    return {f"{file.name}/{key}": value.numpy().tobytes() for file in files for key, value in load_file(file).items()}


def latest(run_dir: Path) -> Path:
    folder = run_dir / "checkpoints"
    return folder / json.loads((folder / "latest.json").read_text())["checkpoint"]


def history(run_dir: Path) -> list[tuple[str, int, float]]:
    """(key, step, value) of every metric in the journal."""
    from rwkvctl.runs.journal import read

    entries = [entry for entry in read(run_dir / "journal.jsonl")[0] if entry["kind"] == "metrics"]
    return [(key, entry["step"], value) for entry in entries for key, value in entry["values"].items()]


def events(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    from rwkvctl.runs.journal import read

    return [entry for entry in read(run_dir / "journal.jsonl")[0] if entry.get("event") == kind]


def mlflow_runs(home: Path) -> list[Any]:
    """All runs that the test's MLflow has."""
    from rwkvctl.runs import mlflow_client

    client = mlflow_client.connect(f"sqlite:///{home / 'mlflow.db'}")
    return list(client.search_runs([e.experiment_id for e in client.search_experiments()]))


def mlflow_history(home: Path, run: Any) -> list[tuple[str, int, float]]:
    from rwkvctl.runs import mlflow_client

    client = mlflow_client.connect(f"sqlite:///{home / 'mlflow.db'}")
    found = [client.get_metric_history(run.info.run_id, key) for key in run.data.metrics]
    return [(metric.key, metric.step, metric.value) for metrics in found for metric in metrics]


def wait_for(condition: Callable[[], Any], what: str, seconds: float = PATIENCE) -> Any:
    """The condition's value as soon as it is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"no {what} after {seconds} s"
        time.sleep(0.02)
    return value


def wait_for_step(run_dir: Path, step: int, seconds: float = PATIENCE) -> None:
    """Until the journal has the loss of a step."""
    path = run_dir / "journal.jsonl"
    wait_for(
        lambda: path.exists() and any(key == "train/loss" and at >= step for key, at, _ in history(run_dir)),
        f"step {step} of {run_dir.name}",
        seconds,
    )


@pytest.fixture
def children() -> Iterator[list[Any]]:
    """Processes that are killed when the test ends, however it ends."""
    started: list[Any] = []
    yield started
    for process in started:
        if process.exitcode is None if hasattr(process, "exitcode") else process.poll() is None:
            os.kill(process.pid, signal.SIGKILL)
            process.join() if hasattr(process, "join") else process.wait()
