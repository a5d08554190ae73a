"""Images and masks that a table pairs, or of which it says what they are for and whose they are: `--csv`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import tables
from rwkvctl.data.convert.discover import Problems, normal_id
from rwkvctl.data.convert.formats.base import Options
from rwkvctl.data.convert.pattern_pairs import Found, Id, Matched
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.convert.table_columns import (
    ENDINGS,
    GROUP,
    LEAST,
    SPLIT,
    Chosen,
    Columns,
    Table,
    Tails,
    columns,
    images_of,
    is_column,
    load,
    read,
    share,
)


@dataclass(frozen=True)
class Listing:
    """The table that the user gave, and what its columns are; pairs: whether its rows are the pairs."""

    table: Table
    columns: Columns
    tails: Tails
    pairs: bool
    by_column: bool
    """Whether a column tells the groups."""


def is_table(text: str | None) -> bool:
    return text is not None and text.lower().endswith((*ENDINGS, ".txt"))


def listing(source: Source, options: Options) -> Listing | None:
    """What `--csv`, or a table as `--split-from`, says; None without one."""
    place, option = (options.csv, "--csv") if options.csv else (options.split_from, "--split-from")
    if place is None or (not is_table(place) and not options.csv):
        return None
    table, tails = load(source, place, option), Tails(images_of(source))
    _refuse_unknown_columns(table, options)
    named = {
        "image": options.images,
        "mask": options.masks,
        SPLIT: None if is_table(options.split_from) else options.split_from,
        GROUP: options.groups,
    }
    chosen = Chosen(**{kind: name or "" for kind, name in named.items() if is_column(table, name)})
    own = columns(table, tails, chosen)
    headings = ", ".join(table.headings)
    if own is None:
        raise UserError(f"{table.name}: no column has names of images in {source}; there is {headings}")
    by_patterns = bool(options.images) and not chosen.image
    if not by_patterns and own.mask is None:
        raise UserError(
            f"{table.name}: no column has names of masks in {source}; there is {headings}; give --images and --masks, "
            "patterns whose images the table describes"
        )
    if is_table(options.split_from) and own.split is None:
        raise UserError(f"{table.name}: no column tells train, val and test; there is {headings}")
    return Listing(
        table, own, tails, not by_patterns, (own.group is not None and options.groups is None) or bool(chosen.group)
    )


def _refuse_unknown_columns(table: Table, options: Options) -> None:
    """What is neither a column of the table nor a pattern."""
    for option, text in (("--images", options.images), ("--masks", options.masks)):
        if text and not is_column(table, text) and not any(sign in text for sign in "*?[{"):
            raise UserError(
                f"{option} {text}: is no column of {table.name} and no pattern; there is {', '.join(table.headings)}; "
                "name one of them, or give a pattern in quotes, as 'masks/*.png'"
            )


# From rows to pairs -------------------------------------------------------------------------------------------------


def matched(source: Source, listing: Listing, problems: Problems) -> Matched:
    """The pairs that the rows name. Rows without a file of theirs, or twice the same, are problems."""
    table, own, tails = listing.table, listing.columns, listing.tails
    pairs: dict[str, tuple[RawFile, dict[str, RawFile]]] = {}
    values: dict[str, dict[str, str]] = {}
    lines: dict[tuple[str, str], int] = {}
    for number, cells in table.rows:
        image = _file(table, number, table.cell(cells, own.image), tails, False, source, problems)
        mask = _file(table, number, table.cell(cells, own.mask), tails, True, source, problems) if image else None
        if image is None or mask is None:
            continue
        if image.path == mask.path:
            _add(problems, f"{table.name}: row {number}: image and mask are both {image.path}; correct one of them")
            continue
        if first := lines.get((image.path, mask.path)):
            _add(problems, f"{table.name}: row {number}: is row {first} again ({image.path}); remove one of them")
            continue
        lines[image.path, mask.path] = number
        pairs.setdefault(image.path, (image, {}))[1][mask.path] = mask
        _describe(table, number, cells, own, values.setdefault(image.path, {}), image, problems)
    ids = _ids(image for image, _ in pairs.values())
    images = {ids[path]: Found(image, values[path]) for path, (image, _) in pairs.items()}
    masks = {ids[path]: [Found(mask, {}) for mask in own.values()] for path, (_, own) in pairs.items()}
    return Matched(_root(file.file for file in images.values()), images, masks)


def annotate(found: Matched, listing: Listing, problems: Problems) -> list[str]:
    """Parts and groups of images that are paired by patterns, in place; a note of rows that are of none of them."""
    table, own = listing.table, listing.columns
    tails = Tails([one.file for one in found.images.values()])
    by_path: dict[str, dict[str, str]] = {}
    unknown = []
    for number, cells in table.rows:
        files = tails.of(table.cell(cells, own.image), masks=False)
        if len(files) != 1:
            unknown.append(table.cell(cells, own.image))
            continue
        _describe(table, number, cells, own, by_path.setdefault(files[0].path, {}), files[0], problems)
    for name, one in list(found.images.items()):
        if one.file.path in by_path:
            one.values.update(by_path[one.file.path])
        else:
            problems.leave_out(one.file, f"has no row in {table.name}; add one, or move the image elsewhere")
            del found.images[name], found.masks[name]
    shown = ", ".join(unknown[:3])
    return [f"{len(unknown)} rows of {table.name} are of no image: {shown}"] if unknown else []


def _file(
    table: Table, number: int, cell: str, tails: Tails, masks: bool, source: Source, problems: Problems
) -> RawFile | None:
    what = "mask" if masks else "image"
    if not cell:
        _add(problems, f"{table.name}: row {number}: has no {what}; add it, or remove the row")
        return None
    files = tails.of(cell, masks)
    if len(files) == 1:
        return files[0]
    if files:
        both = f"{files[0].path} and {files[1].path}"
        _add(problems, f"{table.name}: row {number}: its {what} {cell} may be {both}; write more of the path")
    else:
        _add(
            problems,
            f"{table.name}: row {number}: its {what} {cell} is not in the source; add it, or remove the row",
        )
    return None


def _describe(
    table: Table,
    number: int,
    cells: Sequence[str],
    own: Columns,
    values: dict[str, str],
    image: RawFile,
    problems: Problems,
) -> None:
    """Add part and group of a row to the `values` of its image; rows of one image must agree."""
    for name, column in ((SPLIT, own.split), (GROUP, own.group)):
        cell = table.cell(cells, column)
        if not cell:
            continue
        if values.setdefault(name, cell) != cell:
            said = f"{values[name]} and {cell}"
            _add(problems, f"{table.name}: row {number}: {image.path} is of {name} {said}; correct one of the rows")


def _add(problems: Problems, text: str) -> None:
    if problems.lenient:
        _, _, why = text.partition(": row ")
        problems.excluded.append({"id": f"row {why.partition(':')[0]}", "why": text})
    else:
        problems.add(text)


def _ids(files: Iterable[RawFile]) -> dict[str, Id]:
    """By path: the name without its ending, or, where names are not unique, the whole path."""
    every = list(files)
    stems = Counter(normal_id(file.stem) for file in every)
    plain = all(n == 1 for n in stems.values())
    return {
        file.path: (normal_id(file.stem),)
        if plain
        else ("/".join(map(normal_id, file.path.rpartition(".")[0].split("/"))),)
        for file in every
    }


def _root(files: Iterable[RawFile]) -> str:
    """The folder that holds all of them."""
    folders = [file.parent.split("/") for file in files]
    common = []
    for level in zip(*folders, strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return "/".join(common[:-1] if common else [])


# In a source of unknown layout --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Seen:
    """A table that lies in a source, and what its columns are."""

    file: RawFile
    table: Table
    columns: Columns


def seen_in(source: Source) -> list[Seen]:
    """Tables that name images of the source, those with masks first."""
    found = []
    tails: Tails | None = None
    for file in source.files:
        if file.suffix not in ENDINGS or file.size > tables.MOST_BYTES:
            continue
        try:
            table = read(file)
        except (UserError, ValueError):
            continue
        tails = tails or Tails(images_of(source))
        own = columns(table, tails, Chosen())
        if (
            own
            and share(table, own.image, tails) >= LEAST
            and (own.mask is not None or own.split is not None or own.group is not None)
        ):
            found.append(Seen(file, table, own))
    return sorted(found, key=lambda one: (one.columns.mask is None, -len(one.table.rows)))


def leaks(parts: Mapping[str, str], groups: Mapping[str, str]) -> str:
    """Groups with images in several parts, three by name; "" when there are none."""
    of: dict[str, set[str]] = defaultdict(set)
    for key, part in parts.items():
        if key in groups:
            of[groups[key]].add(part)
    torn = {name: own for name, own in of.items() if len(own) > 1}
    if not torn:
        return ""
    shown = "; ".join(f"{name} in {' and '.join(sorted(own))}" for name, own in list(torn.items())[:3])
    return (
        f"LEAK: {len(torn)} of {len(of)} groups (patients) have images in several parts: {shown}"
        f"{'; ...' if len(torn) > 3 else ''}; scores on them say little of new patients"
    )
