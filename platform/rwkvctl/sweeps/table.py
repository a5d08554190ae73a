"""The table of a sweep, read from its study: a row a trial, best first."""

from __future__ import annotations

from typing import Any

from optuna.trial import FrozenTrial, TrialState

from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.config.specs.objectives import LATENCY, SCORES, SIZES, TOP1
from rwkvctl.sweeps import pareto
from rwkvctl.sweeps.study import OUTCOME, WARM, WHY, Study


def table(spec: TuneSpec, study: Study) -> dict[str, Any]:
    """`trials`: trained to the end, those of the front first, then by the first objective; `others`: those that were
    pruned, infeasible or failed, with why; `best` of one objective, or `front`, the names of its runs."""
    done = [t for t in study.optuna.get_trials(states=(TrialState.COMPLETE,)) if WARM not in t.user_attrs]
    losses = [[goal.sign * value for goal, value in zip(spec.goals, t.values, strict=True)] for t in done]
    on_front = pareto.front(losses)
    order = sorted(range(len(done)), key=lambda i: (i not in on_front, losses[i], done[i].number))
    rows = [row(spec, done[i]) | ({"front": i in on_front} if len(spec.goals) > 1 else {}) for i in order]
    others = [t for t in study.optuna.get_trials() if t.state in (TrialState.PRUNED, TrialState.FAIL)]
    found: dict[str, Any] = {
        "trials": rows,
        "others": [t.params | ending(t) for t in others if WARM not in t.user_attrs],
        "objectives": [goal.model_dump() for goal in spec.goals],
        "params": list(spec.space.params),
        "study": study.optuna.study_name,
    }
    if len(spec.goals) > 1:
        found["front"] = [done[i].user_attrs.get("run") for i in sorted(on_front, key=lambda i: losses[i])]
    elif rows:
        goal, best = spec.goals[0], done[order[0]]
        found["best"] = {"params": best.params, goal.metric: best.value}
    return found


def row(spec: TuneSpec, trial: FrozenTrial) -> dict[str, Any]:
    """A trial's point, then its figures."""
    known = trial.user_attrs | trial.user_attrs.get("figures", {})
    scores = SCORES if TOP1 not in known else (TOP1,)
    figures = {name: known.get(name) for name in (*scores, *SIZES)}
    if LATENCY in known:
        figures[LATENCY] = known[LATENCY]
    figures |= {goal.metric: value for goal, value in zip(spec.goals, trial.values, strict=True)}
    params = {path: trial.params.get(path) for path in spec.space.params}
    return params | figures | {"run": trial.user_attrs.get("run"), "run_id": trial.user_attrs.get("mlflow_run")}


def ending(trial: FrozenTrial) -> dict[str, Any]:
    """What became of a trial that was not trained to its end."""
    known = trial.user_attrs
    return {
        "trial": trial.number,
        "outcome": known.get(OUTCOME, "failed"),
        "why": known.get(WHY),
        "run": known.get("run"),
    }
