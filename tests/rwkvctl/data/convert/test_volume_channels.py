"""Volumes whose channels are files of their own, or arrays of one file: under any names, in BIDS, in npz."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.class_table import parse
from rwkvctl.data.convert.pattern_channels import channel_names
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest

NAMED = ["background", "label_1", "label_2", "label_3"]
GLIOMA = {
    "images": "glioma-*/glioma-*_t1", "more_images": ("glioma-*/glioma-*_t2",), "masks": "glioma-*/glioma-*_seg",
}  # fmt: skip
CLASSES = "background=0,label_1=1,label_2=2,label_4=4"


def volumes(manifest: Manifest) -> dict[str, np.ndarray]:
    """Images of val and test by the numbers in their ids, each once."""
    ids = manifest.split_ids(manifest.default_split)
    reader = reader_for(manifest, [*ids["val"], *ids["test"]])
    keys = [
        " ".join(dict.fromkeys(str(int(n)) for n in re.findall(r"\d+", reader.key(row)))) for row in range(len(reader))
    ]
    return {key: reader.image(row) for row, key in enumerate(keys)}


def as_nnunet(files: dict[str, tuple[Path, ...]], labels: dict[str, Path], channels: list[str], folder: Path) -> Path:
    """The same cases as nnU-Net wants them."""
    for name in ("imagesTr", "labelsTr"):
        (folder / name).mkdir(parents=True)
    for case, own in files.items():
        for place, file in enumerate(own):
            shutil.copy(file, folder / "imagesTr" / f"{case}_{place:04d}.nii.gz")
        label = nibabel.load(labels[case])
        numbers = np.searchsorted([0, 1, 2, 4], np.asarray(label.dataobj)).astype(np.uint8)
        nibabel.save(nibabel.Nifti1Image(numbers, label.affine), folder / "labelsTr" / f"{case}.nii.gz")
    told = {"channel_names": dict(enumerate(channels)), "numTraining": len(files), "file_ending": ".nii.gz"}
    told["labels"] = {"background": 0, "a": 1, "b": 2, "c": 3}
    (folder / "dataset.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize("intensity", [None, "percentiles"])
def test_contrasts_by_patterns_become_what_nnunet_s_form_of_them_does(intensity: str | None, tmp_path: Path):
    tree = synth.write("pairs:volume_contrasts", tmp_path / "tree", n=6, size=32)
    made = prepare("pairs", [tree], tmp_path / "set", **GLIOMA, classes=parse(CLASSES), intensity=intensity)
    assert (made.channels, made.content.channel_names) == (2, ["t1", "t2"])
    folders = sorted(tree.glob("glioma-*"))
    files = {own.name: tuple(own / f"{own.name}_{kind}.nii.gz" for kind in ("t1", "t2")) for own in folders}
    labels = {own.name: own / f"{own.name}_seg.nii.gz" for own in folders}
    same = as_nnunet(files, labels, ["t1", "t2"], tmp_path / "Dataset001_Glioma")
    other = prepare("nnunet", [same], tmp_path / "other", intensity=intensity)
    assert made.content.intensity == other.content.intensity
    own, theirs = volumes(made), volumes(other)
    assert own.keys() == theirs.keys()
    assert own
    for case in own:
        np.testing.assert_array_equal(own[case], theirs[case])
        assert own[case].shape[-1] == 2
    if intensity is None:  # t2 is -t1, and each goes by its own mean and deviation
        image = next(iter(own.values()))
        np.testing.assert_allclose(image[..., 0], -image[..., 1], atol=1e-4)


def test_contrasts_of_a_bids_data_set(tmp_path: Path):
    """Labels that both contrasts have are asked about; those of one are taken with both."""
    tree = synth.write("bids:contrasts", tmp_path / "tree", n=6, size=32)
    options = {"images": "*_T1w.nii.gz", "more_images": ("*_T2w.nii.gz",), "classes": NAMED}
    made = prepare("bids", [tree], tmp_path / "set", **options, masks="*_T2w_seg-manual.nii.gz")
    assert (made.content.channel_names, made.content.source.form) == (["T1w", "T2w"], "T1w, T2w and seg-manual")
    for image in volumes(made).values():
        np.testing.assert_allclose(image[..., 0], -image[..., 1], atol=1e-4)
    assert next(iter(made.splits.values())).leak_groups_shared == 0
    for path in tree.rglob("derivatives/**/*_T2w_seg-manual.nii.gz"):
        path.unlink()
    again = prepare("bids", [tree], tmp_path / "again", **options)
    own, other = volumes(made), volumes(again)
    assert own.keys() == other.keys()
    for case in own:
        np.testing.assert_array_equal(own[case], other[case])


def test_arrays_of_one_file_are_channels(tmp_path: Path):
    (tmp_path / "tree").mkdir()
    for n in range(6):
        rng = np.random.default_rng(n)
        t1 = rng.normal(size=(6, 32, 40)).astype(np.float32)
        own = {"t1": t1, "flair": 3 - t1, "label": (rng.random((6, 32, 40)) > 0.5).astype(np.uint8)}
        np.savez(tmp_path / "tree" / f"case{n:02d}.npz", **own)
    made = prepare("arrays", [tmp_path / "tree"], tmp_path / "set", inside="t1,flair,label")
    assert made.content.channel_names == ["t1", "flair"]
    assert "image and label are the arrays t1, flair and label" in made.content.warnings
    for image in volumes(made).values():
        assert image.shape == (6, 32, 40, 2)
        np.testing.assert_allclose(image[..., 0], -image[..., 1], atol=1e-4)
        assert image[..., 0].std() == pytest.approx(1, abs=1e-3)
    np.savez(tmp_path / "tree" / "case06.npz", t1=t1, flair=t1[:3], label=own["label"])
    with pytest.raises(UserError, match=r"case06.npz: flair has shape \(3, 32, 40\), t1 \(6, 32, 40\); give them one"):
        prepare("arrays", [tmp_path / "tree"], tmp_path / "bad", inside="t1,flair,label")
    for inside in ("t1", "t1,t1,label", "t1,,label"):
        with pytest.raises(UserError, match=f"--inside {inside}: give the names of two arrays, .* or one a channel"):
            prepare("arrays", [tmp_path / "tree"], tmp_path / "bad", inside=inside)


def unlink(tree: Path) -> None:
    (tree / "glioma-02" / "glioma-02_t2.nii.gz").unlink()


def cut(tree: Path) -> None:
    path = tree / "glioma-02" / "glioma-02_t2.nii.gz"
    image = nibabel.load(path)
    nibabel.save(image.slicer[:, 2:, :], path)


def untouched(tree: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (unlink, {}, "glioma-02_t1.nii.gz: has no image by --images glioma-*/glioma-*_t2; add it, or leave the image"),
        (cut, {}, "glioma-02_t2.nii.gz"),
        (untouched, {"more_images": ("glioma-*/glioma-*_t9",)}, "'glioma-*/glioma-*_t9': matches no image in"),
        (untouched, {"more_images": ("glioma-*/glioma-*_t1",)}, "as the first does; tell them apart"),
        (untouched, {"range": (0.0, 1.0)}, "--range: is for images of one file each; leave it out"),
        (untouched, {"intensity": "strong"}, "--intensity strong: give nnunet or percentiles"),
    ],
)
def test_channels_that_do_not_fit(spoil: Callable[[Path], None], options: dict, said: str, tmp_path: Path):
    tree = synth.write("pairs:volume_contrasts", tmp_path / "tree", n=6, size=32)
    spoil(tree)
    with pytest.raises(UserError) as caught:
        prepare("pairs", [tree], tmp_path / "set", **(GLIOMA | {"classes": parse(CLASSES)} | options))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize(
    ("pattern", "options", "said"),
    [
        ("sub-02*_T2w.nii.gz", {}, "_seg-manual.nii.gz: its subject has no image *_T2w.nii.gz in that session; add it"),
        ("", {"masks": "*_seg-manual.nii.gz"}, ": is a second label of sub-01_ses-1_T1w.nii.gz; say which by --masks"),
        ("", {"more_images": ("*_bold.nii.gz",)}, "--images '*_bold.nii.gz': matches no image in"),
        ("", {"more_images": ("*w.nii.gz",)}, "_T2w.nii.gz; tell them apart"),
        ("", {"masks": "*_other.nii.gz"}, "--masks '*_other.nii.gz': matches nothing that has a label"),
    ],
)
def test_contrasts_that_a_bids_data_set_lacks(pattern: str, options: dict, said: str, tmp_path: Path):
    tree = synth.write("bids:contrasts", tmp_path / "tree", n=6, size=32)
    for path in tree.glob(f"sub-*/**/{pattern}") if pattern else ():
        path.unlink()
    usual = {"images": "*_T1w.nii.gz", "more_images": ("*_T2w.nii.gz",), "classes": NAMED}
    with pytest.raises(UserError) as caught:
        prepare("bids", [tree], tmp_path / "set", **(usual | {"masks": "*_T1w_seg-manual.nii.gz"} | options))
    assert said in str(caught.value)


def test_intensity_is_for_volumes(tmp_path: Path):
    tree = synth.write("pairs:suffix", tmp_path / "tree", n=6, size=32)
    with pytest.raises(UserError, match="--intensity: is for volumes; leave it out"):
        prepare(
            "pairs",
            [tree],
            tmp_path / "set",
            images="Augen 2019/Bilder/*",
            masks="Augen 2019/Masken/*_maske",
            intensity="nnunet",
        )


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["*_t1.nii.gz", "*_t1ce.nii.gz"], ("t1", "t1ce")),
        (["BraTS*/*_flair", "BraTS*/*_t2"], ("flair", "t2")),
        (["rgb/*.png", "depth/*_d.tif"], ("rgb", "depth_d")),
        (["{id}/CT", "{id}/PET"], ("ct", "pet")),
        (["*.nii.gz", "*.mha"], ("nii_gz", "mha")),
    ],
)
def test_channels_are_called_after_what_tells_them_apart(texts: list[str], names: tuple[str, ...]):
    assert channel_names(texts) == names
