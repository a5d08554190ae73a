"""What stopping dominated trials at rungs saves, and what it costs of the front, on synthetic problems.

python benchmarks/bench_pareto_pruning.py [--trials 100] [--seeds 20] [--first-seed 0] [--each]

Two objectives, both to be made small, over 27 epochs. The points are random: what a sampler makes of pruned trials does
not matter. Both sides see the same points; the hypervolume is that of the trials which were trained to their end, by
what they end with. The rungs were chosen on `powers`, and that they have to be right on `crossing`:

powers    a cost that is known from the start, and an error that falls like a power law to a floor, with a speed of its
          own and noise at every epoch, so that the order of trials changes while they train
crossing  exponential curves, and the lower a trial ends the slower it falls: the order of the first epochs is that of
          the last turned round, as of small and large learning rates
zdt1      the front of ZDT1, convex; power laws with three times the noise, which grows with what is left to learn
zdt3      the front of ZDT3, which has gaps; the same curves
curves    two errors that are both learned, the one at the expense of the other, each with its own speed and noise
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache

import numpy as np
from numpy.typing import NDArray
from optuna._hypervolume import compute_hypervolume

from rwkvctl.sweeps import pareto

EPOCHS = 27
REFERENCE = np.array([1.0, 1.0])
START = 0.95
"""The error of a network that has learned nothing."""
Array = NDArray[np.float64]
Curves = NDArray[np.float64]
"""(N, EPOCHS, 2): what every trial has at each epoch."""


# Problems -----------------------------------------------------------------------------------------------------------


def powers(trials: int, rng: np.random.Generator) -> Curves:
    width, rate, depth = rng.random((3, trials))
    cost = 0.1 + 0.8 * (0.6 * width + 0.4 * depth)
    floor = 0.1 + 0.35 * (1 - width) ** 2 + 0.15 * (1 - depth) + 0.5 * (rate - 0.4) ** 2
    errors = power_law(floor, 0.4 + 0.6 * rng.random(trials))
    return with_cost(cost, errors + rng.normal(0, 0.01, errors.shape))


def crossing(trials: int, rng: np.random.Generator) -> Curves:
    width, rate = rng.random((2, trials))
    cost = 0.1 + 0.8 * width
    floor = 0.1 + 0.3 * (1 - width) + 0.3 * rate
    speed = 0.12 + 0.5 * rate  # a fifth is left after 13 epochs at the slowest, after 3 at the fastest
    errors = floor[:, None] + (START - floor[:, None]) * np.exp(-speed[:, None] * np.arange(1, EPOCHS + 1))
    return with_cost(cost, errors + rng.normal(0, 0.01, errors.shape))


def zdt1(trials: int, rng: np.random.Generator) -> Curves:
    x, *others = rng.random((4, trials))
    g = 1 + np.mean(others, axis=0)
    return zdt(x, g * (1 - np.sqrt(x / g)), rng)


def zdt3(trials: int, rng: np.random.Generator) -> Curves:
    x, *others = rng.random((4, trials))
    g = 1 + np.mean(others, axis=0)
    return zdt(x, g * (1 - np.sqrt(x / g) - x / g * np.sin(10 * np.pi * x)), rng)


def zdt(x: Array, second: Array, rng: np.random.Generator) -> Curves:
    """ZDT's objectives, with g from 1 to 2, brought to costs of 0.05 to 0.95 and errors below START."""
    floor = 0.1 + 0.7 * (second + 1) / 3
    errors = power_law(floor, 0.4 + 0.6 * rng.random(len(x)))
    left = errors - floor[:, None]
    return with_cost(0.05 + 0.9 * x, errors + rng.normal(0, 0.01, errors.shape) + left * rng.normal(0, 0.1, left.shape))


def curves(trials: int, rng: np.random.Generator) -> Curves:
    side, *others = rng.random((4, trials))
    worse = 0.3 * np.mean(others, axis=0)
    floors = 0.1 + worse + 0.4 * side**2, 0.1 + worse + 0.4 * (1 - side) ** 2
    found = [power_law(floor, 0.4 + 0.6 * rng.random(trials)) for floor in floors]
    return np.stack([errors + rng.normal(0, 0.02, errors.shape) for errors in found], axis=2)


def power_law(floor: Array, speed: Array) -> Array:
    """(N, EPOCHS) errors from START to the floor."""
    return floor[:, None] + (START - floor[:, None]) * np.arange(1.0, EPOCHS + 1)[None, :] ** -speed[:, None]


def with_cost(cost: Array, errors: Array) -> Curves:
    return np.stack([np.broadcast_to(cost[:, None], errors.shape), errors], axis=2)


PROBLEMS: dict[str, Callable[[int, np.random.Generator], Curves]] = {
    "powers": powers,
    "crossing": crossing,
    "zdt1": zdt1,
    "zdt3": zdt3,
    "curves": curves,
}


def problem(name: str, trials: int, seed: int) -> Curves:
    return PROBLEMS[name](trials, np.random.default_rng(seed))


# The rule -----------------------------------------------------------------------------------------------------------


def pruned(values: Curves, *, checked: bool = True) -> tuple[int, list[int]]:
    """Epochs that are trained, and the trials that come to their end, one after another. Not `checked`: by rungs that
    are believed from the start."""
    seen: dict[int, list[tuple[float, ...]]] = {rung: [] for rung in pareto.rungs(EPOCHS)}
    spent = 0
    whole: list[int] = []

    @cache
    def may_stop(rung: int, finished: int) -> bool:
        ends = [(tuple(values[trial, rung - 1]), tuple(values[trial, -1])) for trial in whole[:finished]]
        return not checked or pareto.is_right(ends)

    for trial, curve in enumerate(values):
        for rung, others in seen.items():
            own = tuple(curve[rung - 1])
            stopped = pareto.is_stopped(own, others) and may_stop(rung, len(whole))
            others.append(own)
            if stopped:
                spent += rung
                break
        else:
            spent += EPOCHS
            whole.append(trial)
    return spent, whole


def hypervolume(values: Curves, trials: list[int]) -> float:
    points = values[trials, -1]
    return float(compute_hypervolume(points[(points < REFERENCE).all(axis=1)], REFERENCE))


def saved_and_kept(name: str, trials: int, seed: int, *, checked: bool = True) -> tuple[float, float]:
    """Which part of the epochs is saved, and which part of the whole sweep's hypervolume is found."""
    values = problem(name, trials, seed)
    spent, whole = pruned(values, checked=checked)
    return 1 - spent / (EPOCHS * trials), hypervolume(values, whole) / hypervolume(values, list(range(trials)))


def main() -> None:
    """For both rules a line a problem: means and worst seeds. With --each, a line a seed before it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--each", action="store_true", help="print every seed")
    arguments = parser.parse_args()
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    for checked in (False, True):
        print("rungs that have to be right:" if checked else "rungs that are believed from the start:")
        for name in PROBLEMS:
            found = [saved_and_kept(name, arguments.trials, seed, checked=checked) for seed in seeds]
            for seed, (saved, kept) in zip(seeds, found, strict=True) if arguments.each else ():
                print(f"{name}, seed {seed}: saved {saved:.1%}, hypervolume {kept:.4f} of the whole sweep's")
            savings, volumes = np.array(found).T
            print(
                f"{name:8}  saved {savings.mean():.1%} (worst {savings.min():.1%}), hypervolume {volumes.mean():.4f} "
                f"(worst {volumes.min():.4f}, {int((volumes < 0.98).sum())} of {len(volumes)} seeds below 0.98)"
            )


if __name__ == "__main__":
    main()
