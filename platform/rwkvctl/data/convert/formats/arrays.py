"""Files with image and label inside: HDF5 (`.h5`) and `.npz`, of volumes, or of slices.

Which arrays they are is told by names, shapes and types; `--inside IMAGE,LABEL` says it. Slices whose names count them
(`case1_slice_07.h5`) are put together to the volume that they are of. An image may have an axis of channels, a label
one with a plane a class. Such files mostly know no spacing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import array_pairs, array_roles, discover, part_folders, part_lists
from rwkvctl.data.convert.array_pairs import ArrayPair
from rwkvctl.data.convert.array_roles import Roles
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import (
    array_suggestion,
    nnunet_rules,
    stacked,
    stackedclasses,
    volume_pairs,
    volume_sets,
)
from rwkvctl.data.convert.formats.array_suggestion import folder_of, spread
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.volume_sets import Scans
from rwkvctl.data.convert.name_patterns import parse
from rwkvctl.data.convert.sources import RawFile, Source, natural_key
from rwkvctl.data.convert.suggestion import Suggestion, joined
from rwkvctl.data.images import arrays
from rwkvctl.data.images.normalise import Rule

DATASET = Dataset(
    name="arrays",
    title="any HDF5 or npz files with image and label inside",
    task="segmentation",
    classes=("background", "foreground"),
    expected={},
    forms={
        "volumes": "NAME.h5 or NAME.npz, each with an image (D, H, W) and a label",
        "slices": "NAME_slice_07.h5 or .npz, each with an image (H, W) and a label; either may have channels",
    },
    licence="your own",
    access="your own files",
    options=("ratio", "groups", "seeds", "classes", "class_table", "range", "images", "inside", "axes", "split_from"),
)
ENDINGS = (".npz", *arrays.HDF5)
_SLICE = re.compile(r"(?P<case>.*?)[ _.-]*(?:slices?|sl|z|plane)[ _.-]*(?P<z>\d+)", re.IGNORECASE)
FOLDERS = "folders"


def recognise(source: Source) -> str | None:
    """By the arrays of the first files, unless they are all images in one."""
    if stacked.recognise(source) or stackedclasses.recognise(source):
        return None
    for file in spread(_files(source)):
        try:
            entries = arrays.listed(file)
        except BadFile:
            continue
        if found := array_roles.roles(entries):
            return "volumes" if len(array_pairs.read_header(file, found).shape) == 3 else "slices"
    return None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    classes = options.classes or DATASET.classes
    _check_axes(options.axes)
    files = _files(source, options.images)
    discover.refuse_empty(source, files, DATASET.name, DATASET.forms)
    roles = _roles(source, files, options.inside)
    found = _headers(files, roles, options.axes, problems)
    volumes = [own for own in found if len(own.shape) == 3]
    if volumes and len(volumes) < len(found):
        slices = next(own.file for own in found if len(own.shape) == 2)
        raise UserError(
            f"{source}: has {len(volumes)} volumes ({volumes[0].file.path}) and {len(found) - len(volumes)} slices "
            f"({slices.path}); say which by --images, for example --images '{folder_of(volumes[0].file)}*'"
        )
    layers = array_pairs.layers(spread(found))
    if layers and len(classes) <= max(layers):
        raise UserError(
            f"--classes: {roles.label} has a plane a class, {len(layers)}; name {max(layers) + 1} with the background"
        )
    shown = ", ".join((roles.image, *roles.others))
    warnings = [f"image and label are the arrays {shown} and {roles.label}"]
    if not any(own.image.spacing for own in found):
        warnings.append("the files have no spacing; HD95 is in voxels alone")
    if volumes:
        cases = _of_volumes(found, layers, _axes(source, volumes, options.axes))
    else:
        cases = _of_slices(found, layers, warnings)
    parts, notes = _parts(source, cases, options.split_from, problems)
    names = [name for name in sorted(cases, key=natural_key) if parts is None or name in parts]
    keys = discover.sample_keys(options.dataset, names)
    ordered = {keys[name]: cases[name] for name in names}
    made = volume_sets.volumes_plan(
        "volumes" if volumes else "slices",
        ordered,
        volume_pairs.labels(options, classes, bool(layers)),
        options,
        problems,
        parts=None if parts is None else {keys[name]: parts[name] for name in names},
        split=options.split_from if options.split_from == FOLDERS else part_lists.LISTS,
        root="",
        advice=volume_pairs.advice(options),
    )
    made.warnings += [*warnings, *notes]
    channels = array_pairs.usual_counts(found)[0]
    return _with_channels(made, (roles.image, *roles.others), channels, options) if channels > 1 else made


def _headers(files: Sequence[RawFile], roles: Roles, axes: str | None, problems: Problems) -> list[ArrayPair]:
    """Of all files that can be read and have as many channels and classes as most."""
    found: list[ArrayPair] = []
    for file in files:
        try:
            found.append(array_pairs.read_header(file, roles, axes))
        except BadFile as error:
            problems.leave_out(file, str(error).removeprefix(f"{file}: "))
    usual = array_pairs.usual_counts(found)
    for pair in found:
        if other := array_pairs.difference(pair, usual):
            problems.leave_out(pair.file, other)
    return [pair for pair in found if pair.counts == usual]


def _parts(
    source: Source, cases: Mapping[str, Scans], told: str | None, problems: Problems
) -> tuple[dict[str, str] | None, list[str]]:
    """The part of each case by `--split-from`, and notes; a case that is in no list has none."""
    if told is None:
        return None, []
    if told == FOLDERS:
        return part_folders.by_folder({name: case.path for name, case in cases.items()})[0], []
    if part_lists.is_told(source, told):
        return _by_lists(source, cases, told, problems)
    raise UserError(
        f"--split-from {told}: give {FOLDERS}, for files in train/ and test/, or {part_lists.LISTS}, for train.txt, "
        "val.txt and test.txt that name them"
    )


def _by_lists(
    source: Source, cases: Mapping[str, Scans], told: str, problems: Problems
) -> tuple[dict[str, str], list[str]]:
    """A line names a file, or the volume that slices were put together to."""
    name_of = {file.path: name for name, case in cases.items() for file in case.image.files}
    files = [file for case in cases.values() for file in case.image.files]
    for name, case in cases.items():
        if len(case.image.files) > 1:
            files.append(replace(case.image.files[0], path=name))
            name_of[name] = name
    lists = part_lists.read(source, told, files, name_of.keys())
    parts: dict[str, str] = {}
    for path, part in lists.of.items():
        if parts.setdefault(name := name_of[path], part) != part:
            raise UserError(
                f"--split-from {told}: slices of {name} are in the lists for {parts[name]} and {part}; a volume is of "
                "one part"
            )
    return parts, part_lists.apply(replace(lists, of=parts), set(cases), (), problems)


def _with_channels(made: Plan, names_of: Sequence[str], count: int, options: Options) -> Plan:
    """Each channel by its own mean and deviation, or all by `--range`. An array of several has them counted."""
    each, own = count // len(names_of), [name.rpartition("/")[2] for name in names_of]
    names = own if each == 1 else [f"{name} {number}" for name in own for number in range(1, each + 1)]
    if options.range is None:
        return nnunet_rules.planned(made, names, options)
    made.channel_names = names
    return nnunet_rules.with_rules(made, [Rule(clip=options.range)] * count)


def _files(source: Source, pattern: str | None = None) -> list[RawFile]:
    files = [file for file in source.files if file.name.lower().endswith(ENDINGS)]
    if pattern is None:
        return files
    wanted = parse("--images", pattern)
    found = [file for file in files if wanted.ends(file.path)]
    if not found:
        raise UserError(f"--images {pattern!r}: matches none of the {len(files)} files in {source}; give it in quotes")
    return found


def _roles(source: Source, files: Sequence[RawFile], inside: str | None) -> Roles:
    """Which arrays are image and label, as `--inside` says, or the first file that can be read."""
    if inside is not None:
        names = [name.strip() for name in inside.split(",")]
        if len(names) < 2 or not all(names) or len(set(names)) < len(names):
            raise UserError(
                f"--inside {inside}: give the names of two arrays, the image's first: image,label; or one a channel, "
                "the label last: t1,flair,label"
            )
        return Roles(names[0], names[-1], others=tuple(names[1:-1]))
    for file in spread(files):
        try:
            entries = arrays.listed(file)
        except BadFile:
            continue
        found = array_roles.roles(entries)
        if found and found.question:
            raise UserError(f"{file}: {found.question}")
        if found:
            return found
    raise UserError(f"{source}: no image with a label in {files[0].path}; name them: --inside image,label")


def _check_axes(given: str | None) -> None:
    """One of the orders of space, with c in front or behind where there are channels."""
    if given is None or given.removeprefix("c") in array_roles.AXES or given.removesuffix("c") in array_roles.AXES:
        return
    if given not in ("cyx", "yxc"):
        known = ", ".join(array_roles.AXES)
        raise UserError(f"--axes {given}: give one of {known}; z is across slices; c in front or behind are channels")


def _axes(source: Source, volumes: Sequence[ArrayPair], given: str | None) -> str:
    if given is not None:
        return given.replace("c", "")
    found, told = array_roles.axes_of(own.shape for own in volumes)
    if not told:
        raise UserError(
            f"{source}: volumes are of shape {volumes[0].shape}, and which axis is across slices is yours to say: "
            f"--axes {found}, or another order"
        )
    return found


def _of_volumes(found: Sequence[ArrayPair], layers: Sequence[int], axes: str) -> dict[str, Scans]:
    return {(path := own.file.path.rpartition(".")[0]): _scans(path, own, axes, layers) for own in found}


def _scans(path: str, own: ArrayPair, axes: str, layers: Sequence[int], slices: tuple[RawFile, ...] = ()) -> Scans:
    made = array_pairs.scans(own, axes, layers, slices)
    return Scans(path, made.image, made.masks, made.layers, made.others)


def _of_slices(found: Sequence[ArrayPair], layers: Sequence[int], warnings: list[str]) -> dict[str, Scans]:
    """Put together where their names count them, else each for itself."""
    stacks: dict[str, list[tuple[int, ArrayPair]]] = defaultdict(list)
    for own in found:
        match = _SLICE.fullmatch(own.file.path.rpartition(".")[0])
        name = match["case"] if match and match["case"].rpartition("/")[2] else own.file.path.rpartition(".")[0]
        stacks[name].append((int(match["z"]) if match else 0, own))
    cases, gaps = {}, []
    for name, members in stacks.items():
        members.sort(key=lambda member: (member[0], natural_key(member[1].file.path)))
        numbers, files = [z for z, _ in members], tuple(own.file for _, own in members)
        if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
            gaps.append(f"{name} ({len(numbers)} slices, {numbers[0]} to {numbers[-1]})")
        cases[name] = _scans(name, members[0][1], "yx", layers, files)
    if len(cases) < len(found):
        warnings.append(f"{len(found)} slices were put together to {len(cases)} volumes by the numbers in their names")
    if gaps:
        warnings.append(f"{len(gaps)} volumes lack slices, or have some twice: {', '.join(gaps[:3])}")
    return cases


# What doctor proposes -----------------------------------------------------------------------------------------------


def suggest(source: Source) -> Suggestion | None:
    """Options for what names, shapes and a few files leave open; None where they leave nothing to be planned."""
    files = _files(source)
    found = array_suggestion.of(files)
    if found is None or "split_from" in found.choices or not part_lists.are_there(source):
        return found
    try:
        part_lists.read(source, part_lists.LISTS, files, {file.path for file in files})
    except UserError:  # they are of other files
        return found
    return joined([found, Suggestion({"split_from": part_lists.LISTS})])
