"""The images that tables label: each once, with its class, part and patient."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rwkvctl.data.convert import part_folders, table_columns
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.label_tables import ONE, ZERO, Told
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.convert.table_columns import GROUP, SPLIT, Tails

FOLD = "fold"
_EMPTY = frozenset({"", "nan", "na", "n/a", "null", "-", "?"})
_HEAD = 1 << 16


@dataclass
class Labelled:
    """An image and what the tables say of it; row: where its label stands, for messages."""

    file: RawFile
    row: str
    label: str
    values: dict[str, str] = field(default_factory=dict)


def images(source: Source, told: Sequence[Told], problems: Problems) -> list[Labelled]:
    """Every image of a row, once. Rows without label or file, and images of two labels, are problems."""
    found: dict[str, Labelled] = {}
    tails = Tails(table_columns.images_of(source))
    parts = [own.part for own in told if own.labels]
    by_name = len(parts) > 1 and None not in parts
    for own in told:
        for number, cells in own.table.rows:
            row = f"{own.table.name}: row {number}"
            part = own.part if by_name else None
            file = _file(own.table.cell(cells, own.columns.image), part, tails, row, problems if own.labels else None)
            if file is None:
                continue
            one = found.get(file.path)
            if own.labels:
                label = _label(own, cells, row, problems)
                if label is None:
                    continue
                if one is not None and one.label != label:
                    where = one.row.rpartition(": ")[2] if one.row.startswith(own.table.name) else one.row
                    said = f"{one.label} in {where}, {label} here"
                    _add(problems, f"{row}: {file.path} has two labels ({said}); correct one, or remove both")
                    continue
                one = found.setdefault(file.path, Labelled(file, row, label))
            if one is not None:
                _describe(one, own, cells, row, by_name, problems)
    return list(found.values())


def _file(cell: str, part: str | None, tails: Tails, row: str, problems: Problems | None) -> RawFile | None:
    """The image of a cell, of equal names the one in a folder of the `part`. Without `problems` none is wanted: the
    table only describes."""
    files = tails.of(cell, masks=False) if cell else []
    if len(files) > 1 and part:
        files = [file for file in files if part_folders.part_of(file.parent) == part] or files
    files = _different(files)
    if len(files) == 1 or problems is None:
        return files[0] if files else None
    if not cell:
        _add(problems, f"{row}: names no image; add it, or remove the row")
    elif files:
        _add(problems, f"{row}: image {cell} may be {files[0].path} and {files[1].path}; write more of the path")
    else:
        _add(problems, f"{row}: image {cell} is not in the source; add it, or remove the row")
    return None


def _different(files: Sequence[RawFile]) -> list[RawFile]:
    """Without copies of a file in another folder, as packages of HAM10000 have them: of equal size and beginning."""
    if len(files) < 2 or len({file.size for file in files}) > 1:
        return list(files)
    beginnings = set()
    for file in files:
        with file.open() as stream:
            beginnings.add(stream.read(_HEAD))
    return list(files) if len(beginnings) > 1 else [files[0]]


def _label(own: Told, cells: Sequence[str], row: str, problems: Problems) -> str | None:
    values = [own.table.cell(cells, n) for n in own.labels]
    names = [own.table.headings[n] for n in own.labels]
    if len(values) == 1:
        if values[0].lower() in _EMPTY:
            _add(problems, f"{row}: has no label in column {names[0]}; fill it in, or remove the row")
            return None
        if "|" in values[0]:
            _add(problems, f"{row}: has several labels ({values[0]}); a classifier here has one class an image")
            return None
        return re.sub(r"^(-?\d+)\.0+$", r"\1", values[0])
    strange = next((n for n, value in enumerate(values) if value.lower() not in ONE | ZERO), None)
    if strange is not None:
        said = f"has {values[strange]!r} in column {names[strange]}, which is neither 0 nor 1"
        _add(problems, f"{row}: {said}; correct it")
        return None
    of = [name for name, value in zip(names, values, strict=True) if value.lower() in ONE]
    if len(of) != 1:
        count = f"{len(of)} labels ({', '.join(of)})" if of else "no label"
        _add(problems, f"{row}: has {count} in its columns of 0 and 1; a classifier here has one class an image")
        return None
    return of[0]


def _describe(one: Labelled, own: Told, cells: Sequence[str], row: str, by_name: bool, problems: Problems) -> None:
    said = {
        SPLIT: own.table.cell(cells, own.columns.split),
        GROUP: own.table.cell(cells, own.columns.group),
        FOLD: own.table.cell(cells, own.columns.folds),
    }
    if by_name and own.labels and own.columns.split is None:
        said[SPLIT] = own.part or ""
    for name, value in said.items():
        if value.lower() not in _EMPTY and one.values.setdefault(name, value) != value:
            _add(
                problems, f"{row}: {one.file.path} is of {name} {one.values[name]} and {value}; correct one of the rows"
            )


def _add(problems: Problems, text: str) -> None:
    if problems.lenient:
        problems.excluded.append({"id": text.partition(": row ")[2].partition(":")[0], "why": text})
    else:
        problems.add(text)


def spelled_alike(found: Sequence[Labelled]) -> list[str]:
    """Labels that differ in case alone become the most frequent of them, in place; a note of each."""
    counts = Counter(one.label for one in found)
    by_word: dict[str, list[str]] = {}
    for label in counts:
        by_word.setdefault(label.casefold(), []).append(label)
    for one in found:
        one.label = max(by_word[one.label.casefold()], key=lambda label: (counts[label], label))
    return [
        f"labels {', '.join(sorted(own))} differ in capitals alone and are taken for one"
        for own in by_word.values()
        if len(own) > 1
    ]
