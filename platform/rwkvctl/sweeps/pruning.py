"""Whether a trial is stopped before its end, from what it shows at validation."""

from __future__ import annotations

import optuna
from optuna.trial import TrialState

from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.sweeps import pareto

RUNGS = "rungs"
"""User attribute of a trial with several objectives: what it had at each validation, by epoch."""


def by_name(spec: TuneSpec) -> optuna.pruners.BasePruner:
    """Optuna's pruner for one objective; for several there is none, and `pareto` decides."""
    if len(spec.goals) > 1:
        return optuna.pruners.NopPruner()
    first = (pareto.rungs(spec.base.train.epochs) or [1])[0]
    match spec.pruner:
        case "asha":
            return optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=pareto.ETA)
        case "median":
            return optuna.pruners.MedianPruner()
        case "hyperband":
            return optuna.pruners.HyperbandPruner(
                min_resource=first, max_resource=spec.base.train.epochs, reduction_factor=pareto.ETA
            )
        case _:
            return optuna.pruners.NopPruner()


def falls_behind(spec: TuneSpec, trial: optuna.Trial, epoch: int, last: int, values: list[float]) -> bool:
    """Note what a trial has at a validation, once an epoch; whether it is to be stopped there.

    `last`: its last epoch; `values`: one an objective.
    """
    if len(spec.goals) > 1:
        known = trial.user_attrs.get(RUNGS, {})
        if str(epoch) in known:
            return False
        trial.set_user_attr(RUNGS, known | {str(epoch): values})
        return spec.pruner == "asha" and is_dominated(spec, trial, epoch, last)
    if epoch in trial.storage.get_trial(trial._trial_id).intermediate_values:
        return False
    trial.report(values[0], epoch)
    return epoch < last and trial.should_prune()


def is_dominated(spec: TuneSpec, trial: optuna.Trial, epoch: int, last: int) -> bool:
    """Whether this validation is the first at or behind a rung, enough other trials had better ones there, and the rung
    has been right of those that came to their end."""
    own = trial.user_attrs[RUNGS]
    before = max((int(known) for known in own if int(known) < epoch), default=0)
    passed = [rung for rung in pareto.rungs(last) if before < rung <= epoch]
    if not passed:
        return False
    signs = [goal.sign for goal in spec.goals]

    def losses(values: list[float]) -> list[float]:
        return [sign * value for sign, value in zip(signs, values, strict=True)]

    others, ends = [], []
    for other in trial.study.get_trials(deepcopy=False):
        found = other.user_attrs.get(RUNGS, {}) if other.number != trial.number else {}
        reached = [int(known) for known in found if int(known) >= passed[-1]]
        if not reached:
            continue
        others.append(losses(found[str(min(reached))]))
        if other.state == TrialState.COMPLETE:
            ends.append((others[-1], losses(found[str(max(reached))])))
    return pareto.is_stopped(losses(own[str(epoch)]), others) and pareto.is_right(ends)
