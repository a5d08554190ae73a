"""An nnU-Net v2 folder `DatasetNNN_Name`: volumes, or 2-D images.

    dataset.json                          channel_names, labels, file_ending
    imagesTr/CASE_0000.nii.gz (.nrrd, .mha, .png ...)  one file a channel; a colour image is one file
    labelsTr/CASE.nii.gz (.png ...)       label numbers

Of volumes, training takes slices, validation and test whole volumes; cases are split at random by one seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import discover, grouping, voxel_files
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import nnunet_json, volume_sets
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.nnunet_json import Description, Labels
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
    options=("ratio", "groups", "seeds", "range"),
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
    pattern = re.escape(told.ending)
    found = discover.by_pattern(_files(source, told, "imagesTr"), re.compile(rf"(?P<id>[^/]+)_0000{pattern}"), problems)
    masks = discover.by_pattern(_files(source, told, "labelsTr"), re.compile(rf"(?P<id>[^/]+){pattern}"), problems)
    discover.refuse_empty(source, found, DATASET.name, DATASET.forms)
    names = discover.pair(found, masks, problems)
    keys = discover.sample_keys(options.dataset, names)
    if told.ending in voxel_files.ENDINGS:
        files = {keys[name]: (found[name], masks[name]) for name in names}
        made = _plan_volumes(files, told.labels, source, options, problems)
    else:
        of_patients = grouping.proposed({keys[name]: name for name in names}, options.groups)
        own = of_patients.of if of_patients else {}
        pairs = [Pair(keys[name], found[name], (masks[name],), group=own.get(keys[name])) for name in names]
        made = _plan_images(pairs, of_patients, told.root, told.labels, options)
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
    several = re.compile(rf".*_0001{re.escape(told.ending)}", re.IGNORECASE)
    second = next((file for file in _files(source, told, "imagesTr") if several.fullmatch(file.name)), None)
    if second or (told.ending in voxel_files.ENDINGS and len(told.channels) > 1):
        names = ", ".join(told.channels)[:60]
        first = f", first {second.name}" if second else ""
        raise UserError(
            f"{source}: images of several channels ({names}{first}) are not supported; keep the files _0000 and name "
            "one channel in dataset.json"
        )


def _unused(source: Source, told: Description) -> list[str]:
    """What lies in the folder and is not taken."""
    found = []
    test = [file for file in _files(source, told, "imagesTs") if file.name.lower().endswith(told.ending)]
    if test:
        labels = " and labelsTs" if _files(source, told, "labelsTs") else ""
        found.append(f"the {len(test)} images of imagesTs{labels} were left out; the parts are split from imagesTr")
    splits = next((file for file in source.files if file.name == "splits_final.json"), None)
    if splits:
        found.append(f"{splits.name} was not used; cases are split at random, see --ratio and --seed")
    return found


# Images -------------------------------------------------------------------------------------------------------------


def _plan_images(
    pairs: list[Pair], of_patients: grouping.Groups | None, root: str, labels: Labels, options: Options
) -> Plan:
    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        random = random_splits(ids["all"], options.ratio, options.seeds)
        return (grouped_splits(ids["all"], groups, options.ratio, options.seeds) if of_patients else {}) | random

    named = replace(options, classes=labels.classes)
    notes = [of_patients.note()] if of_patients else []
    levels = Levels(labels.ids)
    return pairs_plan(DATASET, named, "slices", {"all": pairs}, levels, make_splits, root=root, warnings=notes)


# Volumes ------------------------------------------------------------------------------------------------------------


def _plan_volumes(
    files: Mapping[str, tuple[RawFile, RawFile]], labels: Labels, source: Source, options: Options, problems: Problems
) -> Plan:
    beside, cases = voxel_files.Beside(source.files), {}
    for key, (image, mask) in files.items():
        try:
            found = beside.of(image), beside.of(mask)
        except BadFile as error:
            problems.add(str(error))
            continue
        cases[key] = volume_sets.Scans(re.sub(r"_0000\.[^/]*$", "", image.name), found[0], found[1:])
    problems.raise_if_any()
    own = volume_sets.Labels(labels.classes, labels.ids)
    return volume_sets.volumes_plan("volumes", cases, own, options, problems)
