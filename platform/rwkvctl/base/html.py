"""Pages that are one file: everything in them is escaped, and nothing comes from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from typing import Any

STYLE = """
body{font:14px/1.4 system-ui,sans-serif;margin:2em auto;max-width:72em;padding:0 1em;color:#222;background:#fff}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd}
tr.front{font-weight:600}img{max-width:100%}.wide{overflow-x:auto}
"""

escape = html.escape
"""Text as it may stand between tags and in quoted attributes."""


def page(title: str, parts: Iterable[str], *, style: str = "", script: str = "") -> str:
    """A whole page. Its own script is the only one that a browser runs, and pictures within it all that it loads,
    whatever else should have come into the parts."""
    allowed = f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" if script else "'none'"
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {allowed}"
    head = [
        f'<!doctype html><html lang=en><meta charset=utf-8><meta http-equiv="Content-Security-Policy" '
        f'content="{policy}"><meta name=viewport content="width=device-width">',
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style>",
    ]
    return "\n".join([*head, *parts, *([f"<script>{script}</script>"] if script else [])])


def data_uri(content: bytes, kind: str = "png") -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def picture(title: str, png: bytes) -> str:
    return f'<img alt="{escape(title)}" src="{data_uri(png)}">'


def data_block(name: str, value: Any) -> str:
    """Data for the page's script, as JSON that no text in it can end."""
    text = json.dumps(value).replace("<", "\\u003c")
    return f'<script type="application/json" id="{escape(name)}">{text}</script>'


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[Any]],
    *,
    classes: Sequence[str] = (),
    name: str = "",
    sortable: bool = False,
) -> str:
    """A table with a heading; `classes` are those of its rows, `name` its id. The page's script sorts sortable ones."""
    button = "<button type=button>{}</button>" if sortable else "{}"
    head = "".join(f"<th scope=col>{button.format(escape(column))}</th>" for column in columns)
    body = "\n".join(
        f"<tr{f' class={classes[number]}' if number < len(classes) and classes[number] else ''}>"
        + "".join(f"<td>{escape(cell(value))}</td>" for value in row)
        + "</tr>"
        for number, row in enumerate(rows)
    )
    marks = (f' id="{escape(name)}"' if name else "") + (" class=sortable" if sortable else "")
    return (
        f"<div class=wide><table{marks}><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )  # fmt: skip


def cell(value: Any) -> str:
    """A figure in four digits, a count with its thousands."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
