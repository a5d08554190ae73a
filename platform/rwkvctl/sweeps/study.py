"""The Optuna study of a sweep: opened, asked for trials and told what came of them. It is the record of the sweep, and
opens unchanged in `optuna` and `optuna-dashboard`."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import ExperimentalWarning
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from rwkvctl.base.errors import UserError
from rwkvctl.base.uris import mask
from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.config.specs.space import Point
from rwkvctl.sweeps import points, pruning
from rwkvctl.sweeps.samplers import sampler

optuna.logging.set_verbosity(optuna.logging.WARNING)
OWNER = "rwkvctl.sweep"
OUTCOME, WHY = "outcome", "why"
"""User attributes of a trial: complete, pruned, infeasible or failed; and the reason."""
OVER_BOUND = "over the bound"
"""Outcome of a point that was not trained since its network costs too much."""
WARM = "warm_start"
"""User attribute of a trial of another sweep: SWEEP/NUMBER."""


def open_storage(spec: TuneSpec, run_dir: Path) -> optuna.storages.BaseStorage:
    """The database or journal file of a study.

    Raises:
        UserError: it cannot be opened.
    """
    where = spec.study_storage or f"sqlite:///{run_dir / 'study.db'}"
    try:
        if "://" not in where:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ExperimentalWarning)
                return optuna.storages.JournalStorage(JournalFileBackend(where))
        return optuna.storages.RDBStorage(where)
    except (SQLAlchemyError, ImportError, OSError) as error:
        reason = " ".join(str(getattr(error, "orig", None) or error).split())[:120]
        raise UserError(f"--study {mask(where)}: cannot be opened ({mask(reason)})") from None


Trial = optuna.Trial


class Study:
    """What a sweep's driver does with its study. A trial keeps its number, whatever becomes of the driver."""

    def __init__(self, spec: TuneSpec, run_dir: Path, storage: optuna.storages.BaseStorage | None = None):
        self.spec, self.space = spec, spec.space
        self.optuna = optuna.create_study(
            storage=storage or open_storage(spec, run_dir),
            study_name=run_dir.name,
            directions=[goal.direction for goal in spec.goals],
            pruner=pruning.by_name(spec),
            load_if_exists=True,
        )
        self._own(run_dir)
        self.begun = len(self.optuna.get_trials(deepcopy=False))
        self.points = points.untried(self.optuna, spec.space) if spec.chosen_by == "grid" else None

    def _own(self, run_dir: Path) -> None:
        owner = self.optuna.user_attrs.get(OWNER, str(run_dir))
        if owner != str(run_dir) and not (run_dir / "trials").is_dir():
            raise UserError(f"--study: it has a study {run_dir.name} of {owner}; give another --name")
        self.optuna.set_user_attr(OWNER, str(run_dir))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            self.optuna.set_metric_names([goal.metric for goal in self.spec.goals])

    def interrupted(self) -> Iterator[optuna.Trial]:
        """The trials that an earlier driver left running. They go on under their numbers."""
        for trial in self.optuna.get_trials(states=(TrialState.RUNNING,)):
            self.optuna.sampler = sampler(self.spec, self.optuna, self.begun, trial.number)
            yield optuna.Trial(self.optuna, trial._trial_id)

    def concluded(self) -> list[FrozenTrial]:
        """The trials that came to a result of their own: trained to the end, pruned, or infeasible."""
        done = self.optuna.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED), deepcopy=False)
        return [t for t in done if t.user_attrs.get(OUTCOME) != OVER_BOUND and WARM not in t.user_attrs]

    def lacking(self) -> int:
        """How many trials are still to come to a result, those that are running included."""
        return max(0, self.spec.trials - len(self.concluded()))

    def ask(self) -> tuple[optuna.Trial, Point] | None:
        """The next trial and its point; None where every point of the space has been tried."""
        if not self.optuna.get_trials(states=(TrialState.WAITING,), deepcopy=False) and not self._queue():
            return None
        self.optuna.sampler = sampler(self.spec, self.optuna, self.begun)
        trial = self.optuna.ask()
        return trial, points.suggest(trial, self.space)

    def _queue(self) -> bool:
        """Whether there is a point to ask for; of a grid it is queued."""
        if self.space.axes() is None:
            return True
        if self.points is None:
            return next(points.untried(self.optuna, self.space, self.begun), None) is not None
        point = next(self.points, None)
        if point is not None:
            self.optuna.enqueue_trial(point)
        return point is not None

    def go_on(self, trial: optuna.Trial) -> Point:
        """The point of an interrupted trial, with the parameters that its driver did not come to draw: as it would have
        drawn them, so those that it has are drawn again before."""
        self.optuna.sampler = drawing = sampler(self.spec, self.optuna, self.begun, trial.number)
        found = self.optuna._storage.get_trial(trial._trial_id)
        given = {*found.system_attrs.get("fixed_params", {}), *trial.relative_params}
        names = [name for name in self.space.params if name in found.params]
        for number, name in enumerate(names):
            if name not in given:
                before = copy.copy(found)
                before.params = {known: found.params[known] for known in names[:number]}
                drawing.sample_independent(self.optuna, before, name, found.distributions[name])
        return points.suggest(trial, self.space)

    def note(self, trial: optuna.Trial, **attributes: Any) -> None:
        """User attributes of a trial, while it is running."""
        for name, value in attributes.items():
            trial.set_user_attr(name, value)

    def complete(self, trial: optuna.Trial, values: list[float]) -> None:
        self.note(trial, **{OUTCOME: "complete"})
        if self.spec.constraints:
            trial.set_constraint("size", 0.0)
        self.optuna.tell(trial, values)

    def pruned(self, trial: optuna.Trial, why: str) -> None:
        self.note(trial, **{OUTCOME: "pruned", WHY: why})
        self.optuna.tell(trial, state=TrialState.PRUNED)

    def infeasible(self, trial: optuna.Trial, why: str, *, outcome: str = "infeasible", by: float = 1.0) -> None:
        """A point that cannot be trained: samplers keep away from it, the more the larger `by` is."""
        self.note(trial, **{OUTCOME: outcome, WHY: why})
        trial.set_constraint("infeasible", by)
        self.optuna.tell(trial, state=TrialState.PRUNED)

    def failed(self, trial: optuna.Trial, why: str) -> None:
        self.note(trial, **{OUTCOME: "failed", WHY: why})
        self.optuna.tell(trial, state=TrialState.FAIL)

    def end(self) -> None:
        """Leave nothing waiting or running: what is not needed any more has failed."""
        for trial in self.optuna.get_trials(states=(TrialState.WAITING, TrialState.RUNNING)):
            if trial.state == TrialState.WAITING:
                self.optuna._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING)
            self.failed(optuna.Trial(self.optuna, trial._trial_id), "not needed any more")
