"""ACDC as it is released: `patientNNN/patientNNN_frameFF.nii.gz` with `_gt`, a cine `_4d` (not used) and `Info.cfg`.

Values become those of the h5 files of WSL4MIS: clipped at the volume's 99th percentile, then scaled to [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import scan_pairs
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.scan_pairs import ScanPair, ScanPairLoader
from rwkvctl.data.convert.formats.volumes import PLANES, Case, VolumeReader, planes
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.images import intensity

NAME = re.compile(r"patient(\d{3})_frame(\d{2})(_gt)?\.nii(?:\.gz)?", re.IGNORECASE)
_INFO = re.compile(r"(?:.*/)?patient(\d{3})/info\.cfg", re.IGNORECASE)
FORM, WINDOW = "nifti", ("min", "p99")
ORIENTATION = "itk"
"""The release's files are LPS, so that this is the order of their voxels, and that of the h5 files."""
LABELS = tuple((label, label) for label in range(4))
PATIENTS_OF_THE_PAPER = range(1, 101)


@dataclass
class _Patient:
    images: dict[int, RawFile] = field(default_factory=dict)
    masks: dict[int, RawFile] = field(default_factory=dict)
    info: RawFile | None = None


def plan(source: Source, options: Options, problems: Problems, dataset: Dataset, part_of: Callable[[int], str]) -> Plan:
    found = _find(source, problems)
    testing = sorted(number for number in found if number not in PATIENTS_OF_THE_PAPER)
    warnings = [f"{len(testing)} testing patients (101-150) were left out"] if testing else []
    cases: dict[str, list[Case]] = {"train": [], "val": [], "test": []}
    pairs: list[ScanPair] = []
    missing: list[str] = []
    for number in sorted(found.keys() - set(testing)):
        for frame in _frames(number, found[number], missing):
            try:
                pairs.append(scan_pairs.check(found[number].images[frame], found[number].masks[frame]))
            except BadFile as error:
                problems.add(str(error))
            else:
                key, patient = f"acdc_p{number:03d}_f{frame:02d}", f"patient{number:03d}"
                cases[part_of(number)].append(pairs[-1].case(key, patient, ORIENTATION, z_digits=2))
    if not options.allow_partial:
        for what in missing:
            problems.add(f"{source}: {what}; complete the patient, or accept it with --allow-partial")
    patients = len(found) - len(testing)
    if patients != len(PATIENTS_OF_THE_PAPER):
        warnings.append(f"partial source: {patients} of {len(PATIENTS_OF_THE_PAPER)} patients")
    return Plan(
        form=FORM,
        task="segmentation",
        classes=dataset.classes,
        image_kind="float",
        parts={"train": planes(cases["train"]), "val": cases["val"], "test": cases["test"]},
        read=VolumeReader(options.dataset, len(dataset.classes), ScanPairLoader(ORIENTATION, WINDOW, LABELS)),
        make_splits=lambda ids, groups: {},
        mask_rule="value",
        intensity=intensity.rule(*WINDOW),
        orientation=ORIENTATION,
        warnings=warnings + missing + scan_pairs.warnings(pairs, ORIENTATION),
        limits={"train": PLANES},
    )


def _find(source: Source, problems: Problems) -> dict[int, _Patient]:
    found: dict[int, _Patient] = {}
    for file in source.files:
        match, info = NAME.fullmatch(file.name), _INFO.fullmatch(file.path)
        if info:
            found.setdefault(int(info[1]), _Patient()).info = file
        if not match:
            continue
        patient = found.setdefault(int(match[1]), _Patient())
        frames = patient.masks if match[3] else patient.images
        twin = frames.setdefault(int(match[2]), file)
        if twin is not file:
            problems.add(f"{file}: has the same name as {twin}; keep one of them")
    return found


def _frames(number: int, patient: _Patient, missing: list[str]) -> list[int]:
    """The two labelled frames: those that Info.cfg calls ED and ES, or else those that have a mask."""
    name = f"patient{number:03d}"
    wanted = _moments(patient.info) if patient.info else sorted(patient.masks)
    whole = [frame for frame in wanted if frame in patient.images and frame in patient.masks]
    missing += [
        f"{name}_frame{frame:02d}: its {'image' if frame in patient.masks else 'mask'} is missing"
        for frame in wanted
        if frame not in whole
    ]
    if len(wanted) != 2:
        missing.append(f"{name}: {len(wanted)} frames, 2 were expected")
    return whole


def _moments(info: RawFile) -> list[int]:
    text = info.read().decode("utf-8", "replace")
    return sorted({int(match[1]) for match in re.finditer(r"^\s*E[DS]\s*:\s*(\d+)", text, re.MULTILINE)})
