"""Patients that names and folders tell apart: what is proposed, what is not, and that splits keep them together."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import grouping
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.guess import doctor
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.verify import verify


def groups_of(names: list[str]) -> dict[str, str] | None:
    found = grouping.proposed({name: name for name in names})
    return dict(found.of) if found else None


@pytest.mark.parametrize(
    ("pattern", "group"),
    [
        ("patient{p:03d}_frame{i:02d}", "patient{p:03d}"),
        ("p{p}_{i}", "p{p}"),
        ("{p:04d}_{i}", "{p:04d}"),
        ("case_{p:03d}_{side}", "case_{p:03d}"),
        ("sub-{p:02d}_ses-{i:02d}_T1w", "sub-{p:02d}"),
        ("Image_{p:02d}{side}", "Image_{p:02d}"),
        ("site1_p{p:03d}_{i}", "site1_p{p:03d}"),
        ("Patient{p}Frame{i}", "Patient{p}"),
        ("liver {p} ({i})", "liver {p}"),
        ("Smith{p}/{i:03d}", "Smith{p}"),
        ("p{p}/day{i}/001", "p{p}"),
    ],
)
def test_patients_are_found(pattern: str, group: str):
    names = {pattern.format(p=p, i=i, side="LR"[i - 1]): group.format(p=p) for p in range(1, 13) for i in (1, 2)}
    assert groups_of(list(names)) == names


@pytest.mark.parametrize(
    "names",
    [
        [str(n) for n in range(1, 40)],
        [f"frame_{n:03d}" for n in range(40)],
        [f"ISIC_{n:07d}" for n in range(40)],
        [f"{kind} ({n})" for kind in ("benign", "malignant", "normal") for n in range(10)],
        [f"{part}/{n}" for part in ("train", "val", "test") for n in range(10)],
        [f"{kind}/{n}" for kind in ("benign", "malignant", "normal") for n in range(10)],
        [f"site{site}_{n:03d}" for site in range(8) for n in range(5)],
        [f"2021{month:02d}{day:02d}_{n}" for month in range(1, 5) for day in (3, 9) for n in range(5)],
        [f"20051{n % 3}20_{43000 + 7 * n}_0100_PP" for n in range(40)],
        [f"c{np.random.default_rng(n).bytes(12).hex()}" for n in range(200)],
        ["p1_1", "p1_2", "p2_1"],
    ],
)
def test_other_names_tell_no_patients(names: list[str]):
    assert groups_of(names) is None


def test_a_pattern_of_ones_own():
    paths = {name: name for name in ("a-x-1", "a-x-2", "b-y-1")}
    assert dict(grouping.proposed(paths, r"^.-(.)").of) == {"a-x-1": "x", "a-x-2": "x", "b-y-1": "y"}
    assert grouping.proposed({f"p{n}_{i}": f"p{n}_{i}" for n in range(9) for i in (1, 2)}, "none") is None
    with pytest.raises(UserError, match="does not match 3 images, for example a-x-1"):
        grouping.proposed(paths, r"q(\d)")
    with pytest.raises(UserError, match="is not a regular expression"):
        grouping.proposed(paths, "(")


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    Image.fromarray(np.kron(rng.integers(0, 255, (6, 6), np.uint8), np.ones((8, 8), np.uint8))).save(path)


@pytest.mark.parametrize("pattern", ["p{:02d}_{}", "p{:02d}/{}"])
def test_own_images_are_split_by_patient(pattern: str, tmp_path: Path):
    for n in range(40):
        name = pattern.format(n // 2, n % 2)
        picture(tmp_path / "raw" / "images" / f"{name}.png", n)
        mask = tmp_path / "raw" / "masks" / f"{name}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.eye(48, k=n, dtype=np.uint8) * 255).save(mask)
    note = "20 groups of up to 2 images by " + ("folder" if "/" in pattern else "name")
    assert any(note in text for text in doctor.examine([tmp_path / "raw"]).findings[0].warnings)
    made = prepare("folder", [tmp_path / "raw"], tmp_path / "set", seeds=[41])
    assert any(text.startswith(note) for text in made.content.warnings)
    assert list(made.splits) == ["grouped811_s41", "random811_s41"]
    assert patients_shared(made, "grouped811_s41", 6) == 0
    leaks = [text for text in verify(made.root).warnings if "train has too" in text]
    assert len(leaks) == 1
    test = made.split_ids("random811_s41")["test"]
    train = {key[:7] for key in made.split_ids("random811_s41")["train"]}
    assert f"{sum(key[:7] in train for key in test)} of {len(test)} test samples" in leaks[0]
    plain = prepare("folder", [tmp_path / "raw"], tmp_path / "plain", seeds=[41], groups="none")
    assert list(plain.splits) == ["random811_s41"]


def patients_shared(made: Manifest, split: str, length: int) -> int:
    """How many beginnings of keys are in train and held out."""
    parts = {
        part: {key.removeprefix("set_")[: length - 3] for key in ids} for part, ids in made.split_ids(split).items()
    }
    return len(parts["train"] & (parts["val"] | parts["test"])) + len(parts["val"] & parts["test"])


def test_two_frames_a_patient_of_nnunet(tmp_path: Path):
    root = tmp_path / "Dataset001_Heart"
    for n in range(24):
        rng = np.random.default_rng(22 if n == 23 else n)  # the last two volumes are equal under two names
        for folder, end, values in (
            ("imagesTr", "_0000", rng.normal(0, 1, (8, 8, 3)).astype(np.float32)),
            ("labelsTr", "", (np.arange(192).reshape(8, 8, 3) % 2).astype(np.uint8)),
        ):
            path = root / folder / f"heart{n // 2 if n < 22 else n:03d}_{'ED' if n % 2 else 'ES'}{end}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, np.diag([-1, -1, 1, 1])), path)
    labels = {"background": 0, "heart": 1}
    content = {"channel_names": {"0": "MRI"}, "labels": labels, "numTraining": 24, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))
    made = prepare("nnunet", [root], tmp_path / "set")
    assert list(made.splits) == ["grouped811_s41"]
    lists = made.split_ids("grouped811_s41")
    patient = {part: {key[4:12] for key in ids} for part, ids in lists.items()}
    assert all(lists.values())
    assert not patient["train"] & (patient["val"] | patient["test"])
    assert not patient["val"] & patient["test"]
    assert {"heart022", "heart023"} <= patient["train"] | patient["val"] | patient["test"]
    assert sum({"heart022", "heart023"} <= own for own in patient.values()) == 1
    assert len(made.content.duplicates.copies) == 1
    assert made.content.duplicates.near == []
    assert verify(made.root).warnings == []


def test_patients_in_several_parts_of_a_classification_set_are_counted(tmp_path: Path):
    number = 0
    for part, images in (("train", 3), ("val", 1)):
        for kind in ("sick", "well"):
            for patient in range(8):
                for _ in range(images):
                    number += 1
                    picture(tmp_path / "raw" / part / kind / f"{kind[0]}p{patient}_{number}.png", number)
    made = prepare("imagefolder", [tmp_path / "raw"], tmp_path / "set")
    assert any(text.startswith("16 groups of up to 4 images by name") for text in made.content.warnings)
    assert made.splits["official"].leak_groups_shared == 16
    assert any("16 of 16 val samples" in text for text in verify(made.root).warnings)
