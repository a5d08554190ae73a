"""The format `pairs`: one's own images and masks under any names, paired by two patterns that the user gives.

    --images 'Bilder/*.tif' --masks 'Masken/*_maske.gif'

What only `--masks` has (`masks/*_{n}.png`) tells several masks of one image apart: objects to be joined, annotators of
whom one is wanted, or one file a class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import (
    discover,
    field_of_view,
    grouping,
    mask_wildcards,
    pair_tables,
    part_folders,
    part_lists,
    pattern_channels,
    pattern_pairs,
)
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import volume_pairs
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.folder import ClassIds, mask_reader
from rwkvctl.data.convert.formats.pairs import Pair, pairs_plan
from rwkvctl.data.convert.name_patterns import parse
from rwkvctl.data.convert.pair_tables import Listing
from rwkvctl.data.convert.part_lists import LISTS
from rwkvctl.data.convert.pattern_pairs import Id, Matched
from rwkvctl.data.convert.sources import Source, natural_key
from rwkvctl.data.convert.table_columns import is_column
from rwkvctl.data.convert.voxel_files import is_volume
from rwkvctl.data.images.files import EXTENSIONS
from rwkvctl.data.store.splits import DEFAULT_SEEDS, Split, grouped_splits, parse_ratio, random_splits

DATASET = Dataset(
    name="pairs",
    title="any images or volumes with masks, paired by two patterns",
    task="segmentation",
    classes=("background", "foreground"),
    expected={},
    forms={"patterns": "--images 'Bilder/*.tif' --masks 'Masken/*_maske.gif'; a mask has what * is in its image"},
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
        "annotator",
        "split_from",
        "csv",
        "intensity",
    ),
)
FOLDERS, TABLE, EXPRESSION = "folders", "table", "expression"
OF_GROUPS = ("group", "patient")
SPLIT = "split"
"""The wildcard that says the part."""


def recognise(source: Source) -> str | None:
    """Nothing is known of it without patterns; `data.guess` finds some."""
    return None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Pair by the patterns; every image and mask without a partner is a problem."""
    listing = pair_tables.listing(source, options)
    if not (listing and listing.pairs) and not (options.images and options.masks):
        raise UserError(
            "--images and --masks: give a pattern each, in quotes: --images 'images/*.png' --masks 'masks/*_mask.png'"
        )
    _check_split_from(source, options, listing)
    classes = options.classes or DATASET.classes
    if len(classes) < 2:
        raise UserError("--classes: name at least two, the background first")
    parse_ratio(options.ratio or "8:1:1")  # said before anything is read
    found, notes = _found(source, options, listing, problems)
    by_rows = listing is not None and listing.pairs
    given = f"--csv {options.csv}" if by_rows else f"--images {options.images} --masks {options.masks}"
    every = [one.file for own in found.masks.values() for one in own]
    of_volumes = any(is_volume(own.file) for own in found.images.values())
    if not of_volumes and (fields := field_of_view.found(every)):
        problems.add(f"{source}: {given}: masks show {fields}, not labels; give those of the labels")
    if options.annotator is not None:
        mask_wildcards.take_annotator(found, options.annotator, problems)
    mask_wildcards.refuse_other_parts(found)
    class_of = mask_wildcards.class_words(options, classes)
    by_class = mask_wildcards.class_wildcard(found, class_of, options)
    pairs = _pairs(found, by_class, class_of, options.dataset)
    if options.intensity is not None and not of_volumes:
        raise UserError("--intensity: is for volumes; leave it out")
    if options.more_images:
        patterns = _image_patterns(options)
        pairs = pattern_channels.with_others(source, found.root, patterns, pairs, problems, of_volumes)
    if not pairs and not problems.found:
        problems.add(f"{source}: no image has a mask by {given}")
    made = _planned(source, found, pairs, by_class, classes, options, problems, listing, notes, of_volumes)
    if options.more_images and not of_volumes:
        made.settle = pattern_channels.settle(_image_patterns(options))
    return made


def _image_patterns(options: Options) -> list[str]:
    """All of `--images`; UserError for what goes with one alone."""
    if options.range is not None or not options.images:
        what = "--range" if options.range is not None else "--csv"
        raise UserError(f"{what}: is for images of one file each; leave it out, or give --images once")
    return [options.images, *(options.more_images or ())]


def _check_split_from(source: Source, options: Options, listing: Listing | None) -> None:
    text = options.split_from
    if text is not None and part_lists.is_told(source, text):
        if listing:
            raise UserError(f"--split-from {text}: lists go with --images and --masks; leave out {listing.table.name}")
        return
    if text in (None, FOLDERS) or (listing and (pair_tables.is_table(text) or is_column(listing.table, text))):
        return
    if "(" not in str(text):
        known = f", a column of {', '.join(listing.table.headings)}" if listing else ""
        raise UserError(
            f"--split-from {text}: give {FOLDERS}, {LISTS}{known}, a table (.csv), or a pattern: '(train|test)'"
        )


def _found(source: Source, options: Options, listing: Listing | None, problems: Problems) -> tuple[Matched, list[str]]:
    """Images and masks by the rows of the table, or by the patterns; and notes."""
    notes: list[str] = []
    if listing and listing.pairs:
        found = pair_tables.matched(source, listing, problems)
    else:
        image, mask = parse("--images", str(options.images)), parse("--masks", str(options.masks))
        volumes = volume_pairs.meant(source.files, image, mask)
        if options.split_from is not None and part_lists.is_told(source, options.split_from):
            aside = Problems(str(source), lenient=True)
            found = pattern_pairs.matched(source, image, mask, aside, volumes)
            notes = _by_lists(source, options.split_from, found, aside, problems)
        else:
            found = pattern_pairs.matched(source, image, mask, problems, volumes)
        notes += pair_tables.annotate(found, listing, problems) if listing else []
    if listing:
        notes.append(f"{listing.table.name}: {listing.columns.told(listing.table)}")
        if listing.columns.folds is not None:
            folds = listing.table.headings[listing.columns.folds]
            notes.append(f"{listing.table.name}: column {folds} does not tell train, val and test, and was left out")
    return found, notes


def _by_lists(source: Source, told: str, found: Matched, aside: Problems, problems: Problems) -> list[str]:
    """Keep the images of lists, with their parts, in place; notes. An image without a mask is a problem if it is in one
    of them. aside: what is wrong with the files, whether they are in lists or not."""
    by_path = {file.path: file for file in source.files}
    images = {one.file.path: name for name, one in found.images.items()}
    bare = [(by_path[own["id"]], own["why"]) for own in aside.excluded if own["why"].startswith(discover.NO_MASK)]
    every = [one.file for one in found.images.values()] + [file for file, _ in bare]
    lists = part_lists.read(source, told, every, images.keys())
    notes = part_lists.apply(lists, images.keys(), bare, problems)
    problems.found += aside.found
    for own in aside.excluded:
        if not own["why"].startswith(discover.NO_MASK):
            problems.leave_out(by_path[own["id"]], own["why"])
    for path, name in images.items():
        if path in lists.of:
            found.images[name].values[SPLIT] = lists.of[path]
        else:
            del found.images[name], found.masks[name]
    return notes


# From pairs to a plan -----------------------------------------------------------------------------------------------


def _pairs(found: Matched, by_class: str | None, class_of: Mapping[str, int], dataset: str) -> dict[Id, Pair]:
    """In natural order of their ids."""
    texts = {"/".join(filter(None, name)): name for name in found.images}
    names = sorted(texts, key=natural_key)
    digits = max([4, *(len(name) for name in names if name.isdigit())])
    keys = discover.sample_keys(dataset, names, digits)
    pairs = {}
    for text in names:
        image, masks = found.images[texts[text]], found.masks[texts[text]]
        group = next((image.values[name] for name in OF_GROUPS if name in image.values), None)
        layers = tuple(class_of[mask_wildcards.same(one.values[by_class])] for one in masks) if by_class else ()
        pairs[texts[text]] = Pair(keys[text], image.file, tuple(one.file for one in masks), group, layers=layers)
    return pairs


def _planned(
    source: Source,
    found: Matched,
    by_id: Mapping[Id, Pair],
    by_class: str | None,
    classes: Sequence[str],
    options: Options,
    problems: Problems,
    listing: Listing | None,
    more_notes: Sequence[str],
    of_volumes: bool,
) -> Plan:
    """With groups and splits, and what is worth a warning."""
    pairs = list(by_id.values())
    paths = {pair.key: _without_ending(discover.relative(pair.image, found.root)) for pair in pairs}
    told = _told_parts(found, by_id, options, listing)
    part: dict[str, str] = dict.fromkeys(paths, "all")
    if told == FOLDERS:
        part, depth = part_folders.by_folder(paths)
        paths = {key: "/".join(_without(path.split("/"), depth)) for key, path in paths.items()}
    elif told == EXPRESSION:
        part = part_folders.by_expression(paths, str(options.split_from))
    elif isinstance(told, dict):
        part = told
    groups = _groups(pairs, paths, options.groups, listing)
    if groups:
        pairs = [replace(pair, group=groups.of.get(pair.key)) for pair in pairs]
    has_groups = any(pair.group for pair in pairs)

    def make_splits(ids: Mapping[str, Sequence[str]], of: Mapping[str, str]) -> dict[str, Split]:
        if told:
            name, what = FOLDERS, "the folders of the source"
            if options.split_from and part_lists.is_told(source, options.split_from):
                name, what = LISTS, "the lists of the source"
            if listing and isinstance(told, dict):
                name, what = TABLE, "the table of the source"
            return {name: part_folders.published(ids, of, (options.seeds or DEFAULT_SEEDS)[0], what)}
        random = random_splits(ids["all"], options.ratio, options.seeds)
        return (grouped_splits(ids["all"], of, options.ratio, options.seeds) if has_groups else {}) | random

    known = {file.path for pair in pairs for file in pair.files} | {own["id"] for own in problems.excluded}
    notes = [*more_notes, *mask_wildcards.note(found, by_class)]
    if told and groups and (leak := pair_tables.leaks(part, groups.of)):
        notes.insert(0, leak)
    unused = [] if problems.found else _unused(source, known, of_volumes)
    if of_volumes:
        labels = volume_pairs.labels(options, classes, by_class is not None)
        parts = part if told else None
        made = volume_pairs.planned(source, found.root, pairs, labels, options, problems, groups, parts)
        made.warnings += [*notes, *unused, *discover.left_aside(source)]
        return made
    notes += [groups.note(splits=not told)] if groups else []
    read_mask = ClassIds(2) if by_class else mask_reader(options, len(classes))
    return pairs_plan(
        DATASET,
        options,
        "a table" if listing and listing.pairs else f"{options.images} and {options.masks}",
        {name: [pair for pair in pairs if part[pair.key] == name] for name in dict.fromkeys(part.values())},
        read_mask,
        make_splits,
        root=found.root,
        mask_rule=f"one file a class; {read_mask.rule}" if by_class else None,
        warnings=[*notes, *unused, *discover.left_aside(source)],
    )


def _told_parts(
    found: Matched, by_id: Mapping[Id, Pair], options: Options, listing: Listing | None
) -> dict[str, str] | str:
    """Part by key where a table or `{split}` tells it; FOLDERS or EXPRESSION where paths do; "" without any."""
    if not by_id or not (options.split_from or (listing and listing.columns.split is not None)):
        return ""
    values = {pair.key: found.images[name].values.get(SPLIT) for name, pair in by_id.items()}
    named = {key: value for key, value in values.items() if value is not None}
    if listing and listing.columns.split is not None:
        column = f"{listing.table.name}: column {listing.table.headings[listing.columns.split]}"
        if missing := sorted(values.keys() - named.keys()):
            raise UserError(f"{column}: is empty for {len(missing)} images, for example {missing[0]}; fill it in")
        return part_folders.by_value(named, column)
    if named:
        return part_folders.by_value(named)
    return FOLDERS if options.split_from == FOLDERS else EXPRESSION


def _groups(
    pairs: Sequence[Pair], paths: Mapping[str, str], choice: str | None, listing: Listing | None
) -> grouping.Groups | None:
    """As `--groups` says, as {group} or {patient} in the pattern or a column tells, or as names and folders do."""
    named = {pair.key: pair.group for pair in pairs if pair.group}
    if named and listing and listing.by_column:
        column = listing.table.headings[listing.columns.group or 0]
        return grouping.Groups(named, f"column {column} of {listing.table.name}")
    return grouping.Groups(named, "the pattern") if named and choice is None else grouping.proposed(paths, choice)


def _without(parts: list[str], depth: int) -> list[str]:
    return parts[:depth] + parts[depth + 1 :]


def _without_ending(path: str) -> str:
    return path.rpartition(".")[0].removesuffix(".nii")


def _unused(source: Source, known: Set[str], volumes: bool) -> list[str]:
    files = [file for file in source.files if file.path not in known]
    left = [file for file in files if (is_volume(file) if volumes else file.suffix in EXTENSIONS)]
    if not left:
        return []
    names = ", ".join(file.path for file in left[: discover.EXAMPLES])
    more = ", ..." if len(left) > discover.EXAMPLES else ""
    kind = "volumes" if volumes else "image files"
    return [f"{len(left)} {kind} are no part of a pair and were left out: {names}{more}"]
