"""Patterns, zips, folders and trees of DICOM series become the volumes that are in them."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rwkvctl.base import unpacking
from rwkvctl.base.errors import UserError
from rwkvctl.models.predict_sources import Sources, found

from ..data.images.dicom_series import STRAIGHT, write_ct

ROWS, COLUMNS, SLICES = 6, 5, 4
SEG, CAPTURE = "1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.7"


def volume(value: int = 0) -> np.ndarray:
    """[y, x, z], each slice of one value: `value` and 1, 2, ... more."""
    return np.broadcast_to(value + np.arange(SLICES), (ROWS, COLUMNS, SLICES)).copy()


def sources(tmp_path: Path, *inputs: Path | str) -> Sources:
    return found([str(each) for each in inputs], tmp_path / "scratch")


def zipped(folder: Path, archive: Path) -> Path:
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as made:
        for file in sorted(folder.rglob("*")):
            made.write(file, file.relative_to(folder.parent))
    return archive


def slices_of(folder: Path) -> list[int]:
    """The values of a volume's slices in the order of its files' names."""
    import pydicom

    return [int(pydicom.dcmread(file).pixel_array[0, 0]) - 1024 for file in sorted(folder.iterdir())]


def study(folder: Path) -> Path:
    """Two series, and what lies beside them in a study."""
    write_ct(folder, volume(10), number=4, description="Arterial / 1.0")
    write_ct(folder / "late", volume(20), number=10, description="Später")
    write_ct(folder / "scout", volume()[:, :, :2], number=1, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_ct(folder / "report", volume()[:, :, :1], number=90, Modality="SR", Rows=None)
    write_ct(folder / "old", volume()[:, :, :1], number=91, Modality="SEG")
    write_ct(folder / "shot", volume()[:, :, :1], number=92, SOPClassUID=CAPTURE)
    write_ct(folder / "colour", volume(), number=93, SamplesPerPixel=3)
    write_ct(folder / "one", volume()[:, :, :1], number=94)
    (folder / "readme.txt").write_text("hello")
    for name in ("DICOMDIR", "broken"):
        (folder / name).write_bytes(bytes(128) + b"DICM")
    return folder


def test_each_volume_of_a_folder_is_one_and_the_rest_is_skipped_with_its_reason(tmp_path: Path):
    got = sources(tmp_path, study(tmp_path / "study"))
    assert [path.name for path in got.paths] == ["study_4_Arterial_1.0", "study_late_10_Später"]
    assert [slices_of(path) for path in got.paths] == [[10, 11, 12, 13], [20, 21, 22, 23]]
    assert got.skipped[0].endswith("study: broken: its DICOM header cannot be read, or is of no series")
    said = [line.partition("): ")[2] for line in got.skipped[1:]]
    assert said == [
        "is a localiser", "is no image (SR)", "is no image (SEG)",
        "is a secondary capture (a screenshot, or a film that was scanned)", "is in colour",
        "is one image beside volumes",
    ]  # fmt: skip
    assert got.skipped[1].startswith(f"{tmp_path / 'study'}: series 1 Abdomen venös (1.2.826.")
    line = got.say(f"input {got.paths[1]}: is bad")
    assert line.startswith(f"input {tmp_path / 'study'}: series 10 Später (1.2.")
    assert line.endswith("): is bad")


def test_a_series_alone_in_its_folder_is_read_where_it_is(tmp_path: Path):
    series = write_ct(tmp_path / "ct", volume())
    got = sources(tmp_path, series)
    assert (got.paths, got.skipped, got.shown) == ([series], [], {})
    assert not (tmp_path / "scratch").exists()


def test_a_zip_is_read_as_the_folder_in_it(tmp_path: Path):
    one = zipped(write_ct(tmp_path / "ct", volume()), tmp_path / "Fall 1.zip")
    several = zipped(study(tmp_path / "study"), tmp_path / "several.ZIP")
    got = sources(tmp_path, one, several)
    assert [path.name for path in got.paths] == [
        "Fall_1",
        "several_study_4_Arterial_1.0",
        "several_study_late_10_Später",
    ]
    assert [slices_of(path) for path in got.paths] == [[0, 1, 2, 3], [10, 11, 12, 13], [20, 21, 22, 23]]
    assert got.say(str(got.paths[0])) == str(one)
    assert sources(tmp_path, one, several) == got, "kept from one call to the next"
    assert sources(tmp_path, one).paths != got.paths, "of these inputs only"


def test_a_tree_of_patients(tmp_path: Path):
    for patient in ("P1", "P2"):
        for number in (2, 3):
            write_ct(
                tmp_path / "data" / patient / "STUDY" / f"S{number}", volume(number), number=number, description=""
            )
    got = sources(tmp_path, tmp_path / "data")
    assert [path.name for path in got.paths] == [
        "data_P1_STUDY_S2_2", "data_P2_STUDY_S2_2", "data_P1_STUDY_S3_3", "data_P2_STUDY_S3_3"
    ]  # fmt: skip


def test_series_of_one_name_are_told_apart_by_their_uid(tmp_path: Path):
    for place, uid in enumerate(("1.2.3", "1.2.4")):
        for name, source in enumerate(sorted(write_ct(tmp_path / f"{uid}", volume(place), series=uid).iterdir())):
            (tmp_path / "both").mkdir(exist_ok=True)
            source.rename(tmp_path / "both" / f"{uid}-{name}")
    got = sources(tmp_path, tmp_path / "both")
    assert [path.name for path in got.paths] == ["both_3_Abdomen_venös_1.2.3", "both_3_Abdomen_venös_1.2.4"]


def test_phases_at_the_same_places_are_a_volume_each(tmp_path: Path):
    """A cine of the heart: every phase of a slice, then the next slice."""
    for phase in (0, 1, 2):
        write_ct(tmp_path / f"{phase}", volume(10 * phase), series="1.2.3", number=7, description="cine")
    import pydicom

    for phase in (0, 1, 2):
        for file in (tmp_path / f"{phase}").iterdir():
            image = pydicom.dcmread(file)
            image.InstanceNumber = 3 * (int(image.InstanceNumber) - 1) + phase + 1
            (tmp_path / "cine").mkdir(exist_ok=True)
            image.save_as(tmp_path / "cine" / f"{image.InstanceNumber}.dcm")
    got = sources(tmp_path, tmp_path / "cine")
    assert [path.name for path in got.paths] == ["cine_7_cine_01", "cine_7_cine_02", "cine_7_cine_03"]
    assert [slices_of(path)[0] for path in got.paths] == [0, 10, 20]
    assert got.say(str(got.paths[2])).endswith("(1.2.3) phase 3")
    (tmp_path / "cine" / "1.dcm").unlink()
    with pytest.raises(UserError, match=r"cine \(1.2.3\): has not the same number of images at each place$"):
        found([str(tmp_path / "cine")], tmp_path / "other")


def test_an_image_that_is_there_twice_is_one(tmp_path: Path):
    series = write_ct(tmp_path / "ct", volume())
    for file in list(series.iterdir()):
        (series / f"copy of {file.name}").write_bytes(file.read_bytes())
    [path] = sources(tmp_path, series).paths
    assert slices_of(path) == [0, 1, 2, 3]


UNSUITABLE = {
    "no place": ({"ImagePositionPatient": None}, "does not say where its images lie (no ImagePositionPatient)"),
    "no direction": ({"ImageOrientationPatient": None}, "does not say how its images lie (no ImageOrientationPatient)"),
    "frames": ({"NumberOfFrames": 4}, "has many frames in one file, and is no Enhanced CT, MR or PET; convert it to"),
}


@pytest.mark.parametrize("name", UNSUITABLE)
def test_a_folder_without_a_scan_says_what_is_in_it(tmp_path: Path, name: str):
    attributes, said = UNSUITABLE[name]
    series = write_ct(tmp_path / "ct", volume(), **attributes)
    with pytest.raises(UserError) as caught:
        sources(tmp_path, series)
    assert str(caught.value).startswith(f"input {series}: series 3 Abdomen venös (1.2.")
    assert said in str(caught.value)


def test_slices_in_several_directions_are_a_localiser(tmp_path: Path):
    for name, axes in (("a", STRAIGHT), ("b", ((0.0, 1.0, 0.0), (0.0, 0.0, -1.0)))):
        write_ct(tmp_path / "study" / name, volume(), axes=axes, series="1.2.3")
    with pytest.raises(UserError, match=r"has images in several directions \(a localiser\?\)"):
        sources(tmp_path, tmp_path / "study")


def test_patterns(tmp_path: Path):
    for name in ("9.png", "10.png", "x.txt", "[red].png"):
        Image.new("L", (4, 4)).save(tmp_path / name, "PNG")
    got = sources(tmp_path, tmp_path / "[0-9]*.png", tmp_path / "[red].png", tmp_path / "missing.png")
    assert [path.name for path in got.paths] == ["9.png", "10.png", "[red].png", "missing.png"], (
        "the last is told later"
    )
    with pytest.raises(UserError, match=r"\*.nii: no file or folder has a name of this pattern"):
        sources(tmp_path, tmp_path / "*.nii")
    (tmp_path / "a" / "b").mkdir(parents=True)
    Image.new("L", (4, 4)).save(tmp_path / "a" / "b" / "deep.png")
    assert [path.name for path in found([str(tmp_path / "**/deep.png")], tmp_path / "other").paths] == ["deep.png"]


def escaping(archive: zipfile.ZipFile, content: bytes) -> None:
    archive.writestr("../../evil.dcm", content)


def linking(archive: zipfile.ZipFile, content: bytes) -> None:
    member = zipfile.ZipInfo("link.dcm")
    member.create_system, member.external_attr = 3, 0o120777 << 16
    archive.writestr(member, "/etc/passwd")


def bomb(archive: zipfile.ZipFile, content: bytes) -> None:
    archive.writestr("bomb.dcm", bytes(2 << 20), zipfile.ZIP_DEFLATED)


def twice(archive: zipfile.ZipFile, content: bytes) -> None:
    archive.writestr("a/IM1", content)
    archive.writestr("./a//IM1", content)


def text(archive: zipfile.ZipFile, content: bytes) -> None:
    archive.writestr("readme.txt", "hello")


HOSTILE = {
    escaping: "its member '../../evil.dcm' leaves the archive",
    linking: "its member 'link.dcm' is a link or a device",
    bomb: "unpacks to over 400 times its size",
    twice: "has two files a/IM1; unpack it and give the folder",
    text: "has no DICOM files in it",
}


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_an_archive_that_does_harm_or_has_nothing_is_one_line(
    tmp_path: Path, make: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(unpacking, "RATIO_FREE_BYTES", 1 << 20)  # of 256, which would take a while to make
    content = next(write_ct(tmp_path / "ct", volume()).iterdir()).read_bytes()
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        make(archive, content)
    with pytest.raises(UserError) as caught:
        sources(tmp_path, tmp_path / "x.zip")
    assert str(tmp_path / "x.zip") in str(caught.value)
    assert HOSTILE[make] in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.rglob("evil*"))


def test_a_damaged_archive_is_one_line(tmp_path: Path):
    whole = zipped(write_ct(tmp_path / "ct", volume()), tmp_path / "x.zip").read_bytes()
    (tmp_path / "x.zip").write_bytes(whole[:300])
    with pytest.raises(UserError, match=r"x.zip: cannot be read as an archive \(File is not a zip file\)"):
        sources(tmp_path, tmp_path / "x.zip")
    start = whole.index(b"ct/IM0001") + 200
    (tmp_path / "x.zip").write_bytes(whole[:start] + os.urandom(40) + whole[start + 40 :])
    with pytest.raises(UserError, match=r"x.zip: ct/IM000\d cannot be unpacked \([^\n]*\); download it again"):
        sources(tmp_path, tmp_path / "x.zip")
    (tmp_path / "x.zip").write_bytes(io.BytesIO().getvalue())
    with pytest.raises(UserError, match=r"x.zip: cannot be read as an archive"):
        sources(tmp_path, tmp_path / "x.zip")
