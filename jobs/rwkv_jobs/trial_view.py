"""A trial as the driver of its sweep sees it: its folder, how far it is, and its figures."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkv_jobs.trial import latency
from rwkvctl.config.specs import sweep
from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.config.specs.load import build, merge
from rwkvctl.config.specs.objectives import Objective
from rwkvctl.config.specs.space import Point
from rwkvctl.config.specs.sweep import trial_spec
from rwkvctl.models.sizes import sizes_of
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import journal
from rwkvctl.runs.journal_mirrors import JournalMirrors
from rwkvctl.runs.sync import Syncer
from rwkvctl.sweeps.study import Trial


@dataclass
class View:
    """One trial that is running. Its name is the sweep's and its number: whoever goes on with it finds its folder."""

    trial: Trial
    point: Point
    spec: sweep.Trial
    folder: Path
    syncer: Syncer
    mirrors: JournalMirrors
    runner: Any = None
    call: Any = None
    deaths: int = 0
    """How often its process has died without a new step between."""
    step: int = -1
    died_at: int = -1
    pruned: str = ""
    began: float = field(default_factory=time.monotonic)
    offset: int = 0
    tracked: dict[str, float] = field(default_factory=dict)
    """The last value of every metric."""

    def validations(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Epochs that were validated since the last call, with the metrics as they were then."""
        path = self.folder / run_folder.JOURNAL
        if not path.exists():
            return
        entries, self.offset = journal.read(path, self.offset)
        for entry in entries:
            if entry["kind"] == "metrics":
                self.tracked |= entry["values"]
                self.step = max(self.step, entry["step"])
            elif entry.get("event") == "validation":
                yield entry["epoch"], dict(self.tracked)

    def values_at_validation(self, goals: tuple[Objective, ...], metrics: dict[str, float]) -> list[float] | None:
        """What a trial is compared by before its end, one number a goal; None if one is not known."""
        fixed = latency(self.folder)
        known = [
            metrics.get(goal.validation_metric) if goal.validation_metric else (fixed | self.sizes).get(goal.metric)
            for goal in goals
        ]
        return known if all(value is not None for value in known) else None  # type: ignore[return-value]

    def track(self) -> None:
        """Begin to send the trial's journal to MLflow and to its mirrors."""
        self.syncer.start()
        self.mirrors.start()

    def close_tracking(self) -> None:
        """Send the rest."""
        self.mirrors.close()
        self.syncer.close()

    @property
    def sizes(self) -> dict[str, float]:
        """Parameters and MACs of its network."""
        return sizes_of(self.spec)


def final_values(goals: tuple[Objective, ...], figures: dict[str, Any], tracked: dict[str, float]) -> list[float] | str:
    """One number a goal at a trial's end; the first that the trial does not have, as text."""
    values: list[float] = []
    for goal in goals:
        value = figures[goal.metric] if goal.metric in figures else tracked.get(goal.metric)
        if value is None or not math.isfinite(value):
            return goal.metric
        values.append(float(value))
    return values


def base_of(spec: TuneSpec, run_dir: Path) -> sweep.Trial:
    """The spec that all trials share: on one node, a child of the sweep's MLflow run, no registered model."""
    cluster = spec.base.cluster
    several = (cluster.workers or 1) > 1
    own = {
        "cluster": {"launcher": "ray" if several else "process", "workers": cluster.workers or 1}
        | dict.fromkeys(("address", "nodes", "gpus_per_node")),
        "tracking": {
            "uri": spec.tracking.uri,
            "experiment": spec.tracking.experiment,
            "parent": run_folder.mlflow_run_id(run_dir),
            "register_as": "",
            "mirrors": list(spec.tracking.mirrors or ()),
        },
    }
    return build(type(spec.base), merge(spec.base.model_dump(mode="json", by_alias=True), own), "trial")


def view_of(spec: TuneSpec, base: sweep.Trial, run_dir: Path, trial: Trial, point: Point) -> View:
    """A trial in its folder, which is made if it is new."""
    name = f"{run_dir.name}-{trial.number:04d}"
    folder = run_dir / "trials" / name
    own = trial_spec(base, point).model_copy(update={"name": name})
    if (folder / run_folder.SPEC).exists():
        own = run_folder.keep_resolved(run_folder.read_spec(folder), own)  # type: ignore[assignment]
    run_folder.write_spec(folder, own)
    syncer = Syncer(folder, spec.tracking.uri or "", spec.tracking.experiment, parent=run_dir)
    mirrors = JournalMirrors(folder, spec.tracking.mirrors or ())
    return View(trial, point, own, folder, syncer, mirrors)
