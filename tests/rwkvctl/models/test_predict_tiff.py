"""TIFF files of several pages: volumes and stacks of pictures, and masks as such."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.images import intensity
from rwkvctl.models.ensemble import Member, Options, Segmenter
from rwkvctl.models.predict import Written, plan, predict_files, predict_one

from .test_predict import Bright, half_bright, info

IMAGEJ = "ImageJ=1.54f\nimages=3\nslices=3\nunit=micron\nspacing=2.0\nloop=false\nmin=0.0\nmax=255.0\n"


def save(path: Path, pages: Any, **tags: Any) -> Path:
    first, *others = (Image.fromarray(page) for page in pages)
    first.save(path, "TIFF", save_all=True, append_images=others, **tags)
    return path


def pages_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.stack([np.asarray(image.convert("L")) for _ in range(image.n_frames) if image.seek(_) is None])


def predicted(path: Path, kind: str, window: Any = None, **fields: Any) -> Written:
    own = info(kind).model_copy(update=fields)
    inputs, [target] = plan([path], own, path.parent / "masks", window=window)
    segmenter = Segmenter([Member(Bright().eval(), own)], Options(probabilities=True))
    return predict_one(segmenter, inputs[0], target, window, preview=True)


def depths(dtype: type) -> np.ndarray:
    """Three pages (3, 20, 30), each bright on the right, of different brightness."""
    scale = {np.uint8: 255, np.uint16: 4000, np.float32: 1}[dtype]
    return (np.stack([half_bright(20, 30)] * 3) * scale * np.array([1.0, 0.9, 0.8])[:, None, None]).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("kind", ["float", "rgb8"])
def test_pages_become_pages_of_a_mask(tmp_path: Path, dtype: type, kind: str):
    path = save(tmp_path / "stack.tiff", depths(dtype), description=IMAGEJ, resolution=3.5)
    written = predicted(path, kind, (0, 4000) if dtype == np.uint16 else None)
    assert (written.mask.name, written.note) == ("stack.tif", "3 pages, each a slice")
    found = pages_of(written.mask)
    assert found.shape == (3, 20, 30)
    assert set(np.unique(found)) == {0, 1}
    np.testing.assert_array_equal(found, written.ids)
    assert (found[:, :, :12] == 0).all()
    assert (found[:, :, 18:] == 1).all()
    with Image.open(written.mask) as mask:
        assert mask.mode == "L"
        assert mask.tag_v2[270] == "ImageJ=1.54f\nimages=3\nslices=3\nunit=micron\nspacing=2.0\n", "as Fiji calibrates"
        assert mask.tag_v2[282] == 3.5
    assert np.load(tmp_path / "masks" / "stack.probabilities.npz")["probabilities"].shape == (2, 3, 20, 30)
    assert (tmp_path / "masks" / "previews" / "stack.tif.png").is_file()


def test_colour_pages_are_pictures_of_their_own(tmp_path: Path):
    pages = [np.repeat((half_bright(20, 30) * 255).astype(np.uint8)[..., None], 3, axis=2)] * 2
    pages[1] = pages[1][:, ::-1]
    found = pages_of(predicted(save(tmp_path / "x.tif", pages), "rgb8").mask)
    np.testing.assert_array_equal(found[1], found[0][:, ::-1])
    found = pages_of(predicted(save(tmp_path / "y.tif", pages), "float").mask)
    np.testing.assert_array_equal(found[1], found[0][:, ::-1])


def test_the_rule_is_for_all_pages_together(tmp_path: Path):
    """A dark page is dark: scaled by its own range it would be as bright as the others."""
    pages = depths(np.uint16)
    pages[2] //= 10
    rule = intensity.rule("min", "p99")
    found = predicted(save(tmp_path / "x.tif", pages), "float", intensity=rule, orientation="itk").ids
    assert [page.any() for page in found] == [True, True, False]


def test_one_page_and_a_thumbnail_is_an_image(tmp_path: Path):
    first, small = Image.fromarray(depths(np.uint8)[0]), Image.fromarray(np.zeros((5, 8), np.uint8))
    small.encoderinfo = {"tiffinfo": {254: 1}}
    first.save(tmp_path / "x.tif", "TIFF", save_all=True, append_images=[small])
    assert predicted(tmp_path / "x.tif", "float").mask.name == "x.png"


def cut_after_a_page(path: Path) -> bytes:
    """The first of three pages, the pointer to the next one past the end of the file."""
    whole = save(path, depths(np.uint8)).read_bytes()
    with Image.open(path) as image:
        image.seek(1)
        return whole[: image._frame_pos[1]]


WRONG = {
    "sizes": (lambda path: save(path, [np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)]),
              "has pages of several sizes; save each as a file of its own"),
    "kinds": (lambda path: save(path, [np.zeros((4, 4), np.uint8), np.zeros((4, 4), np.uint16)]),
              "has pages of several kinds (grey and colour, or of other depths); save them alike"),
    "one entry for many": (lambda path: save(path, depths(np.uint8)[:2], description=IMAGEJ),
                           "says that it has 3 images, of which 2 can be read; save it as NRRD or .npy"),
    "turned": (lambda path: save(path, depths(np.uint8), tiffinfo={274: 6}),
               "has pages with an orientation tag; save them upright"),
    "cut off": (lambda path: path.write_bytes(save(path, depths(np.uint8), compression="tiff_lzw").read_bytes()[:-60]),
                "corrupt"),
    "cut off in a page": (lambda path: path.write_bytes(save(path, depths(np.uint8)).read_bytes()[:-900]), "corrupt"),
    "cut off after a page": (lambda path: path.write_bytes(cut_after_a_page(path)), "more pages were to follow"),
    "no range": (lambda path: save(path, depths(np.uint16)), "they go from 0 to 4000, and the model has no rule"),
    "no range, colour": (lambda path: save(path, depths(np.uint16)), "has values 0..4000: the model was trained on"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_stack_is_one_line(tmp_path: Path, name: str):
    make, said = WRONG[name]
    make(tmp_path / "x.tif")
    model = info("rgb8" if "colour" in name else "float")
    with pytest.raises(UserError) as caught:
        predict_files(Bright().eval(), model, [tmp_path / "x.tif"], tmp_path / "masks")
    assert str(caught.value).startswith(f"input {tmp_path / 'x.tif'}: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "masks").exists()
