"""Optuna's samplers by the names that a sweep gives them."""

from __future__ import annotations

import hashlib
import warnings

import optuna
from optuna.exceptions import ExperimentalWarning

from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.sweeps.points import Once


def sampler(spec: TuneSpec, study: optuna.Study, begun: int, number: int | None = None) -> optuna.samplers.BaseSampler:
    """For a trial by its number, by default the study's next: what it draws is a function of the sweep's seed, of the
    trial's number and of what the study knows, so that a sweep which was interrupted draws what it would have drawn,
    and nothing again.

    `begun`: how many trials the study had when the sweep was started; points that failed before are free again.
    """
    if number is None:
        number = len(study.get_trials(deepcopy=False))
    own = int.from_bytes(hashlib.sha256(f"{spec.seed} {number}".encode()).digest()[:4], "big")
    plain = by_name(spec, own)
    return plain if spec.space.axes() is None else Once(plain, spec.space, begun)


def by_name(spec: TuneSpec, seed: int) -> optuna.samplers.BaseSampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        match spec.chosen_by:
            case "tpe":
                return optuna.samplers.TPESampler(seed=seed, constant_liar=(spec.concurrency or 2) > 1)
            case "gp":
                return optuna.samplers.GPSampler(seed=seed)
            case "cmaes":
                return optuna.samplers.CmaEsSampler(seed=seed, warn_independent_sampling=False)
            case "nsga2":
                return optuna.samplers.NSGAIISampler(seed=seed, population_size=population(spec))
            case "nsga3":
                return optuna.samplers.NSGAIIISampler(seed=seed, population_size=population(spec))
            case _:
                return optuna.samplers.RandomSampler(seed=seed)


def population(spec: TuneSpec) -> int:
    """Optuna's 50, or a fifth of the trials where these are fewer than five generations."""
    return max(4, min(50, spec.trials // 5))
