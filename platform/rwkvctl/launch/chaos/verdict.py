"""Whether a training under faults has seen, logged and learned the very same as one that was left alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvctl.runs import journal
from rwkvctl.runs.folder import JOURNAL, mlflow_run_id
from rwkvctl.runs.journal import MEASURED
from rwkvctl.runs.samples_seen import Life, lives
from rwkvctl.training.checkpoint_folder import pointed_at

if TYPE_CHECKING:
    from rwkvctl.launch.chaos.training import Training


Ids = tuple[str, ...]
Metrics = list[tuple[str, int, float]]
"""(key, step, value)"""


@dataclass
class Verdict:
    """What was compared, and what differs."""

    steps: int = 0
    repeated: int = 0
    """Steps that were taken again from an older checkpoint, over all workers."""
    samples: int = 0
    metrics: int = 0
    tensors: int = 0
    differences: list[str] = field(default_factory=list)


def compare(calm: Training, struck: Training) -> Verdict:
    """Samples, metrics and weights of both, and what MLflow has of the second."""
    verdict = Verdict()
    compare_samples(lives(calm.seen), lives(struck.seen), verdict)
    compare_metrics(metrics(calm.run_dir), metrics(struck.run_dir), verdict)
    compare_tracked(f"sqlite:///{struck.home / 'mlflow.db'}", struck.run_dir, verdict)
    compare_weights(calm.run_dir, struck.run_dir, verdict)
    return verdict


# Samples --------------------------------------------------------------------------------------------------------------


def compare_samples(expected: list[Life], found: list[Life], verdict: Verdict) -> None:
    """What the optimiser was given, worker by worker; of a step that was taken again every time."""
    for rank in sorted({life.rank for life in expected} | {life.rank for life in found}):
        right, _ = course(life for life in expected if life.rank == rank)
        own = [life for life in found if life.rank == rank]
        seen, gaps = course(own)
        verdict.differences += [f"samples of worker {rank}: {gap}" for gap in gaps]
        verdict.repeated += sum(len(life.steps) for life in own) - len(seen)
        verdict.steps, verdict.samples = max(verdict.steps, len(seen)), verdict.samples + sum(map(len, seen))
        if len(right) != len(seen):
            verdict.differences.append(f"samples of worker {rank}: {len(seen)} steps instead of {len(right)}")
        every = [(step.number, step.ids) for life in own for step in life.steps]
        if (differing := next((x for x in every if at(right, x[0]) != x[1]), None)) is not None:
            number, ids = differing
            expected_ids = ", ".join(at(right, number))
            verdict.differences.append(
                f"samples of worker {rank}: step {number} had {', '.join(ids)} instead of {expected_ids or 'none'}"
            )


def course(found: Iterable[Life]) -> tuple[list[Ids], list[str]]:
    """The batches of one worker that led to its last weights, and what is wrong with their numbers.

    A worker that starts again at step n has forgotten what it did from n on: its checkpoint is of step n - 1.
    """
    batches: list[Ids] = []
    gaps: list[str] = []
    for life in found:
        for number, step in enumerate(life.steps):
            if number == 0:
                if step.number > len(batches) + 1:
                    gaps.append(f"steps {len(batches) + 1} to {step.number - 1} were lost")
                    batches += [()] * (step.number - 1 - len(batches))
                del batches[step.number - 1 :]
            elif step.number != len(batches) + 1:
                gaps.append(f"step {step.number} came after step {len(batches)}")
            batches.append(step.ids)
    return batches, gaps


def at(batches: list[Ids], number: int) -> Ids:
    return batches[number - 1] if 0 < number <= len(batches) else ()


# Metrics --------------------------------------------------------------------------------------------------------------


def metrics(run_dir: Path) -> Metrics:
    """All that a journal has, in its order."""
    entries: list[dict[str, Any]] = [e for e in journal.read(run_dir / JOURNAL)[0] if e["kind"] == "metrics"]
    return [(key, entry["step"], value) for entry in entries for key, value in entry["values"].items()]


def compare_metrics(expected: Metrics, found: Metrics, verdict: Verdict) -> None:
    """Each once, and the same value where it is not the machine's."""
    verdict.differences += [f"journal: {text}" for text in doubled(found)]
    verdict.differences += [f"journal: {text}" for text in lost(expected, found)]
    right = {(key, step): value for key, step, value in expected if not key.endswith(MEASURED)}
    verdict.metrics = len(right)
    for key, step, value in found:
        if (other := right.get((key, step))) is not None and not same(value, other):
            verdict.differences.append(f"journal: {key} of step {step} is {value!r} instead of {other!r}")
            return  # all that follow differ too


def compare_tracked(uri: str, run_dir: Path, verdict: Verdict) -> None:
    """MLflow has one run that has ended well, with every metric of the journal once."""
    from rwkvctl.runs.mlflow_client import connect, when_free

    client = connect(uri)
    experiments = [experiment.experiment_id for experiment in when_free(client.search_experiments)]
    runs = [r for r in when_free(client.search_runs, experiments) if r.info.run_name == run_dir.name]
    if [run.info.run_id for run in runs] != [mlflow_run_id(run_dir)]:
        verdict.differences.append(f"MLflow: has {len(runs)} runs of the name {run_dir.name} instead of its one")
        return
    [run] = runs
    if run.info.status != "FINISHED":
        verdict.differences.append(f"MLflow: the run is {run.info.status}")
    found = [
        (metric.key, metric.step, metric.value)
        for key in run.data.metrics
        for metric in when_free(client.get_metric_history, run.info.run_id, key)
    ]
    logged = metrics(run_dir)
    verdict.differences += [f"MLflow: {text}" for text in [*doubled(found), *lost(logged, found)]]
    right = {(key, step): value for key, step, value in logged}
    for key, step, value in found:
        if (other := right.get((key, step))) is not None and not same(value, other):
            verdict.differences.append(f"MLflow: {key} of step {step} is {value!r}, in the journal {other!r}")
            return


def doubled(found: Metrics) -> list[str]:
    """Of all keys together the first that was logged more than once."""
    counts = Counter((key, step) for key, step, _ in found)
    more = [(step, key, count) for (key, step), count in counts.items() if count > 1]
    return [f"{key} of step {step} {count} times ({len(more)} in all)" for step, key, count in sorted(more)[:1]]


def lost(expected: Metrics, found: Metrics) -> list[str]:
    """The first that is missing, the first that is too many."""
    wanted, there = ({(step, key) for key, step, _ in each} for each in (expected, found))
    missing, extra = sorted(wanted - there), sorted(there - wanted)
    said = [f"{key} of step {step} is missing ({len(missing)} in all)" for step, key in missing[:1]]
    return said + [f"{key} of step {step} should not be there ({len(extra)} in all)" for step, key in extra[:1]]


def same(one: float, other: float) -> bool:
    return one == other or (math.isnan(one) and math.isnan(other))


# Weights --------------------------------------------------------------------------------------------------------------


def compare_weights(calm: Path, struck: Path, verdict: Verdict) -> None:
    """Bit for bit: the model, and everything in the last checkpoint."""
    for right, found in zip(files(calm), files(struck), strict=True):
        wanted, there = tensors(right), tensors(found)
        name = f"{found.parent.name}/{found.name}"
        verdict.tensors += len(wanted)
        if wanted.keys() != there.keys():
            verdict.differences.append(f"{name}: other tensors")
        bad = [key for key in sorted(wanted.keys() & there.keys()) if wanted[key] != there[key]]
        if bad:
            verdict.differences.append(f"{name}: {len(bad)} of {len(wanted)} tensors differ, first {bad[0]}")


def files(run_dir: Path) -> list[Path]:
    latest = pointed_at(run_dir / "checkpoints", "latest")
    assert latest is not None, "a run that has ended has a checkpoint"
    return [run_dir / "model" / "weights.safetensors", latest / "model.safetensors", latest / "optimizer.safetensors"]


def tensors(path: Path) -> dict[str, tuple[str, bytes]]:
    """Shape with type, and the bytes."""
    from safetensors.numpy import load_file

    return {key: (f"{value.dtype}{value.shape}", value.tobytes()) for key, value in load_file(path).items()}
