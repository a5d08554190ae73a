"""The driver's loop over the trials of a sweep: start them where there is room, follow them, tell the study."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

from rwkv_jobs import driver
from rwkv_jobs.trial import Outcome, ProcessDied, figures_of
from rwkv_jobs.trial_view import View, base_of, final_values, view_of
from rwkvctl.base.errors import JobFailedError
from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.config.specs.objectives import LATENCY, SIZES
from rwkvctl.config.specs.space import Point
from rwkvctl.launch import head
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import stop
from rwkvctl.runs.journal import say
from rwkvctl.sweeps import pruning
from rwkvctl.sweeps.study import OVER_BOUND, Study, Trial

LOOK_EVERY = 0.2
"""Seconds between two looks at what the running trials have written."""
SAVES_WITHIN = 40.0
"""Seconds that the running trials have to write a checkpoint when the sweep is stopped."""
TRACKED_WITHIN = 10.0
"""Seconds to wait for a trial's MLflow run before it is told without."""
MOST_OVER_BOUND = 1000
"""Points in a row that cost too much, after which a sweep gives up."""


class Loop:
    """The trials that a study lacks, one driver's worth of them."""

    def __init__(self, spec: TuneSpec, run_dir: Path, study: Study, pool: Any):
        self.spec, self.run_dir, self.study, self.pool = spec, run_dir, study, pool
        self.base = base_of(spec, run_dir)
        self.waiting = [(trial, study.go_on(trial)) for trial in study.interrupted()]
        self.running: list[View] = []
        self.left = study.lacking()
        """How many trials are still to be begun."""
        self.failures: list[str] = []
        self.over_bound = 0
        self.durations: list[float] = []
        self.tracking = ThreadPoolExecutor(8, thread_name_prefix="mlflow")

    def __enter__(self) -> Loop:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, head.HeadLost):
            self.save()
        for view in self.running:
            self.tracking.submit(view.close_tracking)
        self.tracking.shutdown(wait=True)

    def run(self) -> None:
        """Until every trial that the study lacks has been told."""
        while True:
            head.check()
            self.fill()
            if not self.running:
                return
            done = self.pool.ended([view.call for view in self.running], LOOK_EVERY)
            for view in self.running:
                self.follow(view)
            for view in [view for view in self.running if view.call in done]:
                self.collect(view)

    # Starting --------------------------------------------------------------------------------------------------

    def fill(self) -> None:
        """Begin trials as long as some are lacking and there is room."""
        while self.left > 0 and (runner := self.pool.take()) is not None:
            view = next(self.candidates(), None)
            if view is None:
                self.pool.give_back(runner, keep=True)
                self.left = 0
                return
            self.left -= 1
            view.runner = runner
            self.running.append(view)
            self.submit(view)

    def candidates(self) -> Iterator[View]:
        """Trials that are worth a process: those of an earlier driver, then new ones. The others are told at once."""
        while self.left > 0 and (found := self.waiting.pop(0) if self.waiting else self.study.ask()) is not None:
            view = self.prepared(*found)
            if view is not None:
                yield view

    def prepared(self, trial: Trial, point: Point) -> View | None:
        """A trial to be trained; None if it need not be, or cannot."""
        try:
            view = view_of(self.spec, self.base, self.run_dir, trial, point)
            over = self.over(view)
        except ValueError as error:
            why = " ".join(str(error).split())[:200]
            self.study.failed(trial, why)
            self.failures.append(why)
            self.left -= 1
            self.say_ended(trial.number, point, f"failed: {why}")
            return None
        if over is not None:
            why, by = over
            self.study.infeasible(trial, why, outcome=OVER_BOUND, by=by)
            self.over_bound += 1
            if self.over_bound >= MOST_OVER_BOUND:
                raise JobFailedError(f"{self.over_bound} points in a row were over a bound, the last: {why}; loosen it")
            return None
        self.over_bound = 0
        self.study.note(trial, run=view.folder.name)
        if self.spec.constraints or any(goal.metric in SIZES for goal in self.spec.goals):
            self.study.note(trial, **view.sizes)
        view.pruned = trial.user_attrs.get("stopped", "")
        told = Outcome("complete", figures=figures_of(view.folder)) if run_folder.result(view.folder) else None
        if told is None and not view.pruned:
            return view
        list(view.validations())
        view.track()
        self.left -= 1
        self.tell(view, told or Outcome("stopped"))
        return None

    def over(self, view: View) -> tuple[str, float] | None:
        """Which bound a network is over, and by which part of it."""
        for bound in self.spec.constraints:
            value = view.sizes[bound.figure]
            if value > bound.most:
                return f"{bound.figure} {value:,} is over {bound.most:,.0f}", value / bound.most - 1
        return None

    def submit(self, view: View) -> None:
        """Have a trial trained by its runner."""
        stop.clear(view.folder)
        timed = any(goal.metric == LATENCY for goal in self.spec.goals)
        fields = view.spec.model_dump(mode="json", by_alias=True)
        view.call = self.pool.start(view.runner, fields, view.folder, timed=timed)
        if view.deaths == 0:
            view.track()

    # Following -------------------------------------------------------------------------------------------------

    def follow(self, view: View) -> None:
        """Stop a trial that falls behind. Its last weights are in a checkpoint, as after any stop."""
        for epoch, metrics in view.validations():
            values = view.values_at_validation(self.spec.goals, metrics) if self.spec.pruner != "none" else None
            if values is None or view.pruned:
                continue
            if pruning.falls_behind(self.spec, view.trial, epoch, view.spec.train.epochs, values):
                view.pruned = f"fell behind at epoch {epoch}"
                self.study.note(view.trial, stopped=view.pruned)
                stop.ask(view.folder)

    def collect(self, view: View) -> None:
        """A trial's process has answered, or is gone."""
        try:
            found = self.pool.outcome(view.call)
        except ProcessDied as died:
            head.look()
            self.again(view, str(died))
            return
        self.running.remove(view)
        self.pool.give_back(view.runner, keep=found.clean)
        list(view.validations())
        self.tell(view, found)

    def again(self, view: View, why: str) -> None:
        """Go on with a trial whose process died, from its checkpoint, in a new process."""
        view.deaths = view.deaths + 1 if view.step <= view.died_at else 1
        view.died_at = max(view.step, view.died_at)
        self.pool.give_back(view.runner, keep=False)
        if view.deaths > self.spec.cluster.max_failures:
            self.running.remove(view)
            driver.end(view.folder, "FAILED", why, view.spec)
            self.tell(view, Outcome("failed", f"{why}, {view.deaths} times in a row without a new step"))
            return
        what = "trial" if self.spec.folds is None else "fold"
        say(self.run_dir, f"{what} {view.trial.number}: {why}; going on from its checkpoint in another")
        runner = self.pool.take()
        assert runner is not None, "the place that was just left"
        view.runner = runner
        self.submit(view)

    # Telling ---------------------------------------------------------------------------------------------------

    def tell(self, view: View, found: Outcome) -> None:
        """Tell the study and whoever watches what came of a trial."""
        self.note_run(view, found)
        trial, shown = view.trial, found.why
        match found.kind:
            case "complete":
                values = final_values(self.spec.goals, found.figures, view.tracked)
                if isinstance(values, str):
                    shown = f"infeasible: {values} is undefined"
                    self.study.infeasible(trial, shown.removeprefix("infeasible: "))
                else:
                    self.study.complete(trial, values)
                    named = zip(self.spec.goals, values, strict=True)
                    shown = ", ".join(f"{goal.metric} {value:.4g}" for goal, value in named) + self.compared(
                        trial, values
                    )
            case "stopped" if view.pruned:
                self.study.pruned(trial, view.pruned)
                shown = f"stopped: {view.pruned}"
            case "stopped":  # by whoever stopped the sweep: it goes on with the sweep
                return
            case "infeasible":
                self.study.infeasible(trial, found.why)
                shown = f"infeasible: {found.why}"
            case _:
                self.study.failed(trial, found.why)
                self.failures.append(found.why)
                shown = f"failed: {found.why}"
        self.durations.append(time.monotonic() - view.began)
        self.say_ended(trial.number, view.point, shown)

    def note_run(self, view: View, found: Outcome) -> None:
        """Where the trial is to be found, before it is told: a told trial takes no more attributes."""
        if run_folder.mlflow_run_id(view.folder) is None:
            view.syncer.do("run", lambda: None, TRACKED_WITHIN)
        run_id = run_folder.mlflow_run_id(view.folder)
        notes: dict[str, Any] = {"mlflow_run": run_id} if run_id else {}
        if found.figures:  # together, since each attribute is a transaction; what is sorted by, by itself
            scores = {name: value for name, value in found.figures.items() if name != "run"}
            notes |= {"figures": scores, "macs_paper": scores["macs_paper"], "parameters": scores["parameters"]}
        self.study.note(view.trial, **notes)
        self.tracking.submit(view.close_tracking)

    def compared(self, trial: Trial, values: list[float]) -> str:
        """` (best so far)`, or which is, for one objective; folds are no rivals."""
        if self.spec.folds is not None:
            return ""
        if len(values) > 1:
            return f" ({len(self.study.optuna.best_trials)} on the front)"
        best = self.study.optuna.best_trial
        return " (best so far)" if best.number == trial.number else f" (best {best.value:.4g}, trial {best.number})"

    def say_ended(self, number: int, point: Point, shown: str) -> None:
        """A line for whoever watches: this trial, how many there are, and how long the others will take."""
        values = ", ".join(
            f"{path}={value:.4g}" if isinstance(value, float) else f"{path}={value}" for path, value in point.items()
        )
        told = len(self.study.concluded())
        what = "trial" if self.spec.folds is None else "fold"
        say(self.run_dir, f"{what} {number} ({values}): {shown} | {told} of {self.spec.trials}{self.rest()}")

    def rest(self) -> str:
        """`, 2 running, about 12 min left`."""
        text = f", {len(self.running)} running" if self.running else ""
        left = self.left + len(self.running)
        if not left or not self.durations:
            return text
        seconds = sum(self.durations) / len(self.durations) * left / max(1, len(self.running))
        return f"{text}, about {seconds / 60:.0f} min left" if seconds > 90 else f"{text}, about {seconds:.0f} s left"

    # Stopping --------------------------------------------------------------------------------------------------

    def save(self) -> None:
        """Have the running trials write a checkpoint and end. They stay running in the study, and go on with it."""
        for view in self.running:
            stop.ask(view.folder)
        until = time.monotonic() + SAVES_WITHIN
        waited = [view.call for view in self.running]
        while waited and time.monotonic() < until:
            done = self.pool.ended(waited, LOOK_EVERY)
            waited = [call for call in waited if call not in done]
