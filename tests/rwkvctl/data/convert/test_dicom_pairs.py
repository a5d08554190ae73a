"""DICOM series with the masks that were drawn on them: which belong together, and where a mask's voxels come to lie."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import highdicom as hd
import numpy as np
import pydicom
import pytest
from matplotlib.path import Path as Polygon

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import synth
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth.scans import CLASSES, scan
from rwkvctl.data.images import dicom_masks, dicom_seg
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader

ALL = list(CLASSES)


@pytest.fixture
def seg(tmp_path: Path) -> Path:
    return synth.write("dicom:seg", tmp_path / "source", n=6, size=32)


@pytest.fixture
def rtstruct(tmp_path: Path) -> Path:
    return synth.write("dicom:rtstruct", tmp_path / "source", n=6, size=32)


def change(path: Path, how: Callable[[Any], None]) -> None:
    made = pydicom.dcmread(path)
    how(made)
    made.save_as(path)


def labels_of(made: Manifest, number: int) -> np.ndarray:
    """(D, H, W) of a patient, in whatever part it came to lie."""
    reader = Reader(made)
    rows = [row for row in range(len(reader)) if f"_p{number}" in reader.key(row)]
    found = [reader.mask(row) for row in rows]
    return found[0] if found[0].ndim == 3 else np.stack(found)


def refused(source: Path, tmp_path: Path, match: str, **options: Any) -> None:
    with pytest.raises(UserError, match=match) as caught:
        prepare("dicom", [source], tmp_path / "refused", **options)
    assert "\n" not in str(caught.value)


def test_files_lie_anywhere_and_are_matched_by_reference(seg: Path, tmp_path: Path):
    """All in one folder of a zip, under names that say nothing."""
    with zipfile.ZipFile(tmp_path / "flat.zip", "w") as packed:
        for n, path in enumerate(sorted(seg.rglob("*.dcm"), key=lambda path: hash(path.name))):
            packed.write(path, f"export/{n:05d}")
    made = prepare("dicom", [tmp_path / "flat.zip"], tmp_path / "set", classes=ALL)
    assert made.content.counts["samples"] == 4 * 5 + 2
    reader, cases = Reader(made), dict[str, list[np.ndarray]]()
    for row in range(len(reader)):
        cases.setdefault(reader.meta(row)["case_id"], []).append(reader.mask(row))
    whole = [np.concatenate([own.reshape(-1, 28, 32) for own in found]) for found in cases.values()]
    known = {scan(0, number, 32).label.tobytes() for number in range(1, 7)}
    assert {own.tobytes() for own in whole} == known


def test_classes_are_chosen_by_name(seg: Path, tmp_path: Path):
    made = prepare("dicom", [seg], tmp_path / "set", classes=["background", "LEFT Ventricle"])
    np.testing.assert_array_equal(labels_of(made, 3), scan(0, 3, 32).label == 3)
    assert any("segments that are no class were left out: myocardium" in own for own in made.content.warnings)
    refused(seg, tmp_path, "no mask has a segment called aorta; there is left ventricle, ", classes=["bg", "aorta"])


def test_masks_of_our_own_predictions_are_read(seg: Path, tmp_path: Path):
    for number in range(1, 7):
        path = seg / f"P{number}" / "masks" / "1-1.dcm"
        images = sorted((seg / f"P{number}" / "CT").glob("*.dcm"), key=lambda own: -pydicom.dcmread(own).InstanceNumber)
        label = scan(0, number, 32).label.transpose(2, 1, 0)
        path.write_bytes(dicom_seg.encoded(images, label, CLASSES, dicom_seg.Maker("model", "1")))
    made = prepare("dicom", [seg], tmp_path / "set", classes=ALL)
    np.testing.assert_array_equal(labels_of(made, 2), scan(0, 2, 32).label)


def test_frames_in_any_order_and_turned_are_put_where_they_say(seg: Path, tmp_path: Path):
    """A mask of rows that run backwards, its frames shuffled, as other programs write them."""

    def turned(made: Any) -> None:
        frames = hd.seg.Segmentation.from_dataset(made, copy=True).pixel_array[:, ::-1]
        shared = made.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence[0]
        shared.ImageOrientationPatient = [1, 0, 0, 0, -1, 0]
        order = np.random.default_rng(0).permutation(len(frames))
        own = [made.PerFrameFunctionalGroupsSequence[n] for n in order]
        step = float(made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing[0])
        for frame in own:
            place = frame.PlanePositionSequence[0].ImagePositionPatient
            frame.PlanePositionSequence[0].ImagePositionPatient = [place[0], place[1] + 27 * step, place[2]]
        made.PerFrameFunctionalGroupsSequence = own
        made.PixelData = np.packbits(frames[order].ravel().astype(np.uint8), bitorder="little").tobytes()

    change(seg / "P3" / "masks" / "1-1.dcm", turned)
    made = prepare("dicom", [seg], tmp_path / "set", classes=ALL)
    np.testing.assert_array_equal(labels_of(made, 3), scan(0, 3, 32).label)


def moved(made: Any) -> None:
    for frame in made.PerFrameFunctionalGroupsSequence:
        frame.PlanePositionSequence[0].ImagePositionPatient[2] += 2


def smaller(made: Any) -> None:
    made.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing = [0.5, 0.5]


@pytest.mark.parametrize(
    ("how", "match"),
    [
        (moved, r"1-1.dcm: a frame lies between two slices of its series"),
        (smaller, r"1-1.dcm: its frames do not lie on the pixels of their series"),
    ],
)
def test_a_mask_that_does_not_lie_on_its_series_is_named(
    how: Callable[[Any], None], match: str, seg: Path, tmp_path: Path
):
    change(seg / "P3" / "masks" / "1-1.dcm", how)
    refused(seg, tmp_path, match, classes=ALL)


def test_a_mask_without_its_series(seg: Path, tmp_path: Path):
    for path in (seg / "P3" / "CT").iterdir():
        path.unlink()
    refused(seg, tmp_path, r"P3/masks/1-1.dcm: was drawn on the series \S+, which is not here; add it", classes=ALL)
    made = prepare("dicom", [seg], tmp_path / "set", classes=ALL, allow_partial=True)
    assert [own.id for own in made.content.excluded] == ["P3/masks/1-1.dcm"]


def test_two_masks_of_one_class(seg: Path, tmp_path: Path):
    first = seg / "P3" / "masks" / "1-1.dcm"
    (first.with_name("second.dcm")).write_bytes(first.read_bytes())
    refused(seg, tmp_path, "have the same class of one series; say which is meant: --masks '", classes=ALL)
    made = prepare("dicom", [seg], tmp_path / "set", classes=ALL, masks="*/1-1.dcm")
    np.testing.assert_array_equal(labels_of(made, 3), scan(0, 3, 32).label)


def test_a_series_alone(seg: Path, tmp_path: Path):
    for path in seg.rglob("masks/*.dcm"):
        path.unlink()
    refused(seg, tmp_path, "6 DICOM series, and no DICOM-SEG or RTSTRUCT that was drawn on one of them")


def test_no_name_of_a_patient_is_kept(seg: Path, tmp_path: Path):
    made = prepare("dicom", [seg], tmp_path / "set", classes=ALL)
    meta = Reader(made).meta(0)
    assert "A^B" not in str(meta)
    assert meta["spacing_mm"] == [4.0, 1.25, 1.5]


# RTSTRUCT -----------------------------------------------------------------------------------------------------------


def test_contours_between_slices_are_drawn_on_the_nearest(rtstruct: Path, tmp_path: Path):
    def lifted(made: Any) -> None:
        for drawn in made.ROIContourSequence:
            for contour in drawn.ContourSequence:
                points = np.array(contour.ContourData, float).reshape(-1, 3)
                points[:, 2] += 1.2
                contour.ContourData = points.ravel().tolist()

    change(rtstruct / "P3" / "RS.dcm", lifted)
    made = prepare("dicom", [rtstruct], tmp_path / "set", classes=["background", "LV", "LV_wall"])
    np.testing.assert_array_equal(labels_of(made, 3), np.array([0, 0, 2, 1])[scan(0, 3, 32).label])
    assert any("contours lie between two slices and were drawn on the nearest" in own for own in made.content.warnings)


def test_a_contour_across_slices_is_refused(rtstruct: Path, tmp_path: Path):
    def tilted(made: Any) -> None:
        contour = made.ROIContourSequence[1].ContourSequence[0]
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        points[0, 2] += 3
        contour.ContourData = points.ravel().tolist()

    change(rtstruct / "P3" / "RS.dcm", tilted)
    refused(rtstruct, tmp_path, r"RS.dcm: a contour of ROI 2 lies across slices", classes=["background", "LV"])


def test_a_structure_set_that_names_the_frame_of_reference_alone(rtstruct: Path, tmp_path: Path):
    def without(made: Any) -> None:
        del made.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence

    change(rtstruct / "P3" / "RS.dcm", without)
    made = prepare("dicom", [rtstruct], tmp_path / "set", classes=["background", "LV"])
    assert any("the only one in its frame of reference was taken" in own for own in made.content.warnings)


@pytest.mark.parametrize("seed", range(20))
def test_a_polygon_is_filled_where_pixel_centres_lie_in_it(seed: int):
    """Against matplotlib, for stars that cross themselves nowhere; and the sum of a hole."""
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    points = np.c_[np.cos(angles), np.sin(angles)] * rng.uniform(2, 14, (12, 1)) + rng.uniform(5, 12, 2)
    grid = np.stack(np.meshgrid(np.arange(20), np.arange(24), indexing="ij"), -1)
    expected = Polygon(np.vstack([points, points[:1]])).contains_points(grid.reshape(-1, 2)).reshape(20, 24)
    np.testing.assert_array_equal(dicom_masks.inside_polygon(points, (20, 24)), expected)


def test_a_square_between_pixel_centres_has_its_own_area():
    square = np.array([[2.5, 3.5], [6.5, 3.5], [6.5, 8.5], [2.5, 8.5]])
    filled = dicom_masks.inside_polygon(square, (20, 20))
    assert filled.sum() == 20
    assert filled[3:7, 4:9].all()
