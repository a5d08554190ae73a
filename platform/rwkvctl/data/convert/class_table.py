"""What the pixels of masks mean: `--classes` as names, as `name=value`, or as a table in a file.

background,polyp                        names by mask value 0, 1, ...
background=0,polyp=85-90,tool=#00ff00   a value, a range of values, or a colour
classes.csv, .json, .yaml, labelmap.txt a row a class: its name, and its value, its colour or the word that the
                                        files of its masks have in their names
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import tables

Colour = tuple[int, int, int]
Row = dict[str, Any]
"""What a row of a table says: name, value, colour, word."""

ENDINGS = (*tables.ENDINGS, ".json", ".yaml", ".yml")
IGNORED = 255
MOST_VALUE = 65535

_HEADINGS = {
    "name": "name class class_name classname label label_name category title organ structure klasse classe clase "
    "nombre nom nome",
    "value": "value id index pixel pixel_value pixelvalue grey gray grey_value gray_value label_id class_id classid "
    "label_value mask_value number code wert valeur valor label class",
    "colour": "colour color hex rgb color_rgb colour_rgb color_hex farbe couleur",
    "word": "file files word suffix folder pattern filename mask",
    "red": "r red",
    "green": "g green",
    "blue": "b blue",
}
_WRAPPERS = ("labels", "classes", "categories", "class_mapping", "label_map", "labelmap", "items", "names")
_BACKGROUND = re.compile(
    r"[\W_]*(?:background|backgrnd|bg|hintergrund|fond|arri[eè]re.?plan|fondo|sfondo|фон|背景)[\W_]*"
)
_IGNORE = re.compile(r"[\W_]*(?:ignored?|ignore.?index)[\W_]*")


@dataclass(frozen=True)
class ClassTable:
    """Classes by id, and what is of each: (first value, last value, id), (colour, id), (word of the file's name, id).

    Of values, colours and words each is there for all classes that have pixels, or for none; id 255 is what is ignored.
    """

    names: tuple[str, ...]
    values: tuple[tuple[int, int, int], ...] = ()
    colours: tuple[tuple[Colour, int], ...] = ()
    words: tuple[tuple[str, int], ...] = ()


def parse(text: str) -> Sequence[str] | ClassTable:
    """What `--classes` says: plain names, or a table. UserError for a file or line that is none."""
    if text.strip().lower().endswith(ENDINGS):
        return _of_file(Path(text.strip()).expanduser())
    parts = [part.strip() for part in text.split(",")]
    if not any("=" in part for part in parts):
        return parts
    rows = []
    for part in parts:
        name, sign, key = (word.strip() for word in part.rpartition("="))
        if not sign or not name or not key:
            raise UserError(
                f"--classes: {part!r} is not NAME=VALUE; give all or none of the classes a value or #rrggbb"
            )
        rows.append((f"--classes {part!r}", _row_of([name, key])))
    return _table(rows, "--classes")


def _of_file(path: Path) -> ClassTable:
    option = f"--classes {path}"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{option}: cannot be read ({error.strerror}); give the path of the table of classes"
        ) from error
    return from_bytes(path.name, data, option)


def from_bytes(name: str, data: bytes, option: str) -> ClassTable:
    """The table in a file called `name`; `option` begins the messages."""
    text = tables.decoded(data, option)
    try:
        if name.lower().endswith(".json"):
            found = _rows_of_document(json.loads(text))
        elif name.lower().endswith((".yaml", ".yml")):
            found = _rows_of_document(yaml.safe_load(text))
        elif name.lower().endswith(".txt") and _is_label_map(text):
            found = [_row_of(line.split(":")[:2]) for line in text.splitlines() if line[:1] != "#" and ":" in line]
        else:
            return _table(_rows_of_csv(text, option), option)
    except (json.JSONDecodeError, yaml.YAMLError, RecursionError) as error:
        where = " ".join(str(error).split())[:200]
        raise UserError(f"{option}: cannot be read ({where}); correct that place") from error
    except UserError as error:
        raise UserError(str(error) if str(error).startswith(option) else f"{option}: {error}") from error
    return _table([(f"{option}: entry {number}", row) for number, row in enumerate(found, 1)], option)


def _is_label_map(text: str) -> bool:
    """`background:0,0,0::` and the like, as CVAT writes it."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return bool(lines) and all(re.match(r"[^:]+:\s*\d+\s*,\s*\d+\s*,\s*\d+\s*(?::|$)", line) for line in lines)


# Rows of files ------------------------------------------------------------------------------------------------------


def _rows_of_csv(text: str, option: str) -> list[tuple[str, Row]]:
    try:
        lines = tables.rows_of(text)
    except UserError as error:
        raise UserError(f"{option}: {error}") from error
    if not lines:
        raise UserError(f"{option}: is empty; write a line a class: its name, and its value or #rrggbb")
    kinds = _headings(lines[0][1])
    rows = []
    for number, cells in lines[1:] if kinds else lines:
        row = _row_of(cells) if not kinds else _named(dict(zip(kinds, cells, strict=False)))
        rows.append((f"{option}: line {number}", row))
    return rows


def _headings(cells: Sequence[str]) -> list[str]:
    """What the columns hold by a first line of headings; [] for a line that is a class already."""
    words = [re.sub(r"[\W_]+", "_", cell.lower()).strip("_") for cell in cells]
    if not all(any(word in own.split() for own in _HEADINGS.values()) or not word for word in words[:2]):
        return []
    kinds: list[str] = []
    for word in words:
        fitting = (kind for kind, own in _HEADINGS.items() if word in own.split() and kind not in kinds)
        kinds.append(next(fitting, f"({word})"))
    if "name" not in kinds:
        return []
    first, second = kinds.index("name"), kinds.index("value") if "value" in kinds else -1
    if words[first] == "label" and "name" in words:  # `label,name`: the label is the value
        second = words.index("name")
        kinds[first], kinds[second] = "value", "name"
    return kinds


def _rows_of_document(content: Any) -> list[Row]:
    """Rows of a JSON or YAML file: a list of them, or names with their keys in either order."""
    if isinstance(content, dict):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), dict | list)), None)
        content = content if inner is None else inner
    if isinstance(content, dict):
        by_key = all(_key(key) for key in content)
        pairs = [(value, key) if by_key else (key, value) for key, value in content.items()]
        return [
            _named({"name": name, **key}) if isinstance(key, dict) else _row_of([name, *_listed(key)])
            for name, key in pairs
        ]
    if isinstance(content, list) and all(isinstance(own, str) for own in content):
        return [{"name": own, "value": number} for number, own in enumerate(content)]
    if isinstance(content, list) and all(isinstance(own, dict) for own in content):
        return [_named(_by_heading(own)) for own in content]
    if isinstance(content, list) and all(isinstance(own, list) for own in content):
        return [_row_of(own) for own in content]
    raise UserError("is not a list of classes, nor names with their values; write background: 0 and so on")


def _listed(key: Any) -> list[Any]:
    return key if isinstance(key, list) else [key]


def _by_heading(entry: Mapping[str, Any]) -> Row:
    headings = _headings([str(key) for key in entry]) or [str(key) for key in entry]
    return dict(zip(headings, entry.values(), strict=True))


def _row_of(cells: Sequence[Any]) -> Row:
    """A line without headings: the name, and a value, a colour in one cell or three, or a word; the name may be
    last."""
    cells = [cell for cell in cells if cell is not None and str(cell).strip()]
    if len(cells) > 1 and _key(cells[0]) and not _key(cells[-1]):
        cells = [cells[-1], *cells[:-1]]
    if len(cells) < 2:
        raise UserError(f"class {str(cells[0]) if cells else ''!r} has no value; write NAME,VALUE or NAME,#rrggbb")
    key = cells[1] if len(cells) == 2 else cells[1:4]
    found = _key(key) or {"word": str(key)}
    return {"name": str(cells[0]), **found}


def _named(row: Row) -> Row:
    """A row whose cells are named by headings."""
    made: Row = {"name": str(row.get("name", "")).strip()}
    for kind, cell in row.items():
        if kind in ("value", "colour") and cell not in (None, ""):
            key = _key(cell if kind == "value" else _as_colour(cell))
            if not key:
                raise UserError(f"class {made['name']!r}: {cell!r} is no {kind}; give " + _WANTED[kind])
            made |= key
        elif kind == "word" and cell:
            made["word"] = str(cell)
    if all(part in row for part in ("red", "green", "blue")):
        made |= _key([row["red"], row["green"], row["blue"]]) or {}
    return made


_WANTED = {"value": f"a whole number from 0 to {MOST_VALUE}, or a range 1-9", "colour": "#rrggbb, or r,g,b"}


def _as_colour(cell: Any) -> Any:
    text = str(cell).strip() if not isinstance(cell, list) else cell
    return f"#{text}" if isinstance(text, str) and re.fullmatch("[0-9a-fA-F]{6}", text) else text


def _key(cell: Any) -> Row:
    """`{"value": ...}` or `{"colour": ...}`; {} for what is neither."""
    if isinstance(cell, bool):
        return {}
    text = ",".join(str(part).strip() for part in cell) if isinstance(cell, list | tuple) else str(cell).strip()
    if match := re.fullmatch(r"(\d{1,5})(?:\s*-\s*(\d{1,5}))?", text):
        first, last = int(match[1]), int(match[2] or match[1])
        return {"value": (first, last)} if first <= last <= MOST_VALUE else {}
    if match := re.fullmatch("(?:#|0x)([0-9a-fA-F]{6})", text):
        return {"colour": tuple(bytes.fromhex(match[1]))}
    if match := re.fullmatch(r"(?:rgb)?[\[(]?\s*(\d{1,3})[\s,]+(\d{1,3})[\s,]+(\d{1,3})\s*[\])]?", text):
        colour = tuple(int(part) for part in match.groups())
        return {"colour": colour} if max(colour) < 256 else {}
    return {}


# From rows to a table -----------------------------------------------------------------------------------------------


def _table(rows: Iterable[tuple[str, Row]], option: str) -> ClassTable:
    """rows: where each stands, for messages, and what it says."""
    rows = list(rows)
    rows = [(where, row) for where, row in rows if row.get("name") or len(row) > 1]
    kinds = {kind: [where for where, row in rows if kind not in row] for kind in ("value", "colour", "word")}
    whole = [kind for kind, without in kinds.items() if rows and not without]
    if not rows or not whole:
        named = next((kind for kind in kinds if len(kinds[kind]) < len(rows)), "value")
        where = kinds[named][0] if rows else option
        raise UserError(f"{where}: has no {named}; give every class a value, every one a #rrggbb, or every one a word")
    names = _names(rows, whole)
    number = {name: IGNORED if _IGNORE.fullmatch(name.lower()) else n for n, name in enumerate(names)}
    for kind in whole:
        _refuse_doubled([(where, row["name"], row[kind]) for where, row in rows], kind)
    taken = [(row, number[row["name"]]) for _, row in rows]
    return ClassTable(
        tuple(name for name in names if number[name] != IGNORED),
        tuple((*row["value"], own) for row, own in taken) if "value" in whole else (),
        tuple((row["colour"], own) for row, own in taken) if "colour" in whole else (),
        tuple((row["word"], own) for row, own in taken) if "word" in whole else (),
    )


def _names(rows: Sequence[tuple[str, Row]], whole: Sequence[str]) -> list[str]:
    """Names in the order of the rows, the background first, what is ignored last. Where no row is the background, it is
    a class without pixels, so that every other one is scored."""
    for where, row in rows:
        if not row["name"]:
            raise UserError(f"{where}: has no name of a class; write one")
    names = list(dict.fromkeys(row["name"] for _, row in rows))
    black = [row["name"] for _, row in rows if row.get("value") == (0, 0) or row.get("colour") == (0, 0, 0)]
    background = next((name for name in names if _BACKGROUND.fullmatch(name.lower())), next(iter(black), None))
    if background is None:
        background = "background"
    kept = [name for name in names if not _IGNORE.fullmatch(name.lower())]
    ignored = [name for name in names if name not in kept]
    return [background, *(name for name in kept if name != background), *ignored]


def _refuse_doubled(keys: Sequence[tuple[str, str, Any]], kind: str) -> None:
    """One value or colour for two classes; a range may not overlap another."""
    seen: list[tuple[str, Any]] = []
    for where, name, key in keys:
        for other, own in seen:
            same = own[0] <= key[1] and key[0] <= own[1] if kind == "value" else own == key
            if same and other != name:
                raise UserError(f"{where}: {shown(kind, key)} is of {name!r} and of {other!r}; give each its own")
        seen.append((name, key))


def shown(kind: str, key: Any) -> str:
    """A key as one writes it: 85, 1-9, #ff0000."""
    if kind == "colour":
        return "#" + bytes(key).hex()
    if kind == "value":
        return str(key[0]) if key[0] == key[1] else f"{key[0]}-{key[1]}"
    return str(key)
