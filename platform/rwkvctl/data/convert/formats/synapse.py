"""Synapse / BTCV: abdominal CT of 30 cases, 8 organs: slices of 18 cases to train on, 12 whole volumes to test.

Two forms: the files that TransUNet made of it (npz slices, h5 volumes), also in the label orders of SAMed and
CASCADE/EMCAD, and the raw NIfTI release. Whatever the source, classes get TransUNet's numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import scan_pairs, synapse_files
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.scan_pairs import ScanPair, ScanPairLoader
from rwkvctl.data.convert.formats.volumes import PLANES, WHOLE, Case, VolumeReader, planes
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.images import intensity
from rwkvctl.data.store.splits import Split, fixed

DATASET = Dataset(
    name="synapse",
    title="Synapse multi-organ (BTCV), abdominal CT of 30 cases",
    task="segmentation",
    classes=(
        "background", "aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach",
    ),
    expected={"training slices": 2211, "training cases": 18, "test cases": 12},
    forms={
        "transunet": "train_npz/caseXXXX_sliceYYY.npz, test_vol_h5/caseXXXX.npy.h5, lists_Synapse/*.txt",
        "nifti": "RawData/Training/img/imgXXXX.nii.gz, RawData/Training/label/labelXXXX.nii.gz",
    },
    licence="research use, challenge terms",
    access="Synapse account, https://www.synapse.org/Synapse:syn3193805; npz: see TransUNet's repository",
    citation="Landman et al., MICCAI 2015 challenge; Chen et al., TransUNet, arXiv 2102.04306",
    options=("orientation",),
)  # fmt: skip

SLICES = dict(
    zip(
        (5, 6, 7, 9, 10, 21, 23, 24, 26, 27, 28, 30, 31, 33, 34, 37, 39, 40),
        (117, 131, 163, 149, 148, 143, 96, 124, 131, 88, 89, 153, 93, 104, 98, 99, 90, 195),
        strict=True,
    )
)
"""Training case -> its number of slices, the same in both forms: the check that a case is the one it is called."""
ORIENTATIONS = {"transunet": "transunet", "itk": "SAL", "emcad": "emcad"}
"""`--orientation` -> how slices are stored: as TransUNet's, as SimpleITK reads the release (whose files are LAS) and
SAMed stored them, as EMCAD's."""
TEST_CASES = (8, 22, 38, 36, 32, 2, 29, 3, 1, 4, 25, 35)
HOLDOUT = 3
"""So many of the last training cases validate in `holdout3`: the paper validates on its test cases."""

_SLICE = re.compile(r"case(\d{4})_slice(\d{3})\.npz", re.IGNORECASE)
SLICE_ID = re.compile(r"case(?P<id>\d{4}_slice\d{3})\.npz", re.IGNORECASE)
_VOLUME = re.compile(r"case(\d{4})\.npy\.h5", re.IGNORECASE)
IMAGE = re.compile(r"img(?P<id>\d{4})\.nii(?:\.gz)?", re.IGNORECASE)
LABEL = re.compile(r"label(?P<id>\d{4})\.nii(?:\.gz)?", re.IGNORECASE)


def recognise(source: Source) -> str | None:
    """Files called as TransUNet's are of this data set if some of their cases are: others number theirs so, too."""
    names = [file.name for file in source.files]
    if any(_is_of_transunet(name) for name in names):
        return "transunet"
    return "nifti" if any(map(IMAGE.fullmatch, names)) and any(map(LABEL.fullmatch, names)) else None


def _is_of_transunet(name: str) -> bool:
    piece, volume = _SLICE.fullmatch(name), _VOLUME.fullmatch(name)
    return int(piece[1]) in SLICES if piece else volume is not None and int(volume[1]) in TEST_CASES


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    form = recognise(source)
    if form is None:
        raise UserError(
            f"{source}: no files caseXXXX_sliceYYY.npz or imgXXXX.nii.gz with labelXXXX.nii.gz here; give the folder "
            "or archive that holds train_npz and test_vol_h5, or RawData/Training"
        )
    made = _plan_preprocessed if form == "transunet" else _plan_raw
    return made(source, options, problems)


# TransUNet's files ---------------------------------------------------------------------------------------------------


@dataclass
class _Found:
    slices: dict[int, dict[int, RawFile]] = field(default_factory=dict)
    volumes: dict[int, RawFile] = field(default_factory=dict)


def _plan_preprocessed(source: Source, options: Options, problems: Problems) -> Plan:
    if options.orientation:
        raise UserError("--orientation: these files have the orientation of who made them; leave it out")
    found = _find_preprocessed(source, problems)
    _check_lists(source, found, options, problems)
    order = synapse_files.label_order(
        list(found.volumes.values()) or [file for own in found.slices.values() for file in own.values()]
    )
    train = [_case(number, tuple(own[z] for z in sorted(own)), len(own)) for number, own in found.slices.items()]
    test = []
    for number in (n for n in TEST_CASES if n in found.volumes):
        try:
            test.append(_case(number, (found.volumes[number],), synapse_files.depth(found.volumes[number])))
        except BadFile as error:
            problems.add(str(error))
    warnings = _check_complete(source, train, test, options, problems)
    if order != synapse_files.TRANSUNET:
        warnings.append(f"labels in the order of {order.name} were renumbered to TransUNet's")
    reader = VolumeReader(options.dataset, len(DATASET.classes), synapse_files.Preprocessed(order))
    return _plan(
        "transunet", train, test, reader, warnings,
        mask_rule=f"labels of {order.name}: {order}", orientation="transunet",
    )  # fmt: skip


def _find_preprocessed(source: Source, problems: Problems) -> _Found:
    found = _Found()
    for file in source.files:
        piece, volume = _SLICE.fullmatch(file.name), _VOLUME.fullmatch(file.name)
        if piece:
            twin = found.slices.setdefault(int(piece[1]), {}).setdefault(int(piece[2]), file)
        elif volume:
            twin = found.volumes.setdefault(int(volume[1]), file)
        else:
            continue
        if twin is not file:
            problems.add(f"{file}: has the same name as {twin}; keep one of them")
    found.slices = {number: found.slices[number] for number in sorted(found.slices)}
    for number, own in found.slices.items():
        first, last = min(own), max(own)
        if (first, last) != (0, len(own) - 1):
            gap = next(z for z in range(last + 1) if z not in own)
            problems.add(f"{source}: case{number:04d}_slice{gap:03d}.npz is missing; complete the case")
    return found


def _check_lists(source: Source, found: _Found, options: Options, problems: Problems) -> None:
    """The lists that come with the files name nothing that is not there. Windows line ends are common in them."""
    for file in source.files:
        if file.name.lower() != "train.txt":
            continue
        names = file.read().decode("utf-8", "replace").split()
        present = {f"case{number:04d}_slice{z:03d}" for number, own in found.slices.items() for z in own}
        absent = [name for name in names if name.removesuffix(".npz") not in present]
        if absent and not options.allow_partial:
            problems.add(
                f"{file}: names {len(absent)} slices that are not there, first {absent[0]}; complete the source, "
                "or accept it with --allow-partial"
            )


# The raw release -----------------------------------------------------------------------------------------------------


def _plan_raw(source: Source, options: Options, problems: Problems) -> Plan:
    choice = options.orientation or "transunet"
    if choice not in ORIENTATIONS:
        raise UserError(f"--orientation {choice!r}: choose one of {', '.join(ORIENTATIONS)}")
    orientation = ORIENTATIONS[choice]
    images = discover.by_pattern(source.files, IMAGE, problems)
    labels = discover.by_pattern(source.files, LABEL, problems)
    unlabeled = {name for name in images if int(name) > max(SLICES)}  # Testing/img0061..0080
    both = discover.pair({n: f for n, f in images.items() if n not in unlabeled}, labels, problems)
    pairs: dict[int, ScanPair] = {}
    for name in both:
        try:
            pairs[int(name)] = scan_pairs.check(images[name], labels[name])
        except BadFile as error:
            problems.add(str(error))
    cases = {number: pair.case(*_names(number), orientation) for number, pair in pairs.items()}
    train = [cases[number] for number in SLICES if number in cases]
    test = [cases[number] for number in TEST_CASES if number in cases]
    warnings = [f"{len(unlabeled)} cases without labels were left out"] if unlabeled else []
    warnings += _check_complete(source, train, test, options, problems)
    warnings += scan_pairs.warnings(list(pairs.values()), orientation)
    order = synapse_files.BTCV
    load = ScanPairLoader(orientation, synapse_files.WINDOW, order.all_pairs, f"labels of {order.name}")
    return _plan(
        "nifti", train, test, VolumeReader(options.dataset, len(DATASET.classes), load), warnings,
        mask_rule=f"labels of BTCV: {synapse_files.BTCV}", orientation=orientation,
    )  # fmt: skip


# Both ----------------------------------------------------------------------------------------------------------------


def _case(number: int, files: tuple[RawFile, ...], depth: int) -> Case:
    key, patient = _names(number)
    return Case(key, files, depth, patient)


def _names(number: int) -> tuple[str, str]:
    """(sample key, patient) of a case."""
    return f"synapse_c{number:04d}", f"case{number:04d}"


def _check_complete(
    source: Source, train: Sequence[Case], test: Sequence[Case], options: Options, problems: Problems
) -> list[str]:
    counts = {
        "training slices": sum(case.depth for case in train),
        "training cases": len(train),
        "test cases": len(test),
    }
    warnings = discover.check_counts(source, counts, DATASET.expected, options.allow_partial, problems)
    for case in train:
        wanted = SLICES.get(int(case.patient[4:]))
        if wanted is None:
            problems.add(f"{case.files[0]}: {case.patient} is not a training case of Synapse; move it elsewhere")
        elif case.depth != wanted:
            text = f"{case.patient} has {case.depth} slices, {wanted} were expected"
            if options.allow_partial:
                warnings.append(f"partial source: {text}")
            else:
                problems.add(f"{case.files[0]}: {text}; replace the case, or accept it with --allow-partial")
    return warnings


def _plan(
    form: str, train: list[Case], test: list[Case], reader: VolumeReader, warnings: list[str], **more: object
) -> Plan:
    val = train[-HOLDOUT:] if len(train) > HOLDOUT else []
    held_out = {case.patient for case in val}

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        rest = [key for key in ids["train"] if groups[key] not in held_out]
        splits = {"transunet": fixed("TransUNet's lists: 18 cases, 12 cases; no validation set, val is test",
                                     train=ids["train"], val=ids["test"], test=ids["test"])}  # fmt: skip
        if val:
            rule = f"TransUNet's lists with {', '.join(sorted(held_out))} for validation instead of training"
            splits[f"holdout{HOLDOUT}"] = fixed(rule, train=rest, val=ids["val"], test=ids["test"])
        return splits

    return Plan(
        form=form,
        task="segmentation",
        classes=DATASET.classes,
        image_kind="float",
        parts={"train": planes(train), "val": val, "test": test},
        read=reader,
        make_splits=make_splits,
        warnings=warnings,
        intensity=intensity.rule(*synapse_files.WINDOW),  # of the preprocessed form, done already in the source
        limits={"train": PLANES, "val": WHOLE, "test": WHOLE},
        **more,  # type: ignore[arg-type]
    )
