"""What a source holds of DICOM: series that are scans, and the masks that were drawn on them, by their references."""

from __future__ import annotations

import hashlib
import warnings
import weakref
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert import voxel_files
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.images import dicom_files, dicom_masks, itk
from rwkvctl.data.images.dicom_files import Series
from rwkvctl.data.images.dicom_masks import MaskObject
from rwkvctl.data.images.files import EXTENSIONS

_FIRST = 200
"""Files that are looked at to find out whether there is any DICOM."""
_READ = weakref.WeakKeyDictionary[Source, "Tree"]()


@dataclass(frozen=True)
class Scan:
    """A series: its name in the source, its files in order, and whose it is, as a hash."""

    name: str
    series: Series
    files: tuple[RawFile, ...]
    patient: str


@dataclass(frozen=True)
class Mask:
    """A SEG or RTSTRUCT and the scan that it was drawn on."""

    file: RawFile
    told: MaskObject
    scan: Scan


@dataclass
class Tree:
    """problems: masks that belong to no scan here, one line each; skipped: series that are no scans; notes: what was
    taken for what."""

    scans: list[Scan] = field(default_factory=list)
    masks: list[Mask] = field(default_factory=list)
    problems: list[tuple[RawFile, str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def is_there(source: Source) -> bool:
    """Whether there is any DICOM among the first files that may be."""
    return any(_is_dicom(file) for file in _candidates(source)[:_FIRST])


def _candidates(source: Source) -> list[RawFile]:
    other = (*EXTENSIONS, *voxel_files.ENDINGS, ".json", ".txt", ".csv", ".tsv", ".xml", ".pdf")
    return [file for file in source.files if not file.name.lower().endswith(other)]


def _is_dicom(file: RawFile) -> bool:
    with file.open() as stream:
        return stream.read(itk.DICOM_AT + len(itk.DICOM))[itk.DICOM_AT :] == itk.DICOM


def read(source: Source) -> Tree:
    """From all headers; those of a source are read once."""
    found = _READ.get(source)
    if found is None:
        found = _READ[source] = _tree(source)
    return found


def _tree(source: Source) -> Tree:
    files = {Path(own.data): own for file in _candidates(source) if _is_dicom(file) for own in [source.on_disk(file)]}
    grouped = dicom_files.grouped(files)
    made = Tree(skipped=[text for text in grouped.skipped if not text.endswith(("(SEG)", "(RTSTRUCT)"))])
    names = _names([(files[series.files[0]].parent, series) for series in grouped.series])
    for name, series in zip(names, grouped.series, strict=True):
        own = tuple(files[path] for path in series.files)
        made.scans.append(Scan(name, series, own, _tag(series.files[0], "PatientID")))
    in_series = {path for series in grouped.series for path in series.files}
    objects = [path for path in files if path not in in_series and _modality(path) in ("SEG", "RTSTRUCT")]
    by_uid: dict[str, list[Scan]] = defaultdict(list)
    by_frame: dict[str, list[Scan]] = defaultdict(list)
    for scan in made.scans:
        by_uid[scan.series.uid].append(scan)
        by_frame[_value(scan.series.files[0], "FrameOfReferenceUID")].append(scan)
    for path in objects:
        _add(made, files[path], path, by_uid, by_frame)
    return made


def _names(series: list[tuple[str, Series]]) -> list[str]:
    """Of each its folder, and where that is not its own, its number or UID."""
    tries = [
        [folder, f"{folder}/series_{own.number}_{own.phase or ''}".strip("/_"), f"{folder}/{own.uid}_{own.phase or ''}"]
        for folder, own in series
    ]
    uses = Counter(name for own in tries for name in own)
    return [next((name for name in own if name and uses[name] == 1), own[-1]).strip("/_") for own in tries]


def _add(
    made: Tree, file: RawFile, path: Path, by_uid: Mapping[str, list[Scan]], by_frame: Mapping[str, list[Scan]]
) -> None:
    """A mask to the series that it refers to, or else to the only one in its frame of reference."""
    try:
        told = dicom_masks.described(path)
    except BadFile as error:
        made.problems.append((file, str(error).partition(": ")[2]))
        return
    found = [scan for uid in told.series for scan in by_uid.get(uid, ())]
    if not found and told.frame_of_reference and len(by_frame.get(told.frame_of_reference, ())) == 1:
        found = by_frame[told.frame_of_reference]
        made.notes.append(f"{file.path} names no series here; the only one in its frame of reference was taken")
    if len(found) == 1:
        made.masks.append(Mask(file, told, found[0]))
        return
    uid = next(iter(told.series), "none")
    why = "which is not here; add it" if not found else f"which has {len(found)} volumes; put each into a series"
    made.problems.append((file, f"was drawn on the series {uid}, {why}"))


def _modality(path: Path) -> str:
    return _value(path, "Modality")


def _tag(path: Path, name: str) -> str:
    """A hash of a value that names a person; "" where there is none."""
    value = _value(path, name)
    return f"patient_{hashlib.sha256(value.encode()).hexdigest()[:8]}" if value else ""


def _value(path: Path, name: str) -> str:
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of values against the standard
            return str(pydicom.dcmread(path, stop_before_pixels=True, specific_tags=[name]).get(name, "") or "")
    except Exception:  # pydicom raises nearly anything on a broken file
        return ""
