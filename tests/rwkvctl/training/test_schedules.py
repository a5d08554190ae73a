"""The learning rate of every step: the authors' sequences, warm-up, and no memory between calls."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from rwkvctl.config.specs.parts import OptimizerSpec
from rwkvctl.training.schedules import learning_rates

GOLDENS = np.load(Path(__file__).parents[2] / "goldens" / "training.npz", allow_pickle=False)
CASES = {
    # name: (optimiser, epochs, steps an epoch, the global step of golden step i)
    "synapse_as_coded": (OptimizerSpec(lr=1e-3, schedule="synapse_as_coded", update="step"), 30, 93, 1),
    "acdc_as_coded": (OptimizerSpec(lr=5e-4, min_lr=1e-6, schedule="acdc_as_coded", update="step"), 150, 55, 1),
    "cosine_synapse": (OptimizerSpec(lr=1e-3), 30, 93, 93),
    "cosine_binary": (OptimizerSpec(lr=1e-4, min_lr=1e-5), 300, 61, 61),
    "poly": (OptimizerSpec(lr=1e-3, schedule="poly", update="step"), 30, 93, 1),
}
IMAGENET = OptimizerSpec(lr=3e-3, min_lr=5e-7, update="step", warmup_epochs=20, warmup_lr=5e-7)


@pytest.mark.parametrize("name", CASES)
def test_the_authors_sequences(name: str):
    spec, epochs, steps_per_epoch, unit = CASES[name]
    rate = learning_rates(spec, lr=spec.lr, epochs=epochs, steps_per_epoch=steps_per_epoch)
    steps, expected = GOLDENS[f"lr/{name}/steps"], GOLDENS[f"lr/{name}"]
    used = [(int(step) * unit, value) for step, value in zip(steps, expected, strict=True)]
    for step, value in used:
        assert rate(step) == pytest.approx(value, rel=1e-12, abs=1e-18), step


def test_an_epoch_has_one_rate_when_it_changes_by_epoch():
    rate = learning_rates(OptimizerSpec(lr=1e-3), lr=1e-3, epochs=5, steps_per_epoch=7)
    by_epoch = [{rate(epoch * 7 + step) for step in range(7)} for epoch in range(5)]
    assert [len(rates) for rates in by_epoch] == [1] * 5
    assert by_epoch[0] == {1e-3}


def test_imagenet_warm_up_then_a_cosine_that_counts_it():
    rate = learning_rates(IMAGENET, lr=3e-3, epochs=300, steps_per_epoch=10)
    assert rate(0) == 5e-7
    assert rate(100) == pytest.approx((5e-7 + 3e-3) / 2)
    assert rate(199) == pytest.approx(5e-7 + (3e-3 - 5e-7) * 199 / 200)
    assert rate(200) == pytest.approx(5e-7 + (3e-3 - 5e-7) * (1 + math.cos(math.pi * 200 / 3000)) / 2)
    assert round(rate(200), 6) == 0.002967  # as in the authors' log
    assert rate(2999) == pytest.approx(5e-7, rel=0.01)


@pytest.mark.parametrize("name", [*CASES, "imagenet"])
def test_a_rate_depends_on_its_step_alone(name: str):
    spec = IMAGENET if name == "imagenet" else CASES[name][0]
    forwards, anyhow = (learning_rates(spec, lr=spec.lr, epochs=30, steps_per_epoch=9) for _ in range(2))
    expected = [forwards(step) for step in range(270)]
    for step in np.random.default_rng(0).permutation(270):
        assert anyhow(int(step)) == expected[step]


@pytest.mark.parametrize("schedule", ["cosine", "poly", "constant"])
def test_the_rate_is_the_given_one_not_the_specs(schedule: str):
    spec = OptimizerSpec.model_validate({"lr": 1e-3, "schedule": schedule})
    assert learning_rates(spec, lr=0.25, epochs=4, steps_per_epoch=3)(0) == 0.25


def test_one_epoch_by_epoch_is_constant():
    rate = learning_rates(OptimizerSpec(lr=1e-3), lr=1e-3, epochs=1, steps_per_epoch=3)
    assert [rate(step) for step in range(3)] == [1e-3] * 3
