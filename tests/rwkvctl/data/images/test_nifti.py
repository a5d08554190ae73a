"""NIfTI headers as other programs write them: what is read, what is doubtful, what is refused."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import nibabel
import numpy as np
import pytest

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.sources import on_disk
from rwkvctl.data.images import nifti

VOXELS = np.arange(6 * 5 * 4, dtype=np.int16).reshape(6, 5, 4)
TRUE = np.array([[-1.3, 0, 0, 20], [0, -1.3, 0, 30], [0, 0, 10, -40], [0, 0, 0, 1]])


def save(path: Path, voxels=VOXELS, *, sform=None, qform=None, pixdim=None, unit=2) -> Path:
    header = nibabel.Nifti1Image(voxels, None).header
    if qform is not None:
        header.set_qform(qform, code=1)
    if sform is not None:
        header.set_sform(sform, code=1)
    header["xyzt_units"] = unit
    content = bytearray(nibabel.Nifti1Image(voxels, None, header).to_bytes())
    if pixdim is not None:  # after nibabel, which would mend it
        content[80:92] = struct.pack("<3f", *pixdim)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def read(path: Path) -> nifti.Nifti:
    found = nifti.read(on_disk(path))
    np.testing.assert_array_equal(nifti.read_grid(on_disk(path)).affine, found.grid.affine)
    return found


UNIT = np.diag([-1.0, -1, 1, 1])
SHEARED = TRUE @ np.array([[1, 0.2, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
SPACINGS = {
    "all agree": ({"sform": TRUE, "qform": TRUE}, (1.3, 1.3, 10), []),
    "ACDC's sform": ({"sform": UNIT, "qform": TRUE}, (1.3, 1.3, 10), ["pixdim is used (sform 1 x 1 x 1, pixdim 1.3"]),
    "unit sform alone": ({"sform": UNIT, "pixdim": [1.3, 1.3, 10]}, (1.3, 1.3, 10), ["pixdim is used"]),
    "pixdim not filled in": ({"sform": TRUE, "pixdim": [1, 1, 1]}, (1.3, 1.3, 10), ["sform is used"]),
    "sform in another unit": ({"sform": TRUE * 1e4, "qform": TRUE}, (1.3, 1.3, 10), ["pixdim is used"]),
    "qform alone": ({"qform": TRUE}, (1.3, 1.3, 10), []),
    "none": ({"pixdim": [1.3, 1.3, 10]}, (1.3, 1.3, 10), ["the header has no orientation"]),
    "two directions": ({"sform": TRUE, "qform": np.diag([1.3, 1.3, 10, 1])}, (1.3, 1.3, 10), ["different directions"]),
    "sheared": ({"sform": SHEARED}, np.linalg.norm(SHEARED[:3, :3], axis=0), ["sform is used", "right angles"]),
    "micrometres": ({"sform": TRUE, "qform": TRUE, "unit": 3}, (0.0013, 0.0013, 0.01), []),
}  # fmt: skip


@pytest.mark.parametrize("name", SPACINGS)
def test_the_spacing_is_what_is_plausible_and_doubts_are_noted(tmp_path: Path, name: str):
    header, spacing, doubts = SPACINGS[name]
    found = read(save(tmp_path / "a.nii.gz", **header)).grid
    np.testing.assert_allclose(found.spacing, spacing, rtol=1e-5)
    assert len(found.notes) == len(doubts), found.notes
    assert all(doubt in note for doubt, note in zip(doubts, found.notes, strict=True))
    assert found.axes == ("LAS" if name == "none" else "LPS")


@pytest.mark.parametrize("header", [
    {"pixdim": [0, 0, 0]}, {"sform": np.zeros((4, 4)), "pixdim": [0, 1, 1]}, {"sform": TRUE * 1e4, "pixdim": [0, 0, 0]},
    {"qform": TRUE, "pixdim": [1.3, 1.3, 1e9]}, {"sform": TRUE * 1e-9, "pixdim": [np.nan, 1, 1]},
])  # fmt: skip
def test_a_header_without_a_plausible_spacing_is_refused(tmp_path: Path, header):
    with pytest.raises(BadFile, match=r"a.nii: its header has no plausible spacing \(.*\); fix its header$"):
        nifti.read_grid(on_disk(save(tmp_path / "a.nii", **header)))


def test_two_axes_that_point_the_same_way(tmp_path: Path):
    flat = np.array([[1.0, 1, 0, 0], [0, 1e-3, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    with pytest.raises(BadFile, match="two of its axes point the same way"):
        nifti.read_grid(on_disk(save(tmp_path / "a.nii", sform=flat)))


@pytest.mark.parametrize("made", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_trailing_axes_of_one_and_long_extensions_are_read(tmp_path: Path, ending: str, made):
    image = made(VOXELS[..., None], TRUE)
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 5000))
    nibabel.save(image, tmp_path / f"a{ending}")
    found = read(tmp_path / f"a{ending}")
    np.testing.assert_array_equal(found.voxels, VOXELS)
    np.testing.assert_allclose(found.grid.affine, TRUE, atol=1e-5)


def test_values_are_scaled_as_the_header_says_in_either_byte_order(tmp_path: Path):
    for endian in "<>":
        header = nibabel.Nifti1Header(endianness=endian)
        header.set_data_dtype(np.int16)
        image = nibabel.Nifti1Image(VOXELS * 0.5 - 3, TRUE, header)
        nibabel.save(image, tmp_path / "a.nii")
        np.testing.assert_array_equal(
            read(tmp_path / "a.nii").voxels, np.asarray(nibabel.load(tmp_path / "a.nii").dataobj)
        )


RGB = np.zeros((4, 4, 2), np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")]))
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize(("content", "line"), [
    (RGB, r"its voxels are colours \(RGB\)"),
    (VOXELS.astype(np.complex64), "its voxels are of type complex64"),
    (np.stack([VOXELS, VOXELS], -1), r"has shape \(6, 5, 4, 2\); a volume has three axes, it holds several volumes"),
    (VOXELS[0], r"has shape \(5, 4\); a volume has three axes"),
    (LFS, "is a Git LFS pointer, not the file itself; run git lfs pull"),
    (b"", "is empty; replace it"),
    (b"x" * 1000, "not a NIfTI file; replace it"),
    (gzip.compress(b"x" * 1000, mtime=0), "not a NIfTI file; replace it"),
])  # fmt: skip
def test_what_is_no_scan_is_named(tmp_path: Path, content, line: str):
    path = tmp_path / "a.nii.gz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        nibabel.save(nibabel.Nifti1Image(content, TRUE), path)
    for reader in (nifti.read_grid, nifti.read):
        with pytest.raises(BadFile, match=f"^{path}: {line}[^\n]*$"):
            reader(on_disk(path))


def test_a_cut_file_is_named_by_its_bytes(tmp_path: Path):
    path = save(tmp_path / "a.nii", sform=TRUE)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(BadFile, match=r"a.nii: not a whole NIfTI file \(582 of 592 bytes\); replace it"):
        nifti.read(on_disk(path))
