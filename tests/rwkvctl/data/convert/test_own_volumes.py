"""Volumes of one's own: a folder, what `data doctor` makes of it, and the data set that the line it prints prepares."""

from __future__ import annotations

import re
import shlex
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth, tiff_volumes
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.sources import on_disk
from rwkvctl.data.convert.synth.arrays import unit
from rwkvctl.data.convert.synth.scans import CLASSES, DEPTH, Scan, save, scan
from rwkvctl.data.images import grid, intensity
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.verify import verify

from ...cli.test_data import run

NAMED = ["background", "label_1", "label_2", "label_3"]


def as_stored(own: Scan, number: int) -> np.ndarray:
    return own.label


def organs(own: Scan, number: int) -> np.ndarray:
    return np.where(own.label == 3, 2 * (number % 3 > 0), own.label == 2)


def segments(own: Scan, number: int) -> np.ndarray:
    """As the names of the segments are sorted."""
    return np.array([0, 3, 2, 1])[own.label]


def regions(own: Scan, number: int) -> np.ndarray:
    return np.array([1, 1, 3, 2])[own.label]


class Form(NamedTuple):
    """Classes, labels and images that a tree must become, what doctor asks, and the sizes of the split."""

    classes: list[str]
    labels: Callable[[Scan, int], np.ndarray] = as_stored
    question: str = "name them in --classes"
    image: Callable[[np.ndarray], np.ndarray] = lambda image: intensity.scaled(
        image, *intensity.window(image, "p0.5", "p99.5")
    )
    measured: bool = True
    parts: tuple[int, int, int] = (4, 1, 1)


FORMS = {
    "pairs:volume_suffix": Form(NAMED),
    "pairs:volume_folders": Form(NAMED),
    "pairs:volume_cases": Form(NAMED),
    "pairs:volume_organs": Form(["background", "heart", "ventricle"], organs, "--annotator heart"),
    "pairs:volume_annotators": Form(
        ["background", "foreground"], lambda own, number: own.label >= 2, "--classes background,annA,annB instead"
    ),
    "pairs:volume_contrasts": Form(["background", "label_1", "label_2", "label_4"], question="another is --images '"),
    "pairs:volume_tiff": Form(NAMED),
    "decathlon:task": Form(list(CLASSES), question=""),
    "bids:lesions": Form(["background", "foreground"], lambda own, number: own.label == 3, ""),
    "bids:contrasts": Form(NAMED, question="another is --images '*_T2w.nii.gz'", parts=(2, 2, 2)),
    "dicom:seg": Form(["background", *sorted(CLASSES[1:])], segments, "each of 3 segments is a class"),
    "dicom:labelmap": Form(["background", *sorted(CLASSES[1:])], segments, "each of 3 segments is a class"),
    "dicom:rtstruct": Form(["background", "BODY", "LV", "LV_wall"], regions, "each of 3 segments is a class (BODY,"),
    "arrays:volumes": Form(NAMED),
    "arrays:slices": Form(NAMED, question="are kept by --range", image=unit, measured=False),
    "arrays:npz": Form(NAMED, image=lambda image: np.round(unit(image) * 255) / 255, measured=False),
    "arrays:channels": Form(
        NAMED, image=lambda image: np.stack([unit(image), 1 - unit(image)], axis=-1), measured=False
    ),
    "arrays:onehot": Form(
        NAMED, image=lambda image: np.stack([deviations(image), -deviations(image)], axis=-1), measured=False
    ),
    "arrays:parts": Form(NAMED, image=unit, measured=False, parts=(3, 1, 2)),
}


def deviations(image: np.ndarray) -> np.ndarray:
    values = image.astype(np.float64)
    return (values - values.mean()) / values.std()


def number_of(key: str) -> int:
    """Of the patient, from a sample's key."""
    name = re.sub(r"_z\d+$", "", key)
    if match := re.search(r"sub-(\d+)_ses-(\d)", name):
        return 2 * int(match[1]) + int(match[2]) - 2
    return int(re.findall(r"\d+", name.partition("_")[2])[-1 if "la_" not in name else 0]) % 900


def prepared_as_doctor_says(source: Path, out: Path) -> tuple[Manifest, str]:
    printed = run("doctor", source)
    words = shlex.split(printed.partition("  prepare  ")[2])
    assert words[:3] == ["rwkvctl", "data", "prepare"]
    run(*words[2:], "--out", out)
    return Manifest.load(out), printed


@pytest.mark.parametrize("form", FORMS)
def test_from_a_folder_to_the_voxels_that_its_builder_knows(form: str, tmp_path: Path):
    """In whatever orientation the files are stored, all voxels, classes and spacings are those of the phantom."""
    tree = synth.write(form, tmp_path / "tree", n=6, size=32)
    made, printed = prepared_as_doctor_says(tree, tmp_path / "set")
    assert "  problem  " not in printed
    assert printed.count("  pair  ") == 3
    assert FORMS[form].question in printed
    assert verify(made.root, deep=True).problems == []
    assert made.classes == FORMS[form].classes
    train, val, test = (len(made.ids(None, name)) for name in ("train", "val", "test"))
    assert (train / DEPTH, val, test) == FORMS[form].parts
    reader = Reader(made)
    for row in range(len(reader)):
        key, meta = reader.key(row), reader.meta(row)
        number = number_of(key)
        own = scan(0, number, 32)
        label = FORMS[form].labels(own, number).astype(np.uint8)
        image = FORMS[form].image(own.image)
        z = slice(None) if meta["z"] is None else meta["z"]
        np.testing.assert_array_equal(reader.mask(row), label[z])
        np.testing.assert_allclose(reader.image(row), image[z], atol=1e-6)
        assert meta["spacing_mm"] == (pytest.approx(own.spacing) if FORMS[form].measured else None)
    assert reader.meta(0)["orientation"] == "itk"


def test_an_archive_gives_the_same_samples(tmp_path: Path):
    tree = synth.write("pairs:volume_cases", tmp_path / "tree", n=6, size=32)
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as packed:
        for path in tree.rglob("*"):
            packed.write(path, path.relative_to(tree))
        packed.writestr("__MACOSX/P01/._ct.nrrd", b"\0\5\26\7")
    made = [
        prepared_as_doctor_says(source, tmp_path / name / "set")[0]
        for source, name in ((tree, "a"), (tmp_path / "packed.zip", "b"))
    ]
    assert made[0].content.samples_sha256 == made[1].content.samples_sha256


def test_folders_that_say_train_and_test(tmp_path: Path):
    for part, numbers in (("train", range(1, 6)), ("test", range(6, 9))):
        for number in numbers:
            own = scan(0, number, 32)
            save(tmp_path / "tree" / part / "scans" / f"{number}.nii.gz", own.image, own)
            save(tmp_path / "tree" / part / "truth_labels" / f"{number}.nii.gz", (own.label > 1).astype(np.uint8), own)
    made, printed = prepared_as_doctor_says(tmp_path / "tree", tmp_path / "set")
    assert "--split-from folders" in printed
    assert list(made.splits) == ["folders"]
    assert {key.split("_")[-1] for key in made.ids(None, "test")} == {"6", "7", "8"}


def pair(folder: Path, change: Callable[[sitk.Image], sitk.Image], ending: str = ".nii.gz") -> Path:
    """Three cases, the mask of the second one changed."""
    for number in range(1, 4):
        own = scan(0, number, 32)
        save(folder / "img" / f"{number}.mha", own.image, own)
        mask = folder / "lab" / f"{number}{ending}"
        save(mask, (own.label > 1).astype(np.uint8), own)
        if number == 2:
            sitk.WriteImage(change(sitk.ReadImage(str(mask))), str(mask))
    return folder


def refused(tree: Path, tmp_path: Path, match: str, **options) -> None:
    given = {"images": "img/*", "masks": "lab/*", **options}
    with pytest.raises(UserError, match=match) as caught:
        prepare("pairs", [tree], tmp_path / "refused", **given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "refused").exists()


def spaced(image: sitk.Image) -> sitk.Image:
    image.SetSpacing((1.5, 1.25, 3.0))
    return image


def moved(image: sitk.Image) -> sitk.Image:
    image.SetOrigin((0.5, 0.25, 9.0))
    return image


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (spaced, r"lab/2.nii.gz: its spacing is not that of 2.mha \(1.5 x 1.25 x 3, 1.5 x 1.25 x 4 mm\)"),
        (moved, r"lab/2.nii.gz: lies \d+\S* mm away from 2.mha; give them one grid"),
        (lambda image: image[:, :, 1:], r"lab/2.nii.gz: has shape \(32, 28, 4\), 2.mha has \(32, 28, 5\)"),
        (lambda image: image * 3, r"lab/2.nii.gz: label values \[0, 3\], expected 0, 1, 255; name the classes with"),
        (lambda image: sitk.Cast(image, sitk.sitkFloat32) * 0.5, "lab/2.nii.gz: label values 0.5 are not whole"),
        (lambda image: sitk.Compose(image, image), r"lab/2.nii.gz: "),
    ],
)
def test_a_mask_that_does_not_fit_is_named(change: Callable[[sitk.Image], sitk.Image], match: str, tmp_path: Path):
    refused(pair(tmp_path / "tree", change), tmp_path, match)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_mask_that_itk_wrote_along_other_axes_is_turned(ending: str, tmp_path: Path):
    tree = pair(tmp_path / "tree", lambda image: sitk.DICOMOrient(image, "SRA"), ending)
    made = prepare("pairs", [tree], tmp_path / "set", images="img/*", masks="lab/*")
    reader = Reader(made)
    for row in range(len(reader)):
        own = scan(0, int(re.sub(r"_z\d+$", "", reader.key(row)).split("_")[-1]), 32)
        z = slice(None) if reader.meta(row)["z"] is None else reader.meta(row)["z"]
        np.testing.assert_array_equal(reader.mask(row), (own.label > 1)[z])
    assert any("the mask is stored along other axes than its image" in note for note in made.content.warnings)


def test_a_prediction_goes_back_onto_the_grid_of_a_metaimage(tmp_path: Path):
    tree = synth.write("pairs:volume_folders", tmp_path / "tree", n=6, size=32)
    made, _ = prepared_as_doctor_says(tree, tmp_path / "set")
    key = made.ids(None, "test")[0]
    reader = Reader(made)
    row = next(row for row in range(len(reader)) if reader.key(row) == key)
    number = key.split("_")[-1]
    image = sitk.ReadImage(str(tree / "CT" / f"Pat {int(number)}.mha"))
    label = nibabel.load(tree / "Segmentierung" / f"Pat {int(number)}.nii.gz")
    made_of = nibabel.Nifti1Image(
        grid.turned_back(reader.mask(row), reader.meta(row)), grid.affine_of(reader.meta(row))
    )
    assert made_of.shape == image.GetSize()
    turned = nibabel.as_closest_canonical(made_of), nibabel.as_closest_canonical(label)
    np.testing.assert_array_equal(np.asarray(turned[0].dataobj), np.asarray(turned[1].dataobj))
    np.testing.assert_allclose(turned[0].affine, turned[1].affine, atol=1e-3)


@pytest.mark.parametrize(
    ("ending", "data", "match"),
    [
        (".mha", b"ObjectType = Image\nNDims = 3\nDimSize = 4 4 4\nElementType = MET_NONE\n", "is damaged, or no"),
        (".nrrd", b"NRRD0004\ntype: short\ndimension: 9\n\n", "is damaged, or no"),
        (".mha", b"", "is empty"),
        (".nii.gz", b"\x1f\x8b", "not a NIfTI file"),
    ],
)
def test_a_damaged_image_is_named(ending: str, data: bytes, match: str, tmp_path: Path):
    tree = pair(tmp_path / "tree", lambda image: image)
    (tree / "img" / "2.mha").rename(tree / "img" / f"2{ending}").write_bytes(data)
    refused(tree, tmp_path, rf"img/2{ending}: {match}")


# Decathlon, BIDS, arrays --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "trap", "match"),
    [
        ("decathlon:task", "channels", r"la_001.nii.gz: has 1 channels along its fourth axis, 2 were expected"),
        ("decathlon:task", "gone", r"dataset.json: lists ./labelsTr/la_002.nii.gz, which is not there"),
        ("arrays:npz", "channels", r"1.npz: x has 3 channels \(3, 5, 28, 32\), the others have 1; give all"),
        ("arrays:npz", "pickled", r"1.npz: holds Python objects in 'image'"),
        ("arrays:npz", "truncated", r"6.npz: is damaged, or no NumPy file"),
        ("arrays:slices", "truncated", r"p06_slice_4.h5: is damaged, or no HDF5 file"),
    ],
)
def test_what_is_wrong_is_told_by_prepare_in_one_line(tree: str, trap: str, match: str, tmp_path: Path):
    source = synth.write(tree, tmp_path / "source", n=6, size=32, traps=[trap])
    with pytest.raises(UserError, match=match) as caught:
        prepare(tree.partition(":")[0], [source], tmp_path / "set")
    assert "\n" not in str(caught.value) or "6 problems, nothing was written" in str(caught.value)
    assert not (tmp_path / "set").exists()


def test_what_macos_leaves_in_an_archive_is_no_case(tmp_path: Path):
    tree = synth.write("decathlon:task", tmp_path / "tree", n=6, size=32, traps=["macos"])
    with tarfile.open(tmp_path / "Task02_Heart.tar", "w") as packed:
        packed.add(tree / "Task02_Heart", "Task02_Heart")
    made, printed = prepared_as_doctor_says(tmp_path / "Task02_Heart.tar", tmp_path / "set")
    assert made.content.source.files == 12
    assert "1 images under test have no labels" in printed


def test_nnunet_v1_leaves_the_channel_out_of_its_list(tmp_path: Path):
    tree = synth.write("decathlon:task", tmp_path / "tree", n=6, size=32)
    for path in list(tree.rglob("imagesTr/*.nii.gz")):
        path.rename(path.with_name(path.name.replace(".nii.gz", "_0000.nii.gz")))
    made, printed = prepared_as_doctor_says(tree, tmp_path / "set")
    assert "data prepare nnunet" in printed
    assert made.content.source.files == 12


def test_channels_of_the_decathlon_lie_along_the_fourth_axis(tmp_path: Path):
    tree = synth.write("decathlon:channels", tmp_path / "tree", n=6, size=32)
    made, _ = prepared_as_doctor_says(tree, tmp_path / "set")
    assert verify(made.root, deep=True).problems == []
    assert made.content.channel_names == ["T2", "ADC"]
    reader = Reader(made)
    for row in range(len(reader)):
        image = reader.image(row)
        own, z = scan(0, number_of(reader.key(row)), 32), reader.meta(row)["z"]
        np.testing.assert_allclose(image[..., 0], -image[..., 1], atol=1e-4)
        values = own.image.astype(np.float64)
        expected = (values - values.mean()) / values.std()
        np.testing.assert_allclose(image[..., 0], expected[slice(None) if z is None else z], atol=1e-3)


def test_several_contrasts_are_asked_about(tmp_path: Path):
    tree = synth.write("bids:contrasts", tmp_path / "tree", n=6, size=32)
    match = r"has contrasts of which one is taken; say which: --images '\*_T1w.nii.gz' or --images '\*_T2w.nii.gz'"
    with pytest.raises(UserError, match=match):
        prepare("bids", [tree], tmp_path / "set")
    made = prepare("bids", [tree], tmp_path / "set", images="*_T2w.nii.gz", classes=NAMED)
    assert all("T2w" in own for own in Reader(made).meta(0)["orig_path"].split("/")[-1:])
    assert made.splits["grouped811_s41"].leak_groups_shared == 0


def test_subjects_without_a_label_are_counted(tmp_path: Path):
    tree = synth.write("bids:lesions", tmp_path / "tree", n=6, size=32, traps=["unlabeled"])
    printed = run("doctor", tree)
    assert "1 images FLAIR without a label were left out: sub-01/anat/sub-01_FLAIR.nii.gz" in printed
    assert "--split-from participants.tsv" in printed


def write_arrays(folder: Path, shape: tuple[int, ...] = (40, 50, 44), **more: np.ndarray) -> Path:
    folder.mkdir()
    for number in range(4):
        rng = np.random.default_rng(number)
        own = {"image": rng.normal(size=shape).astype(np.float32), "label": (rng.random(shape) > 0.5).astype(np.uint8)}
        np.savez(folder / f"{number}.npz", **(own | more))
    return folder


def test_axes_that_shapes_do_not_tell_are_asked_about(tmp_path: Path):
    tree = write_arrays(tmp_path / "tree")
    with pytest.raises(UserError, match=r"which axis is across slices is yours to say: --axes zyx, or another order"):
        prepare("arrays", [tree], tmp_path / "set")
    made, printed = prepared_as_doctor_says(tree, tmp_path / "set")
    assert "it may be another" in printed
    other = prepare("arrays", [tree], tmp_path / "other", axes="xyz")
    assert Reader(made).image(0).shape == (50, 44)
    assert Reader(other).image(0).shape == (50, 40)
    with pytest.raises(UserError, match="--axes abc: give one of zyx, "):
        prepare("arrays", [tree], tmp_path / "third", axes="abc")


def write_coloured(folder: Path, shape: tuple[int, ...] = (20, 24, 3), planes: int = 3, scale: float = 1) -> Path:
    """An image and a plane a class of one shape, which could be three slices."""
    folder.mkdir()
    for number in range(6):
        rng = np.random.default_rng(number)
        label = rng.integers(0, planes + 1, shape[:2])
        masks = np.stack([label == own for own in range(1, planes + 1)], -1).astype(np.uint8)
        image = rng.integers(0, 256, shape, np.uint8)
        np.savez(folder / f"{number}.npz", image=image if scale == 1 else image * np.float32(scale), mask=masks)
    return folder


def test_colours_and_classes_that_could_be_slices(tmp_path: Path):
    tree = write_coloured(tmp_path / "tree")
    made, printed = prepared_as_doctor_says(tree, tmp_path / "set")
    assert "3 of (20, 24, 3) are taken for colours and classes; are they slices, --axes yxz" in printed
    assert made.content.channel_names == ["image 1", "image 2", "image 3"]
    reader = Reader(made)
    for row in range(len(reader)):
        with np.load(tree / reader.meta(row)["orig_path"]) as file:
            np.testing.assert_allclose(reader.image(row).squeeze(), file["image"] / 255, atol=1e-6)
            np.testing.assert_array_equal(reader.mask(row).squeeze(), (file["mask"] * [1, 2, 3]).sum(-1))


def test_floats_of_three_slices_that_could_be_channels(tmp_path: Path):
    made, printed = prepared_as_doctor_says(write_coloured(tmp_path / "tree", scale=7.5), tmp_path / "set")
    assert "3 of (20, 24, 3) are taken for slices; are they channels and classes, --axes yxc" in printed
    assert Reader(made).meta(0)["n_slices"] == 3


def test_channels_and_classes_that_are_wrong(tmp_path: Path):
    tree = write_coloured(tmp_path / "tree", planes=2)
    for options, match in (
        ({}, "--classes: mask has a plane a class, 2; name 3 with the background"),
        ({"axes": "zyxc"}, "6 problems, nothing was written"),
        ({"axes": "ycx"}, "--axes ycx: give one of zyx, .*; z is across slices; c in front or behind are channels"),
        (
            {"split_from": "names", "classes": NAMED[:3]},
            "--split-from names: give folders, for files in train/ and test/",
        ),
        ({"split_from": "folders", "classes": NAMED[:3]}, "--split-from folders: no folder of the images tells train"),
    ):
        with pytest.raises(UserError, match=match):
            prepare("arrays", [tree], tmp_path / "set", **options)  # type: ignore[arg-type]
    with np.load(tree / "4.npz") as file:
        np.savez(tree / "4.npz", image=file["image"], mask=np.concatenate([file["mask"], file["mask"]], -1))
    with pytest.raises(UserError, match=r"4.npz: mask has 4 planes \(20, 24, 4\), the others have 2; give all as many"):
        prepare("arrays", [tree], tmp_path / "set", classes=NAMED[:3])


def test_arrays_that_names_do_not_tell_are_asked_about(tmp_path: Path):
    tree = write_arrays(tmp_path / "tree", (4, 20, 20), mask=np.ones((4, 20, 20), np.uint8))
    printed = run("doctor", tree)
    assert "which arrays are image and label is yours to say (image (4, 20, 20) float32, label" in printed
    with pytest.raises(UserError, match=r"0.npz: which arrays are image and label is yours to say"):
        prepare("arrays", [tree], tmp_path / "set")
    made = prepare("arrays", [tree], tmp_path / "set", inside="image,mask")
    assert (Reader(made).mask(0) == 1).all()
    with pytest.raises(UserError, match=r"has no array 'seg' \(there is image, label, mask\)"):
        prepare("arrays", [tree], tmp_path / "other", inside="image,seg")


def test_volumes_and_slices_of_one_source_are_told_apart(tmp_path: Path):
    synth.write("arrays:volumes", tmp_path / "tree" / "volumes", n=6, size=32)
    for path in (tmp_path / "tree").rglob("*.h5"):
        with h5py.File(path) as file:
            arrays = {"raw": file["data/raw"][()], "seg": file["data/seg"][()]}
        path.unlink()
        for where, z in [("whole", None), *(("single", z) for z in range(DEPTH))]:
            target = tmp_path / "tree" / where / (path.stem + ("" if z is None else f"_slice{z}") + ".h5")
            target.parent.mkdir(exist_ok=True)
            with h5py.File(target, "w") as file:
                for name, array in arrays.items():
                    file[name] = array if z is None else array[z]
    with pytest.raises(UserError, match=r"has 6 volumes \(whole/case_1.h5\) and 30 slices \(single/case_1_slice0.h5\)"):
        prepare("arrays", [tmp_path / "tree"], tmp_path / "set")
    made, printed = prepared_as_doctor_says(tmp_path / "tree", tmp_path / "set")
    assert "6 volumes are taken and not 30 slices, which are --images 'single/*'" in printed
    other = prepare("arrays", [tmp_path / "tree"], tmp_path / "other", images="single/*", classes=NAMED)
    for first, second in zip(made.ids(None, "test"), other.ids(None, "test"), strict=True):
        ours, theirs = reader_for(made, [first]), reader_for(other, [second])
        np.testing.assert_array_equal(ours.image(0), theirs.image(0))
        np.testing.assert_array_equal(ours.mask(0), theirs.mask(0))


def test_hdf5_that_keeps_arrays_elsewhere_is_refused(tmp_path: Path):
    tree = synth.write("arrays:slices", tmp_path / "tree", n=6, size=32)
    path = tree / "p01_slice_0.h5"
    path.unlink()
    with h5py.File(path, "w") as file:
        file.create_dataset("image", (28, 32), np.uint8, external=[("/etc/passwd", 0, 28 * 32)])
        file["label"] = np.zeros((28, 32), np.uint8)
    with pytest.raises(UserError, match=r"p01_slice_0.h5: keeps 'image' in other files; save it as one file"):
        prepare("arrays", [tree], tmp_path / "set")


@pytest.mark.parametrize(
    ("told", "mm"),
    [
        ("ImageJ=1.53t\nimages=2\nunit=micron\nspacing=2.5\n", (0.0025, 0.0005, 0.00025)),
        ("ImageJ=1.53t\nimages=2\nunit=cm\nspacing=0.1\n", (1.0, 5.0, 2.5)),
        ("ImageJ=1.53t\nimages=2\nunit=pixel\nspacing=2\n", None),
        ("ImageJ=1.53t\nimages=2\nunit=mm\n", None),
    ],
)
def test_the_spacing_that_imagej_keeps(told: str, mm: tuple[float, ...] | None, tmp_path: Path):
    page = Image.fromarray(np.zeros((4, 6), np.uint8))
    tags = {270: told, 282: 4.0, 283: 2.0, 296: 1}
    page.save(tmp_path / "stack.tif", save_all=True, append_images=[page], tiffinfo=tags)
    found = tiff_volumes.read_grid(on_disk(tmp_path / "stack.tif"))
    assert (found.shape, found.measured) == ((6, 4, 2), mm is not None)
    assert mm is None or found.spacing[::-1] == pytest.approx(mm)


def test_npy_beside_npy(tmp_path: Path):
    for number in range(1, 7):
        own = scan(0, number, 32)
        for name, array in (("images", own.image), ("labels", own.label > 1)):
            (tmp_path / "tree" / name).mkdir(parents=True, exist_ok=True)
            np.save(tmp_path / "tree" / name / f"{number}.npy", array)
    made, _ = prepared_as_doctor_says(tmp_path / "tree", tmp_path / "set")
    reader = Reader(made)
    assert reader.meta(0)["spacing_mm"] is None
    number = number_of(reader.key(0))
    np.testing.assert_array_equal(reader.mask(0), (scan(0, number, 32).label > 1)[reader.meta(0)["z"]])
