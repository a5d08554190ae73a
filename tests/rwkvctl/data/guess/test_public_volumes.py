"""The layouts of well-known downloads of volumes: what `data doctor` makes of each, and that its line converts them."""

from __future__ import annotations

import shlex
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest

from rwkvctl.data.guess.doctor import examine
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader

from ...cli.test_data import run


def scan(path: Path, labels: Sequence[int] | None, fine: bool = False) -> np.ndarray:
    """Noise, or boxes of these labels in nothing; [z, y, x], stored from left to right and front to back."""
    rng = np.random.default_rng(zlib.crc32("/".join(path.parts[-4:]).encode()))
    shape = (32, 36, 18) if fine else (16, 18, 6)
    voxels = np.zeros(shape, np.uint8) if labels else rng.normal(100, 40, shape).astype(np.int16)
    for number, label in enumerate(labels or ()):
        voxels[4 * number : 4 * number + 3, 4 : 10 + rng.integers(4), 1:5] = label
    path.parent.mkdir(parents=True, exist_ok=True)
    step = 0.5 if fine else 1.0
    nibabel.save(nibabel.Nifti1Image(voxels, np.diag([-step, -step, 3 * step**2 / (0.75 if fine else 1), 1])), path)
    return voxels.transpose()


class Volumes(NamedTuple):
    """`{n}` of the paths is each of the numbers, `{case}` each of the cases. files: their labels; image, masks: those
    that are to be taken, as many masks as there are classes, or one, and for `{each}` of the images of a case."""

    files: dict[str, Sequence[int] | None]
    image: str
    masks: list[str]
    options: str
    question: str = "classes are called by their labels"
    cases: Sequence[str] = ("1", "2", "3", "4", "5")
    fine: str = ""
    each: Sequence[str] = ("",)


BRATS = "BraTS20_{n:03d}/BraTS20_{n:03d}_"
VOLUMES = {
    "BraTS": Volumes(
        {f"{BRATS}{name}.nii.gz": None for name in ("flair", "t1", "t1ce", "t2")} | {f"{BRATS}seg.nii.gz": (1, 2, 4)},
        f"{BRATS}flair.nii.gz",
        [f"{BRATS}seg.nii.gz"],
        "--images 'BraTS20_{a}/BraTS20_{a}_flair' --masks 'BraTS20_{a}/BraTS20_{a}_seg' "
        "--classes background=0,label_1=1,label_2=2,label_4=4",
        "another is --images 'BraTS20_{a}/BraTS20_{a}_t1' or --images 'BraTS20_{a}/BraTS20_{a}_t2' or "
        "--images 'BraTS20_{a}/BraTS20_{a}_t1ce'; given as well, it is a further channel",
    ),
    "KiTS": Volumes(
        {"data/case_{n:05d}/imaging.nii.gz": None, "data/case_{n:05d}/segmentation.nii.gz": (1, 2)},
        "data/case_{n:05d}/imaging.nii.gz",
        ["data/case_{n:05d}/segmentation.nii.gz"],
        "--images 'data/case_*/imaging' --masks 'data/case_*/segmentation' --classes background,label_1,label_2",
    ),
    "LiTS": Volumes(
        {"volume-{n}.nii": None, "segmentation-{n}.nii": (1, 2)},
        "volume-{n}.nii",
        ["segmentation-{n}.nii"],
        "--images 'volume-*' --masks 'segmentation-*' --classes background,label_1,label_2",
    ),
    "SegTHOR": Volumes(
        {"train/Patient_{n:02d}/Patient_{n:02d}.nii.gz": None, "train/Patient_{n:02d}/GT.nii.gz": (1, 2)},
        "train/Patient_{n:02d}/Patient_{n:02d}.nii.gz",
        ["train/Patient_{n:02d}/GT.nii.gz"],
        "--images 'train/Patient_{a}/Patient_{a}' --masks 'train/Patient_{a}/GT' --classes background,label_1,label_2",
    ),
    "WMH": Volumes(
        {f"{{case}}/{name}.nii.gz": None for name in ("orig/3DT1", "orig/FLAIR", "orig/T1", "pre/FLAIR", "pre/T1")}
        | {"{case}/wmh.nii.gz": (1, 2)},
        "{case}/pre/FLAIR.nii.gz",
        ["{case}/wmh.nii.gz"],
        "--images '**/pre/FLAIR' --masks '**/wmh' --classes background,label_1,label_2",
        "one contrast is taken of 4; another is --images '**/pre/T1' or --images '**/orig/FLAIR'",
        ("Utrecht/0", "Utrecht/1", "Singapore/50", "Singapore/51", "Amsterdam/GE3T/100", "Amsterdam/GE3T/101"),
        fine="3DT1",
    ),
    "M&Ms": Volumes(
        {f"Labeled/{{case}}/{{case}}_sa_{phase}.nii.gz": None for phase in ("ED", "ES")}
        | {f"Labeled/{{case}}/{{case}}_sa_{phase}_gt.nii.gz": (1, 2, 3) for phase in ("ED", "ES")},
        "Labeled/{case}/{case}_sa_{each}.nii.gz",
        ["Labeled/{case}/{case}_sa_{each}_gt.nii.gz"],
        "--images 'Labeled/*/*_sa_{ED,ES}' --masks 'Labeled/*/*_sa_{ED,ES}_gt' "
        "--classes background,label_1,label_2,label_3",
        "all of 2 images a case are taken, each with its own mask; is one kind wanted, --images 'Labeled/*/*_sa_ED'",
        ("A0S9V9", "A1D0Q7", "B2C3D4", "E5F6G7", "H8I9J1", "K2L3M4"),
        each=("ED", "ES"),
    ),
    "TotalSegmentator": Volumes(
        {"s{n:04d}/ct.nii.gz": None}
        | {
            f"s{{n:04d}}/segmentations/{organ}.nii.gz": [0] * number + [1]
            for number, organ in enumerate(("aorta", "kidney_left", "spleen"))
        },
        "s{n:04d}/ct.nii.gz",
        [f"s{{n:04d}}/segmentations/{organ}.nii.gz" for organ in ("aorta", "kidney_left", "spleen")],
        "--images 's*/ct' --masks 's*/segmentations/{aorta,kidney_left,spleen}' "
        "--classes background,aorta,kidney_left,spleen",
        "each of several masks an image is a class",
    ),
}


def written(layout: Volumes, tree: Path) -> dict[str, np.ndarray]:
    """Class ids [z, y, x] by the path of the image that they are of."""
    truth: dict[str, np.ndarray] = {}
    for number, case in enumerate(layout.cases, 1):
        drawn = {}
        for path, labels in layout.files.items():
            fine = bool(layout.fine) and layout.fine in path
            drawn[path] = scan(tree / path.format(n=number, case=case), labels, fine)
        for each in layout.each:
            ids = [drawn[path.replace("{each}", each)] for path in layout.masks]
            truth[layout.image.replace("{each}", each).format(n=number, case=case)] = ids_of(ids)
    return truth


def ids_of(ids: Sequence[np.ndarray]) -> np.ndarray:
    """Class ids of one mask, or of one a class."""
    whole = np.max([(own > 0) * layer for layer, own in enumerate(ids, 1)], axis=0) if len(ids) > 1 else ids[0]
    return np.where(whole == 4, 3, whole)  # of BraTS, whose labels are no numbers of classes


@pytest.mark.parametrize("name", VOLUMES)
def test_a_well_known_layout_of_volumes(name: str, tmp_path: Path):
    layout = VOLUMES[name]
    truth = written(layout, tmp_path / name)
    (finding,) = examine([tmp_path / name]).findings
    assert (finding.dataset, finding.form, finding.problems) == ("pairs", "volumes", [])
    assert finding.options == layout.options
    assert layout.question in finding.question
    words = shlex.split(run("doctor", tmp_path / name).partition("  prepare  ")[2])
    run(*words[2:], "--out", tmp_path / "set")
    reader, seen = Reader(Manifest.load(tmp_path / "set")), set()
    for row in range(len(reader)):
        meta = reader.meta(row)
        ((path, expected),) = ((own, ids) for own, ids in truth.items() if own.endswith(str(meta["orig_path"])))
        seen.add(path)
        np.testing.assert_array_equal(reader.mask(row), expected[slice(None) if meta["z"] is None else meta["z"]])
    assert seen == truth.keys()


def test_a_hundred_organs_in_files_of_their_own(tmp_path: Path):
    organs = [f"{letter}_{other}" for letter in "abcdefghij" for other in "klmnopqrst"]
    for case in ("s0001", "s0002", "s0003"):
        scan(tmp_path / case / "ct.nii.gz", None)
        for number, organ in enumerate(organs):
            scan(tmp_path / case / "segmentations" / f"{organ}.nii.gz", [0] * (number % 4) + [1])
    (finding,) = examine([tmp_path]).findings
    assert finding.options.endswith(f" --classes background,{','.join(organs)}")


def test_pictures_as_arrays(tmp_path: Path):
    rng, truth = np.random.default_rng(0), {}
    for folder in ("images", "masks"):
        (tmp_path / "tree" / folder).mkdir(parents=True)
    for number in range(6):
        truth[f"images/{number}.npy"] = (rng.random((20, 24)) > 0.5).astype(np.uint8)
        np.save(tmp_path / "tree" / "images" / f"{number}.npy", rng.random((20, 24), np.float32))
        np.save(tmp_path / "tree" / "masks" / f"{number}.npy", truth[f"images/{number}.npy"])
    words = shlex.split(run("doctor", tmp_path / "tree").partition("  prepare  ")[2])
    run(*words[2:], "--out", tmp_path / "set")
    reader = Reader(Manifest.load(tmp_path / "set"))
    assert len(reader) == len(truth)
    for row in range(len(reader)):
        np.testing.assert_array_equal(reader.mask(row).squeeze(), truth[str(reader.meta(row)["orig_path"])])
