"""One trial of a sweep, in the process that trains it: a fine-tuning run in a folder of the sweep's.

Its journal is sent to MLflow by the sweep's driver, which follows it anyway; so nothing here waits for a server.
"""

from __future__ import annotations

import gc
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from rwkv_jobs import driver, finetune, pretrain
from rwkv_jobs.launch import launch
from rwkv_jobs.worker import pick_device
from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import write_json
from rwkvctl.config.specs.jobs import FinetuneSpec, PretrainSpec
from rwkvctl.config.specs.load import build
from rwkvctl.config.specs.objectives import LATENCY, MORE_SCORES, SCORES, SIZES, TOP1
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import build as networks
from rwkvctl.models.latency import median_ms
from rwkvctl.models.plan_volumes import planned
from rwkvctl.registry.release import SUMMARY
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import job_record, stop
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.lease import RunLease

SPEED = "latency.json"
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory")
TIMED_RUNS = 5


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, as its driver tells the study: complete, stopped, infeasible or failed."""

    kind: str
    why: str = ""
    figures: dict[str, Any] = field(default_factory=dict)
    clean: bool = True
    """Whether the process may train another trial."""


class ProcessDied(Exception):
    """The process of a trial is gone: killed, or with its node."""


def train(fields: dict[str, Any], run_dir: Path, *, timed: bool = False) -> Outcome:
    """Train a trial, from its checkpoint if it has one, and say how it ended, whatever it raises."""
    kind: type[FinetuneSpec | PretrainSpec] = PretrainSpec if fields["job"] == "pretrain" else FinetuneSpec
    spec = build(kind, fields, f"trial {run_dir.name}")
    status, reason = "FINISHED", ""
    try:
        begin(spec, run_dir)
        if timed and isinstance(spec, FinetuneSpec):
            measure(spec, run_dir)
        launch(finetune.train if isinstance(spec, FinetuneSpec) else pretrain.train, spec, run_dir)
        outcome = Outcome("complete", figures=figures_of(run_dir))
        write_json(run_dir / run_folder.RESULT, outcome.figures)
        with Journal(run_dir / run_folder.JOURNAL) as journal:
            driver.record_artifacts(journal, run_dir)
    except KeyboardInterrupt:
        status, reason = "KILLED", "stopped"
        outcome = Outcome("stopped")
    except Exception as error:
        status, reason = "FAILED", job_record.reason_of(error)
        outcome = outcome_of(error)
    if (run_dir / run_folder.JOURNAL).exists():
        driver.end(run_dir, status, reason, spec)
    stop.clear(run_dir)
    if torch.cuda.is_available():  # its memory must be there for the next trial, another process's perhaps
        gc.collect()
        torch.cuda.empty_cache()
    return outcome


def begin(spec: FinetuneSpec | PretrainSpec, run_dir: Path) -> None:
    """The first entries of the trial's journal, and the weights that its encoder starts from."""
    with RunLease(run_dir) as lease, Journal(run_dir / run_folder.JOURNAL, lease=lease) as journal:
        driver.start(journal, spec, run_dir)
    if isinstance(spec, FinetuneSpec):
        finetune.prepare(spec, run_dir)
    else:
        pretrain.prepare(spec, run_dir)


def outcome_of(error: Exception) -> Outcome:
    """What an error says of the point: that it cannot be trained (infeasible), or that something else went wrong."""
    text = job_record.reason_of(error)
    if isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in OUT_OF_MEMORY):
        return Outcome("infeasible", "out of memory", clean=False)
    if isinstance(error, JobFailedError) and "is not finite" in text:
        return Outcome("infeasible", f"diverged: {text}")
    return Outcome("failed", text, clean=isinstance(error, UserError | JobFailedError))


def figures_of(run_dir: Path) -> dict[str, Any]:
    """What a trial is judged by, and what the table shows of it: scores of the best weights, and what they cost."""
    summary = json.loads((run_dir / SUMMARY).read_text())
    if "val" not in summary:  # a classifier's
        return {name: summary[name] for name in (TOP1, *SIZES)} | {"run": run_dir.name}
    mean = summary["val"]["mean"]
    scores = {name: mean[name] if name.startswith("hd95") else mean[name] or 0.0 for name in SCORES}
    scores |= {name: mean.get(name) for name in MORE_SCORES}
    return scores | {name: summary[name] for name in SIZES} | latency(run_dir) | {"run": run_dir.name}


def latency(run_dir: Path) -> dict[str, float]:
    """The measured latency of a trial that has one."""
    try:
        found: dict[str, float] = json.loads((run_dir / SPEED).read_text())
    except FileNotFoundError:
        return {}
    return found


def measure(spec: FinetuneSpec, run_dir: Path) -> None:
    """Leave the median time of the network for one image, on the device that trains it."""
    if (run_dir / SPEED).exists():
        return
    device, manifest = pick_device(), Manifest.load(spec.data.path or "")
    spec = planned(spec, manifest)
    model = finetune.make_model(spec, manifest, run_dir).eval().to(device)
    image = torch.zeros(1, *networks.input_shape(spec, manifest.channels), device=device)
    write_json(run_dir / SPEED, {LATENCY: round(median_ms(model, image, TIMED_RUNS, warm_up=1), 3)})


def sent(outcome: Outcome) -> dict[str, Any]:
    """An outcome as it is sent from process to process."""
    return asdict(outcome)
