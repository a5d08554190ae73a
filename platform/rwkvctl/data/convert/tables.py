"""Tables that people export: CSV with commas, semicolons or tabs, with or without a byte order mark."""

from __future__ import annotations

import csv
import io

from rwkvctl.base.errors import UserError

ENDINGS = (".csv", ".tsv", ".tab", ".txt")
MOST_BYTES = 64 << 20
_SEPARATORS = ",;\t|"


def decoded(data: bytes, name: object) -> str:
    """The text of a table, in UTF-8, UTF-16 or, as older spreadsheets write it, Windows' Western code page."""
    if len(data) > MOST_BYTES:
        raise UserError(f"{name}: has {len(data)} bytes, at most {MOST_BYTES} are read as a table")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252", errors="replace")
    if "\0" in text:
        raise UserError(f"{name}: is not a table of text; export it as CSV")
    return text


def rows_of(text: str) -> list[tuple[int, list[str]]]:
    """(line number, cells without the space around them) of each line that has any; lines that begin with # are
    comments unless it is a colour's."""
    separator = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    found = []
    try:
        for cells in reader:
            stripped = [cell.strip() for cell in cells]
            while stripped and not stripped[-1]:
                stripped.pop()
            if stripped and not stripped[0].startswith("# "):
                found.append((reader.line_num, stripped))
    except csv.Error as error:
        raise UserError(f"line {reader.line_num}: {error}") from error
    return found


def _separator(text: str) -> str:
    """The sign that is most often equally often in the lines: of `a,b;c` and `d,e,f;g` the semicolon."""
    lines = [line for line in text.splitlines() if line.strip()][:50]

    def evenness(sign: str) -> tuple[int, int]:
        counts = [line.count(sign) for line in lines]
        usual = max(set(counts), key=counts.count, default=0)
        return (counts.count(usual) if usual else 0), usual

    return max(_SEPARATORS, key=evenness)
