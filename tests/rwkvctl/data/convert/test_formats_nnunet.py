"""nnU-Net v2 folders, volumes and images."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.guess.doctor import examine
from rwkvctl.data.images import grid
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.verify import verify


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    return synth.write("nnunet:volumes", tmp_path / "source", n=10, size=32)


@pytest.fixture
def slices(tmp_path: Path) -> Path:
    return synth.write("nnunet:slices", tmp_path / "source", n=10, size=32)


def change_json(tree: Path, **changes) -> None:
    path = next(tree.rglob("dataset.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def refused(tree: Path, tmp_path: Path, match: str, **options) -> None:
    with pytest.raises(UserError, match=match) as caught:
        prepare("nnunet", [tree], tmp_path / "refused", **options)
    assert "\n" not in str(caught.value)


def test_volumes_are_split_by_case_and_keep_their_grid(volumes: Path, tmp_path: Path):
    made = prepare("nnunet", [volumes], tmp_path / "hearts", seeds=[7])
    assert verify(made.root, deep=True).problems == []
    assert made.splits["random811_s7"].counts == {"train": 8 * 6, "val": 1, "test": 1}
    assert made.splits["random811_s7"].leak_groups_shared == 0
    assert made.classes == ["background", "right ventricle", "myocardium", "left ventricle"]
    key = made.ids(None, "test")[0]
    reader = reader_for(made, [key])
    truth = nibabel.load(next(volumes.rglob(f"labelsTr/{key.removeprefix('hearts_')}.nii.gz")))
    np.testing.assert_array_equal(grid.turned_back(reader.mask(0), reader.meta(0)), np.asarray(truth.dataobj))
    np.testing.assert_allclose(grid.affine_of(reader.meta(0)), truth.affine, atol=1e-4)
    assert (reader.image(0).min(), reader.image(0).max()) == (0, pytest.approx(1))


def test_images(slices: Path, tmp_path: Path):
    made = prepare("nnunet", [slices], tmp_path / "polyps")
    assert (made.classes, len(made.index)) == (["background", "polyp"], 10)
    reader = reader_for(made, ["polyps_polyp_003"])
    stored = np.asarray(Image.open(next(slices.rglob("labelsTr/polyp_003.png"))))
    np.testing.assert_array_equal(reader.mask(0), stored)
    assert verify(made.root, deep=True).problems == []


def test_the_ignore_label_becomes_255(slices: Path, tmp_path: Path):
    change_json(slices, labels={"background": 0, "polyp": 1, "ignore": 2})
    path = next(slices.rglob("labelsTr/polyp_003.png"))
    mask = np.asarray(Image.open(path)).copy()
    mask[0] = 2
    Image.fromarray(mask).save(path)
    made = prepare("nnunet", [slices], tmp_path / "polyps")
    assert made.classes == ["background", "polyp"]
    assert (reader_for(made, ["polyps_polyp_003"]).mask(0)[0] == 255).all()
    assert verify(made.root).problems == []


def test_what_is_refused(slices: Path, tmp_path: Path):
    change_json(slices, labels={"background": 0, "whole": [1, 2], "core": "2"})
    refused(slices, tmp_path, r"dataset.json: labels must be whole numbers from 0 to 254, or lists of them \(regions\)")
    change_json(slices, labels={"background": 0, "whole": [1, 2], "core": 2})
    refused(slices, tmp_path, r"regions_class_order must have a number for each of the 2 regions")
    change_json(slices, labels={"background": 0, "polyp": 1, "ignore": 3})
    refused(slices, tmp_path, r"labels: ignore must be 2, the number after the last label")
    change_json(slices, labels={"background": 0, "polyp": 3})
    refused(slices, tmp_path, r"dataset.json: labels must be numbered 0, 1, 2")
    change_json(slices, labels={"background": 0, "polyp": 1}, file_ending=".zarr")
    refused(slices, tmp_path, r"file_ending '.zarr' is not supported")
    change_json(slices, file_ending=".png")
    next(slices.rglob("dataset.json")).with_name("dataset.json").rename(tmp_path / "dataset.json")
    refused(slices, tmp_path, r"no dataset.json beside imagesTr/")


def test_unpaired_and_channels(volumes: Path, tmp_path: Path):
    refused(volumes, tmp_path, "give one seed", seeds=[1, 2])
    path = synth.all_traps("nnunet")["unpaired"](volumes)
    refused(volumes, tmp_path, rf"{path.name}: has no mask")
    path.rename(path.with_name(path.name.replace("_0000", "_0001")))
    refused(volumes, tmp_path, r"heart_\d+_0001.nii.gz: is of channel 0001, and dataset.json names 1 \(MRI\); name it")


def test_a_label_that_dataset_json_does_not_name(volumes: Path, tmp_path: Path):
    change_json(volumes, labels={"background": 0, "right ventricle": 1})
    with pytest.raises(UserError, match=r"heart_\d+.nii.gz: label values \[0, 1, 2, 3\], expected 0..1"):
        prepare("nnunet", [volumes], tmp_path / "out")


def test_what_nnunet_has_beside_its_training_images_is_said_to_be_left_out(volumes: Path, tmp_path: Path):
    (next(volumes.rglob("dataset.json")).parent / "splits_final.json").write_text("[]")
    made = prepare("nnunet", [volumes], tmp_path / "out", seeds=[41])
    assert "the 2 images of imagesTs were left out; the parts are split from imagesTr" in made.content.warnings
    assert "splits_final.json was not used; cases are split at random, see --ratio and --seed" in made.content.warnings


def test_cases_whose_names_end_like_channels(volumes: Path, tmp_path: Path):
    for path in sorted(volumes.rglob("*Tr/heart_*.nii.gz")):
        number = path.name.removeprefix("heart_")[:3]
        ending = "_0000.nii.gz" if path.parent.name == "imagesTr" else ".nii.gz"
        path.rename(path.with_name(f"x_0{number}{ending}"))
    assert prepare("nnunet", [volumes], tmp_path / "out").content.counts["samples"] == 8 * 6 + 1 + 1


def test_upper_case_endings(volumes: Path, tmp_path: Path):
    for path in [*volumes.rglob("*.nii.gz")]:
        path.rename(path.with_name(path.name.replace(".nii.gz", ".NII.GZ")))
    assert prepare("nnunet", [volumes], tmp_path / "out").content.counts["samples"] == 8 * 6 + 1 + 1


V1 = {"modality": {"0": "CT"}, "labels": {"background": 0, "polyp": 1}, "training": []}


@pytest.mark.parametrize(("content", "line"), [
    (V1, "labels must be an object of names by number, as nnU-Net v1 has them"),
    ({"file_ending": ".nii.gz"}, "has no field 'labels'$"),
    ({"file_ending": ".nii.gz", "labels": {"background": 0, "a": 1}, "dataset": {"a": {"label": "a.nii.gz"}}},
     r"dataset: must be {CASE: {images: \[path, ...\], label: path}}, see 'a'"),
    ({"file_ending": ".nii.gz", "labels": {"background": 0, "a": 1},
      "dataset": {"a": {"images": ["../../a.nii.gz"], "label": "a.nii.gz"}}},
     "dataset: a: ../../a.nii.gz lies outside the source"),
    ([], "is not an object with the fields of nnU-Net v2"),
], ids=["v1", "labels", "dataset", "outside", "list"])  # fmt: skip
def test_a_dataset_json_that_is_not_supported_says_why(volumes: Path, tmp_path: Path, content, line: str):
    next(volumes.rglob("dataset.json")).write_text(json.dumps(content))
    refused(volumes, tmp_path, rf"dataset.json: {line}")
    assert any("dataset.json: " in problem for found in examine([volumes]).findings for problem in found.problems)


@pytest.mark.parametrize("what", ["files", "folder"])
def test_links_out_of_the_folder_are_named(volumes: Path, tmp_path: Path, what: str):
    images = next(volumes.rglob("imagesTr"))
    elsewhere = images.rename(tmp_path / "elsewhere")
    if what == "folder":
        images.symlink_to(elsewhere)
    else:
        images.mkdir()
        for path in elsewhere.iterdir():
            (images / path.name).symlink_to(path)
    refused(volumes, tmp_path, r"imagesTr.* is a link out of the folder, (1|10) in all; links are not followed")


def test_a_description_that_is_a_link_out_of_the_folder_is_not_read(volumes: Path, tmp_path: Path):
    description = next(volumes.rglob("dataset.json"))
    outside = description.rename(tmp_path / "outside.json")
    description.symlink_to(outside)
    said = r"dataset.json is a link out of the folder, which is not followed; put a copy in its place"
    refused(volumes, tmp_path, said)
    assert any(said in problem for found in examine([volumes]).findings for problem in found.problems)
    description.unlink()
    description.symlink_to(shutil.move(outside, description.with_name("real.json")))
    assert len(prepare("nnunet", [volumes], tmp_path / "hearts").ids(None, "val")) == 1, "a link that stays inside"


LINKS = {"link": tarfile.SYMTYPE, "hard link": tarfile.LNKTYPE}


@pytest.mark.parametrize("what", ["dataset.json", "imagesTr/hearts_000_0000.nii.gz", "labelsTr", "imagesTr"])
@pytest.mark.parametrize("how", [*LINKS, "..", "/"])
def test_no_path_of_an_archive_leads_out_of_it(volumes: Path, tmp_path: Path, what: str, how: str):
    """Whatever member it is, and however it points outside: the archive is refused before any of it is read."""
    secret = tmp_path / "secret"
    secret.write_text("hunter2")
    root = next(volumes.rglob("dataset.json")).parent
    member = tarfile.TarInfo(f"{root.name}/{what}")
    with tarfile.open(tmp_path / "source.tar.gz", "w:gz", compresslevel=1) as archive:
        for path in sorted(root.iterdir()):
            if path.name != what.split("/")[0]:
                archive.add(path, f"{root.name}/{path.name}")
        if how in LINKS:
            member.type, member.linkname = LINKS[how], str(secret)
        else:
            member.name = f"{how}/{root.name}/{what}"
        archive.addfile(member)
    before = sorted(tmp_path.iterdir())
    said = "is a link, a device or sparse" if how in LINKS else "leaves the archive"
    with pytest.raises(UserError, match=f"its member .* {said}, which no data set needs; do not use this") as caught:
        prepare("nnunet", [tmp_path / "source.tar.gz"], tmp_path / "out")
    assert "hunter2" not in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("ending", [".nrrd", ".nhdr", ".mha", ".mhd"])
def test_volumes_that_itk_wrote_give_the_same_samples(ending: str, volumes: Path, tmp_path: Path):
    """With voxels in the file, or beside it."""
    expected = prepare("nnunet", [volumes], tmp_path / "expected", name="hearts", seeds=[7])
    for path in list(volumes.rglob("*.nii.gz")):
        image = sitk.ReadImage(str(path))
        sitk.WriteImage(image, str(path).replace(".nii.gz", ending))
        path.unlink()
    change_json(volumes, file_ending=ending)
    made = prepare("nnunet", [volumes], tmp_path / "hearts", seeds=[7])
    key = made.ids(None, "test")[0]
    ours, theirs = reader_for(made, [key]), reader_for(expected, [key])
    np.testing.assert_array_equal(ours.image(0), theirs.image(0))
    np.testing.assert_array_equal(ours.mask(0), theirs.mask(0))
    assert ours.meta(0)["spacing_mm"] == pytest.approx(theirs.meta(0)["spacing_mm"])
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        for path in volumes.rglob("*"):
            packed.write(path, path.relative_to(volumes))
    again = prepare("nnunet", [tmp_path / "packed.zip"], tmp_path / "again" / "hearts", seeds=[7])
    assert again.content.samples_sha256 == made.content.samples_sha256


def test_a_header_without_its_voxels_or_with_those_of_elsewhere(volumes: Path, tmp_path: Path):
    for path in list(volumes.rglob("*.nii.gz")):
        sitk.WriteImage(sitk.ReadImage(str(path)), str(path).replace(".nii.gz", ".mhd"))
        path.unlink()
    change_json(volumes, file_ending=".mhd")
    header = next(volumes.rglob("imagesTr/heart_001_0000.mhd"))
    text = header.read_text()
    header.write_text(text.replace("heart_001_0000.raw", "/etc/passwd"))
    refused(volumes, tmp_path, r"heart_001_0000.mhd: keeps its voxels in '/etc/passwd', which is no file beside it")
    header.write_text(text)
    header.with_suffix(".raw").unlink()
    refused(volumes, tmp_path, r"keeps its voxels in heart_001_0000.raw, which is not beside it; add it")
