"""What the evaluation of a classifier has found, as one HTML page that needs nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from rwkvctl.base import html
from rwkvctl.base.files import write_bytes
from rwkvctl.reports import fold_table
from rwkvctl.reports.fold_table import fixed
from rwkvctl.training.classification import MEANS, OF_CLASS, Answers

MOST_ROWS = 4000
"""Images in the table, the wrong ones that the model is surest of first."""
MOST_CLASSES = 40
"""Of which the confusion is shown."""


def write(
    path: Path,
    title: str,
    facts: Mapping[str, Any],
    warnings: Sequence[str],
    summary: Mapping[str, Any],
    answers: Answers,
    classes: Sequence[str],
) -> None:
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(html.cell(v))}</dd>" for name, v in facts.items())
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p class=warning>{html.escape(text)}</p>" for text in warnings),
        f"<dl class=facts>{items}</dl>",
        "<h2>Summary</h2>",
        *means(summary),
        *fold_table.section(summary, MEANS),
        "<h2>Classes</h2>",
        by_class(summary),
        *confusion(summary, classes),
        "<h2>Images</h2>",
        *by_image(answers, classes),
    ]
    folder = files("rwkvctl.reports")
    style, script = ((folder / f"evaluation.{kind}").read_text() for kind in ("css", "js"))
    write_bytes(path, html.page(title, parts, style=style, script=script).encode())


def ends(summary: Mapping[str, Any], *where: str) -> list[str | None]:
    """Both ends of an interval."""
    found: Any = summary.get("intervals") or {}
    for name in where:
        found = (found or {}).get(name)
    return [*map(fixed, found or (None, None))]


def means(summary: Mapping[str, Any]) -> list[str]:
    rows = [[name, fixed(summary["mean"][name]), *ends(summary, "mean", name)] for name in MEANS]
    said = f"{summary['cases']} images."
    if summary.get("intervals"):
        said += f" Intervals: bootstrap over {summary['intervals']['over']}."
    said += (
        " balanced_accuracy: mean of the classes' sensitivities. auroc: mean over classes, each against all others. "
        "ece: expected calibration error of the chosen class's probability, 15 bins."
    )
    return [f"<p>{html.escape(said)}</p>", html.table(["figure", "value", "95 % from", "to"], rows, name="summary")]


def by_class(summary: Mapping[str, Any]) -> str:
    columns = ["class", "images"]
    for name in OF_CLASS:
        columns += [name, *(["95 % from", "to"] if name != "precision" else [])]
    rows = []
    for label, own in summary["by_class"].items():
        row = [label, own["images"]]
        for name in OF_CLASS:
            row += [fixed(own[name]), *(ends(summary, "classes", label, name) if name != "precision" else [])]
        rows.append(row)
    return html.table(columns, rows, name="classes", sortable=True)


def confusion(summary: Mapping[str, Any], classes: Sequence[str]) -> list[str]:
    if len(classes) > MOST_CLASSES:
        return [f"<p class=note>The confusion of {len(classes)} classes is in summary.json.</p>"]
    rows = [[label, *counts] for label, counts in zip(classes, summary["confusion"], strict=True)]
    return [
        "<h2>Confusion</h2><p>Rows: what an image is. Columns: what it was taken for.</p>",
        f"<div class=wide>{html.table(['', *classes], rows, name='confusion')}</div>",
    ]


def by_image(answers: Answers, classes: Sequence[str]) -> list[str]:
    chosen, surest = answers.chosen, answers.probabilities.max(axis=1)
    order = sorted(range(len(chosen)), key=lambda i: (chosen[i] == answers.labels[i], -surest[i]))
    rows = [
        [
            answers.keys[i],
            classes[answers.labels[i]],
            classes[chosen[i]],
            fixed(float(surest[i])),
            fixed(float(answers.probabilities[i, answers.labels[i]])),
        ]
        for i in order[:MOST_ROWS]
    ]
    left_out = f" The first {MOST_ROWS:,} of {len(order):,}." if len(order) > MOST_ROWS else ""
    columns = ["image", "class", "taken for", "probability", "probability of its class"]
    return [
        f"<p>The wrong ones first, surest at the top; all are in cases.csv beside this page.{left_out}</p>",
        '<p><input type=search data-filters=cases placeholder="Filter" aria-label="Filter the table of images"></p>',
        f"<div class=tall>{html.table(columns, rows, name='cases', sortable=True)}</div>",
    ]
