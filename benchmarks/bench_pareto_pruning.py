"""What stopping dominated trials at rungs saves, and what it costs of the front, on a synthetic problem.

python benchmarks/bench_pareto_pruning.py [--trials 100] [--seeds 20]

Two objectives. A trial's cost is known from the start; its error falls over 27 epochs like a power law to a floor
that depends on its three parameters, with a speed of its own and noise at every epoch, so that the order of trials
changes while they train. The points are random: what a sampler makes of pruned trials does not matter. Both sides see
the same points; the hypervolume is that of the trials which were trained to their end, by the errors that they end
with.
"""

from __future__ import annotations

import argparse

import numpy as np
from numpy.typing import NDArray
from optuna._hypervolume import compute_hypervolume

from rwkvctl.sweeps import pareto

EPOCHS = 27
REFERENCE = np.array([1.0, 1.0])
Curves = NDArray[np.float64]


def problem(trials: int, seed: int) -> tuple[Curves, Curves]:
    """Costs (N,) and errors (N, EPOCHS)."""
    rng = np.random.default_rng(seed)
    width, rate, depth = rng.random((3, trials))
    cost = 0.1 + 0.8 * (0.6 * width + 0.4 * depth)
    floor = 0.1 + 0.35 * (1 - width) ** 2 + 0.15 * (1 - depth) + 0.5 * (rate - 0.4) ** 2
    speed = 0.4 + 0.6 * rng.random(trials)
    epochs = np.arange(1, EPOCHS + 1)
    errors = floor[:, None] + (0.95 - floor[:, None]) * epochs[None, :] ** -speed[:, None]
    return cost, errors + rng.normal(0, 0.01, errors.shape)


def pruned(cost: Curves, errors: Curves) -> tuple[int, list[int]]:
    """Epochs that are trained, and the trials that come to their end, one after another."""
    seen: dict[int, list[tuple[float, float]]] = {rung: [] for rung in pareto.rungs(EPOCHS)}
    spent, whole = 0, []
    for trial in range(len(cost)):
        for rung, others in seen.items():
            own = (float(cost[trial]), float(errors[trial, rung - 1]))
            stopped = pareto.is_stopped(own, others)
            others.append(own)
            if stopped:
                spent += rung
                break
        else:
            spent += EPOCHS
            whole.append(trial)
    return spent, whole


def hypervolume(cost: Curves, errors: Curves, trials: list[int]) -> float:
    points = np.stack([cost[trials], errors[trials, -1]], axis=1)
    return float(compute_hypervolume(points[(points < REFERENCE).all(axis=1)], REFERENCE))


def main() -> None:
    """A line a seed, then the mean and the worst."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seeds", type=int, default=20)
    arguments = parser.parse_args()
    saved, ratios = [], []
    for seed in range(arguments.seeds):
        cost, errors = problem(arguments.trials, seed)
        spent, whole = pruned(cost, errors)
        full = hypervolume(cost, errors, list(range(arguments.trials)))
        saved.append(1 - spent / (EPOCHS * arguments.trials))
        ratios.append(hypervolume(cost, errors, whole) / full)
        print(f"seed {seed}: {saved[-1]:.1%} of the epochs saved, hypervolume {ratios[-1]:.4f} of the whole sweep's")
    print(f"mean {np.mean(saved):.1%} saved, hypervolume {np.mean(ratios):.4f}")
    print(f"worst {min(saved):.1%} saved, hypervolume {min(ratios):.4f}")


if __name__ == "__main__":
    main()
