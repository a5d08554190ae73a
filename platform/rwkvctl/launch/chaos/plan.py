"""Which faults a campaign does to a training, and when: a function of its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from rwkvctl.base.errors import UserError
from rwkvctl.base.exit_codes import FAILED, INTERRUPTED, STOPPED
from rwkvctl.base.suggestions import did_you_mean


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    weight: int
    """How often it is drawn; those that cost a start of the job are drawn less often."""
    codes: tuple[int, ...] = ()
    """Exit codes that the job may end with after it, to be resumed; none where it has to heal by itself."""


KINDS = {
    "worker killed": Kind(4),
    "worker suspended": Kind(1),
    "loader killed": Kind(1),
    "nursery killed": Kind(2),
    "tracking locked": Kind(2),
    "driver killed": Kind(1, (FAILED,)),
    "driver terminated": Kind(1, (INTERRUPTED,)),
    "worker terminated": Kind(1, (INTERRUPTED,)),
    "run stopped": Kind(1, (STOPPED,)),
    "disk full": Kind(1, (FAILED,)),
    "checkpoint truncated": Kind(1, (FAILED,)),
    "checkpoint bit flipped": Kind(1, (FAILED,)),
    "pointer garbled": Kind(1, (FAILED,)),
    "journal torn": Kind(1, (FAILED,)),
}

STEPS_BETWEEN = (1, 4)
"""Steps that the training takes between two faults, those that it repeats not counted."""
STEPS_A_FAULT = 6
"""Steps of the training for each fault: those between, and those that are taken until the fault has its effect."""
AT_ONCE = 0.15
"""Share of the faults that strike a training which has not recovered from the one before."""
AT_ONCE_WITHIN = 4.0
"""Seconds after the one before."""


@dataclass(frozen=True)
class Fault:
    """A fault that is to be done."""

    kind: str
    after_steps: int
    """Steps of the optimiser beyond the one at which the fault before struck."""
    after_seconds: float | None
    """Since the fault before, whether or not the training goes on already; then `after_steps` does not count."""
    seed: int
    """What is random in the fault itself."""


def draw(seed: int, faults: int, only: list[str] | None = None) -> list[Fault]:
    """The faults of a campaign.

    Raises:
        UserError: a kind of `only` is not known.
    """
    for name in only or []:
        if name not in KINDS:
            raise UserError(f"--kind {name}: is not a kind of fault; {did_you_mean(name, KINDS)}")
    rng = random.Random(seed)
    names = [name for name in KINDS if not only or name in only]
    weights = [KINDS[name].weight for name in names]
    return [fault(rng, rng.choices(names, weights)[0], first=number == 0) for number in range(faults)]


def fault(rng: random.Random, kind: str, *, first: bool) -> Fault:
    steps, delay, hurried, seed = rng.randint(*STEPS_BETWEEN), rng.random(), rng.random(), rng.getrandbits(32)
    return Fault(kind, steps, AT_ONCE_WITHIN * delay if hurried < AT_ONCE and not first else None, seed)
