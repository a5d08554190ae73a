"""Against timm's own, which works on Pillow images."""

from __future__ import annotations

import random

import cv2
import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment

from rwkvctl.data.feed.rand_augment import OPERATIONS, rand_augment

ARGUMENTS = {
    "shear_x": [0.21, -0.3],
    "shear_y": [0.21, -0.3],
    "translate_x_abs": [21.5, -13.0],
    "translate_y_abs": [21.5, -13.0],
    "translate_x_rel": [0.2, -0.45],
    "translate_y_rel": [0.2, -0.45],
    "rotate": [27.0, -12.5],
    "solarize": [0, 100, 256],
    "solarize_add": [0, 80, 128],
    "posterize": [1, 3, 4, 8],
    "brightness": [0.1, 1.7],
    "contrast": [0.1, 1.7],
    "color": [0.1, 1.7],
    "sharpness": [0.1, 1.7],
}
OFF_BY_ONE = {"color", "sharpness"}
MOVES = {name for name in OPERATIONS if name.startswith(("shear", "translate", "rotate"))}


def picture() -> np.ndarray:
    small = np.random.default_rng(0).standard_normal((10, 12, 3)).astype(np.float32)
    pixels = cv2.resize(small, (112, 96), interpolation=cv2.INTER_CUBIC)
    return ((pixels - pixels.min()) / np.ptp(pixels) * 190 + 30).astype(np.uint8)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("resample", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
def test_an_operation_is_timms(name: str, resample: Image.Resampling):
    image = picture()
    for arguments in [(value,) for value in ARGUMENTS.get(name, [])] or [()]:
        options = {"resample": resample, "fillcolor": (124, 116, 104)}
        theirs = np.asarray(getattr(auto_augment, name)(Image.fromarray(image), *arguments, **options))
        away = np.abs(OPERATIONS[name](image, *arguments, **options).astype(int) - theirs)
        if name in MOVES:  # OpenCV mixes the outermost pixel with the fill colour
            assert away.mean() < 0.8
            assert np.quantile(away, 0.97) <= 2
        else:
            assert away.max() <= (2 if name in OFF_BY_ONE else 0)


@pytest.mark.parametrize("value", [0, 77, 255])
def test_an_image_of_one_colour(value: int):
    image = np.full((8, 8, 3), value, np.uint8)
    for name in ("auto_contrast", "equalize", "contrast"):
        arguments = ARGUMENTS.get(name, [None])[:1] if name in ARGUMENTS else []
        theirs = np.asarray(getattr(auto_augment, name)(Image.fromarray(image), *arguments))
        np.testing.assert_array_equal(OPERATIONS[name](image, *arguments), theirs)


def test_no_bit_is_black():
    assert not OPERATIONS["posterize"](picture(), 0).any()


@pytest.mark.parametrize("policy", ["rand-m9-n4-inc1", "rand-m9-t3a", "rand-m9-tweights"])
def test_the_policy_is_timms(policy: str):
    """With the same draws timm's operations make the same image."""
    ours = rand_augment(policy, (96, 112), "bilinear")
    options = {"translate_const": 43, "img_mean": (124, 116, 104), "interpolation": Image.Resampling.BILINEAR}
    theirs = auto_augment.rand_augment_transform(policy, options)
    state = random.getstate()
    changed = 0
    for seed in range(40):
        rng, image = np.random.default_rng(seed), Image.fromarray(picture())
        weights = theirs.choice_weights
        chosen = rng.choice(len(theirs.ops), theirs.num_layers, replace=weights is None, p=weights)
        random.seed(int(rng.integers(2**32)))
        for number in chosen:
            image = theirs.ops[number](image)
        random.setstate(state)
        result = ours(picture(), np.random.default_rng(seed))
        assert random.getstate() == state
        assert np.abs(result.astype(int) - np.asarray(image)).mean() < 2
        changed += not np.array_equal(result, picture())
    assert changed >= 20


@pytest.mark.parametrize("increasing", ["", "-inc1"])
def test_every_operation_of_the_usual_policies_is_fast(increasing: str):
    used = auto_augment.rand_augment_transform(f"rand-m9{increasing}", {}).ops
    assert {op.aug_fn.__name__ for op in used} <= set(OPERATIONS)
