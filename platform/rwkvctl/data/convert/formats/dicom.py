"""DICOM series with masks that were drawn on them: DICOM-SEG, or RTSTRUCT.

A mask belongs to the series that it refers to, wherever its file lies. Segments and regions are classes by their names.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import dicom_tree, discover, grouping
from rwkvctl.data.convert.dicom_tree import Mask, Scan, Tree
from rwkvctl.data.convert.discover import Problems, slug
from rwkvctl.data.convert.formats import volume_sets
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.volume_sets import Labels, Scans
from rwkvctl.data.convert.name_patterns import parse
from rwkvctl.data.convert.sources import Source, natural_key
from rwkvctl.data.convert.suggestion import Suggestion, listed
from rwkvctl.data.convert.voxel_files import VoxelFile

DATASET = Dataset(
    name="dicom",
    title="any DICOM series with DICOM-SEG or RTSTRUCT",
    task="segmentation",
    classes=(),
    expected={},
    forms={"series": "DICOM series, and the SEG or RTSTRUCT files that refer to them, in any folders"},
    licence="your own",
    access="your own files",
    options=("ratio", "groups", "seeds", "classes", "class_table", "range", "masks"),
)
BACKGROUND = "background"


def recognise(source: Source) -> str | None:
    return "series" if dicom_tree.is_there(source) else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    tree = dicom_tree.read(source)
    for file, why in tree.problems:
        problems.leave_out(file, why)
    masks = _chosen(source, tree, options)
    class_of, classes = _classes(source, masks, options)
    of_scan: dict[str, list[Mask]] = defaultdict(list)
    for mask in masks:
        of_scan[mask.scan.name].append(mask)
    cases, scans = {}, {scan.name: scan for scan in tree.scans}
    for name in sorted(of_scan, key=natural_key):
        _refuse_doubled(of_scan[name], class_of)
        drawn = tuple(_voxel_file(mask, class_of) for mask in of_scan[name])
        image = VoxelFile(scans[name].files[0], slices=scans[name].files, dicom="series")
        cases[name] = Scans(name, image, tuple(own for own in drawn if own.segments))
    empty = [name for name, case in cases.items() if not case.masks]
    for name in empty:
        problems.leave_out(scans[name].files[0], "its masks have none of the classes; name them in --classes")
        del cases[name]
    keys = discover.sample_keys(options.dataset, cases)
    made = volume_sets.volumes_plan(
        "series",
        {keys[name]: case for name, case in cases.items()},
        Labels(classes, (), "segments by name; pixel centres of contours, even and odd"),
        options,
        problems,
        groups=_patients({keys[name]: scans[name] for name in cases}, options),
        root="",
    )
    made.warnings += [*_left_out(masks, class_of), *tree.notes]
    without = [scan for scan in tree.scans if scan.name not in of_scan]
    if without:
        made.warnings.append(f"{len(without)} series have no mask and were left out: {without[0].name}")
    if tree.skipped:
        made.warnings.append(f"{len(tree.skipped)} series are no scans, the first: {tree.skipped[0]}")
    return made


def _chosen(source: Source, tree: Tree, options: Options) -> list[Mask]:
    if options.masks is None:
        masks = tree.masks
    else:
        wanted = parse("--masks", options.masks)
        masks = [mask for mask in tree.masks if wanted.ends(mask.file.path)]
        if tree.masks and not masks:
            raise UserError(f"--masks {options.masks!r}: matches no mask; there is {tree.masks[0].file.path}")
    if not masks:
        why = f"; {tree.problems[0][0].path} {tree.problems[0][1]}" if tree.problems else ""
        raise UserError(
            f"{source}: {len(tree.scans)} DICOM series, and no DICOM-SEG or RTSTRUCT that was drawn on one of them{why}"
        )
    return masks


def _names(masks: Sequence[Mask]) -> dict[str, str]:
    """Of segments: how they are compared -> as they are mostly written, in natural order."""
    written: dict[str, Counter[str]] = defaultdict(Counter)
    for mask in masks:
        for segment in mask.told.segments:
            written[slug(segment.name)][segment.name] += 1
    return {name: written[name].most_common(1)[0][0] for name in sorted(written, key=natural_key)}


def _classes(source: Source, masks: Sequence[Mask], options: Options) -> tuple[dict[str, int], tuple[str, ...]]:
    """Class ids by the names of segments, and the names of classes."""
    there = _names(masks)
    if options.class_table and options.class_table.words:
        class_of = {slug(word): own for word, own in options.class_table.words}
        classes = tuple(options.classes or ())
    else:
        classes = options.classes or (BACKGROUND, *(name for key, name in there.items() if key != BACKGROUND))
        class_of = {slug(name): number for number, name in enumerate(classes)}
        del class_of[slug(classes[0])]
    if len(classes) < 2:
        raise UserError("--classes: name at least two, the background first")
    missing = sorted(name for name in class_of if name not in there)
    if missing:
        raise UserError(
            f"{source}: no mask has a segment called {listed(missing)}; there is {listed(list(there.values()))}; name "
            "those in --classes"
        )
    return class_of, classes


def _refuse_doubled(masks: Sequence[Mask], class_of: Mapping[str, int]) -> None:
    """UserError where two files have the same class of one series: by two people, or an older one."""
    of: dict[int, Mask] = {}
    for mask in masks:
        for own in {class_of[slug(segment.name)] for segment in mask.told.segments if slug(segment.name) in class_of}:
            if own in of:
                raise UserError(
                    f"{mask.file} and {of[own].file.path} have the same class of one series; say which is meant: "
                    f"--masks '*/{mask.file.name}', or remove one"
                )
            of[own] = mask


def _voxel_file(mask: Mask, class_of: Mapping[str, int]) -> VoxelFile:
    numbers = ((own.number, class_of[slug(own.name)]) for own in mask.told.segments if slug(own.name) in class_of)
    return VoxelFile(mask.file, dicom=mask.told.kind, segments=tuple(numbers))


def _patients(scans: Mapping[str, Scan], options: Options) -> grouping.Groups | None:
    """As the files say, unless `--groups` does."""
    of = {key: scan.patient for key, scan in scans.items() if scan.patient}
    if options.groups is not None or len(set(of.values())) == len(of):
        return None
    return grouping.Groups(of, "PatientID")


def _left_out(masks: Sequence[Mask], class_of: Mapping[str, int]) -> list[str]:
    left = [name for key, name in _names(masks).items() if key not in class_of and key != BACKGROUND]
    lacking = Counter(
        name for mask in masks for name in class_of if name not in {slug(own.name) for own in mask.told.segments}
    )
    notes = [f"segments that are no class were left out: {listed(left)}"] if left else []
    return notes + [f"{n} of {len(masks)} masks have no segment {name}" for name, n in lacking.items()]


def suggest(source: Source) -> Suggestion | None:
    """The names of all segments as classes, where there are several."""
    tree = dicom_tree.read(source)
    names = [name for key, name in _names(tree.masks).items() if key != BACKGROUND]
    if len(names) < 2 or any("," in name or "=" in name for name in names):
        return None
    question = f"each of {len(names)} segments is a class ({listed(names)}); leave out of --classes those that are none"
    return Suggestion({"classes": ",".join([BACKGROUND, *names])}, question)
