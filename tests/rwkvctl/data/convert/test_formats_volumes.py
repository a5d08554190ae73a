"""ACDC and Synapse in all their forms, on synthetic downloads."""

from __future__ import annotations

import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.formats import synapse
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synapse_check import compare
from rwkvctl.data.images import grid, intensity
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.verify import verify

SYNAPSE_FORMS = ("transunet", "samed", "cascade", "nifti")


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("raw")
    names = ["acdc:nifti", *(f"synapse:{form}" for form in SYNAPSE_FORMS)]
    return {name: synth.write(name, root / name.replace(":", "-"), n=6, size=32) for name in names}


@pytest.fixture
def source(raw, tmp_path: Path):
    """A copy of a tree, to be spoiled."""
    return lambda name: Path(shutil.copytree(raw[name], tmp_path / "source"))


@pytest.fixture(scope="module")
def prepared(raw, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Manifest]:
    root = tmp_path_factory.mktemp("shards")
    return {
        name: prepare(name.partition(":")[0], [tree], root / name.replace(":", "-"), name="same", allow_partial=True)
        for name, tree in raw.items()
    }


def refused(format_name: str, source: Path, tmp_path: Path, match: str, **options) -> None:
    with pytest.raises(UserError, match=match):
        prepare(format_name, [source], tmp_path / "refused", **options)


def test_all_are_sound(prepared):
    for made in prepared.values():
        assert verify(made.root, deep=True).problems == []


# ACDC as NIfTI


def test_acdc_nifti_has_the_grid_of_its_files(prepared, raw):
    made = prepared["acdc:nifti"]
    assert made.ids(None, "test") == ["acdc_p001_f01", made.ids(None, "test")[1]]
    reader = reader_for(made, made.ids(None, "test"))
    folder = raw["acdc:nifti"] / "database" / "training" / "patient001"
    for row in range(len(reader)):
        meta = reader.meta(row)
        file = nibabel.load(folder / meta["orig_path"].split("/")[1])
        np.testing.assert_allclose(grid.affine_of(meta), file.affine, atol=1e-5)
        x, y, z = file.header.get_zooms()
        np.testing.assert_allclose(meta["spacing_mm"], [z, y, x], rtol=1e-5)
        values = np.asarray(file.dataobj).transpose(2, 1, 0).astype(np.float64)
        ceiling = np.sort(values.ravel())[int(np.ceil(0.99 * values.size)) - 1]
        expected = (np.minimum(values, ceiling) - values.min()) / (ceiling - values.min())
        np.testing.assert_allclose(reader.image(row), expected, atol=1e-6)
        mask = nibabel.load(str(folder / meta["orig_path"].split("/")[1]).replace(".nii.gz", "_gt.nii.gz"))
        np.testing.assert_array_equal(grid.turned_back(reader.mask(row), meta), np.asarray(mask.dataobj))


def test_acdc_slices_are_the_planes_of_their_volume(prepared):
    reader = reader_for(prepared["acdc:nifti"], prepared["acdc:nifti"].ids(None, "train")[:5])
    metas = [reader.meta(row) for row in range(5)]
    assert [(m["case_id"][:9], m["z"], m["n_slices"]) for m in metas[:4]] == [("acdc_p031", z, 4) for z in range(4)]
    assert metas[4]["case_id"] != metas[0]["case_id"]
    assert reader.image(0).shape == (32, 32)


def test_acdc_leaves_out_the_testing_patients_and_takes_ssl4mis(raw, tmp_path: Path):
    made = prepare("acdc", [raw["acdc:nifti"]], tmp_path / "out", split="ssl4mis")
    assert "2 testing patients (101-150) were left out" in made.content.warnings
    assert list(made.splits) == ["ssl4mis"]
    assert {key[:9] for key in made.ids(None, "test")} == {"acdc_p001", "acdc_p033"}
    refused(
        "acdc", raw["acdc:nifti"], tmp_path, "--split '8:1:1': acdc has wsl4mis_fold1_val21-30, ssl4mis", split="8:1:1"
    )


def test_acdc_h5_of_ssl4mis_counts_slices_from_one(tmp_path: Path):
    tree = synth.write("acdc:h5", tmp_path / "h5", n=6, size=32)
    expected = prepare("acdc", [tree], tmp_path / "a", name="same")
    for path in sorted((tree / "ACDC_training_slices").iterdir(), reverse=True):
        head, z = path.stem.rsplit("_", 1)
        path.rename(path.with_name(f"{head}_{int(z) + 1}.h5"))
    (tree / "ACDC_training_slices").rename(tree / "slices")
    made = prepare("acdc", [tree], tmp_path / "b", name="same")
    assert made.content.splits["wsl4mis_fold1_val21-30"].sha256 == expected.splits[expected.default_split].sha256


def change_nifti(path: Path, change) -> None:
    image = nibabel.load(path)
    voxels, affine = np.asarray(image.dataobj).copy(), image.affine.copy()
    voxels, affine = change(voxels, affine)
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)


@pytest.mark.parametrize(
    ("file", "change", "match"),
    [
        ("_gt", lambda v, a: (v, a * 1.01), r"frame01_gt.nii.gz: its spacing is not that of patient031_frame01.nii.gz"),
        ("_gt", lambda v, a: (v[:-1], a), r"frame01_gt.nii.gz: has shape \(31, 32, 4\)"),
        ("_gt", lambda v, a: (v * 3, a), r"frame01_gt.nii.gz: label values .*, expected 0..3"),
        ("", lambda v, a: (v * 0, a), r"frame01.nii.gz: has no contrast"),
        ("", lambda v, a: (np.stack([v, v], -1), a), r"frame01.nii.gz: has shape \(32, 32, 4, 2\)"),
    ],
)
def test_acdc_nifti_that_is_wrong(source, tmp_path: Path, file, change, match):
    tree = source("acdc:nifti")
    change_nifti(tree / "database/training/patient031" / f"patient031_frame01{file}.nii.gz", change)
    refused("acdc", tree, tmp_path, match)


@pytest.mark.parametrize("keep", [10, 3000])
def test_acdc_nifti_that_is_cut(source, tmp_path: Path, keep: int):
    tree = source("acdc:nifti")
    path = tree / "database/training/patient031/patient031_frame01.nii.gz"
    path.write_bytes(path.read_bytes()[:keep])
    refused("acdc", tree, tmp_path, r"patient031_frame01.nii.gz: (damaged gzip|not a NIfTI file)")


def test_acdc_nifti_without_a_frame(source, tmp_path: Path):
    tree = source("acdc:nifti")
    missing = synth.all_traps("acdc")["missing-frame"](tree)
    refused("acdc", tree, tmp_path, rf"{missing.name.split('.')[0].removesuffix('_gt')}: its (mask|image) is missing")


# Synapse


def test_synapse_is_the_same_from_every_form(prepared):
    """Three label orders on disk and the raw release give one set of images and ids."""
    readers = [Reader(prepared[f"synapse:{form}"]) for form in SYNAPSE_FORMS]
    keys = [[reader.key(row) for row in range(len(reader))] for reader in readers]
    assert keys[0] == keys[1] == keys[2] == keys[3]
    assert keys[0][0] == "synapse_c0005_z000"
    for row in range(len(readers[0])):
        for reader in readers[1:]:
            np.testing.assert_array_equal(reader.mask(row), readers[0].mask(row))
            np.testing.assert_array_equal(reader.image(row), readers[0].image(row))
    assert set(np.unique(readers[0].mask(len(readers[0]) - 1))) == set(range(9))


def test_synapse_splits(prepared):
    made = prepared["synapse:transunet"]
    assert made.default_split == "transunet"
    assert made.ids(None, "val") == made.ids(None, "test") == ["synapse_c0008", "synapse_c0022"]
    honest = made.split_ids("holdout3")
    assert honest["val"] == ["synapse_c0006", "synapse_c0007", "synapse_c0009"]
    assert {key[:13] for key in honest["train"]} == {"synapse_c0005"}
    assert made.splits["holdout3"].leak_groups_shared == 0


def test_synapse_says_what_it_did(prepared):
    assert "labels in the order of SAMed were renumbered to TransUNet's" in prepared["synapse:samed"].content.warnings
    raw = prepared["synapse:nifti"].content
    assert (raw.orientation, raw.intensity) == ("transunet", intensity.rule(-125, 275))
    assert "1 cases without labels were left out" in raw.warnings
    assert "partial source: case0005 has 10 slices, 117 were expected" in raw.warnings


def test_synapse_keeps_the_grid_in_every_orientation(raw, tmp_path: Path):
    truth = nibabel.load(raw["synapse:nifti"] / "RawData/Training/label/label0005.nii.gz")
    for orientation in synapse.ORIENTATIONS:
        made = prepare(
            "synapse", [raw["synapse:nifti"]], tmp_path / orientation, orientation=orientation, allow_partial=True
        )
        reader = reader_for(made, made.split_ids("holdout3")["train"])
        meta = reader.meta(0)
        np.testing.assert_allclose(grid.affine_of(meta), truth.affine, atol=1e-5)
        ids = np.stack([reader.mask(row) for row in range(10)])
        liver = grid.turned_back(ids, meta) == 5
        np.testing.assert_array_equal(liver, np.asarray(truth.dataobj) == 6)


def test_synapse_is_strict_about_counts(raw, tmp_path: Path):
    refused("synapse", raw["synapse:transunet"], tmp_path, "training slices, 2211 were expected; complete the source")
    refused("synapse", raw["synapse:transunet"], tmp_path, "leave it out", orientation="itk", allow_partial=True)
    refused("synapse", raw["synapse:nifti"], tmp_path, "choose one of transunet, itk, emcad", orientation="up")


def test_synapse_missing_slice(source, tmp_path: Path):
    tree = source("synapse:transunet")
    path = tree / "Synapse" / "train_npz" / "case0005_slice004.npz"
    path.unlink()
    refused("synapse", tree, tmp_path, "case0005_slice004.npz is missing", allow_partial=True)
    refused("synapse", tree, tmp_path, "train.txt: names 1 slices that are not there, first case0005_slice004")


def test_synapse_with_a_pickle_inside(source, tmp_path: Path):
    tree = source("synapse:transunet")
    path = tree / "Synapse" / "train_npz" / "case0005_slice004.npz"
    np.savez(path, image=np.array([{"a": 1}], dtype=object), label=np.zeros((32, 32)))
    made = prepare("synapse", [tree], tmp_path / "set", allow_partial=True)
    assert len(made.content.excluded) == 1
    assert "slice004.npz: not a file with image and label (Object arrays" in made.content.excluded[0].why


def test_synapse_orientation_is_found(raw, tmp_path: Path):
    found = compare([raw["synapse:samed"]], [raw["synapse:nifti"]])
    assert (found.case, found.order) == (5, "SAMed")
    assert [match.exact for match in found.matches] == [True] + [False] * 15
    assert found.matches[0].orientation == "transunet"
    with pytest.raises(UserError, match=r"no case of its npz slices \(0 cases\)"):
        compare([raw["acdc:nifti"]], [raw["synapse:nifti"]])
