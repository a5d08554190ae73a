"""Layouts of public and home-made sets, by what `data doctor` proposes for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rwkvctl.data.convert.synth.output import Array, save
from rwkvctl.data.convert.synth.pair_samples import sample
from rwkvctl.data.guess.doctor import examine

Save = Callable[[str, Array], None]


def drive(put: Save) -> None:
    """Names of images have the part in them; `mask/` is the camera's field of view."""
    rows, columns = np.indices((51, 64))
    field = ((rows - 25) ** 2 + (columns - 32) ** 2 < 23**2).astype(np.uint8) * 255
    for number in range(1, 13):
        image, (mask,) = sample(number, 64, 0)
        part = "test" if number > 6 else "training"
        put(f"{part}/images/{number:02d}_{part}.tif", image)
        put(f"{part}/1st_manual/{number:02d}_manual1.gif", mask.astype(np.uint8) * 255)
        put(f"{part}/mask/{number:02d}_{part}_mask.gif", field)


def raters(put: Save) -> None:
    for number in range(8):
        image, (mask,) = sample(number, 48, 0)
        put(f"Bilder/{number}.png", image)
        for who in ("Anna", "Ben"):
            put(f"Annotationen/{who}/{number}.png", mask)


def parts_in_names(put: Save) -> None:
    for number in range(8):
        image, (mask,) = sample(number, 48, 0)
        part = "test" if number > 5 else "train"
        put(f"images_{part}/{number}.png", image)
        put(f"Ground Truth_{part}/{number}.png", mask)


def kinds_before_parts(put: Save) -> None:
    for number in range(8):
        image, (mask,) = sample(number, 48, 0)
        part = "val" if number > 5 else "train"
        put(f"images/{part}/{number}.png", image)
        put(f"labels/{part}/{number}.png", mask)


def deep(put: Save) -> None:
    """A folder an eye, with an overlay that is an image too."""
    for number in range(12):
        image, (mask,) = sample(number, 48, 0)
        home = f"patient_{number // 4}/visit{number % 4 // 2}/{'LR'[number % 2]}"
        put(f"{home}/original.png", image)
        put(f"{home}/mask.png", mask)
        put(f"{home}/overlay.png", image[::-1])


def parts_with_kinds(put: Save) -> None:
    """No word says mask; test/ has not the masks of train/, though they have the same names."""
    for part in ("train", "test"):
        for kind in ("liver", "kidney"):
            for number in range(4):
                image, (mask,) = sample(number + 4 * len(kind) + 40 * len(part), 48, 0)
                put(f"{part}/{kind}/a/{kind}{number}.png", image)
                put(f"{part}/{kind}/b/{kind}{number}.png", mask)


def two_suffixes(put: Save) -> None:
    for number in range(8):
        image, (mask,) = sample(number, 48, 0)
        put(f"{number}_image.png", image)
        put(f"{number}_lesion.png", mask)


def thumbnails(put: Save) -> None:
    for number in range(8):
        image, (mask,) = sample(number, 96, 0)
        put(f"s{number}.png", image)
        put(f"s{number}_thumb.png", image[::2, ::2])
        put(f"s{number}_seg.png", mask)


def brackets(put: Save) -> None:
    for number in range(8):
        image, (mask,) = sample(number, 48, 0)
        put(f"photos [raw] 2019/{number}.png", image)
        put(f"masks {{final}}/{number}.png", mask)


def unlabelled_test(put: Save) -> None:
    """No images of the classes `image` and `mask`."""
    for number in range(12):
        image, (mask,) = sample(number, 48, 0)
        put(f"{'test' if number > 7 else 'train'}/image/{number}.png", image)
        if number < 8:
            put(f"train/mask/{number}.png", mask)


def previews(put: Save) -> None:
    for number in range(8):
        image, (mask,) = sample(number, 48, 0)
        put(f"Input/ISIC_{number}.jpg", image)
        put(f"Input/ISIC_{number}_superpixels.png", image)
        put(f"GroundTruth/ISIC_{number}_segmentation.png", mask)


def second_masks(put: Save) -> None:
    for number in range(12):
        kind = ("benign", "malignant")[number % 2]
        image, (mask,) = sample(number, 48, 0)
        put(f"{kind}/{kind} {number}.png", image)
        put(f"{kind}/{kind} {number}_mask.png", mask)
        if number == 4:
            put(f"{kind}/{kind} {number}_mask_1.png", mask[::-1])


def left_and_right(put: Save) -> None:
    for number in range(8):
        image, (mask,) = sample(number, 48, 0)
        put(f"left/original/{number}.png", image)
        put(f"right/result/{number}.png", mask)


def one_orphan(put: Save) -> None:
    """A part without a problem is no better than both with one."""
    for part in ("left", "right"):
        for number in range(8):
            image, (mask,) = sample(number, 48, 0)
            put(f"{part}/photo/{number}.png", image)
            if (part, number) != ("right", 3):
                put(f"{part}/label/{number}.png", mask)


@pytest.mark.parametrize(
    ("layout", "options", "samples", "asked"),
    [
        (drive, "--images '*/images/*{_test,_training}' --masks '*/1st_manual/*_manual1' --split-from folders", 12, ""),
        (raters, "--images 'Bilder/*' --masks 'Annotationen/*/*' --annotator Anna", 8, "by several (Anna, Ben)"),
        (parts_in_names, "--images 'images_{split}/*' --masks 'Ground Truth_{split}/*' --split-from folders", 8, ""),
        (kinds_before_parts, "--images 'images/**/*' --masks 'labels/**/*' --split-from folders", 8, ""),
        (deep, "--images '**/original' --masks '**/mask'", 12, ""),
        (parts_with_kinds, "--images '*/*/a/*' --masks '*/*/b/*' --split-from folders", 16, ""),
        (two_suffixes, "--images '*_image' --masks '*_lesion'", 8, ""),
        (thumbnails, "--images '*' --masks '*_{seg,thumb}' --annotator seg", 8, "takes another one: thumb"),
        (brackets, "--images 'photos {i} 2019/*' --masks 'masks {m}/*'", 8, ""),
        (unlabelled_test, "--images '*/image/*' --masks '*/mask/*' --allow-partial", 8, ""),
        (previews, "--images 'Input/ISIC_*.jpg' --masks 'GroundTruth/ISIC_*_segmentation'", 8, ""),
        (second_masks, "--images '**/*' --masks '**/*_mask*'", 12, ""),
        (left_and_right, "--images 'left/original/*' --masks 'right/result/*'", 8, ""),
        (one_orphan, "--images '*/photo/*' --masks '*/label/*' --allow-partial", 15, ""),
    ],
)
def test_what_is_proposed(layout: Callable[[Save], None], options: str, samples: int, asked: str, tmp_path: Path):
    layout(lambda path, pixels: save(tmp_path / path, pixels))
    finding = examine([tmp_path]).findings[0]
    assert (finding.options, finding.samples, len(finding.examples)) == (options, samples, 3)
    assert asked in finding.question
    assert bool(asked) == bool(finding.question)
