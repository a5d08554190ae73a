"""When a trial of several objectives is stopped early: at rungs, if enough others dominate it there.

The rule. Rungs are at 2/27, 2/9 and 2/3 of a trial's epochs, rounded up. A trial that is validated at a rung (or
first behind it) is compared with all n trials that have been there, itself included, by what each had there. With m
objectives it is stopped if at least max(1, n / 3^m) of them dominate it: are no worse in any objective, and better in
one.

With one objective the number of those that dominate a trial is its rank, and the rule is asynchronous successive
halving (ASHA), of which the best third go on. With more, fewer trials dominate any one, hence the power: of points
drawn evenly from a square, a third have fewer than n / 9 others that dominate them. What no other dominates is never
stopped, so the front as it stands at a rung goes on whole.

All that supposes that who is behind at a rung stays behind. Where learning curves cross it is not so, and the sweep
finds out: a rung stops nothing before FINISHED trials have come to their end, and only as long as it would have stopped
no more than a fifth of those that are the front now.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from math import ceil

Values = Sequence[float]
"""One number an objective; less is better."""
ETA = 3
RUNGS = (Fraction(2, 27), Fraction(2, 9), Fraction(2, 3))
"""Parts of a training. Earlier, noise and the speed of training tell more of a trial than what it will come to."""


FINISHED = 9
"""Trials that have come to their end before any is stopped."""
LOST = Fraction(1, 5)
"""Part of the front that a rung may have taken for dominated."""


def dominates(a: Values, b: Values) -> bool:
    """Whether `a` is no worse than `b` in any objective, and better in one."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def rungs(last: int) -> list[int]:
    """The epochs, before the last, at which trials are compared."""
    return [epoch for epoch in sorted({ceil(part * last) for part in RUNGS}) if epoch < last]


def is_stopped(own: Values, others: Iterable[Values]) -> bool:
    """Whether a trial ends at a rung, from what it and all others that came there have had there."""
    others = list(others)
    above = sum(dominates(other, own) for other in others)
    return above >= max(1, (len(others) + 1) / ETA ** len(own))


def is_right(ends: Sequence[tuple[Values, Values]]) -> bool:
    """Whether a rung may stop trials, by what those that came to their end had there, and had at the end."""
    if len(ends) < FINISHED:
        return False
    there = [at_rung for at_rung, _ in ends]
    best = front([at_end for _, at_end in ends])
    lost = sum(is_stopped(there[i], there[:i] + there[i + 1 :]) for i in best)
    return lost <= LOST * len(best)


def front(values: Sequence[Values]) -> list[int]:
    """The indices of those that no other dominates."""
    return [i for i, own in enumerate(values) if not any(dominates(other, own) for other in values)]
