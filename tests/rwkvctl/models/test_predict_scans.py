"""Masks for scans: on the scan's own grid and header, the same body however its file lies."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from torch import nn

from rwkvctl.base.errors import UserError
from rwkvctl.data.images import grid, intensity
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.ensemble import Member, Options, Segmenter
from rwkvctl.models.predict import plan, predict_files, predict_one

from .test_predict import Bright, info


def scan(path: Path, orientation: str = "itk") -> tuple[np.ndarray, np.ndarray]:
    """A CT of 3 slices that is bright (HU 300) for large x, on an oblique grid; returns bright voxels and affine."""
    voxels = np.full((40, 24, 3), -200, np.int16)
    voxels[25:] = 300
    affine = np.array([[-0.8, 0.1, 0, 5], [0.1, 0.7, 0, -3], [0, 0, 4, 11], [0, 0, 0, 1]])
    nibabel.save(nibabel.Nifti1Image(voxels, affine), path)
    return voxels == 300, affine


def for_scans(orientation: str = "itk") -> BundleInfo:
    return info("float").model_copy(update={"intensity": intensity.rule(-125, 275), "orientation": orientation})


@pytest.mark.parametrize("orientation", grid.ORIENTATIONS)
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_a_scan_gives_a_mask_on_its_own_grid(tmp_path: Path, orientation: str, ending: str):
    bright, affine = scan(tmp_path / f"ct{ending}")
    model = Bright().eval()
    [written] = predict_files(model, for_scans(orientation), [tmp_path / f"ct{ending}"], tmp_path / "masks")
    assert written == tmp_path / "masks" / f"ct{ending}"
    mask = nibabel.load(written)
    assert mask.get_data_dtype() == np.uint8
    np.testing.assert_allclose(mask.affine, affine, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(mask.dataobj), bright)
    assert [path.name for path in (tmp_path / "masks").iterdir()] == [written.name]


def test_scans_that_cannot_be_segmented(tmp_path: Path):
    path = tmp_path / "ct.nii.gz"
    scan(path)
    with pytest.raises(UserError, match=f"input {path}: this model takes colour images"):
        predict_files(Bright(), info("rgb8"), [path], tmp_path / "masks")
    with pytest.raises(UserError, match="the model does not say how scans were prepared"):
        predict_files(Bright(), info("float"), [path], tmp_path / "masks")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(UserError, match=f"^input {path}: [^\n]*; give a whole scan$"):
        predict_files(Bright(), for_scans(), [path], tmp_path / "masks")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 2), np.int16), np.eye(4)), path)
    flat = for_scans().model_copy(update={"intensity": intensity.rule("min", "p99")})
    with pytest.raises(UserError, match=r"has no contrast \(all voxels 0\)"):
        predict_files(Bright(), flat, [path], tmp_path / "masks")
    assert not (tmp_path / "masks").exists()


# The same body, stored otherwise ------------------------------------------------------------------------------------


class Corner(nn.Module):
    """Class 1 in the upper left quarter of what the model sees, 2 in the upper right: not blind to how slices lie."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(len(x), 3, *x.shape[-2:])
        height, width = (side // 2 for side in x.shape[-2:])
        logits[:, 1, :height, :width] = logits[:, 2, :height, width:] = self.level
        return logits


def body(shape=(32, 24, 6), spacing=(1.5, 2.0, 6.0)) -> nibabel.Nifti1Image:
    voxels = np.random.default_rng(1).integers(-200, 300, shape).astype(np.int16)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -20, -30, 40
    return nibabel.Nifti1Image(voxels, affine)


def stored_as(image: nibabel.Nifti1Image, axes: str) -> nibabel.Nifti1Image:
    have, want = nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(axes)
    return image.as_reoriented(nibabel.orientations.ornt_transform(have, want))


def masked(image: nibabel.Nifti1Image, folder: Path, orientation: str = "itk") -> nibabel.Nifti1Image:
    folder.mkdir()
    nibabel.save(image, folder / "ct.nii.gz")
    [written] = predict_files(Corner().eval(), for_scans(orientation), [folder / "ct.nii.gz"], folder / "masks")
    return nibabel.load(written)


@pytest.mark.parametrize("orientation", ["itk", "transunet", "RIP"])
def test_the_same_scan_in_any_orientation_gives_the_same_mask_in_the_body(tmp_path: Path, orientation: str):
    expected = masked(body(spacing=(1.5, 2, 2.5)), tmp_path / "RAS", orientation)
    for axes in ("LAS", "PSR", "ASR", "IRP"):
        found = masked(stored_as(body(spacing=(1.5, 2, 2.5)), axes), tmp_path / axes, orientation)
        assert nibabel.aff2axcodes(found.affine) == tuple(axes)
        in_body = nibabel.as_closest_canonical(found)
        np.testing.assert_allclose(in_body.affine, expected.affine, atol=1e-4)
        np.testing.assert_array_equal(np.asarray(in_body.dataobj), np.asarray(expected.dataobj))


def test_class_1_lies_at_the_patients_right_and_front(tmp_path: Path):
    """As a scan is looked at: the patient's right side is left in the picture, the front is up."""
    mask = np.asarray(masked(stored_as(body(), "PSR"), tmp_path / "PSR").dataobj) == 1
    place = nibabel.affines.apply_affine(stored_as(body(), "PSR").affine, np.argwhere(mask)).mean(axis=0)
    middle = nibabel.affines.apply_affine(body().affine, (np.array(body().shape) - 1) / 2)
    assert place[0] > middle[0] + 5, "RAS: larger is the patient's right"
    assert place[1] > middle[1] + 5, "RAS: larger is the front"
    assert place[2] == pytest.approx(middle[2])


def test_an_oblique_scan_gives_the_mask_of_its_voxels(tmp_path: Path):
    turn = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.35, 0.2, -0.1), [3, 4, 5])
    straight = masked(body(), tmp_path / "straight")
    oblique = masked(nibabel.Nifti1Image(np.asarray(body().dataobj), turn @ body().affine), tmp_path / "oblique")
    np.testing.assert_array_equal(np.asarray(oblique.dataobj), np.asarray(straight.dataobj))
    np.testing.assert_allclose(oblique.affine, turn @ body().affine, atol=1e-4)


def test_a_scan_with_its_thick_axis_elsewhere_is_sliced_across_it(tmp_path: Path):
    mask = np.asarray(masked(body((6, 32, 24), (6, 1, 1)), tmp_path / "sagittal").dataobj)
    assert (mask == mask[:1]).all(), "all slices alike"
    assert set(np.unique(mask[0, 16:, 12:])) == {1}, "front and upper: the upper left of a picture from the side"


def test_the_mask_keeps_the_header_of_its_scan(tmp_path: Path):
    image = nibabel.Nifti2Image(np.asarray(body().dataobj)[..., None], body().affine)
    image.header.set_qform(body().affine, code=3)
    image.header.set_sform(body().affine, code=4)
    image.header.set_xyzt_units("micron", "sec")
    image.header["descrip"] = b"site 7"
    image.header["cal_max"] = 300
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 3000))
    (tmp_path / "in").mkdir()
    path = tmp_path / "in" / "SCAN.NII.GZ"
    path.write_bytes(gzip.compress(image.to_bytes()))
    [written] = predict_files(Corner().eval(), for_scans(), [path], tmp_path / "out")
    assert written.name == "SCAN.NII.GZ"
    mask = nibabel.Nifti2Image.from_bytes(gzip.decompress(written.read_bytes()))
    assert mask.shape == image.shape
    assert (mask.get_data_dtype(), mask.header.get_intent()[0]) == (np.uint8, "label")
    changed = {"datatype", "bitpix", "intent_code", "cal_max", "vox_offset", "scl_slope", "scl_inter"}
    for field in set(mask.header.keys()) - changed:
        np.testing.assert_array_equal(mask.header[field], image.header[field], err_msg=field)


def test_a_pointer_in_place_of_a_scan(tmp_path: Path):
    path = tmp_path / "ct.nii.gz"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(UserError, match=rf"^input {path}: is a Git LFS pointer, not the file itself; run git lfs pull"):
        predict_files(Corner(), for_scans(), [path], tmp_path / "masks")


def test_a_model_of_unknown_orientation(tmp_path: Path):
    path = tmp_path / "ct.nii"
    nibabel.save(body(), path)
    with pytest.raises(UserError, match="the model's orientation 'up' is unknown"):
        predict_files(Corner(), for_scans("up"), [path], tmp_path / "masks")


DOUBTFUL = {
    "no orientation": "the header has no orientation; the axes are taken to lead left, anterior, superior",
    "unit sform": "sform and pixdim of the header disagree on the spacing; pixdim is used "
    "(sform 1 x 1 x 1, pixdim 0.7 x 0.7 x 4)",
    "wrong pixdim": "sform and pixdim of the header disagree on the spacing; sform is used "
    "(sform 0.7 x 0.7 x 4, pixdim 0.5 x 0.7 x 4)",
    "turned qform": "sform and qform of the header point in different directions; sform is used",
    "all well": "",
}


@pytest.mark.parametrize(("header", "note"), DOUBTFUL.items())
def test_what_was_doubtful_in_a_header_is_told_with_its_mask(tmp_path: Path, header: str, note: str):
    affine = np.diag([0.7, 0.7, 4, 1])
    image = nibabel.Nifti1Image(np.arange(4 * 6 * 3, dtype=np.int16).reshape(4, 6, 3), affine)
    if header == "no orientation":
        image.header["sform_code"] = image.header["qform_code"] = 0
    elif header == "turned qform":
        image.set_qform(np.diag([-0.7, -0.7, 4, 1]), code=1)
    elif header == "unit sform":
        image.set_sform(np.eye(4), code=1)
        image.set_qform(None, code=0)
        image.header["pixdim"][1:4] = 0.7, 0.7, 4
    elif header == "wrong pixdim":
        image.header["pixdim"][1] = 0.5
    (tmp_path / "ct.nii").write_bytes(to_bytes(image))
    planned = plan([tmp_path / "ct.nii"], for_scans(), tmp_path / "masks")
    written = predict_one(
        Segmenter([Member(Bright().eval(), for_scans())]), planned.inputs[0], planned.targets[0], preview=True
    )
    assert (written.input, written.note) == (tmp_path / "ct.nii", note)
    assert nibabel.load(written.mask).shape == (4, 6, 3)
    assert (tmp_path / "masks" / "previews" / "ct.nii.png").read_bytes().startswith(b"\x89PNG")


def to_bytes(image: nibabel.Nifti1Image) -> bytes:
    """The file with the header as it was set: nibabel's own writer would set sform and qform anew."""
    header = image.header.copy()
    header["magic"], header["vox_offset"] = header.single_magic, 352
    return header.binaryblock + bytes(4) + np.asarray(image.dataobj).tobytes(order="F")


# Several volumes in one file ------------------------------------------------------------------------------------------


def test_each_volume_of_a_4d_scan_is_segmented_on_its_own(tmp_path: Path):
    """A volume twice as bright has the mask of its own window, not that of the file; grid and time axis stay."""
    info = for_scans().model_copy(update={"intensity": intensity.rule("min", "p99")})
    voxels = np.random.default_rng(3).integers(0, 200, (32, 24, 6, 3)).astype(np.int16)
    voxels[..., 1] *= 2
    voxels[..., 2] = voxels[::-1, :, :, 0]
    image = nibabel.Nifti1Image(voxels, body().affine)
    image.header.set_xyzt_units("mm", "msec")
    image.header["pixdim"][4] = 41.5
    nibabel.save(image, tmp_path / "cine.nii.gz")
    segmenter = Segmenter([Member(Bright().eval(), info)], Options(probabilities=True, largest_component=True))
    planned = plan([tmp_path / "cine.nii.gz"], info, tmp_path / "masks")
    written = predict_one(segmenter, planned.inputs[0], planned.targets[0], preview=True)
    mask = nibabel.load(written.mask)
    found = np.asarray(mask.dataobj)
    assert found.shape == (32, 24, 6, 3)
    assert (mask.header["pixdim"][4], mask.header.get_xyzt_units()) == (41.5, ("mm", "msec"))
    np.testing.assert_allclose(mask.affine, image.affine)
    for time in range(3):
        alone = nibabel.Nifti1Image(np.ascontiguousarray(voxels[..., time]), body().affine)
        nibabel.save(alone, tmp_path / f"{time}.nii.gz")
        one = plan([tmp_path / f"{time}.nii.gz"], info, tmp_path / "single")
        predict_one(segmenter, one.inputs[0], one.targets[0])
        expected = np.asarray(nibabel.load(one.targets[0]).dataobj)
        np.testing.assert_array_equal(found[..., time], expected)
        assert expected.any()
        every = np.load(tmp_path / "masks" / "cine.probabilities.npz")["probabilities"]
        likely = np.load(tmp_path / "single" / f"{time}.probabilities.npz")["probabilities"]
        np.testing.assert_array_equal(every[..., time], likely)
    assert written.note == "3 volumes, each segmented on its own"
    assert written.voxel_ml is None


def test_a_scan_of_five_axes(tmp_path: Path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 2, 3, 2), np.int16), np.eye(4)), tmp_path / "x.nii")
    with pytest.raises(UserError, match=r"x.nii: has shape \(4, 4, 2, 3, 2\); a volume has three axes, it holds"):
        predict_files(Corner(), for_scans(), [tmp_path / "x.nii"], tmp_path / "masks")
