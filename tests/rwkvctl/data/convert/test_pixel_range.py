"""One range for a data set's images of more than 8 bits: nothing turns black, nothing is scaled by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.images import intensity
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.verify import verify

LEVELS = np.arange(200, 1400, 20)  # 60 of a detector's 12 bits


def picture(seed: int, high: int = 60) -> np.ndarray:
    """(32, 32) of the first `high` levels, in uint16."""
    return np.random.default_rng(seed).choice(LEVELS[:high], (32, 32)).astype(np.uint16)


def raw(folder: Path, images: list[np.ndarray], ending: str = "png") -> Path:
    """`images/` and `masks/` of such pictures; the mask is a disc."""
    rows, columns = np.mgrid[:32, :32]
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number, image in enumerate(images):
        Image.fromarray(image).save(folder / "images" / f"{number}.{ending}")
        mask = (rows - 12 - number % 8) ** 2 + (columns - 15) ** 2 < 60
        Image.fromarray((mask * 255).astype(np.uint8)).save(folder / "masks" / f"{number}.png")
    return folder


def pixels(made: Manifest) -> list[np.ndarray]:
    reader = Reader(made)
    return [reader.image(row)[..., 0] for row in range(len(reader))]


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_twelve_bits_keep_their_grey_levels(tmp_path: Path, ending: str):
    images = [picture(seed, high=60 if seed == 3 else 30) for seed in range(12)]
    made = prepare("folder", [raw(tmp_path / "raw", images, ending)], tmp_path / "set")
    assert made.content.intensity == intensity.rule(200, 1380)
    for stored, image in zip(pixels(made), images, strict=True):
        np.testing.assert_array_equal(stored, np.rint((image - 200.0) / 1180 * 255))
    assert len(np.unique(pixels(made)[3])) == 60
    assert "12 of 12 images: scaled from 200..1380 to 8 bits" in made.content.warnings
    assert "11 of 12 images: fewer than 32 grey levels" in made.content.warnings


def test_floats_go_by_their_own_range(tmp_path: Path):
    images = [(picture(seed) / 1400).astype(np.float32) for seed in range(12)]
    low, high = float(np.min(images)), float(np.max(images))
    made = prepare("folder", [raw(tmp_path / "raw", images, "tif")], tmp_path / "set")
    assert made.content.intensity == intensity.rule(low, high)
    assert all(len(np.unique(own)) == len(np.unique(image)) for own, image in zip(pixels(made), images, strict=True))


def test_a_stated_range(tmp_path: Path):
    images = [picture(seed) for seed in range(12)]
    made = prepare("folder", [raw(tmp_path / "raw", images)], tmp_path / "set", range=(0, 800))
    assert made.content.intensity == intensity.rule(0, 800)
    np.testing.assert_array_equal(pixels(made)[0], np.rint(np.minimum(images[0] / 800, 1) * 255))
    [said] = [line for line in made.content.warnings if "scaled" in line]
    assert said == "12 of 12 images: scaled from 0..800 to 8 bits"
    assert "12 of 12 images: values outside that range were clipped" in made.content.warnings


def test_the_order_and_number_of_processes_change_nothing(tmp_path: Path):
    source = raw(tmp_path / "raw", [picture(seed) for seed in range(12)])
    made = [prepare("folder", [source], tmp_path / str(n) / "set", workers=n) for n in (1, 3)]
    assert made[0].fingerprint == made[1].fingerprint


def test_eight_bits_have_no_range(tmp_path: Path):
    images = [(picture(seed) // 20 * 3).astype(np.uint8) for seed in range(12)]
    source = raw(tmp_path / "raw", images)
    assert prepare("folder", [source], tmp_path / "set").content.intensity is None
    with pytest.raises(UserError, match="--range: no image has more than 8 bits; leave it out"):
        prepare("folder", [source], tmp_path / "other", range=(0, 255))
    widened = raw(tmp_path / "widened", [image.astype(np.uint16) * 257 for image in images])
    for stored, image in zip(pixels(prepare("folder", [widened], tmp_path / "third")), images, strict=True):
        np.testing.assert_array_equal(stored, image)


def test_floats_and_whole_numbers_share_no_range(tmp_path: Path):
    images = [picture(seed) for seed in range(12)]
    source = raw(tmp_path / "raw", images, "tif")
    Image.fromarray((images[4] / 1400).astype(np.float32)).save(source / "images" / "4.tif")
    with pytest.raises(
        UserError, match=r"1 images hold floats \(4.tif\), 11 hold whole numbers .*give --range"
    ) as said:
        prepare("folder", [source], tmp_path / "set")
    assert len(str(said.value)) < 300
    assert not (tmp_path / "set").exists()


def test_classification_has_a_range_too(tmp_path: Path):
    for part in ("train", "val"):
        for name in ("a", "b"):
            (tmp_path / "raw" / part / name).mkdir(parents=True)
            for seed in range(3):
                Image.fromarray(picture(seed)).save(tmp_path / "raw" / part / name / f"{seed}.png")
    made = prepare("imagefolder", [tmp_path / "raw"], tmp_path / "set")
    assert made.content.intensity == intensity.rule(200, 1380)
    assert len(np.unique(pixels(made)[0])) == 60


@pytest.mark.parametrize("deep", [False, True])
def test_an_image_that_turned_black_is_counted_by_verify(tmp_path: Path, deep: bool):
    images = [picture(seed) for seed in range(12)]
    images[5] = (images[5] // 7).astype(np.uint16)  # at most 197
    prepare("folder", [raw(tmp_path / "raw", images)], tmp_path / "set", range=(0, 65535))
    report = verify(tmp_path / "set", deep=deep)
    assert report.ok
    assert "12 of 12 images have fewer than 32 grey levels: look at them with data show --sheet" in report.warnings


ODD = {
    "mask is all foreground": lambda mask: np.full_like(mask, 255),
    "mask is empty": np.zeros_like,
    "mask is a thin outline, not an area": lambda mask: mask
    - 255 * (np.pad(mask > 0, 1)[2:, 1:-1] & np.pad(mask > 0, 1)[:-2, 1:-1] & (mask > 0) & np.pad(mask > 0, 1)[1:-1, 2:]
    & np.pad(mask > 0, 1)[1:-1, :-2]).astype(np.uint8),
}  # fmt: skip


@pytest.mark.parametrize("note", ODD)
def test_masks_to_look_at_are_counted(tmp_path: Path, note: str):
    source = raw(tmp_path / "raw", [(picture(seed) // 20 * 3).astype(np.uint8) for seed in range(12)])
    for number in (2, 7, 9):
        path = source / "masks" / f"{number}.png"
        Image.fromarray(ODD[note](np.asarray(Image.open(path)))).save(path)
    named = ": set_0002, set_0007, set_0009" if "outline" in note else ""
    assert f"3 of 12 images: {note}{named}" in prepare("folder", [source], tmp_path / "set").content.warnings


@pytest.mark.parametrize("name", ["images", "masks"])
def test_pages_are_refused_with_their_count(tmp_path: Path, name: str):
    source = raw(tmp_path / "raw", [(picture(seed) // 20 * 3).astype(np.uint8) for seed in range(12)])
    path = source / name / "3.png"
    page = Image.open(path)
    page.save(path.with_suffix(".tif"), save_all=True, append_images=[page, page])
    path.unlink()
    with pytest.raises(
        UserError, match=rf"{name}/3.tif: has 3 pages, and an image is one; save each as a file of its own"
    ):
        prepare("folder", [source], tmp_path / "set")
