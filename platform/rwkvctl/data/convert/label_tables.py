"""Tables that say which class an image is of: a column of labels, or one column a class with 0 and 1.

Several tables are one: those with labels are put one below the other, and others add the part and patient of their
images, as ISIC 2019 keeps labels and lesions apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import part_folders, table_columns, tables
from rwkvctl.data.convert.sources import Source
from rwkvctl.data.convert.table_columns import GROUP, SPLIT, Chosen, Columns, Table, Tails

_HEADINGS = """label labels class classname class_name class_label category target y image_label
    diagnosis diagnostic diagnose dx finding finding_labels disease condition pathology grade dr_grade
    level severity stage
    klasse befund diagnóstico diagnostico etiqueta clase classe etichetta 标签 类别 诊断"""
"""What columns of labels are usually called, the surest first."""
ONE, ZERO = frozenset({"1", "1.0", "true"}), frozenset({"0", "0.0", "false"})
_LEAST_ONE_HOT = 0.9
"""Of the rows, those in which one of the columns is 1, where the user has not said which columns are the classes."""


@dataclass(frozen=True)
class Told:
    """A table, its columns, and those of the labels: one, or one a class; none where it only describes."""

    table: Table
    columns: Columns
    labels: tuple[int, ...]
    part: str | None = None
    """What its name says its images are for."""

    def __str__(self) -> str:
        headings = [self.table.headings[n] for n in self.labels]
        told = f", label is column {' or '.join(headings)}" if headings else ""
        return f"{self.table.name}: {self.columns.told(self.table)}{told}"


# Which tables, and which of their columns --------------------------------------------------------------------------


def told_by(source: Source, places: Sequence[str], labels: str | None, chosen: Chosen) -> list[Told]:
    """The tables that the user gave, or those in the source; UserError where none says what images are of."""
    tails = Tails(table_columns.images_of(source))
    if not places:
        found = _found_in(source, tails, labels, chosen)
        if not found:
            raise UserError(
                f"{source}: no table here has images of the source and a label for each; give one with --csv, and "
                "--labels COLUMN where the column is not called label, class, diagnosis or the like"
            )
        return found
    loaded = [table_columns.load(source, place) for place in places]
    _refuse_unknown(loaded, {"images": chosen.image, SPLIT: chosen.split, GROUP: chosen.group})
    told = [_told(table, tails, _known(table, chosen), labels) for table in loaded]
    for table, own in zip(loaded, told, strict=True):
        if own is None:
            headings = ", ".join(table.headings)
            raise UserError(
                f"{table.name}: no column has names of images in {source}; there is {headings}; name it with --images"
            )
    made = [own for own in told if own]
    if not any(own.labels for own in made):
        table = made[0].table
        wanted = f"has no column {labels!r} for --labels" if labels else "no column is called as labels are"
        raise UserError(f"{table.name}: {wanted}; there is {', '.join(table.headings)}; name it with --labels COLUMN")
    return made


def _refuse_unknown(loaded: Sequence[Table], names: dict[str, str]) -> None:
    for option, name in names.items():
        if name and not any(table_columns.is_column(table, name) for table in loaded):
            flag = {SPLIT: "split-from", GROUP: "groups"}.get(option, option)
            there = ", ".join(dict.fromkeys(heading for table in loaded for heading in table.headings))
            raise UserError(f"--{flag} {name}: {loaded[0].name} has no such column; there is {there}")


def _known(table: Table, chosen: Chosen) -> Chosen:
    """The columns that this one of several tables has."""
    own = {kind: name for kind, name in vars(chosen).items() if table_columns.is_column(table, name)}
    return Chosen(**own)


def found_in(source: Source) -> list[Told]:
    """The tables of a source of unknown layout that label its images; none where they say which masks they have."""
    if not any(file.suffix in table_columns.ENDINGS for file in source.files):
        return []  # before a million images are looked at
    return _found_in(source, Tails(table_columns.images_of(source)), None, Chosen())


def _found_in(source: Source, tails: Tails, labels: str | None, chosen: Chosen) -> list[Told]:
    told = []
    for file in source.files:
        if file.suffix not in table_columns.ENDINGS or file.size > tables.MOST_BYTES:
            continue
        try:
            table = table_columns.read(file)
            own = _told(table, tails, _known(table, chosen), labels)
        except (UserError, ValueError):
            continue
        if own and own.columns.mask in (None, *own.labels) and _share(own, tails) >= table_columns.LEAST:
            told.append(own)
    sure = [own for own in told if own.labels]
    if not sure:
        return []
    first = max(sure, key=lambda own: len(own.table.rows))
    names = [first.table.headings[n] for n in first.labels]
    sure = [own for own in sure if [own.table.headings[n] for n in own.labels] == names]
    if any(own.part is None for own in sure):
        sure = [first]
    described = [own for own in told if not own.labels and (own.columns.group, own.columns.split) != (None, None)]
    return [*sure, *described]


def _share(told: Told, tails: Tails) -> float:
    return table_columns.share(told.table, told.columns.image, tails)


def _told(table: Table, tails: Tails, chosen: Chosen, labels: str | None) -> Told | None:
    own = table_columns.columns(table, tails, chosen)
    if own is None:
        return None
    return Told(table, own, _label_columns(table, own, labels), part_folders.part_of(table.name.removeprefix("--csv ")))


def _label_columns(table: Table, own: Columns, wanted: str | None) -> tuple[int, ...]:
    if wanted:
        names = wanted.split(",") if not table_columns.is_column(table, wanted) else [wanted]
        numbers = [table_columns.number_of(table, name.strip()) for name in names]
        missing = [name for name, number in zip(names, numbers, strict=True) if number is None]
        if missing and len(missing) < len(names):
            raise UserError(
                f"{table.name}: has no column {missing[0]!r} for --labels; there is {', '.join(table.headings)}"
            )
        return tuple(number for number in numbers if number is not None)
    usual = _usual(table)
    return usual[:1] or _one_hot(table, own)


def _usual(table: Table) -> tuple[int, ...]:
    """The columns that are called as labels are, the surest first."""
    words = _HEADINGS.split()
    named = {n: word for n, heading in enumerate(table.headings) if (word := table_columns.word(heading)) in words}
    return tuple(sorted(named, key=lambda n: words.index(named[n])))


def _one_hot(table: Table, own: Columns) -> tuple[int, ...]:
    """The columns with 0 and 1 alone, of which each row has one 1."""
    taken = {own.image, own.mask, own.split, own.group}
    binary = tuple(
        n
        for n in range(len(table.headings))
        if n not in taken and all(table.cell(cells, n).lower() in ONE | ZERO for _, cells in table.rows)
    )
    ones = sum(sum(table.cell(cells, n).lower() in ONE for n in binary) == 1 for _, cells in table.rows)
    return binary if len(binary) > 1 and ones >= _LEAST_ONE_HOT * len(table.rows) else ()


def others(told: Iterable[Told]) -> list[str]:
    """A note of further columns that may be the labels."""
    notes = []
    for own in told:
        rest = [own.table.headings[n] for n in _usual(own.table) if n not in own.labels]
        if own.labels and rest:
            notes.append(f"{own.table.name}: {', '.join(rest)} may be labels too; --labels takes another column")
    return notes
