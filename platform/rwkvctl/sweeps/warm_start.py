"""The trials of another sweep, given to a new one before its first."""

from __future__ import annotations

from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.config.specs.space import SpaceSpec
from rwkvctl.runs import folder as run_folder
from rwkvctl.sweeps.points import distribution
from rwkvctl.sweeps.study import WARM, Study, open_storage


def check(spec: TuneSpec) -> None:
    """Refuse a sweep that has been judged by something else."""
    if spec.warm_start is None:
        return
    other = run_folder.read_spec(Path(spec.warm_start))
    assert isinstance(other, TuneSpec)
    theirs, ours = ([(goal.metric, goal.direction) for goal in sweep.goals] for sweep in (other, spec))
    if theirs != ours:
        [named, wanted] = [", ".join(metric for metric, _ in goals) for goals in (theirs, ours)]
        raise UserError(f"--warm-start {Path(spec.warm_start).name}: its objectives are {named}, not {wanted}")


def take_over(spec: TuneSpec, study: Study) -> str:
    """Add the other sweep's trials that fit the space, each once, and say how many did."""
    assert spec.warm_start is not None
    folder = Path(spec.warm_start)
    other = run_folder.read_spec(folder)
    assert isinstance(other, TuneSpec)
    theirs = optuna.load_study(study_name=folder.name, storage=open_storage(other, folder)).get_trials(
        states=(TrialState.COMPLETE,)
    )
    known = {trial.user_attrs.get(WARM) for trial in study.optuna.get_trials(deepcopy=False)}
    fitting = [trial for trial in theirs if fits(spec.space, trial)]
    for trial in fitting:
        label = f"{folder.name}/{trial.number}"
        if label not in known:
            study.optuna.add_trial(
                optuna.trial.create_trial(
                    params=trial.params,
                    distributions={path: distribution(spec.space.params[path]) for path in trial.params},
                    values=trial.values,
                    user_attrs=trial.user_attrs | {WARM: label},
                )
            )
    return f"{len(fitting)} of the {len(theirs)} trials of {folder.name} are in this space, and known to the sampler"


def fits(space: SpaceSpec, trial: FrozenTrial) -> bool:
    """Whether a trial's point is one of a space."""
    if not trial.params.keys() <= space.params.keys() or space.begun(trial.params) is not None:
        return False
    if not all(space.exists(path, trial.params) for path in trial.params):
        return False
    for path, value in trial.params.items():
        there = distribution(space.params[path])
        try:
            inside = there._contains(there.to_internal_repr(value))
        except ValueError:
            inside = False
        if not inside:
            return False
    return True
