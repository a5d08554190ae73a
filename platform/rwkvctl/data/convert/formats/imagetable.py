"""Classification by a table of images and labels: HAM10000, ISIC 2019, APTOS 2019, or one's own.

`convert.label_tables` says which tables and columns tell it, `convert.label_rows` what they say of each image.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import grouping, label_rows, label_tables, pair_tables, part_folders
from rwkvctl.data.convert.class_table import IGNORED
from rwkvctl.data.convert.discover import Problems, relative
from rwkvctl.data.convert.formats import class_folders
from rwkvctl.data.convert.formats.base import Dataset, MakeSplits, Options, Plan
from rwkvctl.data.convert.formats.imagefolder import photo
from rwkvctl.data.convert.formats.photos import LIMITS, Photo, PhotoReader, shuffled
from rwkvctl.data.convert.label_rows import FOLD, Labelled
from rwkvctl.data.convert.label_tables import Told
from rwkvctl.data.convert.sources import Source, natural_key
from rwkvctl.data.convert.table_columns import GROUP, SPLIT, Chosen, images_of, is_column
from rwkvctl.data.store.splits import DEFAULT_SEEDS, PARTS, Split, fixed, parse_ratio

DATASET = Dataset(
    name="imagetable",
    title="any classes by a table of images and labels",
    task="classification",
    classes=(),
    expected={},
    forms={
        "column": "a table with a column of images and one of labels (HAM10000, APTOS 2019)",
        "onehot": "a table with a column a class, 1 for the class of the image (ISIC 2019)",
    },
    licence="your own",
    access="your own files",
    options=(
        "csv", "more_csv", "images", "labels", "split_from", "groups", "classes", "class_table", "range", "ratio",
        "seeds",
    ),
)  # fmt: skip
TABLE = "table"
MOST_LABELS = 0.5
"""More labels than this share of the images are no classes."""
_SHOWN = 6


def recognise(source: Source) -> str | None:
    told = label_tables.found_in(source)
    return ("column" if len(told[0].labels) == 1 else "onehot") if told else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Every image with a label is a sample; images without a row are left aside and counted."""
    parse_ratio(options.ratio or "8:1:1")  # said before anything is read
    told = _tables(source, options)
    found = label_rows.images(source, told, problems)
    notes = [*map(str, told), *label_tables.others(told), *label_rows.spelled_alike(found)]
    if not found:
        why = [*problems.found, *(own["why"] for own in problems.excluded)]
        raise UserError(f"{source}: no row gives an image and its label" + (f"; the first: {why[0]}" if why else ""))
    classes, id_of, more = _classes(found, told, options, sound=not problems.found)
    ignored = [one for one in found if id_of[one.label] == IGNORED]
    found = [one for one in found if id_of[one.label] != IGNORED]
    root = posixpath.commonpath([one.file.parent for one in found])
    photos = {one.file.path: photo(one.file, relative(one.file, root), "all", id_of[one.label]) for one in found}
    groups = _groups(found, photos, options, len(classes))
    if groups:
        photos = {path: replace(own, group=groups.of.get(own.key)) for path, own in photos.items()}
    part_of = _parts(found, photos, told)
    if part_of and (options.ratio or options.seeds):
        raise UserError(f"{told[0].table.name}: tells the parts of its own; leave out --ratio and --seed")
    fold_of = {photos[one.file.path].key: one.values[FOLD] for one in found if one.values.get(FOLD, "").isdigit()}
    folds = fold_of if len(fold_of) == len(found) and len(set(fold_of.values())) > 1 else {}
    if part_of and groups and (leak := pair_tables.leaks(part_of, groups.of)):
        notes.insert(0, leak)
    unlabelled = len(images_of(source)) - len(found) - len(ignored) - len(problems.excluded)
    return Plan(
        form="column" if len(told[0].labels) == 1 else "onehot",
        task="classification",
        classes=classes,
        image_kind="rgb8",
        parts={"all": shuffled(photos.values())},
        read=PhotoReader(options.dataset, tuple(classes)),
        make_splits=_splits(part_of, folds, {own.key: own.label for own in photos.values()}, options),
        warnings=[
            *notes,
            *more,
            *([groups.note(splits=not part_of)] if groups else []),
            *([f"{len(ignored)} images are of what --classes ignores, and were left out"] if ignored else []),
            *([f"{unlabelled} images have no row with a label and were left out"] if unlabelled > 0 else []),
        ],
        limits={"all": LIMITS},
    )


def _tables(source: Source, options: Options) -> list[Told]:
    """Those of --csv, or of the source; the first has labels."""
    places = [options.csv, *(options.more_csv or ())] if options.csv else []
    told = label_tables.told_by(
        source, places, options.labels, Chosen(image=options.images or "", split=options.split_from or "")
    )
    if options.groups and any(is_column(own.table, options.groups) for own in told):
        chosen = Chosen(image=options.images or "", split=options.split_from or "", group=options.groups)
        told = label_tables.told_by(source, places, options.labels, chosen)
    return sorted(told, key=lambda own: not own.labels)


# Classes ------------------------------------------------------------------------------------------------------------


def _classes(
    found: Sequence[Labelled], told: Sequence[Told], options: Options, sound: bool
) -> tuple[list[str], dict[str, int], list[str]]:
    """Names by class id, class id by label, and notes; sound: whether all rows are, so that no label is missing."""
    table, columns = told[0].table, told[0].labels
    labels = sorted({one.label for one in found}, key=natural_key)
    where = f"column {table.headings[columns[0]]}" if len(columns) == 1 else "columns of 0 and 1"
    if len(labels) > max(2, MOST_LABELS * len(found)):
        raise UserError(
            f"{table.name}: {where} has {len(labels)} different labels in {len(found)} rows, which are no classes; "
            f"name the column with --labels; there is {', '.join(table.headings)}"
        )
    if len(labels) < 2 and not options.classes and sound:
        raise UserError(f"{table.name}: {where} has one label alone, {labels[0]}; at least two classes are needed")
    if len(columns) > 1:
        every = [table.headings[n] for n in columns]
        labels, empty = [own for own in every if own in labels], [own for own in every if own not in labels]
    else:
        empty = []
    names, id_of = labels, {label: n for n, label in enumerate(labels)}
    if options.classes:
        names, id_of = _as_said(options)
        if missing := [label for label in labels if label not in id_of]:
            raise UserError(
                f"--classes: has no {', '.join(missing[:_SHOWN])}, which {table.name} has in its {where}; name "
                "them all, as the labels are written or as name=label"
            )
        used = {id_of[label] for label in labels}
        if len(names) < 2 or not used - {IGNORED}:
            raise UserError("--classes: name at least two classes of which there are images")
        empty = [name for n, name in enumerate(names) if n not in used]
    left = "" if options.classes else " and was left out"
    return names, id_of, [f"class {name} has no image{left}" for name in empty]


def _as_said(options: Options) -> tuple[list[str], dict[str, int]]:
    """Names by class id, and class id by label, as --classes has them: names, or name=label."""
    names, table = list(options.classes or ()), options.class_table
    if table is None:
        return names, {name: n for n, name in enumerate(names)}
    if table.colours:
        raise UserError("--classes: labels of a table have no colours; give name=number, or the labels themselves")
    id_of = dict(table.words)
    id_of |= {str(value): own for first, last, own in table.values for value in range(first, last + 1)}
    if 0 in id_of.values():
        return names, id_of
    return names[1:], {label: own - 1 if own != IGNORED else own for label, own in id_of.items()}  # no background


# Groups and splits --------------------------------------------------------------------------------------------------


def _groups(
    found: Sequence[Labelled], photos: Mapping[str, Photo], options: Options, classes: int
) -> grouping.Groups | None:
    """As a column tells, as --groups says, or as names do, unless they tell the class."""
    named = {photos[one.file.path].key: one.values[GROUP] for one in found if GROUP in one.values}
    by_column = options.groups is None or any(GROUP in one.values for one in found)
    if named and by_column and options.groups != grouping.NONE:
        return grouping.Groups(named, "the column of the table")
    stems = {own.key: own.path.rpartition("/")[2].rpartition(".")[0] for own in photos.values()}
    made = grouping.proposed(stems, options.groups)
    return made if made and (options.groups or len(set(made.of.values())) > classes) else None


def _parts(found: Sequence[Labelled], photos: Mapping[str, Photo], told: Sequence[Told]) -> dict[str, str]:
    """Part by key, as a column or the names of the tables tell; {} where none does."""
    values = {photos[one.file.path].key: one.values.get(SPLIT) for one in found}
    named = {key: value for key, value in values.items() if value is not None}
    if not named:
        return {}
    own = next((one for one in told if one.columns.split is not None), told[0])
    what = own.table.name
    if own.columns.split is not None:
        what += f": column {own.table.headings[own.columns.split]}"
    if missing := sorted(values.keys() - named.keys()):
        raise UserError(f"{what}: is empty for {len(missing)} images, for example {missing[0]}; fill it in")
    return part_folders.by_value(named, what)


def _splits(
    part_of: Mapping[str, str], fold_of: Mapping[str, str], label_of: Mapping[str, int], options: Options
) -> MakeSplits:
    """The parts or folds that tables tell, else random ones."""

    def make(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        keys = ids["all"]
        if part_of:
            own = {part: [key for key in keys if part_of[key] == part] for part in PARTS}
            return {TABLE: part_folders.published(own, groups, DEFAULT_SEEDS[0], "the table of the source")}
        if fold_of:
            return {f"{TABLE}_fold{number}": _fold(keys, fold_of, number) for number in _numbers(fold_of)}
        labels = {key: label_of[key] for key in keys}
        return class_folders.splits(keys, labels, groups, options.ratio, options.seeds)

    return make


def _numbers(fold_of: Mapping[str, str]) -> list[str]:
    return sorted(set(fold_of.values()), key=int)


def _fold(keys: Sequence[str], fold_of: Mapping[str, str], number: str) -> Split:
    held_out = [key for key in keys if fold_of[key] == number]
    return fixed(
        f"fold {number} of the table is val", train=[key for key in keys if fold_of[key] != number], val=held_out
    )
