"""The figure of several models on the same images: which slices, whose masks, and one line for every mistake."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rwkv_unet import create_model
from rwkvctl.base.errors import UserError
from rwkvctl.data.feed.cases import iter_cases
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import bundle
from rwkvctl.models.ensemble import Member
from rwkvctl.models.inference import segment
from rwkvctl.reports import qualitative


def write_model(manifest: Manifest, folder: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    outputs = 1 if len(manifest.classes) == 2 else len(manifest.classes)
    info = bundle.BundleInfo(
        model={"name": "rwkv_unet_xt", "num_classes": outputs},
        classes=manifest.classes,
        image_size=32,
        image_kind=manifest.image_kind,
        channels=manifest.channels,
        dataset=manifest.dataset,
        fingerprint=manifest.fingerprint,
        intensity=manifest.content.intensity,
        orientation=manifest.content.orientation,
        extra={"data": str(manifest.root)},
    )
    bundle.save(folder, create_model("rwkv_unet_xt", num_classes=outputs).state_dict(), info)
    return folder


def test_every_model_segments_the_slice_with_the_most_classes(cardiac: Manifest, tmp_path: Path):
    members = [Member(*bundle.load(write_model(cardiac, tmp_path / f"m{seed}", seed))) for seed in (0, 1)]
    [case, *_] = iter_cases(cardiac, split=None, part="test")
    [row] = qualitative.rows(members, cardiac, [case.key])
    z = int(row.place.split()[1]) - 1
    assert row.place == f"slice {z + 1} of {len(case.mask)}"
    assert len(np.unique(row.truth)) == max(len(np.unique(each)) for each in case.mask)
    assert np.array_equal(row.truth, case.mask[z])
    for member, mask in zip(members, row.masks, strict=True):
        assert np.array_equal(mask, segment(*member, case.image)[z])
    assert all(dsc is not None and 0 <= dsc <= 1 for dsc in row.dsc)


def test_cases_are_spread_over_the_part_or_named(cardiac: Manifest):
    split = cardiac.default_split
    ids = cardiac.ids(split, "train")
    assert qualitative.chosen(cardiac, split, "train", [], 2) == [ids[0], ids[-1]]
    assert qualitative.chosen(cardiac, split, "train", [], 10**6) == ids
    assert qualitative.chosen(cardiac, split, "train", [ids[1]], 5) == [ids[1]]
    with pytest.raises(UserError, match=r"--case nobody: not in split .*, part train; "):
        qualitative.chosen(cardiac, split, "train", ["nobody"], 1)


def test_a_class_lies_over_the_image_and_what_is_ignored_does_not():
    image = np.full((2, 2, 3), 100, np.uint8)
    found = qualitative.filled(image, np.array([[0, 255], [1, 2]], np.uint8))
    assert found[0].tolist() == [[100] * 3] * 2
    assert found[1, 0].tolist() == [178, 135, 40]


def test_the_command_writes_a_figure_or_one_line(rwkvctl, binary: Manifest, cardiac: Manifest, tmp_path: Path):
    write_model(binary, tmp_path / "a$_b", 0)
    write_model(cardiac, tmp_path / "hearts", 0)
    two = f"{tmp_path}/a$_b {tmp_path}/a$_b"
    done = rwkvctl(f"model grid {two} --count 2 --label $x_1 --label two --out {tmp_path}/f.png")
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 3
    with Image.open(tmp_path / "f.png") as picture:
        assert picture.width == 4 * qualitative.INCHES * 120
    for words, said in (
        (f"{tmp_path}/hearts", "has the classes background, "),
        ("--label one", "--label: 1 for 2 models; give one for each, in their order"),
        ("--case nobody", "--case nobody: not in split"),
    ):
        wrong = rwkvctl(f"model grid {two} {words} --out {tmp_path}/g.png")
        assert wrong.code == 2
        assert said in wrong.err
    assert not (tmp_path / "g.png").exists()
    assert "a figure ends in" in rwkvctl(f"model grid {tmp_path}/a$_b --out {tmp_path}/g.gif").err
