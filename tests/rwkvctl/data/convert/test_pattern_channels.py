"""Images whose channels are in several files under any names: colours and depth, two aligned photographs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.verify import verify

MASKS, RGB = "masks/*_m.png", "rgb/*.png"
RNG = np.random.default_rng(4)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Scenes of 20 x 24 pixels: colours, depth in mm of 16 bits, an infrared photograph that is grey in colour."""
    root = tmp_path / "scenes"
    for folder in ("rgb", "depth", "masks", "ir"):
        (root / folder).mkdir(parents=True)
    for number in range(10):
        name = f"scene{number}"
        Image.fromarray(RNG.integers(0, 256, (20, 24, 3), np.uint8)).save(root / "rgb" / f"{name}.png")
        depth = RNG.integers(200, 4000, (20, 24)).astype(np.uint16)
        depth[0, :2] = 100, 4100
        Image.fromarray(depth).save(root / "depth" / f"{name}_d.tif")
        grey = RNG.integers(0, 256, (20, 24, 1), np.uint8)
        Image.fromarray(np.repeat(grey, 3, axis=2)).save(root / "ir" / f"{name}.png")
        mask = np.zeros((20, 24), np.uint8)
        mask[4:12, 5:16] = 255
        Image.fromarray(mask).save(root / "masks" / f"{name}_m.png")
    return root


def made_of(tree: Path, tmp_path: Path, *images: str, **options):
    first, *more = images
    return prepare(
        "pairs", [tree], tmp_path / "out", images=first, more_images=tuple(more) or None, masks=MASKS, **options
    )


def test_colours_and_depth(tree: Path, tmp_path: Path):
    made = made_of(tree, tmp_path, RGB, "depth/*_d.tif", "ir/*.png")
    assert verify(made.root, deep=True).problems == []
    assert made.channel_names == ["rgb R", "rgb G", "rgb B", "depth_d", "ir"]
    assert (made.channels, made.content.channel_files) == (5, [3, 1, 1])
    clips = [own["clip"] for own in (made.content.intensity or {})["channels"]]
    assert clips == [[0, 255]] * 3 + [[100, 4100], [0, 255]]
    reader = Reader(made)
    for row in range(len(reader)):
        name = reader.key(row).removeprefix("out_")
        colours, depth, grey = (
            np.asarray(Image.open(tree / place)).astype(np.float64)
            for place in (f"rgb/{name}.png", f"depth/{name}_d.tif", f"ir/{name}.png")
        )
        image = reader.image(row)
        np.testing.assert_allclose(image[..., :3], colours / 255, atol=1e-6)
        np.testing.assert_allclose(image[..., 3], (depth - 100) / 4000, atol=1e-6)
        np.testing.assert_allclose(image[..., 4], grey[..., 0] / 255, atol=1e-6)
        assert int((reader.mask(row) == 1).sum()) == 8 * 11


@pytest.mark.parametrize(("images", "line"), [
    ((RGB, "depth/*.png"), r"--images 'depth/\*.png': matches no image"),
    ((RGB, "*/*.png"), r"--images '\*/\*.png': has 2 wildcards without a name, the first has 1"),
    ((RGB, "rgb/*.png"), "--images 'rgb/.*': matches rgb/scene0.png, as the first does; tell them apart"),
])  # fmt: skip
def test_patterns_that_are_refused(tree: Path, tmp_path: Path, images: tuple[str, ...], line: str):
    with pytest.raises(UserError, match=line) as caught:
        made_of(tree, tmp_path, *images)
    assert "\n" not in str(caught.value)


def test_files_that_are_refused(tree: Path, tmp_path: Path):
    def refused(line: str, **options) -> None:
        with pytest.raises(UserError, match=line) as caught:
            made_of(tree, tmp_path, RGB, "depth/*_d.tif", **options)
        assert "\n" not in str(caught.value)

    refused("--range: is for images of one file each", range=(0, 4000))
    path = tree / "depth" / "scene3_d.tif"
    kept = path.read_bytes()
    path.unlink()
    refused(r"scene3.png: has no image by --images depth/\*_d.tif; add it, or leave the image out")
    made = made_of(tree, tmp_path, RGB, "depth/*_d.tif", allow_partial=True)
    assert (len(made.index), [own.id for own in made.content.excluded]) == (9, ["rgb/scene3.png"])
    path.write_bytes(kept)
    Image.new("I;16", (9, 9)).save(path)
    with pytest.raises(UserError, match=r"scene3_d.tif: is 9 x 9, scene3.png is 24 x 20; give the channels of"):
        made_of(tree, tmp_path, RGB, "depth/*_d.tif", overwrite=True)
    Image.new("L", (24, 20)).save(path)
    with pytest.raises(UserError, match="depth_d: 9 images have more than 8 bits, 1 have 8, and share no range"):
        made_of(tree, tmp_path, RGB, "depth/*_d.tif", overwrite=True)
