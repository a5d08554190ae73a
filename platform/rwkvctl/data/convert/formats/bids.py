"""A BIDS data set with labels in its derivatives.

    sub-01/[ses-1/]anat/sub-01[_ses-1]_T1w.nii.gz
    derivatives/labels/sub-01/[ses-1/]anat/sub-01[_ses-1]_T1w_seg-manual.nii.gz (_label-lesion_mask, _dseg, _lesion ...)
    participants.tsv                                    a column split, if it says train, val and test

A subject's images stay together. Of several contrasts or kinds of labels, `--images` and `--masks` say which;
`--images` again makes a channel of another contrast.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import discover, grouping, part_folders, tables, voxel_files
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import scan_pairs, volume_pairs, volume_sets
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.volume_sets import Scans
from rwkvctl.data.convert.name_patterns import parse
from rwkvctl.data.convert.sources import RawFile, Source, natural_key
from rwkvctl.data.convert.suggestion import Suggestion, classes_of, joined, listed
from rwkvctl.data.convert.voxel_files import VoxelFile

DATASET = Dataset(
    name="bids",
    title="any BIDS data set with labels in derivatives/",
    task="segmentation",
    classes=("background", "foreground"),
    expected={},
    forms={"volumes": "sub-*/[ses-*/]anat/*_T1w.nii.gz, derivatives/*/sub-*/.../*_T1w_seg-manual.nii.gz"},
    licence="your own",
    access="your own files",
    options=(
        "ratio",
        "groups",
        "seeds",
        "classes",
        "class_table",
        "range",
        "images",
        "more_images",
        "masks",
        "split_from",
        "intensity",
    ),
)
TABLE = "participants.tsv"
_RAW = re.compile(r"(?:.*/)?sub-[^/]+/(?:ses-[^/]+/)?[a-z]+/sub-[^/]+\.nii(?:\.gz)?", re.IGNORECASE)
_OF_LABELS = frozenset({"label", "desc", "space", "res", "den", "seg", "atlas", "lesion"})
"""Entities that a label has and its image has not."""
_OF_IMAGES = ("sub", "ses", "run")
"""Entities that tell images of one contrast apart."""
_SPLIT = ("split", "set", "subset", "partition", "part", "fold")
_READ = 4


@dataclass(frozen=True, eq=False)
class _Image:
    file: RawFile
    entities: Mapping[str, str]
    contrast: str
    """`T1w`, `acq-sag_T2w`: what its name says beside whose it is."""

    @property
    def stem(self) -> str:
        return voxel_files.stem(self.file)


@dataclass(frozen=True, eq=False)
class _Label:
    file: RawFile
    image: _Image
    kind: str
    """What its name has beside its image's: `seg-manual`, `label-lesion_mask`."""


def recognise(source: Source) -> str | None:
    images, labels = _listed(source)
    return "volumes" if images and labels else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    images, labels = _listed(source)
    if not labels:
        raise UserError(f"{source}: derivatives/ has no labels of the images of sub-*/; add them")
    classes = options.classes or DATASET.classes
    if options.more_images:
        chosen, labels = _by_contrasts(source, images, labels, options, problems)
    else:
        labels = _chosen(source, labels, options)
        chosen = {label: (label.image,) for label in labels}
    beside, cases, subject = voxel_files.Beside(source.files), dict[str, Scans](), dict[str, str]()
    for label in labels:
        first, *others = chosen[label]
        stem = first.stem
        if stem in cases:
            problems.add(f"{label.file}: is a second label of {first.file.name}; say which by --masks")
            continue
        more = tuple(beside.of(own.file) for own in others)
        cases[stem] = Scans(stem, beside.of(first.file), (beside.of(label.file),), others=more)
        subject[stem] = first.entities["sub"]
    keys = discover.sample_keys(options.dataset, cases)
    ordered = {keys[name]: cases[name] for name in sorted(cases, key=natural_key)}
    of = {keys[name]: f"sub-{own}" for name, own in subject.items()}
    groups = grouping.Groups(of, "subject") if options.groups is None and len(set(of.values())) < len(of) else None
    parts = _parts(source, of, options.split_from) if options.split_from else None
    contrasts = [own.contrast for own in chosen[labels[0]]]
    made = volume_sets.volumes_plan(
        f"{', '.join(contrasts)} and {labels[0].kind}",
        ordered,
        volume_pairs.labels(options, classes),
        options,
        problems,
        groups=groups,
        parts=parts,
        advice=volume_pairs.advice(options),
    )
    without = [own for own in images if own.contrast == contrasts[0] and own.stem not in cases]
    if without:
        made.warnings.append(
            f"{len(without)} images {contrasts[0]} without a label were left out: {without[0].file.path}"
        )
    return volume_pairs.with_channels(made, contrasts, options)


# Names --------------------------------------------------------------------------------------------------------------


def _listed(source: Source) -> tuple[list[_Image], list[_Label]]:
    """The images outside of derivatives, and the labels in it, each with its image."""
    images: list[_Image] = []
    others: list[RawFile] = []
    for file in source.files:
        if not file.name.lower().endswith(voxel_files.NIFTI) or not file.name.startswith("sub-"):
            continue
        if "derivatives" in file.path.split("/"):
            others.append(file)
        elif _RAW.fullmatch(file.path):
            entities, suffix = _entities(voxel_files.stem(file))
            own = [f"{key}-{value}" for key, value in entities.items() if key not in _OF_IMAGES]
            images.append(_Image(file, entities, "_".join([*own, suffix])))
    by_stem = {image.stem: image for image in images}
    of_subject: dict[str, list[_Image]] = defaultdict(list)
    for image in images:
        of_subject[image.entities.get("sub", "")].append(image)
    return images, [label for file in others for label in _labels_of(file, by_stem, of_subject)]


def _entities(stem: str) -> tuple[dict[str, str], str]:
    """`sub-01_run-2_T1w` -> the entities, and `T1w`."""
    found: dict[str, str] = {}
    rest: list[str] = []
    for part in stem.split("_"):
        key, sign, value = part.partition("-")
        if sign and not rest:
            found[key] = value
        else:
            rest.append(part)
    return found, "_".join(rest)


def _labels_of(
    file: RawFile, by_stem: Mapping[str, _Image], of_subject: Mapping[str, Sequence[_Image]]
) -> list[_Label]:
    """The image whose name the label's begins with, or else those that have all entities which it has."""
    stem = voxel_files.stem(file)
    parts = stem.split("_")
    for cut in range(len(parts) - 1, 0, -1):
        image = by_stem.get("_".join(parts[:cut]))
        if image:
            return [_Label(file, image, "_".join(parts[cut:]))]
    entities, suffix = _entities(stem)
    own = {key: value for key, value in entities.items() if key not in _OF_LABELS}
    more = [f"{key}-{value}" for key, value in entities.items() if key in _OF_LABELS]
    kind = "_".join([*more, suffix])
    if not kind or (suffix not in ("mask", "dseg", "lesion", "seg", "roi") and "label" not in entities):
        return []
    fitting = [
        image
        for image in of_subject.get(entities.get("sub", ""), ())
        if all(image.entities.get(key) == value for key, value in own.items())
        and all(image.entities.get(key) == own.get(key) for key in _OF_IMAGES)
    ]
    return [_Label(file, image, kind) for image in fitting]


# Choices ------------------------------------------------------------------------------------------------------------


def _kinds(labels: Sequence[_Label]) -> dict[tuple[str, str], list[_Label]]:
    """By contrast and kind, those with most labels first."""
    found: dict[tuple[str, str], list[_Label]] = defaultdict(list)
    for label in labels:
        found[label.image.contrast, label.kind].append(label)
    return dict(sorted(found.items(), key=lambda item: (-len(item[1]), item[0])))


def _matching(labels: Sequence[_Label], options: Options) -> list[_Label]:
    for option, pattern in (("--images", options.images), ("--masks", options.masks)):
        if pattern is None:
            continue
        wanted = parse(option, pattern)
        kept = [own for own in labels if wanted.ends((own.image.file if option == "--images" else own.file).path)]
        if not kept:
            there = listed(sorted({_name(option, own) for own in labels}))
            raise UserError(f"{option} {pattern!r}: matches nothing that has a label; there is {there}")
        labels = kept
    return list(labels)


def _name(option: str, label: _Label) -> str:
    return f"*_{label.image.contrast}.nii.gz" if option == "--images" else f"*_{label.kind}.nii.gz"


def _chosen(source: Source, labels: Sequence[_Label], options: Options) -> list[_Label]:
    kinds = _kinds(_matching(labels, options))
    if len(kinds) == 1:
        return next(iter(kinds.values()))
    for place, option in enumerate(("--images", "--masks")):
        names = list(dict.fromkeys(_name(option, own[0]) for own in kinds.values()))
        if len({key[place] for key in kinds}) > 1:
            what = "contrasts" if option == "--images" else "kinds of labels"
            shown = " or ".join(f"{option} '{name}'" for name in names[:_READ])
            raise UserError(f"{source}: has {what} of which one is taken; say which: {shown}")
    raise AssertionError(kinds)


def _by_contrasts(
    source: Source, images: Sequence[_Image], labels: Sequence[_Label], options: Options, problems: Problems
) -> tuple[dict[_Label, tuple[_Image, ...]], list[_Label]]:
    """The images of several contrasts that each label has, in the order of --images, and the labels: those of any of
    these images. One that lacks a contrast is a problem."""
    patterns = [parse("--images", text) for text in (str(options.images), *(options.more_images or ()))]
    found: dict[tuple[str, ...], dict[int, _Image]] = defaultdict(dict)
    for image in images:
        for number, pattern in enumerate(patterns):
            if not pattern.ends(image.file.path):
                continue
            other = found[_whose(image)].setdefault(number, image)
            if other is not image:
                raise UserError(
                    f"--images {pattern.text!r}: matches {other.file.path} and {image.file.path}; tell them apart"
                )
    for number, pattern in enumerate(patterns):
        if not any(number in own for own in found.values()):
            raise UserError(f"--images {pattern.text!r}: matches no image in {source}; give it in quotes")
    masks = _matching(labels, replace(options, images=None))
    own = {label.file: label for label in masks if label.image in found[_whose(label.image)].values()}
    if len(kinds := dict.fromkeys(_name("--masks", label) for label in own.values())) > 1:
        raise UserError(
            f"{source}: has kinds of labels of which one is taken; say which: --masks '{next(iter(kinds))}'"
        )
    chosen = {}
    for label in own.values():
        there = found[_whose(label.image)]
        if missing := next((pattern.text for n, pattern in enumerate(patterns) if n not in there), None):
            problems.leave_out(label.file, f"its subject has no image {missing} in that session; add it")
        else:
            chosen[label] = tuple(there[number] for number in range(len(patterns)))
    if not chosen:
        problems.raise_if_any()
        raise UserError(f"{source}: no label is of an image of --images; give others")
    return chosen, list(chosen)


def _whose(image: _Image) -> tuple[str, ...]:
    return tuple(image.entities.get(name, "") for name in _OF_IMAGES)


def _parts(source: Source, of: Mapping[str, str], choice: str) -> dict[str, str]:
    """Part by key, of the column of participants.tsv that says so."""
    if choice != TABLE:
        raise UserError(f"--split-from {choice}: give {TABLE}, or leave it out")
    said = _split_column(source)
    if not said:
        raise UserError(f"{source}: {TABLE} has no column split that says train, val and test; leave --split-from")
    missing = sorted({own for own in of.values() if own not in said})
    if missing:
        raise UserError(f"{source}: {TABLE} has no split for {listed(missing)}; add it")
    return part_folders.by_value({key: said[own] for key, own in of.items()})


def _split_column(source: Source) -> dict[str, str]:
    """Subject -> word, where all words say a part, train among them; {} without such a column."""
    file = next((file for file in source.files if file.name.lower() == TABLE), None)
    if file is None:
        return {}
    lines = [cells for _, cells in tables.rows_of(tables.decoded(file.read(), str(file)))]
    if not lines or "participant_id" not in lines[0]:
        return {}
    columns = [n for n, name in enumerate(lines[0]) if name.lower() in _SPLIT]
    subject = lines[0].index("participant_id")
    for column in columns:
        found = {cells[subject]: cells[column] for cells in lines[1:] if len(cells) > max(column, subject)}
        if found and "train" in {part_folders.part_of(word) for word in found.values()}:
            return found
    return {}


def suggest(source: Source) -> Suggestion | None:
    """The contrast and kind with most labels, their classes, and the split of participants.tsv."""
    _, labels = _listed(source)
    kinds = _kinds(labels)
    if not kinds:
        return None
    own = next(iter(kinds.values()))
    parts = []
    for place, option in enumerate(("--images", "--masks")):
        names = list(dict.fromkeys(_name(option, found[0]) for found in kinds.values()))
        if len({key[place] for key in kinds}) > 1:
            what = "contrast" if option == "--images" else "kind of labels"
            others = " or ".join(f"{option} '{name}'" for name in names[1:_READ])
            parts.append(Suggestion({option[2:]: names[0]}, f"one {what} is taken; another is {others}"))
    values = set[float]()
    for label in own[:: max(1, len(own) // _READ)][:_READ]:
        try:
            values |= set(scan_pairs.label_values(label.file, voxel_files.read(VoxelFile(label.file)).voxels))
        except BadFile:
            continue
    parts.append(classes_of(values))
    if _split_column(source):
        parts.append(Suggestion({"split_from": TABLE}))
    return joined(parts)
