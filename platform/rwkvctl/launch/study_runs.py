"""Train and evaluate every row of a study, as the runs that a person would start, and only those that are not done.

A cell is a row on a data set with a seed: a fine-tuning run, and the evaluation of its test part. Their names follow
from what they compute, so that a study goes on where it was stopped, also on another machine with the same storage, and
a run with another budget is another run.
"""

from __future__ import annotations

import hashlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.base.processes import signal_group
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.config.specs.load import parse_assignments
from rwkvctl.config.specs.study import StudySpec, assignments, row_spec
from rwkvctl.launch import observe
from rwkvctl.runs import folder as run_folder

POLL = 0.2
ENDS_WITHIN = 90.0
"""Seconds that trainings have to write a checkpoint when the study is stopped."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class Cell:
    """One training of a study."""

    name: str
    """Of its run; that of its evaluation ends with `-test`."""
    label: str
    """As it is shown: `rate 1, synapse, seed 42`."""
    words: tuple[str, ...]
    """What a person would type after `rwkvctl` to train it."""
    where: tuple[str, ...] = ()
    """What its evaluation has after `--set`."""

    @property
    def evaluation(self) -> str:
        return f"{self.name}-test"


@dataclass(frozen=True)
class Choice:
    """What of a study is to be run, and how."""

    seeds: int = 1
    rows: tuple[str, ...] = ()
    """Labels; empty are all."""
    data: Mapping[str, str] = field(default_factory=dict)
    """Folders by data set; those that are absent are found by the settings."""
    assignments: tuple[str, ...] = ()
    """As after `--set`, for all rows: a smaller budget, say."""
    where: tuple[str, ...] = ()
    """The same, but for how and where a run goes, which makes no other run of it."""


def under(choice: Choice, parent: str) -> Choice:
    """The same, its runs children of an MLflow run."""
    return replace(choice, where=(*choice.where, f"tracking.parent={parent}"))


def cells(stem: str, study: StudySpec, choice: Choice) -> list[Cell]:
    """All trainings of a study, row by row.

    Raises:
        UserError: a label that is none of the study's, data of another set, or a field that a spec has not.
    """
    labels = [row.label for row in study.rows if row.set is not None]
    for label in choice.rows:
        if label not in labels:
            raise UserError(f"--rows {label}: {stem} has no such row to train; {did_you_mean(label, labels)}")
    for dataset in choice.data:
        if dataset not in study.datasets:
            raise UserError(f"--data {dataset}=...: {stem} is about {', '.join(study.datasets)}")
    parse_assignments([*choice.assignments, *choice.where])
    found = []
    for row in study.rows:
        if row.set is None or (choice.rows and row.label not in choice.rows):
            continue
        for dataset in study.datasets:
            first = row_spec(study, row, dataset).seed
            for seed in range(first, first + choice.seeds):
                own = [f"{path}={shown(value)}" for path, value in assignments(study, row).items()]
                own += [*choice.assignments, f"seed={seed}"]
                found.append(cell(stem, row.label, dataset, seed, own, choice))
    return found


def cell(stem: str, label: str, dataset: str, seed: int, own: list[str], choice: Choice) -> Cell:
    digest = hashlib.sha256(json.dumps([dataset, *own]).encode()).hexdigest()[:6]
    name = "-".join([stem, re.sub(r"[^A-Za-z0-9]+", "-", label).strip("-").lower()[:40], dataset, f"s{seed}", digest])
    words = ["finetune", dataset, "--name", name]
    words += ["--data", choice.data[dataset]] if dataset in choice.data else []
    words += [word for each in [*own, *choice.where] for word in ("--set", each)]
    return Cell(name, f"{label}, {dataset}, seed {seed}", tuple(words), choice.where)


def shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


@dataclass
class Part:
    """A command of a cell that is running."""

    cell: Cell
    process: subprocess.Popen[bytes]
    log: Path
    verb: str
    begun: float


class Runner:
    """Runs cells, so many at once.

    Args:
        logs: where the commands write.
    """

    def __init__(self, storage: str, logs: Path, say: Say):
        self.storage, self.logs, self.say = storage, logs, say
        self.failed: list[str] = []
        self.elsewhere: list[str] = []

    def run(self, chosen: Sequence[Cell], at_once: int) -> None:
        """All that are not done; KeyboardInterrupt ends those that run, with a checkpoint."""
        waiting, running = list(chosen), dict[str, Part]()
        steps = {each.name: self.steps(each) for each in chosen}
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    each = waiting.pop(0)
                    self.go_on(each, steps[each.name], running)
                for name, part in list(running.items()):
                    if (code := part.process.poll()) is not None:
                        del running[name]
                        self.ended(part, code)
                        if code == 0:
                            self.go_on(part.cell, steps[name], running)
                time.sleep(POLL)
        except KeyboardInterrupt:
            self.stop(running.values())
            raise

    def steps(self, each: Cell) -> Iterator[tuple[str, list[str]]]:
        """What is left to do for a cell, as verb and command, looked at when its turn comes."""
        trained = self.state(each.name)
        if trained is None:
            yield "train", list(each.words)
        elif trained == "running":
            self.elsewhere.append(each.label)
            return
        elif trained != "done":
            yield "train", ["run", "resume", each.name]
        evaluated = self.state(each.evaluation)
        if evaluated == "running":
            self.elsewhere.append(each.label)
        elif evaluated != "done":
            if evaluated is not None:
                yield "clear", ["run", "rm", each.evaluation, "--yes"]
            sets = [word for assignment in each.where for word in ("--set", assignment)]
            yield "evaluate", ["evaluate", each.name, "--part", "test", "--name", each.evaluation, *sets]

    def state(self, name: str) -> str | None:
        """`done`, `running`, or how it ended; None where there is no such run."""
        folder = run_folder.named(name, self.storage)
        if folder is None or not (folder / run_folder.SPEC).is_file():
            return None
        found = observe.one(folder)
        return found.state if found.ended else "running"

    def go_on(self, each: Cell, steps: Iterator[tuple[str, list[str]]], running: dict[str, Part]) -> None:
        """Start the next command of a cell, if there is one."""
        for verb, words in steps:
            log = self.logs / f"{each.name}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            command = [sys.executable, "-P", "-m", "rwkvctl.cli.app", *words]
            with log.open("ab") as file:
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True
                )
            running[each.name] = Part(each, process, log, verb, time.monotonic())
            return

    def ended(self, part: Part, code: int) -> None:
        took = time.monotonic() - part.begun
        if code == 0:
            if part.verb != "clear":
                done = {"train": "trained", "evaluate": "evaluated"}[part.verb]
                self.say(f"{part.cell.label}: {done} in {took:.0f} s (run {part.cell.name})")
            return
        self.failed.append(part.cell.label)
        lines = part.log.read_text(errors="replace").strip().splitlines() or [""]
        self.say(f"{part.cell.label}: exit code {code} ({lines[-1][:160]}); all of it is in {part.log}")

    def stop(self, running: Any) -> None:
        parts = list(running)
        for part in parts:
            signal_group(part.process.pid, signal.SIGTERM)
        deadline = time.monotonic() + ENDS_WITHIN
        for part in parts:
            try:
                part.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                signal_group(part.process.pid, signal.SIGKILL)


def parent_run(stem: str, title: str, tracking_uri: str) -> str | None:
    """The MLflow run that a study's runs are children of, made at its first start; None where no server answers."""
    from rwkvctl.config.specs.parts import TrackingSpec
    from rwkvctl.runs.mlflow_client import connect, experiment_id, is_silent

    try:
        if is_silent(tracking_uri):
            return None
        client = connect(tracking_uri)
        experiment = experiment_id(client, tracking_uri, TrackingSpec().experiment)
        known = client.search_runs([experiment], f"tags.`rwkvctl.study` = '{stem}'", max_results=1)
        if known:
            return str(known[0].info.run_id)
        tags = {"rwkvctl.study": stem, "mlflow.note.content": title}
        made = client.create_run(experiment, tags=tags, run_name=f"study {stem}")
        client.set_terminated(made.info.run_id)
    except Exception:  # of whatever a server can do: the runs are worth more than their place in a tree
        return None
    return str(made.info.run_id)
