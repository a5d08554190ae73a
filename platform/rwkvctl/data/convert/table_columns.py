"""Which column of a table names images, which masks, parts and patients.

Paths in them may be those of another machine: a cell is the file that has most folders from its end in common with it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import name_words, part_folders, tables
from rwkvctl.data.convert.sources import RawFile, Source, on_disk
from rwkvctl.data.images.files import EXTENSIONS

ENDINGS = (".csv", ".tsv", ".tab")
GROUP, SPLIT = "group", "split"
_HEADINGS = {
    "image": """image img image_path img_path imagepath imgpath image_file img_file image_name img_name image_filename
        image_id filename file_name filepath file path photo picture images bild imagen foto input name id
        img_id isic_id id_code image_index 图像""",
    "mask": """mask mask_path maskpath mask_file mask_name mask_filename masks label label_path segmentation
        segmentation_path seg annotation gt ground_truth target maske mascara máscara output 标签""",
    SPLIT: """split set subset part partition phase usage group_split dataset_split data_split mode satz fold""",
    GROUP: """patient patient_id patientid subject subject_id case case_id pid group person participant study study_id
        lesion_id lesion sequence video eye_id animal mouse slide slide_id paciente paziente""",
}
"""What columns are usually called, the surest first."""
LEAST = 0.5
"""A column of which fewer cells are files of the source is none of files."""
_LOOKED_AT = 200


@dataclass(frozen=True)
class Table:
    """name: as messages call it; rows: line number and cells."""

    name: str
    headings: tuple[str, ...]
    rows: tuple[tuple[int, tuple[str, ...]], ...]

    def cell(self, cells: Sequence[str], column: int | None) -> str:
        return cells[column] if column is not None and column < len(cells) else ""


@dataclass
class Columns:
    """Their numbers, None for what there is no column of; folds: one that numbers folds instead of telling parts."""

    image: int
    mask: int | None = None
    split: int | None = None
    group: int | None = None
    folds: int | None = None

    def told(self, table: Table) -> str:
        """`image is column path, split is column set`"""
        named = {"image": self.image, "mask": self.mask, SPLIT: self.split, GROUP: self.group}
        return ", ".join(f"{what} is column {table.headings[n]}" for what, n in named.items() if n is not None)


@dataclass
class Chosen:
    """Columns that the user named, "" for those that are to be found."""

    image: str = ""
    mask: str = ""
    split: str = ""
    group: str = ""


def load(source: Source, place: str, option: str = "--csv") -> Table:
    """The table at a path of this machine, or below the source."""
    path = Path(place).expanduser()
    inside = [file for file in source.files if file.path == place or file.path.endswith(f"/{place}")]
    if path.is_file():
        return read(on_disk(path), option)
    if len(inside) != 1:
        raise UserError(f"{option} {place}: does not exist, here or in {source}; give the path of the table")
    return read(inside[0], option)


def read(file: RawFile, option: str = "--csv") -> Table:
    name = f"{option} {file.name}"
    try:
        rows = tables.rows_of(tables.decoded(file.read(), name))
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(name) else f"{name}: {error}") from error
    if len(rows) < 2:
        raise UserError(
            f"{name}: has no rows below its headings; give a table with a line of headings and one an image"
        )
    return Table(name, tuple(rows[0][1]), tuple((number, tuple(cells)) for number, cells in rows[1:]))


# Files by the ends of their paths -----------------------------------------------------------------------------------


@dataclass
class Tails:
    """The images of a source, to be found by what a cell of a table says."""

    files: Sequence[RawFile]
    by_name: dict[str, list[tuple[list[str], RawFile]]] = field(default_factory=lambda: defaultdict(list))

    def __post_init__(self) -> None:
        for file in self.files:
            parts = _parts(file.path)
            self.by_name[parts[-1]].append((parts, file))
            stem = parts[-1].rpartition(".")[0].removesuffix(".nii")
            self.by_name[stem].append(([*parts[:-1], stem], file))

    def of(self, cell: str, masks: bool) -> list[RawFile]:
        """The files that a cell may mean: one, none, or several that it does not tell apart."""
        parts = _parts(cell)
        found = self.by_name.get(parts[-1], []) if parts else []
        if not found:
            return []
        common = [_common(parts, own) for own, _ in found]
        best = [file for (_, file), n in zip(found, common, strict=True) if n == max(common)]
        fitting = [file for file in best if name_words.says_mask(file.path) == masks]
        return list(dict.fromkeys(fitting if len(best) > 1 and fitting else best))


def _parts(path: str) -> list[str]:
    r"""`C:\Data\A\1.PNG` -> c:, data, a, 1.png."""
    plain = unicodedata.normalize("NFC", path).replace("\\", "/").lower()
    return [part for part in plain.split("/") if part not in ("", ".")]


def _common(first: Sequence[str], second: Sequence[str]) -> int:
    """How many parts from the end on are the same."""
    pairs = zip(reversed(first), reversed(second), strict=False)
    return next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(first), len(second)))


# Columns ------------------------------------------------------------------------------------------------------------


def columns(table: Table, tails: Tails, chosen: Chosen) -> Columns | None:
    """Which column is what: as chosen, as headings are usual, or as cells are files; None without one of images."""
    numbers = range(len(table.headings))
    known = [n for n in numbers if share(table, n, tails) >= LEAST]
    paths = [n for n in known if _looks_like_paths(table, n)]
    own = {kind: _chosen(table, getattr(chosen, kind), kind) for kind in _HEADINGS}
    usual = {kind: _usual(table, kind, known) for kind in _HEADINGS}
    mask = own["mask"] if own["mask"] is not None else usual["mask"]
    image = own["image"] if own["image"] is not None else usual["image"] if usual["image"] != mask else None
    if image is None:
        image = next((n for n in paths if n != mask), None)
    if image is None:
        return None
    if mask is None:
        mask = next((n for n in paths if n != image), None)
    split, folds = own[SPLIT] if own[SPLIT] is not None else usual[SPLIT], None
    if split is not None and own[SPLIT] is None and not _tells_parts(table, split):
        split, folds = None, split
    if split is None:
        split = next((n for n in numbers if _tells_nothing_else(table, n)), None)
    return Columns(image, mask, split, own[GROUP] if own[GROUP] is not None else usual[GROUP], folds)


def _looks_like_paths(table: Table, column: int) -> bool:
    """Whether cells have a folder or an ending, as an age has not."""
    cells = [table.cell(cells, column).lower() for _, cells in table.rows[:_LOOKED_AT]]
    return sum("/" in cell or "\\" in cell or cell.endswith(tuple(EXTENSIONS)) for cell in cells) >= LEAST * len(cells)


def _chosen(table: Table, name: str, kind: str) -> int | None:
    if not name:
        return None
    number = number_of(table, name)
    if number is None:
        raise UserError(f"{table.name}: has no column {name!r} for {kind}; there is {', '.join(table.headings)}")
    return number


def number_of(table: Table, name: str) -> int | None:
    """Which column is called so, whatever the case and the signs between the words."""
    return next((n for n, heading in enumerate(table.headings) if word(heading) == word(name)), None)


def is_column(table: Table, name: str | None) -> bool:
    return name is not None and number_of(table, name) is not None


def _usual(table: Table, kind: str, files: Sequence[int]) -> int | None:
    words = _HEADINGS[kind].split()
    found = [n for n, heading in enumerate(table.headings) if word(heading) in words]
    if kind in ("image", "mask"):
        found = [n for n in found if n in files]
    return min(found, key=lambda n: words.index(word(table.headings[n])), default=None)


def word(heading: str) -> str:
    """`Image Path` and `imagePath` -> `image_path`."""
    split = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", unicodedata.normalize("NFC", heading))
    return re.sub(r"[\W_]+", "_", split.lower()).strip("_")


def share(table: Table, column: int, tails: Tails) -> float:
    """Of the first cells of a column, those that are files of the source."""
    cells = [cell for _, cells in table.rows[:_LOOKED_AT] if (cell := table.cell(cells, column))]
    return sum(bool(tails.of(cell, masks=False)) for cell in cells) / max(1, len(cells))


def _tells_nothing_else(table: Table, column: int) -> bool:
    """Whether all cells of a column say train, val or test, whatever it is called."""
    found = {part_folders.part_of(table.cell(cells, column)) for _, cells in table.rows}
    return None not in found and {"train"} < found


def _tells_parts(table: Table, column: int) -> bool:
    return any(part_folders.part_of(table.cell(cells, column)) for _, cells in table.rows)


def images_of(source: Source) -> list[RawFile]:
    return [file for file in source.files if file.suffix in EXTENSIONS]
