"""Grids: axes of files and of stored volumes, the way back, and which masks lie on which images."""

from __future__ import annotations

from itertools import permutations, product
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
import pytest

from rwkvctl.base.errors import BadFile
from rwkvctl.data.images import grid
from rwkvctl.data.images.grid import Grid

ALL_AXES = ["".join(own) for order in permutations(("RL", "AP", "SI")) for own in product(*order)]


class File(NamedTuple):
    name: str

    def __str__(self) -> str:
        return f"/data/{self.name}"


IMAGE, MASK = File("ct.nii.gz"), File("mask.nii.gz")
RAS = nibabel.Nifti1Image(np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6), np.diag([1.5, 2.0, 3.0, 1.0]))


def stored_as(image: nibabel.Nifti1Image, axes: str) -> nibabel.Nifti1Image:
    """The same body, its voxels in another order; by nibabel."""
    have, want = nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(axes)
    return image.as_reoriented(nibabel.orientations.ornt_transform(have, want))


def grid_of(image: nibabel.Nifti1Image) -> Grid:
    return Grid(image.affine, image.shape)


@pytest.mark.parametrize("axes", ALL_AXES)
def test_a_body_is_stored_the_same_however_its_file_lies(axes: str):
    image = stored_as(RAS, axes)
    own, voxels = grid_of(image), np.asarray(image.dataobj)
    assert own.axes == axes
    for orientation in (*grid.ORIENTATIONS, "RIP", "ASL"):
        stored = grid.turned(voxels, own, orientation)
        expected = np.asarray(stored_as(RAS, grid.axes_of(orientation)).dataobj)
        np.testing.assert_array_equal(stored, expected)
        assert grid.depth(own, orientation) == len(stored)
        meta = grid.geometry(own, orientation)
        np.testing.assert_array_equal(grid.turned_back(stored, meta), voxels)
        np.testing.assert_allclose(grid.affine_of(meta), image.affine, atol=1e-12)
        np.testing.assert_allclose(
            meta["spacing_mm"], nibabel.affines.voxel_sizes(stored_as(RAS, grid.axes_of(orientation)).affine)
        )


@pytest.mark.parametrize(("orientation", "file_axes", "reading"), [
    ("transunet", "LAS", lambda a: a.transpose(2, 0, 1)[:, :, ::-1]),  # mmsegmentation's of the release
    ("emcad", "LAS", lambda a: a.transpose(2, 0, 1)),
    ("SAL", "LAS", lambda a: a.transpose(2, 1, 0)),  # SAMed's
    ("itk", "LPS", lambda a: a.transpose(2, 1, 0)),  # WSL4MIS's of ACDC
])  # fmt: skip
def test_published_readings_of_the_releases_stay_what_they_are(orientation: str, file_axes: str, reading):
    image = stored_as(RAS, file_axes)
    voxels = np.asarray(image.dataobj)
    np.testing.assert_array_equal(grid.turned(voxels, grid_of(image), orientation), reading(voxels))


def box(spacing, shape=(64, 64, 64), axes="RAS") -> Grid:
    return grid_of(stored_as(nibabel.Nifti1Image(np.zeros(shape, np.uint8), np.diag([*spacing, 1.0])), axes))


def test_slices_go_across_the_thick_axis():
    assert [grid.layout(box(s), "itk") for s in ((1, 1, 5), (1, 5, 1), (5, 1, 1), (1, 1, 1.5), (3, 1, 2))] == [
        "itk", "AIL", "RIP", "itk", "itk",
    ]  # fmt: skip
    assert grid.layout(box((5, 1, 1), (6, 64, 64), axes="ASR"), "transunet") == "RIP"
    assert grid.layout(box((1, 1, 1), (64, 1, 64)), "itk") == "AIL", "a single slice"
    assert grid.usual_layout([box((5, 1, 1)), box((5, 1, 1)), box((1, 1, 5)), box((1, 1, 1))], "itk") == "RIP"
    assert grid.usual_layout([box((1, 1, 1))], "itk") == "itk"
    assert grid.layout(box((1, 1, 1)), "RIP") == "RIP", "a scan without a thick axis follows its set"


@pytest.mark.parametrize("axes", ["RPS", "ASR", "LIP"])
def test_a_mask_that_is_stored_otherwise_comes_to_lie_on_its_image(axes: str):
    turn = nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.3, 0.2, 0.1), [7, -3, 20])
    image = nibabel.Nifti1Image(np.asarray(RAS.dataobj), turn @ RAS.affine)
    mask = stored_as(image, axes)
    place = grid.aligned(MASK, grid_of(mask), IMAGE, grid_of(image))
    np.testing.assert_array_equal(place.on_image(np.asarray(mask.dataobj)), np.asarray(image.dataobj))
    assert [note.partition(" (")[0] for note in place.notes] == [
        "the mask is stored along other axes than its image, and was turned"
    ]


def test_oblique_grids_between_two_axes_are_compared_with_one_another():
    """At 45 degrees, a rounding error decides which axis of the body is the nearest."""
    turn = [nibabel.eulerangles.euler2mat(np.pi / 4 + off) for off in (1e-6, -1e-6)]
    image, mask = (Grid(nibabel.affines.from_matvec(own, [1, 2, 3]), (8, 8, 4)) for own in turn)
    assert image.axes != mask.axes
    voxels = np.arange(8 * 8 * 4).reshape(8, 8, 4)
    place = grid.aligned(MASK, mask, IMAGE, image)
    np.testing.assert_array_equal(place.on_image(voxels), voxels)
    assert place.notes == ()


def moved(by: float, origin: bool = True) -> Grid:
    affine = np.diag([1.0, 1.0, 4.0, 1.0])
    affine[:3, 3] = np.array([10.0, 20.0, 30.0]) + by if origin else 0
    return Grid(affine, (20, 20, 5))


@pytest.mark.parametrize(("mask", "line"), [
    (moved(30), "lies 51.96 mm away from ct.nii.gz"),
    (Grid(np.diag([1.0, 1, 4, 1]), (20, 20, 6)), r"has shape \(20, 20, 6\), ct.nii.gz has \(20, 20, 5\)"),
    (Grid(np.diag([1.0, 4, 1, 1]), (20, 6, 20)), r"has shape \(20, 6, 20\), ct.nii.gz has \(20, 20, 5\)"),
    (Grid(np.diag([1.0, 1.1, 4, 1]), (20, 20, 5)), r"its spacing is not that of ct.nii.gz \(1 x 1.1 x 4, 1 x 1"),
    (Grid(nibabel.affines.from_matvec(nibabel.eulerangles.euler2mat(0.1) * [1, 1, 4], [10, 20, 30]), (20, 20, 5)),
     "its axes point elsewhere than those of ct.nii.gz"),
    (Grid(np.diag([-1.0, 1, 4, 1]), (20, 20, 5)), "mm away from ct.nii.gz"),  # mirrored, and no origin to tell where
])  # fmt: skip
def test_a_mask_on_another_grid_is_refused(mask: Grid, line: str):
    with pytest.raises(BadFile, match=f"^/data/mask.nii.gz: .*{line}.*; give them one grid$"):
        grid.aligned(MASK, mask, IMAGE, moved(0))


def test_what_is_missing_of_a_masks_place_is_taken_from_its_image_and_said():
    assert grid.aligned(MASK, moved(0.3), IMAGE, moved(0)).notes == ()
    for mask, image, line in [
        (moved(0, origin=False), moved(0), "the mask has no origin"),
        (moved(0), moved(0, origin=False), "the image has no origin"),
        (moved(0)._replace(oriented=False), moved(0), "the mask has no orientation"),
    ]:
        [note] = grid.aligned(MASK, mask, IMAGE, image).notes
        assert note.startswith(line)


def test_real_paths_name_files(tmp_path: Path):
    with pytest.raises(BadFile, match="give them one grid"):
        grid.aligned(tmp_path / "m.nii", moved(30), tmp_path / "i.nii", moved(0))
