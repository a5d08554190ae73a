"""Presets of augmentation: what they stand for, what overrides them, and that this survives writing and sweeping."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs import load
from rwkvctl.config.specs.augment import PRESETS, SegmentationAugment
from rwkvctl.config.specs.jobs import FinetuneSpec, PretrainSpec
from rwkvctl.config.specs.sweep import trial_spec

PAPER = {
    "horizontal_flip": 0.5, "vertical_flip": 0.5, "rotate90": 0.5, "affine": 0.3, "degrees": 30.0, "scale": (0.8, 1.2),
    "brightness_contrast": 0.3, "brightness": 0.2, "contrast": 0.2,
}  # fmt: skip
NEW = ("rotation", "scaling", "elastic", "noise", "blur", "brightness_only", "contrast_only", "low_resolution",
       "gamma_inverted", "gamma", "saturation", "hue")  # fmt: skip


def spec(*assignments: str, recipe: str = "binary") -> FinetuneSpec:
    fields = load.merge(load.read_recipe(recipe), load.parse_assignments([*assignments]))
    return load.build(FinetuneSpec, fields, recipe)


def test_the_paper_is_the_default_and_has_nothing_new():
    augment = dict(spec().augment)
    assert augment["preset"] == "paper"
    assert {name: augment[name] for name in PAPER} == PAPER
    assert not any(augment[name] for name in NEW)


def test_nnunet_is_the_recipe_of_its_trainer():
    """Probabilities and ranges of nnUNetTrainer.get_training_transforms."""
    augment = spec("augment.preset=nnunet").augment
    assert (augment.rotation, augment.degrees, augment.scaling, augment.scale) == (0.2, 180, 0.2, (0.7, 1.4))
    assert (augment.noise, augment.noise_deviation) == (0.1, (0, 0.1))
    assert (augment.blur, augment.blur_sigma) == (0.2, (0.5, 1))
    assert (augment.brightness_only, augment.brightness_factor) == (0.15, (0.75, 1.25))
    assert (augment.contrast_only, augment.contrast_factor) == (0.15, (0.75, 1.25))
    assert (augment.low_resolution, augment.zoom) == (0.25, (0.5, 1))
    assert (augment.gamma_inverted, augment.gamma, augment.exponent) == (0.1, 0.3, (0.7, 1.5))
    assert (augment.horizontal_flip, augment.vertical_flip) == (0.5, 0.5)
    assert not any((augment.rotate90, augment.affine, augment.brightness_contrast, augment.elastic, augment.hue))


@pytest.mark.parametrize("order", [1, -1])
def test_a_field_overrides_its_preset_wherever_it_is_named(order: int):
    augment = spec(*["augment.preset=nnunet", "augment.gamma=0.5", "augment.elastic=0.2"][::order]).augment
    assert (augment.gamma, augment.elastic, augment.blur) == (0.5, 0.2, 0.2)
    assert augment.own() == {"gamma": 0.5, "elastic": 0.2}


def test_what_a_recipe_sets_by_hand_stays():
    augment = spec("augment.preset=photo", recipe="synapse").augment
    assert (augment.affine, augment.brightness_contrast, augment.hue) == (0, 0, 0.3)


@pytest.mark.parametrize("preset", PRESETS)
def test_a_spec_that_was_written_out_is_read_back_the_same(preset: str):
    made = spec(f"augment.preset={preset}", "augment.blur=0.7")
    shown = yaml.safe_load(load.dump(made))["augment"]
    assert set(shown) == set(SegmentationAugment.model_fields), "every value is visible"
    assert SegmentationAugment.model_validate(shown) == made.augment


def test_trials_over_presets_take_their_values():
    """Though the spec that they vary is written out in full; what was chosen by hand in it stays."""
    base = FinetuneSpec.model_validate(spec("augment.vertical_flip=0", "data.path=x").model_dump(mode="json"))
    for preset, blur in (("paper", 0), ("nnunet", 0.2), ("photo", 0.2)):
        augment = trial_spec(base, {"augment.preset": preset}).augment
        assert (augment.preset, augment.blur, augment.vertical_flip) == (preset, blur, 0)
    both = trial_spec(base, {"augment.gamma": 0.9, "augment.preset": "nnunet"}).augment
    assert (both.gamma, both.blur) == (0.9, 0.2)
    alone = trial_spec(spec("augment.preset=nnunet", "data.path=x"), {"augment.gamma": 0.9}).augment
    assert (alone.gamma, alone.blur) == (0.9, 0.2)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("augment.crop_scale=[1, 0.08]", "augment.crop_scale: must be [low, high], low first, got [1, 0.08]"),
        ("augment.crop_scale=[0.5, 2]", "augment.crop_scale.1: input should be less than or equal to 1, got 2"),
        ("augment.crop_ratio=[0, 1]", "augment.crop_ratio.0: input should be greater than 0, got 0"),
        ("augment.color_jitter=.inf", "augment.color_jitter: input should be a finite number, got inf"),
    ],
)
def test_wrong_crops_are_one_line(assignment: str, said: str):
    fields = load.merge(load.read_recipe("imagefolder"), load.parse_assignments([assignment]))
    with pytest.raises(UserError) as caught:
        load.build(PretrainSpec, fields, "imagefolder")
    assert str(caught.value) == f"imagefolder: {said}"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("augment.preset=nnunett", "augment.preset: input should be 'paper', 'nnunet' or 'photo', got 'nnunett'"),
        ("augment.preset=3", "augment.preset: input should be 'paper', 'nnunet' or 'photo', got 3"),
        ("augment.preset=[nnunet]", "augment.preset: input should be 'paper', 'nnunet' or 'photo', got ['nnunet']"),
        ("augment.gama=0.5", "augment.gama: unknown field (did you mean gamma?)"),
        ("augment.blur=1.5", "augment.blur: input should be less than or equal to 1, got 1.5"),
        ("augment.zoom=[0.9, 0.5]", "augment.zoom: must be [low, high], low first, got [0.9, 0.5]"),
        ("augment.zoom=[0, 0.5]", "augment.zoom.0: input should be greater than 0, got 0"),
        ("augment.zoom=[0.5, 2]", "augment.zoom.1: input should be less than or equal to 1, got 2"),
        ("augment.scale=[0, 1]", "augment.scale.0: input should be greater than 0, got 0"),
        ("augment.scale=[1.2, 0.8]", "augment.scale: must be [low, high], low first, got [1.2, 0.8]"),
        ("augment.exponent=[0.5, .inf]", "augment.exponent.1: input should be a finite number, got inf"),
        ("augment.blur_sigma=[-1, 1]", "augment.blur_sigma.0: input should be greater than or equal to 0, got -1"),
        ("augment.elastic_shift=[0, 2]", "augment.elastic_shift.1: input should be less than or equal to 1, got 2"),
    ],
)
def test_wrong_values_are_one_line(assignment: str, said: Any):
    with pytest.raises(UserError) as caught:
        spec(assignment)
    assert str(caught.value) == f"binary: {said}"
