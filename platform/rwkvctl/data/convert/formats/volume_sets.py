"""A data set of volumes: its cases are split, training takes slices, validation and test whole volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import discover, grouping
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import scan_pairs
from rwkvctl.data.convert.formats.base import Options, Plan
from rwkvctl.data.convert.formats.scan_pairs import ScanPair, ScanPairLoader
from rwkvctl.data.convert.formats.volumes import PLANES, WHOLE, Case, Plane, VolumeReader, planes
from rwkvctl.data.convert.voxel_files import VoxelFile
from rwkvctl.data.images import grid as grids
from rwkvctl.data.images import intensity
from rwkvctl.data.store.duplicates import leak_groups
from rwkvctl.data.store.splits import DEFAULT_SEEDS, PARTS, Split, grouped_split, parse_ratio, random_split, split_name

ORIENTATION = "itk"
WINDOW: tuple[intensity.Bound, intensity.Bound] = ("p0.5", "p99.5")
"""Of the volume's own values, since channels can be of any kind."""


@dataclass(frozen=True)
class Scans:
    """The files of a case. path: of its image in the source without the ending, from which its patient is told; layers
    as in `scan_pairs.ScanCase`."""

    path: str
    image: VoxelFile
    masks: tuple[VoxelFile, ...]
    layers: tuple[int, ...] = ()
    others: tuple[VoxelFile, ...] = ()
    """The files of an image's further channels."""


@dataclass(frozen=True)
class Labels:
    """Class names by id, (stored value, id), and the rule in words."""

    classes: tuple[str, ...]
    ids: tuple[tuple[int, int], ...]
    rule: str = "value"


def volumes_plan(
    form: str,
    cases: Mapping[str, Scans],
    labels: Labels,
    options: Options,
    problems: Problems,
    *,
    groups: grouping.Groups | None = None,
    parts: Mapping[str, str] | None = None,
    split: str = "folders",
    root: str | None = None,
    advice: str = "replace it",
) -> Plan:
    """The plan of cases by key. All headers are read.

    Args:
        groups: whose volume each is; with None, what the cases' paths and `--groups` tell.
        parts: train, val or test of each case where the source says so; else they are split at random.
        split: the name of the split that it says.
        root, advice: as in `ScanPairLoader`.

    Raises:
        UserError: a ratio or seed that cannot be, and all that is wrong with the headers.
    """
    ratio = parse_ratio(options.ratio or "8:1:1")
    if options.seeds and len(options.seeds) > 1:
        raise UserError("--seed: slices and volumes are laid out by one split; give one seed")
    seed = (options.seeds or DEFAULT_SEEDS)[0]
    if groups is None:
        groups = grouping.proposed({key: case.path for key, case in cases.items()}, options.groups)
    copies = grouping.equal_files({key: case.image.files[-1] for key, case in cases.items()})
    patient_of = leak_groups({key: groups.of.get(key) if groups else None for key in cases}, copies)
    pairs = _checked(cases, problems)
    orientation = grids.usual_layout((pair.grid for pair in pairs.values()), ORIENTATION)
    made = {key: pair.case(key, patient_of[key], orientation) for key, pair in pairs.items()}
    name, found = _split(list(made), patient_of, ratio, seed, parts, split)
    items: dict[str, list[Case] | list[Plane]] = {part: [made[key] for key in found.ids[part]] for part in PARTS}
    items["train"] = planes(made[key] for key in sorted(found.ids["train"], key=discover.natural_key))

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        lists = {part: list(ids[part]) for part in PARTS}
        return {name: Split(f"cases: {found.rule}; train: their slices", lists, found.seed)}

    window = options.range or WINDOW
    notes = [groups.note(splits=parts is None)] if groups else []
    notes += [f"{len(keys)} volumes are copies of one another: {', '.join(keys[:3])}" for keys in copies]
    return Plan(
        form=form,
        task="segmentation",
        classes=labels.classes,
        image_kind="float",
        parts=items,
        read=VolumeReader(
            options.dataset,
            len(labels.classes),
            ScanPairLoader(orientation, window, labels.ids, labels.rule, root, advice),
        ),
        make_splits=make_splits,
        mask_rule=labels.rule,
        intensity=intensity.rule(*window),
        orientation=orientation,
        warnings=[*scan_pairs.warnings(list(pairs.values()), orientation), *notes],
        limits={"train": PLANES, "val": WHOLE, "test": WHOLE},
    )


def _checked(cases: Mapping[str, Scans], problems: Problems) -> dict[str, ScanPair]:
    """By the headers. What is wrong with one is a problem, or leaves its case out where the user accepts that."""
    pairs = {}
    for key, case in cases.items():
        try:
            pairs[key] = scan_pairs.check(case.image, *case.masks, layers=case.layers, others=case.others)
        except BadFile as error:
            if problems.lenient:
                problems.excluded.append({"id": key, "why": str(error)})
            else:
                problems.add(str(error))
    problems.raise_if_any()
    return pairs


def _split(
    keys: Sequence[str],
    patients: Mapping[str, str],
    ratio: tuple[int, int, int],
    seed: int,
    parts: Mapping[str, str] | None,
    told: str,
) -> tuple[str, Split]:
    """Its name and the keys of its parts; patients with several volumes stay together."""
    if parts is not None:
        from rwkvctl.data.convert import part_folders

        by_part = {part: [key for key in keys if parts[key] == part] for part in PARTS}
        return told, part_folders.published(by_part, patients, seed)
    together = len({patients[key] for key in keys}) < len(keys)
    own = {key: patients[key] for key in keys}
    split = grouped_split(list(keys), own, ratio, seed) if together else random_split(list(keys), ratio, seed)
    return split_name(ratio, seed).replace("random", "grouped" if together else "random"), split
