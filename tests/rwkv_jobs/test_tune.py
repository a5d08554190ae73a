"""Sweeps for real: every shipped space, trials that fail, die or are stopped, and what the study says of them."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import TrialState

from rwkv_jobs import trial, tune
from rwkv_jobs.driver import drive
from rwkv_jobs.stepper import NotFinite
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.cli import assemble
from rwkvctl.config.specs import load
from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.config.specs.objectives import parse_objective
from rwkvctl.runs import folder as run_folder
from rwkvctl.sweeps import pareto
from rwkvctl.sweeps.plan import plan

from .conftest import events, mlflow_runs

TINY = ["data.image_size=32", "data.workers=0", "train.batch_size=2", "train.epochs=1", "train.epoch_steps=1"]
HERE = "cluster.launcher=process"


def shipped(name: str, data: Path, trials: int, *assignments: str, **fields: Any) -> TuneSpec:
    """A sweep as `rwkvctl tune --space NAME --data DATA` starts it, tiny."""
    own = {"variant": "xt"}
    spec = assemble.tune_spec(name, None, str(data), own, [*TINY, *assignments], None, trials, 1, None, "sweep")
    return TuneSpec.model_validate(spec.model_dump(mode="json", by_alias=True) | fields)


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    return str(path)


def study_of(run_dir: Path) -> optuna.Study:
    return optuna.load_study(study_name=run_dir.name, storage=f"sqlite:///{run_dir / 'study.db'}")


def said(run_dir: Path) -> list[str]:
    return [event["text"] for event in events(run_dir, "message")]


def test_trials_are_recorded_with_where_they_are_and_what_they_cost(shards: Path, home: Path, tmp_path: Path):
    space = written(
        tmp_path,
        """
        params:
          model.ccm: {choice: [true, false]}
          model.ccm_hidden_rate: {int: [1, 2], when: {model.ccm: true}}
          model.encoder_weights: {choice: [null, /nowhere/w.pth], when: {model.ccm: false}}
        """,
    )
    spec = shipped(space, shards / "polyps", 4, HERE, sampler="grid")
    run_dir = run_folder.create(spec, str(tmp_path))
    with pytest.raises(
        JobFailedError, match=r"^1 of 4 trials failed; the last: .*nowhere.*--space own --resume sweep$"
    ):
        drive(spec, run_dir)
    trials = study_of(run_dir).trials
    assert [found.state for found in trials] == [TrialState.COMPLETE] * 3 + [TrialState.FAIL]
    assert "nowhere" in trials[3].user_attrs["why"]
    runs = {run.info.run_id: run for run in mlflow_runs(home)}
    for number, one in enumerate(trials):
        found = one.user_attrs
        assert found["run"] == f"sweep-{number:04d}"
        child = runs[found["mlflow_run"]]
        assert child.data.tags["mlflow.parentRunId"] == run_folder.mlflow_run_id(run_dir)
        assert child.info.status == ("FINISHED" if number < 3 else "FAILED")
    rows = json.loads((run_dir / "artifacts" / "trials.json").read_text())["trials"]
    costs = {row["model.ccm_hidden_rate"]: row["macs_paper"] for row in rows}
    assert costs[2] > costs[1] > costs[None]
    assert {row["run"]: row["macs_paper"] for row in rows} == {
        one.user_attrs["run"]: one.user_attrs["macs_paper"] for one in trials[:3]
    }
    lines = [line for line in said(run_dir) if line.startswith("trial ")]
    assert lines[0].startswith("trial 0 (model.ccm=True, model.ccm_hidden_rate=1): dsc_strict 0")
    assert " (best so far) | 1 of 4, about " in lines[0]
    assert "failed: model.encoder_weights /nowhere/w.pth: " in lines[3]
    assert lines[3].endswith(" | 3 of 4")


def test_what_an_error_says_of_the_point():
    with pytest.raises(RuntimeError) as full:
        torch.empty(1 << 45, dtype=torch.uint8)
    for error in (full.value, torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()):
        assert trial.outcome_of(error) == trial.Outcome("infeasible", "out of memory", clean=False)
    assert trial.outcome_of(NotFinite(3, "the loss", "lower the rate")).kind == "infeasible"
    assert trial.outcome_of(UserError("x: wrong")) == trial.Outcome("failed", "x: wrong")
    assert trial.outcome_of(KeyError("x")) == trial.Outcome("failed", "KeyError: 'x'", clean=False)


@pytest.mark.slow
def test_a_trial_that_cannot_be_trained_is_infeasible_with_why(shards: Path, tmp_path: Path):
    """At such a rate the loss is not finite after a step; the sweep goes on, and ends well."""
    space = written(tmp_path, "params: {optimizer.lr: {choice: [1.0e+30, 1.0e-3]}}")
    spec = shipped(space, shards / "polyps", 2, HERE, "train.epoch_steps=3", sampler="grid")
    result = drive(spec, run_folder.create(spec, str(tmp_path)))
    [other] = result["others"]
    assert (other["optimizer.lr"], other["outcome"]) == (1e30, "infeasible")
    assert other["why"].startswith("diverged: step ")
    assert result["best"]["params"] == {"optimizer.lr": 1e-3}


@pytest.mark.slow
def test_a_network_over_a_bound_is_not_trained(shards: Path, tmp_path: Path):
    spec = shipped("ccm_hidden", shards / "polyps", 4, HERE)
    sizes = {n: size(spec, n) for n in (1, 2, 3, 4)}
    bound = {"figure": "parameters", "most": (sizes[2] + sizes[3]) / 2}
    spec = TuneSpec.model_validate(spec.model_dump(mode="json", by_alias=True) | {"constraints": [bound]})
    planned = plan(spec, 1)["first trials"]
    assert [(point["model.ccm_hidden_rate"], "over" in point) for point in planned] == [
        (1, False), (2, False), (3, True), (4, True),
    ]  # fmt: skip
    run_dir = run_folder.create(spec, str(tmp_path))
    result = drive(spec, run_dir)
    assert sorted(row["model.ccm_hidden_rate"] for row in result["trials"]) == [1, 2]
    assert {other["outcome"] for other in result["others"]} == {"over the bound"}
    assert result["others"][0]["why"] == f"parameters {sizes[3]:,} is over {bound['most']:,.0f}"
    assert len(list((run_dir / "trials").glob("*/journal.jsonl"))) == 2
    assert said(run_dir)[-1] == "space ccm_hidden has 4 points and each has been tried: 2 trials, not 4"


@pytest.mark.slow
def test_a_trial_that_falls_behind_is_stopped_and_its_epochs_are_saved(
    shards: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The second of two, at its first rung; the rule itself has tests of its own."""
    monkeypatch.setattr(pareto, "is_stopped", lambda own, others: bool(list(others)))
    monkeypatch.setattr(pareto, "is_right", lambda ends: True)
    goals = [parse_objective(text).model_dump() for text in ("dsc_strict", "latency_ms")]
    steps = ["train.epochs=40", "train.epoch_steps=4", "train.log_steps=1", "train.checkpoint_steps=1"]
    spec = shipped("channel_mix", shards / "polyps", 2, HERE, *steps, objectives=goals, pruner="asha")
    run_dir = run_folder.create(spec, str(tmp_path))
    result = drive(spec, run_dir)
    [other] = result["others"]
    assert (other["trial"], other["outcome"]) == (1, "pruned")
    assert other["why"] == "fell behind at epoch 3"
    trained = [
        max(event["epoch"] for event in events(run_dir / "trials" / f"sweep-000{n}", "validation")) for n in (0, 1)
    ]
    assert trained[0] == 40
    assert 3 <= trained[1] < 40
    assert result["trials"][0]["latency_ms"] > 0
    assert sorted(run.info.status for run in mlflow_runs(home)) == ["FINISHED", "FINISHED", "KILLED"]


def size(spec: TuneSpec, rate: int) -> float:
    from rwkvctl.config.specs.sweep import trial_spec
    from rwkvctl.models.sizes import sizes_of

    return sizes_of(trial_spec(spec.base, {"model.ccm_hidden_rate": rate}))["parameters"]


def test_a_kept_process_trains_as_a_new_one_does(shards: Path, tmp_path: Path):
    """The second trial of a process has the weights that it would have had as the first."""
    spec = shipped("ccm_hidden", shards / "polyps", 2, HERE)
    drive(spec, one := run_folder.create(spec, str(tmp_path / "one")))
    space = written(tmp_path, "params: {model.ccm_hidden_rate: {choice: [2]}}")
    spec = shipped(space, shards / "polyps", 1, HERE)
    drive(spec, two := run_folder.create(spec, str(tmp_path / "two")))
    second, alone = (
        (run_dir / "trials" / name / "model" / "weights.safetensors").read_bytes()
        for run_dir, name in ((one, "sweep-0001"), (two, "sweep-0000"))
    )
    assert second == alone


@pytest.mark.slow
def test_trials_read_samples_that_are_decoded_once(
    shards: Path, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of the two trials the first decodes them; weights are those of a sweep that keeps nothing."""
    weights, steps = {}, ["train.epochs=2", "train.epoch_steps=3"]
    for bound in ("0", "1"):
        monkeypatch.setenv("RWKVCTL_DECODED_GB", bound)
        spec = shipped("ccm_hidden", shards / "polyps", 2, HERE, *steps)
        drive(spec, run_dir := run_folder.create(spec, str(tmp_path / bound)))
        assert len(list(home.glob("cache/decoded/*.samples"))) == int(bound)
        trials = sorted((run_dir / "trials").iterdir())
        weights[bound] = [(trial / "model" / "weights.safetensors").read_bytes() for trial in trials]
        kept = [line for trial in trials for line in said(trial) if "training samples are kept decoded" in line]
        assert len(kept) == int(bound)
    assert weights["0"] == weights["1"]


# Every space that is shipped -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synapse as `data synth` makes it, prepared."""
    from rwkvctl.data.convert import synth
    from rwkvctl.data.convert.prepare import prepare

    raw, out = tmp_path_factory.mktemp("raw"), tmp_path_factory.mktemp("shards") / "synapse"
    synth.write("synapse", raw / "synapse")
    prepare("synapse", [raw / "synapse"], out, allow_partial=True)
    return out


def header(name: str) -> list[str]:
    """The command at the top of a space."""
    return (load.job_folder() / "spaces" / f"{name}.yaml").read_text().splitlines()[0].removeprefix("# ").split()


@pytest.mark.parametrize("name", load.space_names())
def test_every_space_opens_with_the_command_that_runs_it(name: str):
    words = header(name)
    assert words[:4] == ["rwkvctl", "tune", "--space", name]
    data = {"binary": "clinicdb", "synapse": "synapse", "volumes": "my_volumes"}
    assert words[words.index("--data") + 1] == f"shards/{data[load.read_space(name).recipe]}"


@pytest.mark.slow
@pytest.mark.parametrize("name", load.space_names())
def test_a_trial_of_every_shipped_space_trains_and_is_scored(name: str, scans: Path, shards: Path, tmp_path: Path):
    """As its header says, on synthetic data of the same form, tiny; MaxViT takes images of 224 pixels only."""
    words, space = header(name), load.read_space(name)
    given = {word: words[i + 1] for i, word in enumerate(words) if word in ("--data", "--pruner")}
    search = assemble.search_options(
        objectives=[words[i + 1] for i, word in enumerate(words) if word == "--objective"] or None,
        sampler=None, pruner=given.get("--pruner"), constraints=None, warm_start=None, gpus_per_trial=None,
    )  # fmt: skip
    data = {"clinicdb": shards / "polyps", "my_volumes": shards / "chests"}.get(given["--data"][7:], scans)
    fixed = {*space.params, *(["data.image_size"] if name == "encoders" else [])}
    own = [line for line in TINY if line.partition("=")[0] not in fixed]
    own += ["volumes.patch=[8, 32, 32]"] if space.recipe == "volumes" else []
    own = [line.replace("epochs=1", "epochs=2") if search.get("pruner") else line for line in own]
    spec = assemble.tune_spec(name, None, str(data), {"variant": "xt"}, [*own, HERE], None, 1, 1, None, "sweep", search)
    result = drive(spec, run_folder.create(spec, str(tmp_path)))
    assert [0 <= row["dsc_strict"] <= 1 for row in result["trials"]] == [True]


# With Ray ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray() -> Iterator[None]:
    """One Ray for all sweeps of this file."""
    from rwkvctl.config.specs.parts import ClusterSpec
    from rwkvctl.launch.session import ray_session

    with ray_session(ClusterSpec(), cpus=2):
        yield


def with_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    from contextlib import nullcontext

    monkeypatch.setattr("rwkvctl.launch.session.ray_session", lambda cluster: nullcontext())


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Ray's, where it was started again
def test_a_trial_whose_process_is_killed_goes_on_in_another(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from rwkv_jobs.trial_loop import Loop

    with_ray(monkeypatch)
    struck: list[int] = []
    follow = Loop.follow

    def strike(self: Loop, view: Any) -> None:
        """Kill the first trial's process once it has written a checkpoint."""
        follow(self, view)
        lease = view.folder / "lease.json"
        if not struck and (view.folder / "checkpoints" / "latest.json").exists() and lease.exists():
            struck.append(json.loads(lease.read_text())["pid"])
            os.kill(struck[0], signal.SIGKILL)

    monkeypatch.setattr(Loop, "follow", strike)
    steps = ["train.epoch_steps=40", "train.checkpoint_steps=2", "train.log_steps=1", "data.workers=1"]
    spec = shipped("ccm_hidden", shards / "polyps", 2, *steps)
    run_dir = run_folder.create(spec, str(tmp_path))
    assert len(drive(spec, run_dir)["trials"]) == 2
    assert struck
    assert "trial 0: its process was killed" in " ".join(said(run_dir)) or "trial 0: its process died" in " ".join(
        said(run_dir)
    )
    first = run_dir / "trials" / "sweep-0000"
    assert [event["step"] > 0 for event in events(first, "plan")] == [False, True]
    assert len(list((run_dir / "trials").iterdir())) == 2
    assert tune.Study(spec, run_dir).lacking() == 0
