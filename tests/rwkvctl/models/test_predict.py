"""Masks for files: every kind of input, native size, nothing half-written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import h5py
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rwkvctl.base.errors import UserError
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.predict import predict_files


class Bright(nn.Module):
    """Class 1 where the image is bright: the right answer is known."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        above = x.mean(dim=1, keepdim=True) - self.level
        return torch.cat([-above, above], dim=1)


def info(kind: str) -> BundleInfo:
    fields = {"model": {"name": "x"}, "classes": ["background", "bright"], "image_size": 32, "image_kind": kind}
    return BundleInfo.model_validate(fields | {"channels": 3 if kind == "rgb8" else 1})


def half_bright(*shape: int) -> np.ndarray:
    """Dark on the left, bright on the right."""
    picture = np.zeros(shape, np.float32)
    picture[..., shape[-1] // 2 :] = 1
    return picture


def write(path: Path, array: np.ndarray) -> Path:
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["image"] = array
    else:
        Image.fromarray((array * 255).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tiff", ".npy", ".h5"])
def test_a_mask_has_the_size_of_its_image(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"x{suffix}", half_bright(40, 60))
    [written] = predict_files(Bright().eval(), info("float"), [path], tmp_path / "out")
    assert written == tmp_path / "out" / "x.png"
    with Image.open(written) as mask:
        assert mask.mode == "P", "colours for the eye, class ids in the file"
        found = np.asarray(mask)
    assert found.shape == (40, 60)
    assert (found[:, :25] == 0).all()
    assert (found[:, 35:] == 1).all()


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_colour_model_takes_colour_and_grey_pictures(tmp_path: Path, suffix: str):
    grey, colour = half_bright(30, 50), np.repeat(half_bright(30, 50)[..., None], 3, axis=2)
    paths = [write(tmp_path / f"grey{suffix}", grey), write(tmp_path / f"colour{suffix}", colour)]
    for written in predict_files(Bright().eval(), info("rgb8"), paths, tmp_path / "out"):
        found = cv2.imread(str(written), cv2.IMREAD_UNCHANGED)
        assert found.shape[:2] == (30, 50)
        with Image.open(written) as mask:
            assert set(np.unique(np.asarray(mask)[:, 30:])) == {1}


@pytest.mark.parametrize("suffix", [".npy", ".h5"])
def test_a_volume_is_segmented_slice_by_slice(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"x{suffix}", half_bright(3, 20, 30))
    [written] = predict_files(Bright().eval(), info("float"), [path], tmp_path / "out")
    assert written.name == "x.npy"
    found = np.load(written, allow_pickle=False)
    assert (found.dtype, found.shape) == (np.uint8, (3, 20, 30))
    assert set(np.unique(found[..., 20:])) == {1}


MISTAKES: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "absent": ("float", lambda path: None, "no such file"),
    "empty folder": ("float", lambda path: path.mkdir(), "a folder without JPEG, PNG, TIFF or BMP images, .npy or"),
    "no picture": ("rgb8", lambda path: path.write_bytes(b"x" * 100), "give a JPEG, PNG, TIFF or BMP file"),
    "empty": ("rgb8", lambda path: path.write_bytes(b""), "give a JPEG, PNG, TIFF or BMP file"),
    "volume for colours": ("rgb8", lambda path: write(path, half_bright(4, 8, 8)), "takes colour images"),
    "colours for a volume": ("float", lambda path: write(path, half_bright(40, 40, 3)), "is a colour picture"),
    "too bright": ("float", lambda path: write(path, 2 * half_bright(8, 8)), r"values must lie in \[0, 1\]"),
    "nan": ("float", lambda path: write(path, half_bright(8, 8) * np.nan), "holds NaN or infinite values"),
    "one axis": ("float", lambda path: write(path, half_bright(8)), r"must be numbers of shape \(H, W\)"),
    "no pixels": ("float", lambda path: write(path, np.zeros((0, 4))), r"must be numbers of shape \(H, W\)"),
    "words": ("float", lambda path: write(path, np.array([["a"]])), "must be numbers"),
    "pickle": ("float", lambda path: np.save(path, np.array([[{}]]), allow_pickle=True), "holds Python objects, not"),
    "complex": ("float", lambda path: write(path, half_bright(8, 8) * 1j), "must be numbers"),
    "no array": ("float", lambda path: path.write_bytes(b"x" * 100), "cannot be read"),
    "other h5": ("float", lambda path: h5py.File(path, "w").close(), "cannot be read"),
}
SUFFIX = {"no picture": ".png", "empty": ".png", "other h5": ".h5"}


@pytest.mark.parametrize("name", MISTAKES)
def test_what_is_no_image_is_named(tmp_path: Path, name: str):
    kind, make, said = MISTAKES[name]
    path = tmp_path / f"x{SUFFIX.get(name, '.npy')}"
    make(path)
    with pytest.raises(UserError, match=said) as caught:
        predict_files(Bright().eval(), info(kind), [path], tmp_path / "out")
    assert str(caught.value).startswith(f"input {path}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_all_inputs_are_looked_for_before_the_first_is_read(tmp_path: Path):
    good = write(tmp_path / "good.npy", half_bright(8, 8))
    with pytest.raises(UserError, match="absent"):
        predict_files(Bright().eval(), info("float"), [good, tmp_path / "absent.npy"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_two_inputs_of_one_name_are_refused(tmp_path: Path):
    (tmp_path / "other").mkdir()
    paths = [write(tmp_path / "x.npy", half_bright(8, 8)), write(tmp_path / "other" / "x.h5", half_bright(8, 8))]
    with pytest.raises(UserError, match="another input has the same name x"):
        predict_files(Bright().eval(), info("float"), paths, tmp_path / "out")
