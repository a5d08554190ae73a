"""An nnU-Net v2 folder `DatasetNNN_Name`: volumes, or 2-D images.

    dataset.json                          channel_names, labels, file_ending
    imagesTr/CASE_0000.nii.gz (.nrrd, .mha, .png ...)  one file a channel; a colour image is one file
    labelsTr/CASE.nii.gz (.png ...)       label numbers
    splits_final.json                     folds of cases, if it is there

Of volumes, training takes slices, validation and test whole volumes. Without folds cases are split at random by one
seed. Regions train as the classes that they are made of; see `nnunet_json`, `nnunet_rules` and `nnunet_splits`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import discover, grouping, voxel_files
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import nnunet_channels, nnunet_json, nnunet_rules, nnunet_splits, volume_sets
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.channel_pairs import Settle
from rwkvctl.data.convert.formats.nnunet_json import Description
from rwkvctl.data.convert.formats.nnunet_splits import Folds
from rwkvctl.data.convert.formats.pairs import Levels, Pair, pairs_plan
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.images import files as image_files
from rwkvctl.data.store.splits import Split, grouped_splits, random_splits

DATASET = Dataset(
    name="nnunet",
    title="any nnU-Net v2 data set folder",
    task="segmentation",
    classes=(),
    expected={},
    forms={
        "volumes": "DatasetNNN_Name/ with dataset.json, imagesTr/CASE_0000.nii.gz, labelsTr/CASE.nii.gz",
        "slices": "the same with images (.png, .bmp, .tif)",
    },
    licence="your own",
    access="your own files",
    options=("ratio", "groups", "seeds", "range", "intensity"),
)


def recognise(source: Source) -> str | None:
    """A folder that is not supported has a form too, so that `plan` says why."""
    if not nnunet_json.is_there(source):
        return None
    try:
        return "volumes" if nnunet_json.read(source).ending in voxel_files.ENDINGS else "slices"
    except (UserError, BadFile):
        return "volumes"


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    told = nnunet_json.read(source)
    _refuse_unsupported(source, told)
    cases = _labelled(source, told, "Tr", problems)
    discover.refuse_empty(source, cases, DATASET.name, DATASET.forms)
    file = None if options.ratio or options.seeds else nnunet_splits.find(source, told.root)
    test = _labelled(source, told, "Ts", problems) if file and _files(source, told, "labelsTs") else {}
    _refuse_other_images(cases, test)
    keys = discover.sample_keys(options.dataset, [*cases, *(name for name in test if name not in cases)])
    folds = None
    if file:
        own = {name: keys[name] for name in cases}
        folds = nnunet_splits.read(file, own, [keys[name] for name in test], lenient=problems.lenient)
    files = {keys[name]: own for name, own in (test | cases).items()}
    left_out = [] if folds is None else sorted(set(files) - set(folds.first))
    files = {key: own for key, own in files.items() if key not in left_out}
    planned = _plan_volumes if told.ending in voxel_files.ENDINGS else _plan_images
    made = planned(files, told, source, options, problems, folds)
    made.regions = [region._asdict() | {"classes": list(region.classes)} for region in told.labels.regions]
    if left_out:
        made.warnings.append(f"{len(left_out)} cases are in no fold of {nnunet_splits.FILE} and were left out")
    made.warnings += _unused(source, told, folds)
    return made


Files = tuple[tuple[RawFile, ...], RawFile]
"""The files of a case's channels, and its labels."""


def _labelled(source: Source, told: Description, part: str, problems: Problems) -> dict[str, Files]:
    """The cases of imagesTr or imagesTs by their ids."""
    is_volumes = told.ending in voxel_files.ENDINGS
    if told.listed is not None and part == "Tr":
        images, labels = nnunet_channels.listed(source, told, problems, one_each=is_volumes)
    else:
        pattern = re.compile(rf"(?P<id>[^/]+){re.escape(told.ending)}")
        own = _files(source, told, f"images{part}")
        images, lacking = nnunet_channels.by_case(own, told.ending, told.channels, problems, one_each=is_volumes)
        found = discover.by_pattern(_files(source, told, f"labels{part}"), pattern, problems)
        labels = {name: file for name, file in found.items() if name not in lacking}
    names = discover.pair({name: files[0] for name, files in images.items()}, labels, problems) if images else []
    return {name: (images[name], labels[name]) for name in names}


def _refuse_other_images(cases: Mapping[str, Files], test: Mapping[str, Files]) -> None:
    """UserError where a test case has the name of a training case and is another image; the same one may be both."""
    for name in cases.keys() & test.keys():
        for own, other in zip(cases[name][0], test[name][0], strict=True):
            if own.read() != other.read():
                raise UserError(f"{other}: has the name of another image, {own}; rename one of the cases")


def _files(source: Source, told: Description, folder: str) -> list[RawFile]:
    return source.below(f"{told.root}/{folder}".lstrip("/"))


def _refuse_unsupported(source: Source, told: Description) -> None:
    if told.ending not in voxel_files.ENDINGS and told.ending not in image_files.EXTENSIONS:
        known = ", ".join(sorted([*voxel_files.ENDINGS, *image_files.EXTENSIONS]))
        raise UserError(
            f"{source}: dataset.json: file_ending {told.ending!r} is not supported, only {known}; convert the files"
        )
    inside = tuple(f"{told.root}/{folder}".lstrip("/") for folder in ("imagesTr", "labelsTr"))
    if linked := [path for path in source.links if path.startswith(inside)]:
        raise UserError(
            f"{source}: {linked[0]} is a link out of the folder, {len(linked)} in all; links are not followed, put "
            "copies (cp -rL) in their place"
        )


def _unused(source: Source, told: Description, folds: Folds | None) -> list[str]:
    """What lies in the folder and is not taken."""
    found = []
    first = f"_0000{told.ending}"
    test = [file for file in _files(source, told, "imagesTs") if file.name.lower().endswith(first)]
    if test and not (folds and folds.test):
        labels = " and labelsTs" if _files(source, told, "labelsTs") else ""
        parts = "are those of its folds" if folds else "are split from imagesTr"
        found.append(f"the {len(test)} images of imagesTs{labels} were left out; the parts {parts}")
    splits = next((file for file in source.files if file.name == nnunet_splits.FILE), None)
    if splits and not folds:
        found.append(f"{splits.name} was not used; cases are split at random, see --ratio and --seed")
    return found


# Images -------------------------------------------------------------------------------------------------------------


def _plan_images(
    files: Mapping[str, Files],
    told: Description,
    source: Source,
    options: Options,
    problems: Problems,
    folds: Folds | None,
) -> Plan:
    """Of photographs, or of images that are put together of several files."""
    names = {key: re.sub(r"_0000\.[^.]*$", "", images[0].name) for key, (images, _) in files.items()}
    of_patients = grouping.proposed(names, options.groups)
    own = of_patients.of if of_patients else {}
    pairs = [
        Pair(key, images[0], (mask,), group=own.get(key), others=images[1:]) for key, (images, mask) in files.items()
    ]

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        random = random_splits(ids["all"], options.ratio, options.seeds)
        return (grouped_splits(ids["all"], groups, options.ratio, options.seeds) if of_patients else {}) | random

    named = replace(options, classes=told.labels.classes)
    notes = [of_patients.note(splits=folds is None)] if of_patients else []
    levels = Levels(told.labels.ids)
    made = pairs_plan(DATASET, named, "slices", {"all": pairs}, levels, make_splits, root=told.root, warnings=notes)
    count = 1 + max((len(pair.others) for pair in pairs), default=0)
    if count > 1:
        groups = tuple(f"imagesTr/*_{number:04d}{told.ending}" for number in range(count))
        made.settle = Settle(groups, told.channels, nnunet=True)
    if folds:
        nnunet_splits.of_images(made, folds)
    return made


# Volumes ------------------------------------------------------------------------------------------------------------


def _plan_volumes(
    files: Mapping[str, Files],
    told: Description,
    source: Source,
    options: Options,
    problems: Problems,
    folds: Folds | None,
) -> Plan:
    beside, cases = voxel_files.Beside(source.files), {}
    for key, (images, mask) in files.items():
        try:
            (image, *others), own = [beside.of(file) for file in images], beside.of(mask)
        except BadFile as error:
            problems.add(str(error))
            continue
        path = re.sub(r"_0000\.[^/]*$", "", images[0].name)
        cases[key] = volume_sets.Scans(path, image, (own,), others=tuple(others))
    problems.raise_if_any()
    labels = volume_sets.Labels(told.labels.classes, told.labels.ids)
    parts = folds.first if folds else None
    made = volume_sets.volumes_plan("volumes", cases, labels, options, problems, parts=parts)
    if folds:
        nnunet_splits.of_volumes(made, folds)
    return nnunet_rules.planned(made, told.channels, options)
