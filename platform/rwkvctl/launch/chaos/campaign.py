"""One training left alone, the same under faults, and what became of both."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rwkvctl.base.errors import JobFailedError, TransientError
from rwkvctl.base.exit_codes import DONE, TRANSIENT
from rwkvctl.launch.chaos.plan import KINDS, STEPS_A_FAULT, Fault
from rwkvctl.launch.chaos.strikes import PATIENCE, POLL, GivenUp, strike
from rwkvctl.launch.chaos.training import Training, make_data
from rwkvctl.launch.chaos.verdict import Verdict, compare

TRIES = 3
"""How often in a row, without a step between, a job may end with 75, which asks for another try."""
HANG_AFTER = 15.0
"""Seconds, and twice what the job takes to its first step, after which workers that stand still are started again.
Those that follow a killed nursery import everything anew."""
GONE_WITHIN = 60.0
"""Seconds that a job's processes have to end after it."""

Say = Callable[[str], None]


@dataclass
class Blow:
    """A fault that was done, and how long it took until the optimiser was given a step by workers started after it."""

    kind: str
    step: int
    at: float
    said: str
    seconds: float | None = None


@dataclass
class Outcome:
    """What a campaign has found."""

    steps: int
    blows: list[Blow] = field(default_factory=list)
    planned: int = 0
    starts: int = 0
    transient: int = 0
    """How often the job has ended with 75."""
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)
    verdict: Verdict | None = None

    @property
    def holds(self) -> bool:
        return not self.problems and self.verdict is not None and not self.verdict.differences


def run(faults: list[Fault], seed: int, folder: Path, storage: Path, say: Say) -> Outcome:
    """Do the faults to a training.

    Args:
        folder: empty; for everything but the runs.
        storage: where the runs are kept.

    Raises:
        JobFailedError: already the training that is left alone does not come to its end.
    """
    began = time.monotonic()
    make_data(folder, seed)
    steps = STEPS_A_FAULT * max(1, len(faults))
    loaders = int(any(fault.kind == "loader killed" for fault in faults))
    calm, struck = (Training(name, folder, storage, steps, loaders) for name in ("undisturbed", "disturbed"))
    outcome = Outcome(calm.steps, planned=len(faults))
    try:
        struck.settings.append(f"cluster.hang_timeout={HANG_AFTER + 2 * left_alone(calm, say):.0f}")
        Campaign(struck, outcome, say).do(faults)
        if not outcome.problems:
            outcome.verdict = compare(calm, struck)
    finally:
        calm.kill()
        struck.kill()
    outcome.starts, outcome.seconds = struck.starts, time.monotonic() - began
    return outcome


def left_alone(training: Training, say: Say) -> float:
    """The training as it should be; the seconds from its start to its first step."""
    began, started = time.monotonic(), time.time()
    training.start()
    while (code := training.code()) is None:
        time.sleep(POLL)
    if code:
        kind = TransientError if code == TRANSIENT else JobFailedError
        raise kind(f"the training ended with code {code} before anything was done to it: {training.last_words()}")
    say(f"undisturbed: {training.steps} steps in {time.monotonic() - began:.0f} s")
    first = training.first_step_since(started)
    assert first is not None
    return first - started


class Campaign:
    """Does faults to a training, and starts it again as often as it ends."""

    def __init__(self, training: Training, outcome: Outcome, say: Say):
        self.training, self.outcome, self.say = training, outcome, say
        self.open: list[Blow] = []
        """Those from which the training has not recovered yet."""
        self.since_start: list[Blow] = []
        """Those since the job was started last: workers that were just being started may take a step before it ends."""
        self.tries = 0

    def do(self, faults: list[Fault]) -> None:
        """All of them; then the training goes on to its end."""
        training = self.training
        training.slow_down(len(faults))
        training.start()
        try:
            for fault in faults:
                if not self.wait_for_turn(fault):
                    break
                self.hit(fault)
                training.slow_down(len(faults) - len(self.outcome.blows))
            training.hurry()
            while training.code() != DONE:
                self.go_on()
                time.sleep(POLL)
            self.look()
            if left := training.until_gone(GONE_WITHIN):
                self.outcome.problems.append(f"processes are left behind: {', '.join(left)}")
        except GivenUp as error:
            self.outcome.problems.append(f"{error}; its last words: {training.last_words()}")

    def wait_for_turn(self, fault: Fault) -> bool:
        """Until a fault is due; False when the training is at its end."""
        begun = time.monotonic()
        while self.training.code() != DONE:
            self.go_on()
            if fault.after_seconds is not None and time.monotonic() - begun >= fault.after_seconds:
                return True
            recovered = fault.after_seconds is None and not self.open
            if recovered and self.training.reached() >= self.training.struck[1] + fault.after_steps:
                return True
            if time.monotonic() - begun > PATIENCE:
                raise GivenUp(f"it has not gone on for {PATIENCE:.0f} s after {self.open[-1].kind}")
            time.sleep(POLL)
        return False

    def hit(self, fault: Fault) -> None:
        """Do it. Where there is nobody to do it to since the job has just ended, go on and do it then."""
        rng = random.Random(fault.seed)
        while True:
            try:
                said = strike(self.training, fault.kind, rng)
                break
            except GivenUp:
                if self.training.code() is None or not self.go_on():
                    raise
        at, step = self.training.struck
        blow = Blow(fault.kind, step, at, said)
        number = len(self.outcome.blows) + 1
        self.outcome.blows.append(blow)
        self.open.append(blow)
        self.since_start.append(blow)
        self.say(f"{number}/{self.outcome.planned} step {blow.step}: {blow.kind} ({blow.said})")

    def go_on(self) -> bool:
        """Look at the training, and start it again if it has ended before its end.

        Raises:
            GivenUp: it ended as it should not have.
        """
        self.look()
        code = self.training.code()
        if code in (None, DONE):
            return code is None
        allowed = {code for blow in [*self.open, *self.since_start] for code in KINDS[blow.kind].codes}
        if code == TRANSIENT and self.tries < TRIES:
            self.tries, self.outcome.transient = self.tries + 1, self.outcome.transient + 1
        elif code not in allowed:
            cause = " and ".join(blow.kind for blow in self.open) or "nothing that was done to it"
            raise GivenUp(f"it ended with code {code} after {cause}, from which it should have recovered by itself")
        self.since_start.clear()
        self.training.start()
        return True

    def look(self) -> None:
        """Which faults are over."""
        for blow in list(self.open):
            if (at := self.recovered(blow)) is not None:
                blow.seconds = at - blow.at
                self.open.remove(blow)
                self.tries = 0

    def recovered(self, blow: Blow) -> float | None:
        if blow.kind == "tracking locked":  # nobody is to be held up by it
            return self.training.next_step_after(blow.at)
        return self.training.first_step_since(blow.at)
