"""An nnU-Net v2 folder `DatasetNNN_Name`: volumes, or 2-D images.

    dataset.json                          channel_names, labels, file_ending
    imagesTr/CASE_0000.nii.gz (.nrrd, .mha, .png ...)  one file a channel; a colour image is one file
    labelsTr/CASE.nii.gz (.png ...)       label numbers

Of volumes, training takes slices, validation and test whole volumes; cases are split at random by one seed. Regions
train as the classes that they are made of; see `nnunet_json` and `nnunet_rules`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import discover, grouping, voxel_files
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import nnunet_channels, nnunet_json, nnunet_rules, volume_sets
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.channel_pairs import Settle
from rwkvctl.data.convert.formats.nnunet_json import Description
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
    is_volumes = told.ending in voxel_files.ENDINGS
    if told.listed is not None:
        found, masks = nnunet_channels.listed(source, told, problems, one_each=is_volumes)
    else:
        pattern = re.compile(rf"(?P<id>[^/]+){re.escape(told.ending)}")
        images = _files(source, told, "imagesTr")
        found, lacking = nnunet_channels.by_case(images, told.ending, told.channels, problems, one_each=is_volumes)
        labels = discover.by_pattern(_files(source, told, "labelsTr"), pattern, problems)
        masks = {name: file for name, file in labels.items() if name not in lacking}
    discover.refuse_empty(source, found, DATASET.name, DATASET.forms)
    names = discover.pair({name: files[0] for name, files in found.items()}, masks, problems)
    keys = discover.sample_keys(options.dataset, names)
    if is_volumes:
        files = {keys[name]: (found[name], masks[name]) for name in names}
        made = _plan_volumes(files, told, source, options, problems)
    else:
        of_patients = grouping.proposed({keys[name]: name for name in names}, options.groups)
        own = of_patients.of if of_patients else {}
        pairs = [
            Pair(keys[name], found[name][0], (masks[name],), group=own.get(keys[name]), others=found[name][1:])
            for name in names
        ]
        made = _plan_images(pairs, of_patients, told, options)
    made.regions = [region._asdict() | {"classes": list(region.classes)} for region in told.labels.regions]
    made.warnings += _unused(source, told)
    return made


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


def _unused(source: Source, told: Description) -> list[str]:
    """What lies in the folder and is not taken."""
    found = []
    first = f"_0000{told.ending}"
    test = [file for file in _files(source, told, "imagesTs") if file.name.lower().endswith(first)]
    if test:
        labels = " and labelsTs" if _files(source, told, "labelsTs") else ""
        found.append(f"the {len(test)} images of imagesTs{labels} were left out; the parts are split from imagesTr")
    splits = next((file for file in source.files if file.name == "splits_final.json"), None)
    if splits:
        found.append(f"{splits.name} was not used; cases are split at random, see --ratio and --seed")
    return found


# Images -------------------------------------------------------------------------------------------------------------


def _plan_images(pairs: list[Pair], of_patients: grouping.Groups | None, told: Description, options: Options) -> Plan:
    """Of photographs, or of images that are put together of several files."""

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        random = random_splits(ids["all"], options.ratio, options.seeds)
        return (grouped_splits(ids["all"], groups, options.ratio, options.seeds) if of_patients else {}) | random

    named = replace(options, classes=told.labels.classes)
    notes = [of_patients.note()] if of_patients else []
    levels = Levels(told.labels.ids)
    made = pairs_plan(DATASET, named, "slices", {"all": pairs}, levels, make_splits, root=told.root, warnings=notes)
    files = 1 + max((len(pair.others) for pair in pairs), default=0)
    if files > 1:
        groups = tuple(f"imagesTr/*_{number:04d}{told.ending}" for number in range(files))
        made.settle = Settle(groups, told.channels, nnunet=True)
    return made


# Volumes ------------------------------------------------------------------------------------------------------------


def _plan_volumes(
    files: Mapping[str, tuple[tuple[RawFile, ...], RawFile]],
    told: Description,
    source: Source,
    options: Options,
    problems: Problems,
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
    made = volume_sets.volumes_plan("volumes", cases, labels, options, problems)
    return nnunet_rules.planned(made, told.channels, options)
