"""Image and mask as NIfTI files, through `prepare`: sets of mixed orientation, grids that differ, labels as floats."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synapse_check import compare
from rwkvctl.data.images import grid
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader

AXES = ("LAS", "RAS", "PSR", "ASR", "LPI", "SAL", "IRP")


def stored_as(image: nibabel.Nifti1Image, axes: str) -> nibabel.Nifti1Image:
    have, want = nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(axes)
    return image.as_reoriented(nibabel.orientations.ornt_transform(have, want))


MOVED = nibabel.affines.from_matvec(np.eye(3), [30, 30, 30])


def change(path: Path, how: Callable[[nibabel.Nifti1Image], nibabel.Nifti1Image]) -> None:
    image = nibabel.load(path)
    changed = how(nibabel.Nifti1Image(np.asarray(image.dataobj).copy(), image.affine))
    nibabel.save(changed, path)


def mixed(tree: Path) -> Path:
    """Every scan stored along other axes than the one before, image and mask too."""
    for number, path in enumerate(sorted(tree.rglob("*.nii.gz"))):
        if "_4d" not in path.name:
            change(path, lambda image, number=number: stored_as(image, AXES[number % len(AXES)]))
    return tree


def same_samples(made: Manifest, expected: Manifest) -> bool:
    ours, theirs = Reader(made), Reader(expected)
    assert [ours.key(row) for row in range(len(ours))] == [theirs.key(row) for row in range(len(theirs))]
    for row in range(len(ours)):
        np.testing.assert_array_equal(ours.image(row), theirs.image(row))
        np.testing.assert_array_equal(ours.mask(row), theirs.mask(row))
    return True


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("sources")
    made = {
        name: synth.write(name, root / name.replace(":", "-"), n=6, size=32) for name in ("acdc:nifti", "synapse:nifti")
    }
    made |= {
        f"{name} mixed": mixed(Path(shutil.copytree(tree, root / f"{tree.name}-mixed"))) for name, tree in made.items()
    }
    return made


def test_acdc_is_the_same_however_its_files_lie(sources, tmp_path: Path):
    expected, made = (
        prepare("acdc", [sources[name]], tmp_path / name[-5:], name="acdc", allow_partial=True)
        for name in ("acdc:nifti", "acdc:nifti mixed")
    )
    assert same_samples(made, expected)
    assert any("stored along different axes (" in line for line in made.content.warnings), made.content.warnings
    assert any("the mask is stored along other axes than its image" in line for line in made.content.warnings)
    assert not any("axes" in line for line in expected.content.warnings)


@pytest.mark.parametrize("orientation", ["transunet", "itk", "emcad"])
def test_synapse_is_the_same_however_its_files_lie(sources, tmp_path: Path, orientation: str):
    options = {"name": "synapse", "allow_partial": True, "orientation": orientation}
    expected = prepare("synapse", [sources["synapse:nifti"]], tmp_path / "a", **options)
    made = prepare("synapse", [sources["synapse:nifti mixed"]], tmp_path / "b", **options)
    assert same_samples(made, expected)
    released = np.asarray(nibabel.load(sources["synapse:nifti"] / "RawData/Training/label/label0005.nii.gz").dataobj)
    turn = {"transunet": (2, 0, 1), "itk": (2, 1, 0), "emcad": (2, 0, 1)}[orientation]
    published = released.transpose(turn)[:, :, :: -1 if orientation == "transunet" else 1]
    reader = reader_for(made, [f"synapse_c0005_z{z:03d}" for z in range(10)])
    np.testing.assert_array_equal(np.stack([reader.mask(z) for z in range(10)]) == 5, published == 6)


def test_synapse_orientation_is_found_beside_a_copy_of_the_release_in_other_axes(sources, tmp_path: Path):
    npz = synth.write("synapse:transunet", tmp_path / "npz", n=6, size=32)
    found = compare([npz], [sources["synapse:nifti mixed"]])
    assert (found.matches[0].exact, found.matches[0].orientation) == (True, "transunet")


# nnU-Net folders ----------------------------------------------------------------------------------------------------


def folder(root: Path, cases: dict[str, tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]]) -> Path:
    (root / "imagesTr").mkdir(parents=True)
    (root / "labelsTr").mkdir()
    (root / "dataset.json").write_text(
        '{"channel_names": {"0": "MR"}, "labels": {"background": 0, "organ": 1}, "file_ending": ".nii.gz"}'
    )
    for name, (image, mask) in cases.items():
        nibabel.save(image, root / "imagesTr" / f"{name}_0000.nii.gz")
        nibabel.save(mask, root / "labelsTr" / f"{name}.nii.gz")
    return root


def organ(seed: int, shape=(24, 20, 5), spacing=(1.5, 1.5, 5.0)) -> tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]:
    """Bright inside the organ, which lies at the right and in front."""
    rng = np.random.default_rng(seed)
    inside = np.zeros(shape, bool)
    inside[tuple(slice(side * 3 // 5, side - 1) for side in shape)] = True
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = rng.uniform(-50, 50, 3)
    image = (rng.integers(0, 40, shape) + 150 * inside).astype(np.int16)
    return nibabel.Nifti1Image(image, affine), nibabel.Nifti1Image(inside.astype(np.uint8), affine)


def cases(n: int = 3, **more) -> dict[str, tuple[nibabel.Nifti1Image, nibabel.Nifti1Image]]:
    return {f"c_{number}": organ(number, **more) for number in range(n)}


def prepared(tree: Path, tmp_path: Path, name: str = "out") -> Manifest:
    return prepare("nnunet", [tree], tmp_path / name, name="set", ratio="1:1:1")


def test_a_mask_stored_rps_beside_an_image_in_ras(tmp_path: Path):
    turned = {name: (image, stored_as(mask, "RPS")) for name, (image, mask) in cases().items()}
    made = prepared(folder(tmp_path / "in", turned), tmp_path)
    for row in range(len(reader := Reader(made))):
        inside = reader.mask(row) == 1
        assert not inside.any() or reader.image(row)[inside].min() > reader.image(row)[~inside].max()
    assert any("(RPS, RAS)" in line for line in made.content.warnings)


def test_thick_axes_anywhere_give_whole_slices(tmp_path: Path):
    made = prepared(folder(tmp_path / "in", cases(shape=(5, 24, 20), spacing=(5, 1.5, 1.5))), tmp_path)
    assert (made.content.orientation, made.content.counts["samples"]) == ("RIP", 5 + 1 + 1)
    reader = reader_for(made, made.ids(None, "test"))
    meta = reader.meta(0)
    assert reader.image(0).shape == (5, 20, 24)
    assert (meta["spacing_mm"], meta["axes"], meta["orientation"]) == ([5, 1.5, 1.5], "RAS", "RIP")
    truth = nibabel.load(tmp_path / "in" / "labelsTr" / f"{meta['case_id'].removeprefix('set_')}.nii.gz")
    np.testing.assert_array_equal(grid.turned_back(reader.mask(0), meta), np.asarray(truth.dataobj))
    np.testing.assert_allclose(grid.affine_of(meta), truth.affine, atol=1e-5)


def test_one_scan_that_is_thick_elsewhere_is_said(tmp_path: Path):
    some = cases() | {"c_9": organ(9, shape=(24, 5, 20), spacing=(1.5, 5, 1.5))}
    made = prepared(folder(tmp_path / "in", some), tmp_path)
    assert made.content.orientation == "itk"
    assert "1 of 4 scans are thick along another axis and are sliced across it: AIL, not SPL" in made.content.warnings


@pytest.mark.parametrize(("spoil", "line"), [
    (lambda m: nibabel.Nifti1Image(np.asarray(m.dataobj), MOVED @ m.affine), "lies 51.96 mm away"),
    (lambda m: nibabel.Nifti1Image(np.asarray(m.dataobj).transpose(1, 0, 2), m.affine), r"has shape \(20, 24, 5\)"),
    (lambda m: nibabel.Nifti1Image(np.asarray(m.dataobj) * 0.5, m.affine), "label values 0.5 are not whole numbers"),
    (lambda m: nibabel.Nifti1Image(np.full(m.shape, np.nan), m.affine), "label values nan are not whole numbers"),
], ids=["origin", "shape", "half", "nan"])  # fmt: skip
def test_what_is_no_mask_of_its_image_is_refused(tmp_path: Path, spoil, line: str):
    some = cases()
    some["c_1"] = some["c_1"][0], spoil(some["c_1"][1])
    with pytest.raises(UserError, match=rf"labelsTr/c_1.nii.gz: .*{line}") as caught:
        prepared(folder(tmp_path / "in", some), tmp_path)
    assert len(str(caught.value).removeprefix(str(tmp_path))) < 300
    assert "\n" not in str(caught.value)


def test_labels_as_floats_are_rounded_not_cut(tmp_path: Path):
    floats = {
        name: (image, nibabel.Nifti1Image((np.asarray(mask.dataobj) * 0.99992).astype(np.float32), mask.affine))
        for name, (image, mask) in cases().items()
    }
    made = prepared(folder(tmp_path / "a", floats), tmp_path, "floats")
    assert same_samples(made, prepared(folder(tmp_path / "b", cases()), tmp_path, "whole"))


def test_a_volume_has_one_hash_under_any_name_and_orientation(tmp_path: Path):
    """In the stored samples, whole volumes and slices alike."""
    image, mask = organ(1)
    copy = stored_as(image, "PSR"), stored_as(mask, "PSR")
    made = prepared(folder(tmp_path / "in", {"c_0": organ(0), "c_1": (image, mask), "c_2": copy}), tmp_path)
    reader = Reader(made)
    hashes: dict[str, set[str]] = {}
    for row in range(len(reader)):
        hashes.setdefault(reader.meta(row)["case_id"], set()).add(reader.meta(row)["volume_sha256"])
    assert all(len(own) == 1 for own in hashes.values())
    assert hashes["set_c_1"] == hashes["set_c_2"] != hashes["set_c_0"]
    assert [{key[: len("set_c_1")] for key in own} for own in made.content.duplicates.copies] == [
        {"set_c_1", "set_c_2"}
    ]
    assert "2 images in 1 clusters are copies of one another" in made.content.warnings
