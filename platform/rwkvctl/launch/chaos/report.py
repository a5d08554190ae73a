"""A campaign's outcome for people and for programs."""

from __future__ import annotations

from dataclasses import asdict
from statistics import median
from typing import Any

from rwkvctl.launch.chaos.campaign import Blow, Outcome
from rwkvctl.launch.chaos.plan import KINDS


def fields(outcome: Outcome, seed: int) -> dict[str, Any]:
    """Of the JSON object."""
    verdict = outcome.verdict
    return {
        "holds": outcome.holds,
        "seed": seed,
        "faults": len(outcome.blows),
        "planned": outcome.planned,
        "steps": outcome.steps,
        "starts": outcome.starts,
        "transient": outcome.transient,
        "seconds": round(outcome.seconds, 1),
        "kinds": {kind: of_kind(blows) for kind, blows in by_kind(outcome).items()},
        "blows": [asdict(blow) for blow in outcome.blows],
        "compared": None if verdict is None else {k: v for k, v in asdict(verdict).items() if k != "differences"},
        "problems": [*outcome.problems, *(verdict.differences if verdict else [])],
    }


def by_kind(outcome: Outcome) -> dict[str, list[Blow]]:
    found = {kind: [blow for blow in outcome.blows if blow.kind == kind] for kind in KINDS}
    return {kind: blows for kind, blows in found.items() if blows}


def of_kind(blows: list[Blow]) -> dict[str, Any]:
    """Seconds from the fault to the next step of the optimiser."""
    seconds = [blow.seconds for blow in blows if blow.seconds is not None]
    return {
        "count": len(blows),
        "median_seconds": round(median(seconds), 1) if seconds else None,
        "max_seconds": round(max(seconds), 1) if seconds else None,
    }


def table(outcome: Outcome) -> list[str]:
    """A row a kind, then what differs, then the verdict."""
    rows = [("fault", "count", "next step after: median", "max")]
    for kind, blows in by_kind(outcome).items():
        found = of_kind(blows)
        rows.append((kind, str(found["count"]), seconds(found["median_seconds"]), seconds(found["max_seconds"])))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    problems = [*outcome.problems, *(outcome.verdict.differences if outcome.verdict else [])]
    if outcome.transient:
        lines.append(f"note: the job asked for another try {outcome.transient} times (exit code 75), and got it")
    return [*lines, "", *(f"problem: {text}" for text in problems), verdict(outcome)]


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def verdict(outcome: Outcome) -> str:
    """The last line."""
    done = f"{len(outcome.blows)} faults"
    if len(outcome.blows) < outcome.planned:
        done += f" of {outcome.planned} (the training ended before the others)"
    done += f", {outcome.starts} starts, {outcome.seconds:.0f} s"
    compared = outcome.verdict
    if compared is None:
        return f"FAILED: the training did not come to its end: {done}"
    if not outcome.holds:
        return f"FAILED: the training is not the same as without faults: {done}"
    return (
        f"OK: {done}; {compared.steps} steps with {compared.samples} samples, {compared.metrics} metrics and "
        f"{compared.tensors} tensors are the same as without faults ({compared.repeated} steps were repeated)"
    )
