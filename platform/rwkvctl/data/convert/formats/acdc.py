"""ACDC: cardiac MR of 100 patients at two moments, end of diastole and of systole (Bernard et al., IEEE TMI 2018).

Two forms: the h5 files that RWKV-UNet, WSL4MIS and SSL4MIS use (`acdc_h5`) and the raw NIfTI release (`acdc_nifti`).
Training takes slices, validation and test take whole volumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import acdc_h5, acdc_nifti
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.sources import Source
from rwkvctl.data.store.splits import PARTS, Split, fixed

DATASET = Dataset(
    name="acdc",
    title="ACDC, cardiac MR of 100 patients at two moments",
    task="segmentation",
    classes=("background", "right ventricle", "myocardium", "left ventricle"),
    expected={"patients": 100, "volumes": 200, "slices": 1902},
    forms={
        "h5": "ACDC_training_slices/patientNNN_frameFF_slice_Z.h5, ACDC_training_volumes/patientNNN_frameFF.h5",
        "nifti": "[database/]training/patientNNN/patientNNN_frameFF[_gt].nii.gz, Info.cfg",
    },
    licence="research use",
    access="registration at CREATIS, https://www.creatis.insa-lyon.fr/Challenge/acdc",
    citation="Bernard et al., IEEE TMI 37(11), 2018",
    options=("split",),
)

PATIENTS: dict[str, dict[str, Sequence[int]]] = {
    "wsl4mis_fold1_val21-30": {"test": range(1, 21), "val": range(21, 31), "train": range(31, 101)},
    "ssl4mis": {
        "test": (1, 7, 8, 11, 13, 22, 24, 33, 52, 59, 64, 65, 66, 68, 75, 80, 81, 83, 84, 93),
        "val": (2, 19, 28, 30, 39, 45, 78, 82, 85, 87),
    },
}
"""Split -> part -> patients; the first is that of the RWKV-UNet authors' loader. Whom no part names is in train."""
DEFAULT_SPLIT = next(iter(PATIENTS))


def recognise(source: Source) -> str | None:
    names = [file.name for file in source.files]
    if any(acdc_h5.NAME.fullmatch(name) for name in names):
        return "h5"
    return "nifti" if any(acdc_nifti.NAME.fullmatch(name) for name in names) else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Find the files, check that every patient is whole, and lay out train slices, val and test volumes."""
    name = options.split or DEFAULT_SPLIT
    if name not in PATIENTS:
        raise UserError(f"--split {name!r}: acdc has {', '.join(PATIENTS)}")
    part_of = {patient: part for part, patients in PATIENTS[name].items() for patient in patients}
    form = recognise(source)
    if form is None:
        raise UserError(
            f"{source}: no files patientNNN_frameFF.h5 or .nii.gz here; give the folder or archive that holds "
            "ACDC_training_slices and ACDC_training_volumes, or the folders patientNNN"
        )
    module = acdc_h5 if form == "h5" else acdc_nifti
    made = module.plan(source, options, problems, DATASET, lambda patient: part_of.get(patient, "train"))
    made.warnings += [f"the source has no {part} patients" for part in PARTS if not made.parts[part]]

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        lists = PATIENTS[name]
        rule = "; ".join(f"{part}: volumes of patients {_listed(lists[part])}" for part in ("test", "val"))
        return {name: fixed(f"{rule}; train: slices of the others of 1-100", **ids)}

    made.make_splits = make_splits
    return made


def _listed(patients: Sequence[int]) -> str:
    return f"{patients[0]}-{patients[-1]}" if isinstance(patients, range) else ", ".join(map(str, patients))
