"""Files with image and label inside: HDF5 (`.h5`) and `.npz`, of volumes, or of slices.

Which arrays they are is told by names, shapes and types; `--inside IMAGE,LABEL` says it. Slices whose names count them
(`case1_slice_07.h5`) are put together to the volume that they are of. Such files mostly know no spacing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import array_roles, discover
from rwkvctl.data.convert.array_roles import Roles
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import scan_pairs, volume_pairs, volume_sets
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.volume_sets import Scans
from rwkvctl.data.convert.name_patterns import parse
from rwkvctl.data.convert.sources import RawFile, Source, natural_key
from rwkvctl.data.convert.suggestion import Suggestion, classes_of, joined
from rwkvctl.data.convert.voxel_files import VoxelFile
from rwkvctl.data.images import arrays
from rwkvctl.data.images.arrays import Entry

DATASET = Dataset(
    name="arrays",
    title="any HDF5 or npz files with image and label inside",
    task="segmentation",
    classes=("background", "foreground"),
    expected={},
    forms={
        "volumes": "NAME.h5 or NAME.npz, each with an image (D, H, W) and a label",
        "slices": "NAME_slice_07.h5 or .npz, each with an image (H, W) and a label",
    },
    licence="your own",
    access="your own files",
    options=("ratio", "groups", "seeds", "classes", "class_table", "range", "images", "inside", "axes"),
)
ENDINGS = (".npz", *arrays.HDF5)
_SLICE = re.compile(r"(?P<case>.*?)[ _.-]*(?:slices?|sl|z|plane)[ _.-]*(?P<z>\d+)", re.IGNORECASE)
_T = TypeVar("_T")
_READ = 3
"""Files of which a suggestion is made."""


@dataclass(frozen=True)
class _Own:
    """A file and what its headers say of its image and label."""

    file: RawFile
    image: Entry
    label: Entry

    @property
    def shape(self) -> tuple[int, ...]:
        return array_roles.plain(self.label.shape)


def recognise(source: Source) -> str | None:
    """By the arrays of the first files."""
    for file in _spread(_files(source)):
        try:
            entries = arrays.listed(file)
        except BadFile:
            continue
        if found := array_roles.roles(entries):
            own = next(entry for entry in entries if entry.name == found.label)
            return "volumes" if len(array_roles.plain(own.shape)) == 3 else "slices"
    return None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    classes = options.classes or DATASET.classes
    files = _files(source, options.images)
    discover.refuse_empty(source, files, DATASET.name, DATASET.forms)
    roles = _roles(source, files, options.inside)
    found: list[_Own] = []
    for file in files:
        try:
            found.append(_own(file, roles))
        except BadFile as error:
            problems.leave_out(file, str(error).removeprefix(f"{file}: "))
    volumes = [own for own in found if len(own.shape) == 3]
    if volumes and len(volumes) < len(found):
        slices = next(own for own in found if len(own.shape) == 2)
        raise UserError(
            f"{source}: has {len(volumes)} volumes ({volumes[0].file.path}) and {len(found) - len(volumes)} slices "
            f"({slices.file.path}); say which by --images, for example --images '{_folder_of(volumes[0].file)}*'"
        )
    warnings = [] if any(own.image.spacing for own in found) else ["the files have no spacing; HD95 is in voxels alone"]
    cases = _of_volumes(found, _axes(source, volumes, options.axes)) if volumes else _of_slices(found, warnings)
    keys = discover.sample_keys(options.dataset, cases)
    made = volume_sets.volumes_plan(
        "volumes" if volumes else "slices",
        {keys[name]: cases[name] for name in sorted(cases, key=natural_key)},
        volume_pairs.labels(options, classes),
        options,
        problems,
        root="",
        advice=volume_pairs.advice(options),
    )
    made.warnings += [f"image and label are the arrays {roles.image} and {roles.label}", *warnings]
    return made


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
        if len(names) != 2 or not all(names):
            raise UserError(f"--inside {inside}: give the names of two arrays, the image's first: image,label")
        return Roles(*names)
    for file in _spread(files):
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


def _own(file: RawFile, roles: Roles) -> _Own:
    """BadFile where the file lacks one of the arrays, or they do not fit."""
    entries = {entry.name: entry for entry in arrays.listed(file)}
    missing = [name for name in (roles.image, roles.label) if name not in entries]
    if missing:
        there = ", ".join(entries) or "none"
        raise BadFile(f"{file}: has no array {missing[0]!r} (there is {there}); --inside names those that it has")
    own = _Own(file, entries[roles.image], entries[roles.label])
    image, label = array_roles.plain(own.image.shape), own.shape
    if len(label) not in (2, 3):
        raise BadFile(f"{file}: {roles.label} has shape {own.label.shape}; labels are (H, W) or (D, H, W)")
    if image == label:
        return own
    axis = array_roles.channel_axis(image, label)
    if axis is not None:
        raise BadFile(f"{file}: {roles.image} has {image[axis]} channels {own.image.shape}; one is taken")
    raise BadFile(f"{file}: {roles.image} has shape {own.image.shape}, {roles.label} {own.label.shape}; give them one")


def _axes(source: Source, volumes: Sequence[_Own], given: str | None) -> str:
    if given is not None:
        if given not in array_roles.AXES:
            raise UserError(f"--axes {given}: give one of {', '.join(array_roles.AXES)}; z is across slices")
        return given
    found, told = array_roles.axes_of(own.shape for own in volumes)
    if not told:
        raise UserError(
            f"{source}: volumes are of shape {volumes[0].shape}, and which axis is across slices is yours to say: "
            f"--axes {found}, or another order"
        )
    return found


def _of_volumes(found: Sequence[_Own], axes: str) -> dict[str, Scans]:
    cases = {}
    for own in found:
        path = own.file.path.rpartition(".")[0]
        image = VoxelFile(own.file, array=own.image.name, axes=axes)
        cases[path] = Scans(path, image, (VoxelFile(own.file, array=own.label.name, axes=axes),))
    return cases


def _of_slices(found: Sequence[_Own], warnings: list[str]) -> dict[str, Scans]:
    """Put together where their names count them, else each for itself."""
    stacks: dict[str, list[tuple[int, _Own]]] = defaultdict(list)
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
        first = members[0][1]
        image = VoxelFile(first.file, array=first.image.name, axes="yx", slices=files)
        cases[name] = Scans(name, image, (VoxelFile(first.file, array=first.label.name, axes="yx", slices=files),))
    if len(cases) < len(found):
        warnings.append(f"{len(found)} slices were put together to {len(cases)} volumes by the numbers in their names")
    if gaps:
        warnings.append(f"{len(gaps)} volumes lack slices, or have some twice: {', '.join(gaps[:3])}")
    return cases


# What doctor proposes -----------------------------------------------------------------------------------------------


def suggest(source: Source) -> Suggestion | None:
    """Options for what names and shapes leave open; None where they leave nothing to be planned."""
    parts, files = [], _files(source)
    roles = next((one for file in _spread(files) if (one := _roles_or_none(file))), None)
    if roles is None:
        return None
    if roles.question:
        parts.append(Suggestion({"inside": f"{roles.image},{roles.label}"}, roles.question))
    found = [own for file in files if (own := _own_or_none(file, roles))]
    volumes = [own for own in found if len(own.shape) == 3]
    if volumes and len(volumes) < len(found):
        slices = [own for own in found if len(own.shape) == 2]
        patterns = [f"{_folder_of(some[0].file)}*" for some in (volumes, slices)]
        question = f"{len(volumes)} volumes are taken and not {len(slices)} slices, which are --images '{patterns[1]}'"
        parts.append(Suggestion({"images": patterns[0]}, question))
        found = volumes
    if volumes:
        axes, told = array_roles.axes_of(own.shape for own in volumes)
        if not told:
            question = f"z of --axes {axes} is taken to be across the slices of {volumes[0].shape}; it may be another"
            parts.append(Suggestion({"axes": axes}, question))
    labels, span = set[float](), set[tuple[float, float]]()
    for own in _spread(found):
        labels |= set(scan_pairs.label_values(own.file, arrays.read(own.file, own.label.name)))
        span.add(_span(own))
    parts.append(classes_of(labels))
    if len(span) == 1 and (bounds := span.pop()) != (0.0, 0.0):
        text = f"{bounds[0]:g},{bounds[1]:g}"
        parts.append(Suggestion({"range": text}, f"values lie in {text} already, and are kept by --range"))
    return joined(parts)


def _roles_or_none(file: RawFile) -> Roles | None:
    try:
        return array_roles.roles(arrays.listed(file))
    except BadFile:
        return None


def _own_or_none(file: RawFile, roles: Roles) -> _Own | None:
    try:
        return _own(file, roles)
    except BadFile:
        return None


def _span(own: _Own) -> tuple[float, float]:
    """0 to 1 of floats that fill it, 0 to 255 of bytes; (0, 0) of other values."""
    if own.image.dtype == "uint8":
        return 0.0, 255.0
    values = arrays.read(own.file, own.image.name)
    unit = own.image.dtype.kind == "f" and values.min() >= 0 and 0.5 < values.max() <= 1
    return (0.0, 1.0) if unit else (0.0, 0.0)


def _spread(files: Sequence[_T]) -> Sequence[_T]:
    return files[:: max(1, len(files) // _READ)][:_READ]


def _folder_of(file: RawFile) -> str:
    return f"{file.parent}/".lstrip("/")
