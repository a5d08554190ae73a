"""The format `pairs` for volumes: which files are volumes, how labels become classes, and the plan of such a set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import discover, grouping, pattern_channels, voxel_files
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import nnunet_rules, volume_sets
from rwkvctl.data.convert.formats.base import Options, Plan
from rwkvctl.data.convert.formats.pairs import IGNORED, Pair
from rwkvctl.data.convert.formats.volume_sets import Labels, Scans
from rwkvctl.data.convert.name_patterns import NamePattern
from rwkvctl.data.convert.sources import RawFile, Source

WHITE = 255
"""What programs of pictures save for 1."""


def meant(files: Sequence[RawFile], image: NamePattern, mask: NamePattern) -> bool:
    """Whether the patterns are about volumes: both match the ends of paths of some."""
    volumes = [file for file in files if voxel_files.is_volume(file)]
    return all(any(pattern.ends(file.path) for file in volumes) for pattern in (image, mask))


def labels(options: Options, classes: Sequence[str], by_class: bool = False) -> Labels:
    """Values by `--classes`: those that a table gives, or 0, 1, 2, ...; of two classes, 255 is 1 too."""
    if by_class:
        return Labels(tuple(classes), (), "one file a class; value > 0")
    table = options.class_table
    if table and table.values:
        ids = [(value, own) for first, last, own in table.values for value in range(first, last + 1)]
        said = ", ".join(f"{first}{f'-{last}' if last > first else ''}: {own}" for first, last, own in table.values)
        known = {value for value, _ in ids}
        return Labels(tuple(classes), tuple(ids) + (((0, 0),) if 0 not in known else ()), f"value {said}")
    if table and table.colours:
        raise UserError("--classes: gives colours, and masks of volumes hold numbers; give each class a value")
    ids = [(number, number) for number in range(len(classes))]
    if len(classes) == 2:
        return Labels(tuple(classes), (*ids, (WHITE, 1)), "{0,1}: value, 255: 1")
    return Labels(tuple(classes), (*ids, (IGNORED, IGNORED)), f"value = class id 0..{len(classes) - 1}")


def planned(
    source: Source,
    root: str,
    pairs: Sequence[Pair],
    own_labels: Labels,
    options: Options,
    problems: Problems,
    groups: grouping.Groups | None,
    parts: Mapping[str, str] | None,
) -> Plan:
    """The plan of volumes with their masks. parts: train, val or test of each key, where folders say so."""
    beside = voxel_files.Beside(source.files)
    cases: dict[str, Scans] = {}
    for pair in pairs:
        try:
            image, *others = (beside.of(file) for file in (pair.image, *pair.others))
            masks = [beside.of(file) for file in pair.masks]
        except BadFile as error:
            problems.leave_out(pair.image, str(error).partition(": ")[2])
            continue
        path = f"{discover.relative(pair.image, root).rpartition('/')[0]}/{voxel_files.stem(pair.image)}".lstrip("/")
        cases[pair.key] = Scans(path, image, tuple(masks), pair.layers, tuple(others))
    patterns = [str(options.images), *(options.more_images or ())]
    form = f"{' and '.join(patterns)} and {options.masks}"
    made = volume_sets.volumes_plan(
        form, cases, own_labels, options, problems, groups=groups, parts=parts, root=root, advice=advice(options)
    )
    return with_channels(made, pattern_channels.channel_names(patterns), options)


def with_channels(made: Plan, names: Sequence[str], options: Options) -> Plan:
    """Several channels, called so and normalised by their names; of one only what `--intensity` says."""
    return nnunet_rules.planned(made, names, options) if len(names) > 1 or options.intensity else made


def advice(options: Options) -> str:
    """Against labels that no class has."""
    if options.classes:
        return "name a class for each value, with --classes background,a,b or background=0,a=85"
    return "name the classes with --classes background,a,b, or a value each: --classes background=0,a=85"
