"""No mask replaces an input, or anything else that it was not told to; masks keep their ids."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rwkvctl.base.errors import UserError
from rwkvctl.data.images import intensity
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.predict import plan, predict_one, write_mask
from rwkvctl.models.predict_targets import check_folder
from rwkvctl.pictures.palette import palette

PHOTOS = BundleInfo(
    model={"name": "x"}, classes=["background", "x"], image_size=16, image_kind="rgb8", channels=3
)  # fmt: skip
SCANS = PHOTOS.model_copy(
    update={"image_kind": "float", "channels": 1, "intensity": intensity.rule("min", "p99"), "orientation": "itk"}
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`in/` with x.jpg, x.png of other content, y.png, and ct.nii.gz."""
    made = tmp_path / "in"
    made.mkdir()
    for number, name in enumerate(("x.jpg", "x.png", "y.png")):
        Image.fromarray(np.full((8, 9, 3), 50 * number, np.uint8)).save(made / name)
    nibabel.save(nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4)), made / "ct.nii.gz")
    return made


def refused(inputs: list[Path], info: BundleInfo, out: Path, said: str, overwrite: bool = False) -> None:
    """That nothing is written, and the line."""
    before = {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=said) as caught:
        plan(inputs, info, out, overwrite=overwrite)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in out.parent.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("way", ["itself", "link to the folder", "link to the input", "hard link", "dots"])
def test_an_input_is_never_replaced(folder: Path, tmp_path: Path, way: str, overwrite: bool):
    for path, info in ((folder / "y.png", PHOTOS), (folder / "ct.nii.gz", SCANS)):
        out, source = folder, path
        if way == "link to the folder":
            out = tmp_path / f"link-{path.name}"
            out.symlink_to(folder)
        elif way == "link to the input":
            source = tmp_path / path.name
            source.symlink_to(path)
        elif way == "hard link":
            out = tmp_path / f"out-{path.name}"
            out.mkdir()
            os.link(path, out / path.name)
        elif way == "dots":
            out = folder / ".." / "in"
        refused(
            [source], info, out, rf"--out .*: {path.name} is the input .*{path.name}, which is not replaced", overwrite
        )


def test_an_input_of_another_folder_is_not_replaced_either(folder: Path, tmp_path: Path):
    """x.jpg's mask would be x.png, and that is the second input."""
    (tmp_path / "other").mkdir()
    (folder / "x.jpg").rename(tmp_path / "other" / "x.jpg")
    (folder / "x.png").rename(folder / "z.png")
    os.link(folder / "z.png", tmp_path / "other" / "x.png")
    inputs = [tmp_path / "other" / "x.jpg", folder / "z.png"]
    refused(inputs, PHOTOS, tmp_path / "other", r"x.png is the input .*/in/z.png", overwrite=True)


def test_a_foreign_file_is_replaced_only_when_that_is_said(folder: Path, tmp_path: Path):
    refused([folder / "x.jpg"], PHOTOS, folder, "x.png exists; give another folder, or --overwrite to replace it")
    assert plan([folder / "x.jpg"], PHOTOS, folder, overwrite=True).targets == [folder / "x.png"]
    dangling = tmp_path / "masks"
    dangling.mkdir()
    (dangling / "y.png").symlink_to(tmp_path / "nowhere")
    refused([folder / "y.png"], PHOTOS, dangling, "y.png exists")
    (dangling / "x.png").mkdir()
    refused([folder / "x.jpg"], PHOTOS, dangling, "x.png is a folder", overwrite=True)


def test_masks_that_would_have_one_name(folder: Path, tmp_path: Path):
    refused([folder / "x.jpg", folder / "x.png"], PHOTOS, tmp_path / "m", "another input has the same name x ")
    refused([folder / "y.png", folder / "y.png"], PHOTOS, tmp_path / "m", "y.png: is given twice; give it once")
    (tmp_path / "other").mkdir()
    for twin in ("X.png", "A\u0308.png"):  # a decomposed umlaut
        Image.new("RGB", (8, 8)).save(tmp_path / "other" / twin)
    Image.new("RGB", (8, 8)).save(folder / "\u00e4.png")
    refused([folder / "x.png", tmp_path / "other" / "X.png"], PHOTOS, tmp_path / "m", "another input has the same name")
    twins = [folder / "\u00e4.png", tmp_path / "other" / "A\u0308.png"]
    refused(twins, PHOTOS, tmp_path / "m", "another input has the same name")


@pytest.mark.parametrize("out", ["in/y.png", "in/y.png/sub/deeper", "/proc/nope", "/proc"])
def test_places_where_no_mask_can_be_written(folder: Path, out: str):
    place = Path(out) if out.startswith("/") else folder.parent / out
    with pytest.raises(UserError, match=rf"^--out {place}: .*; give (a|another) folder$"):
        plan([folder / "x.jpg"], PHOTOS, place)


def test_a_folder_that_can_be_written_is_not_made_by_the_check(tmp_path: Path):
    check_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


def test_the_range_of_a_model_is_not_overruled(folder: Path):
    with pytest.raises(UserError, match=r"--range: the model has a rule of its own \(clip to \['min', 'p99'\]\)"):
        plan([folder / "ct.nii.gz"], SCANS, folder / "out", window=(0, 1))


class Columns(nn.Module):
    """A class for every column of the image."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.eye(classes)[None, :, None, :] * 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scores.expand(len(x), -1, x.shape[-2], -1)


def test_forty_classes_from_images_of_every_kind(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 40, 3)).astype(np.uint8)
    inputs = [tmp_path / f"image{number}.{kind}" for number, kind in enumerate(("png", "jpg", "bmp", "tif", "gif"))]
    for path in inputs:
        Image.fromarray(pixels).save(path)
    np.save(tmp_path / "image9.npy", pixels)
    info = PHOTOS.model_copy(update={"image_size": (6, 40), "classes": [str(n) for n in range(40)]})
    planned = plan([tmp_path], info, tmp_path / "masks")
    assert planned.inputs == [*inputs, tmp_path / "image9.npy"]
    segmenter = Segmenter([Member(Columns(40).eval(), info)])
    for path, target in zip(*planned, strict=True):
        written = predict_one(segmenter, path, target)
        with Image.open(written.mask) as mask:
            np.testing.assert_array_equal(np.asarray(mask), np.tile(np.arange(40), (6, 1)))


def test_a_mask_has_all_ids_up_to_255_for_every_reader(tmp_path: Path):
    ids = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = write_mask(tmp_path / "ids.png", ids)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), ids)
    assert path.read_bytes()[24] == 8, "bits a pixel"
    assert len(np.unique(palette(), axis=0)) == 256, "every id has a colour of its own"
    shown = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    np.testing.assert_array_equal(shown, palette()[ids])
    few = write_mask(tmp_path / "few.png", ids[1:2] - 10)
    with Image.open(few) as image:
        np.testing.assert_array_equal(np.asarray(image), ids[1:2] - 10)
    write_mask(tmp_path / "volume.npy", ids[None])
    np.testing.assert_array_equal(np.load(tmp_path / "volume.npy"), ids[None])
