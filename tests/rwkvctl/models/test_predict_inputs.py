"""One contract for what a model is given: pictures for what they show, raw numbers by the model's own rule."""

from __future__ import annotations

import io
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.images import intensity
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.predict_inputs import ALONE, decode, input_files, read_input

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (24, 36)).astype(np.uint8)
COLOUR = RNG.integers(0, 256, (24, 36, 3)).astype(np.uint8)
UNIT = RNG.random((24, 36))
HU = RNG.integers(-1000, 1500, (24, 36)).astype(np.int16)
DEEP = RNG.integers(0, 4096, (24, 36)).astype(np.uint16)


def model(kind: str, *clip: float | str) -> BundleInfo:
    return BundleInfo(
        model={"name": "x"},
        classes=["background", "x"],
        image_size=32,
        image_kind=kind,  # type: ignore[arg-type]
        channels=3 if kind == "rgb8" else 1,
        intensity=intensity.rule(*clip) if clip else None,
    )


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def picture(array: np.ndarray, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, **options)
    return buffer.getvalue()


PHOTOS, RAW_PHOTOS = model("rgb8"), model("rgb8", 100, 4000)
SCALED, CT, MRI = model("float"), model("float", -125, 275), model("float", "min", "p99")
FLOAT_PHOTOS = model("rgb8", 0.1, 0.9)


def windowed(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(float) - low) / (high - low), 0, 1)


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(np.rint(grey)[..., None], 3, axis=2)


GIVEN = {
    "PNG, photos": (PHOTOS, picture(COLOUR), COLOUR),
    "PNG in grey, photos": (PHOTOS, picture(GREY), three(GREY)),
    "pixels in an array, photos": (PHOTOS, npy(COLOUR), COLOUR),
    "grey pixels in an array, photos": (PHOTOS, npy(GREY), three(GREY)),
    "scaled array, photos": (PHOTOS, npy(UNIT), three(255 * UNIT)),
    "scaled colours, photos": (PHOTOS, npy((COLOUR / 255).astype(np.float32)), COLOUR),
    "widened bytes, photos": (PHOTOS, picture(GREY.astype(np.uint16) * 257), three(GREY)),
    "float TIFF, photos": (PHOTOS, picture(UNIT.astype(np.float32), "TIFF"), three(255 * UNIT.astype(np.float32))),
    "16 bits by the model's range": (RAW_PHOTOS, picture(DEEP), three(255 * windowed(DEEP, 100, 4000))),
    "16-bit TIFF by the model's range": (RAW_PHOTOS, picture(DEEP, "TIFF"), three(255 * windowed(DEEP, 100, 4000))),
    "16-bit array by the model's range": (RAW_PHOTOS, npy(DEEP), three(255 * windowed(DEEP, 100, 4000))),
    "8 bits, model of 16-bit images": (RAW_PHOTOS, picture(COLOUR), COLOUR),
    "float array by the model's range": (FLOAT_PHOTOS, npy(UNIT), three(255 * windowed(UNIT, 0.1, 0.9))),
    "PNG, scans": (CT, picture(GREY), GREY / 255),
    "pixels in an array, scans": (CT, npy(GREY), GREY / 255),
    "scaled array, scans": (CT, npy(UNIT), UNIT),
    "scaled array without a rule": (SCALED, npy(UNIT), UNIT),
    "HU": (CT, npy(HU), windowed(HU, -125, 275)),
    "HU in float64": (CT, npy(HU.astype(np.float64)), windowed(HU, -125, 275)),
    "HU volume": (CT, npy(np.stack([HU, -HU])), windowed(np.stack([HU, -HU]), -125, 275)),
    "16-bit PNG, scans": (CT, picture(DEEP), windowed(DEEP, -125, 275)),
    "air alone": (CT, npy(np.full((8, 8), -1024, np.int16)), np.zeros((8, 8))),
    "MRI": (MRI, npy(DEEP * 1.5), windowed(DEEP, DEEP.min(), np.quantile(DEEP, 0.99, method="inverted_cdf"))),
}


@pytest.mark.parametrize("name", GIVEN)
def test_what_is_given_becomes_what_the_model_takes(name: str):
    info, data, expected = GIVEN[name]
    given = decode(data, info)
    assert given.values.dtype == (np.uint8 if info.image_kind == "rgb8" else np.float32)
    tolerance = 1 if info.image_kind == "rgb8" and name.startswith(("float", "scaled")) else 1e-5
    np.testing.assert_allclose(given.values.astype(float), expected, atol=tolerance, rtol=0)
    clipped = name.endswith("by the model's range") and "array" not in name
    assert given.note.endswith(ALONE if name == "MRI" else "clipped" if clipped else "")
    assert bool(given.note) == (clipped or name == "MRI")


REFUSED = {
    "16 bits, photos": (
        PHOTOS,
        picture(DEEP),
        "has 16-bit values .*trained on 8-bit images; .* --range LOW,HIGH",
    ),
    "float TIFF beyond 1, photos": (PHOTOS, picture((UNIT * 9).astype(np.float32), "TIFF"), "has float values"),
    "HU without a rule": (
        SCALED,
        npy(HU),
        r"values must lie in \[0, 1\], they go from -1000 to .* no rule for raw",
    ),
    "z-scores": (
        CT,
        npy(RNG.normal(size=(24, 36))),
        r"neither in \[0, 1\] nor raw ones of .* window -125..275",
    ),
    "twice the unit": (CT, npy(2 * UNIT), r"values go from .* to .*: neither in \[0, 1\]"),
    "flat MRI": (MRI, npy(np.full((8, 8), 7)), "has no contrast"),
    "pages": (PHOTOS, picture(GREY, "TIFF", save_all=True, append_images=[Image.fromarray(GREY)] * 2), "has 3 pages"),
    "animation": (PHOTOS, picture(GREY, "GIF", save_all=True, append_images=[Image.fromarray(255 - GREY)]), "2 frames"),
    "NaN": (CT, npy(UNIT * np.nan), "NaN or infinite"),
    "NaN in a TIFF": (RAW_PHOTOS, picture((UNIT * np.nan).astype(np.float32), "TIFF"), "NaN or infinite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_rule_covers_is_refused_in_a_line(name: str):
    info, data, said = REFUSED[name]
    with pytest.raises(UserError, match=said) as caught:
        decode(data, info)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_a_stated_range_replaces_the_rule_that_a_model_lacks():
    np.testing.assert_array_equal(
        decode(picture(DEEP), PHOTOS, (0, 4095)).values, three(255 * windowed(DEEP, 0, 4095)).astype(np.uint8)
    )
    np.testing.assert_allclose(decode(npy(HU), SCALED, (-125, 275)).values, windowed(HU, -125, 275), atol=1e-6)


def test_what_is_done_to_an_image_is_said():
    turned = Image.Exif()
    turned[0x0112] = 6
    given = decode(picture(COLOUR, exif=turned), PHOTOS)
    np.testing.assert_array_equal(given.values, np.rot90(COLOUR, -1))
    assert given.note == "turned as its EXIF tag says; its mask is 24 x 36, as viewers show the image"
    dark = decode(picture((DEEP // 40 + 100).astype(np.uint16)), RAW_PHOTOS)
    assert dark.note == "scaled from 100..4000 to 8 bits; fewer than 32 grey levels"
    assert decode(picture(DEEP * 2), RAW_PHOTOS).note.endswith("values outside that range were clipped")


def test_the_kind_is_told_by_content(tmp_path: Path):
    """An image under another image's name, and files that OpenCV and h5py wrote."""
    (tmp_path / "a.jpg").write_bytes(picture(COLOUR))
    cv2.imwrite(str(tmp_path / "b.tiff"), DEEP)
    with h5py.File(tmp_path / "c.h5", "w") as file:
        file["image"] = HU
    np.testing.assert_array_equal(read_input(tmp_path / "a.jpg", PHOTOS).values, COLOUR)
    np.testing.assert_array_equal(
        read_input(tmp_path / "b.tiff", RAW_PHOTOS).values, three(255 * windowed(DEEP, 100, 4000))
    )
    np.testing.assert_allclose(read_input(tmp_path / "c.h5", CT).values, windowed(HU, -125, 275), atol=1e-6)


def test_a_folder_means_all_that_is_in_it_in_natural_order(tmp_path: Path):
    (tmp_path / "raw" / "more").mkdir(parents=True)
    for name in ("10.png", "2.PNG", "1.npy", "notes.txt", ".hidden.png", "3.nii.gz", "more/4.png"):
        (tmp_path / "raw" / name).write_bytes(b"")
    files = input_files([tmp_path / "raw", tmp_path / "raw" / "notes.txt"])
    assert [path.name for path in files] == ["1.npy", "2.PNG", "3.nii.gz", "10.png", "notes.txt"]
    with pytest.raises(UserError, match=r"absent: no such file$"):
        input_files([tmp_path / "absent"])
    with pytest.raises(UserError, match=r"a folder without JPEG.*; of its subfolders only DICOM is taken"):
        input_files([tmp_path])
