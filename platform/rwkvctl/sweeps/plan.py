"""What a sweep would do, for `--dry-run`: its first trials and its budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna

from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.config.specs.objectives import SIZES
from rwkvctl.config.specs.sweep import trial_spec
from rwkvctl.models.sizes import sizes_of
from rwkvctl.sweeps.study import Study

SHOWN = 5


def plan(spec: TuneSpec, steps_per_epoch: int) -> dict[str, Any]:
    """By what trials are judged, how much they would train at most, and the points that are tried first, with what
    their networks cost."""
    size = spec.space.size()
    trials = spec.trials if size is None else min(spec.trials, size)
    epochs = spec.base.train.epochs
    budget = (
        f"{trials} trials x {epochs} epochs x {steps_per_epoch} steps = {trials * epochs * steps_per_epoch:,} steps"
    )
    return {
        "objectives": ", ".join(f"{goal.metric} ({goal.direction})" for goal in spec.goals),
        "sampler": spec.chosen_by,
        "pruner": spec.pruner,
        "budget": f"{budget}{', less what is stopped early' if spec.pruner != 'none' else ''}",
        "first trials": first_trials(spec, min(trials, SHOWN)),
    }


def first_trials(spec: TuneSpec, count: int) -> list[dict[str, Any]]:
    """The points that a new study begins with; those that depend on the results of others cannot be known."""
    study = Study(spec, Path("/") / (spec.name or "plan"), optuna.storages.InMemoryStorage())
    found = []
    for _ in range(count):
        asked = study.ask()
        if asked is None:
            break
        sizes = sizes_of(trial_spec(spec.base, asked[1]))
        over = [bound.figure for bound in spec.constraints if sizes[bound.figure] > bound.most]
        found.append(asked[1] | {name: sizes[name] for name in SIZES} | ({"over": over[0]} if over else {}))
    return found


def line(trial: dict[str, Any]) -> str:
    """One of the first trials as text."""
    point = ", ".join(f"{path}={value}" for path, value in trial.items() if path not in (*SIZES, "over"))
    over = f", over its bound of {trial['over']}: not trained" if "over" in trial else ""
    return f"{point}: {trial['parameters'] / 1e6:.3f} M parameters, {trial['macs_paper'] / 1e9:.3f} G MACs{over}"
