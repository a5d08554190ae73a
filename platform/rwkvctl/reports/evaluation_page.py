"""What an evaluation has found, as one HTML page that needs nothing from elsewhere: it opens from a disk, and in
MLflow's list of artifacts."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from rwkvctl.base import html
from rwkvctl.base.files import write_bytes
from rwkvctl.models.sureness import Sureness, ranks
from rwkvctl.pictures import shown
from rwkvctl.pictures.palette import palette
from rwkvctl.pictures.shown import Slice, Stack
from rwkvctl.reports import distributions, fold_table
from rwkvctl.reports.fold_table import fixed
from rwkvctl.training.metrics import COUNTS, LESION_COUNTS, Choices, ClassScore, figures_of

PAGE = "evaluation.html"
MOST_ROWS = 4000
"""Rows of the table of cases; those with a lower DSC come first."""
MOST_BYTES = 12 << 20
"""Of pictures: of more, the last ones are left out."""
FIRST = ("dsc_strict", "hd95_mm_strict", "hd95_vox_strict", "dsc_official", "hd95_vox_official")
CONVENTIONS = (
    "strict: a class that is in neither mask is not counted; one that is in one of them only scores DSC 0 and has no "
    "HD95. official: as the paper's code counts. HD95 is the 95th percentile of all surface distances of both "
    "directions; hd95_max the larger of the two directed ones. vox: voxels or pixels; mm: where the spacing is known."
)


@dataclass(frozen=True)
class Evaluation:
    """What the page says."""

    title: str
    facts: Mapping[str, Any]
    """What was evaluated, by name."""
    warnings: Sequence[str]
    classes: Sequence[str]
    summary: Mapping[str, Any]
    """As `summary.json` has it."""
    cases: Mapping[str, Sequence[ClassScore]]
    choices: Choices
    groups: Mapping[str, str | None] = field(default_factory=dict)
    fold_of: Mapping[str, int] = field(default_factory=dict)
    """Of a cross-validation the fold in which each case was held out."""
    by_region: bool = False
    """Whether `classes` are nnU-Net's regions, of which no DSC is predicted."""
    sureness: Mapping[str, Sureness] = field(default_factory=dict)
    """Of each case how sure the model is of it; empty where its probabilities were not looked at."""
    worst: Sequence[Slice] = ()
    median: Sequence[Slice] = ()
    volume: Stack | None = None
    part: str = "test"


def write(path: Path, evaluation: Evaluation) -> None:
    write_bytes(path, as_page(evaluation).encode())


def as_page(evaluation: Evaluation) -> str:
    pictures, left_out = figures(evaluation)
    parts = [
        f"<h1>{html.escape(evaluation.title)}</h1>",
        *(f"<p class=warning>{html.escape(text)}</p>" for text in evaluation.warnings),
        facts(evaluation.facts),
        "<h2>Summary</h2>",
        summary(evaluation.summary),
        *fold_table.section(evaluation.summary, shown_figures(evaluation.summary)),
        "<h2>Distribution</h2>",
        *spread(evaluation),
        "<h2>Classes</h2>",
        by_class(evaluation.summary),
        *by_group(evaluation),
        *trust(evaluation),
        "<h2>Cases</h2>",
        *by_case(evaluation),
        *viewer(evaluation),
        *pictures,
        *([f"<p class=note>{left_out}</p>"] if left_out else []),
        f"<p class=note>{html.escape(CONVENTIONS)}</p>",
    ]
    folder = files("rwkvctl.reports")
    style, script = ((folder / f"evaluation.{kind}").read_text() for kind in ("css", "js"))
    return html.page(evaluation.title, parts, style=style, script=script)


def facts(found: Mapping[str, Any]) -> str:
    items = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(html.cell(v))}</dd>" for name, v in found.items())
    return f"<dl class=facts>{items}</dl>"


def shown_figures(summary: Mapping[str, Any]) -> list[str]:
    """Figures that any case has (photographs have none in mm), DSC and HD95 first."""
    found = [name for name in figures_of(summary) if summary["mean"][name] is not None]
    return sorted(found, key=lambda name: FIRST.index(name) if name in FIRST else len(FIRST))


def summary(found: Mapping[str, Any]) -> str:
    """Every figure's mean over classes with its interval and over groups, and what it leaves out."""
    intervals, groups = found.get("intervals") or {}, found.get("groups")
    ends = intervals.get("mean", {})
    columns = ["figure", "mean", "95 % from", "to", *([f"mean over {groups['count']} groups"] if groups else [])]
    rows = [
        [
            name,
            *map(fixed, [found["mean"][name], *(ends.get(name) or (None, None))]),
            *([fixed(groups["mean"][name])] if groups else []),
        ]
        for name in shown_figures(found)
    ]
    said = f"Means over {found['cases']} cases, then over classes."
    if intervals:
        said += f" Intervals: bootstrap over {intervals['over']}."
    counts = {"both_empty": "in neither mask", "empty_prediction": "not predicted", "empty_truth": "not in the truth"}
    left_out = [f"{found['mean'][count]} {words}" for count, words in counts.items() if found["mean"].get(count)]
    if left_out:
        said += f" Of all cases and classes: {', '.join(left_out)}."
    return f"<p>{html.escape(said)}</p>{html.table(columns, rows, name='summary', sortable=True)}"


def spread(evaluation: Evaluation) -> list[str]:
    values: dict[int, list[tuple[str, float]]] = {class_id: [] for class_id in range(1, len(evaluation.classes))}
    means = []
    for key, scores in evaluation.cases.items():
        known = [(score.class_id, score.strict_dsc) for score in scores if score.strict_dsc is not None]
        for class_id, dsc in known:
            values[class_id].append((key, dsc))
        if known:
            means.append(sum(dsc for _, dsc in known) / len(known))
    said = "dsc_strict of every case by class (box: quartiles; point: a case), and cases by their mean over classes."
    drawn = [distributions.boxes(values, evaluation.classes), *([distributions.histogram(means)] if means else [])]
    return [f"<p>{said}</p>", *drawn]


def by_class(found: Mapping[str, Any]) -> str:
    names = shown_figures(found)
    counts = [name for name in (*COUNTS, *LESION_COUNTS) if found["mean"].get(name)]
    ends = (found.get("intervals") or {}).get("classes", {})
    columns = ["class", "dsc_strict 95 % from", "to", *names, *counts]
    rows = [
        [
            name,
            *map(fixed, ends.get(name, {}).get("dsc_strict") or (None, None)),
            *(fixed(own[each]) for each in names),
            *(own[each] for each in counts),
        ]
        for name, own in found["classes"].items()
    ]
    return html.table(columns, rows, name="classes", sortable=True)


def by_group(evaluation: Evaluation) -> list[str]:
    groups = evaluation.summary.get("groups")
    if not groups:
        return []
    names = shown_figures(evaluation.summary)
    each = list(groups["each"].items())
    rows = [[name, own["cases"], *(fixed(own[figure]) for figure in names)] for name, own in each[:MOST_ROWS]]
    return [
        f"<h2>Groups</h2><p>Cases of one patient, sequence or video. {rest(len(each))}</p>",
        f"<div class=tall>{html.table(['group', 'cases', *names], rows, name='groups', sortable=True)}</div>",
    ]


def by_case(evaluation: Evaluation) -> list[str]:
    figure_of = evaluation.choices.figures()
    names = [name for name in shown_figures(evaluation.summary) if name in figure_of]
    found = [(key, score) for key, scores in evaluation.cases.items() for score in scores]
    if len(found) > MOST_ROWS:
        found.sort(key=lambda item: (item[1].strict_dsc is None, item[1].strict_dsc))
    grouped, sureness = any(evaluation.groups.values()), evaluation.sureness
    places = ranks(sureness)
    rows = [
        [
            key,
            evaluation.classes[score.class_id],
            *([evaluation.groups.get(key)] if grouped else []),
            *([evaluation.fold_of[key]] if evaluation.fold_of else []),
            *([places[key], fixed(predicted(evaluation, key, score))] if sureness else []),
            *(fixed(getattr(score, figure_of[name])) for name in names),
            score.note,
        ]
        for key, score in found[:MOST_ROWS]
    ]
    sure = ["look at", "predicted DSC"] if sureness else []
    of_fold = ["fold"] if evaluation.fold_of else []
    columns = ["case", "class", *(["group"] if grouped else []), *of_fold, *sure, *names, "note"]
    return [
        f"<p>All figures of every case and class are in cases.csv beside this page. {rest(len(found))}</p>",
        '<p><input type=search data-filters=cases placeholder="Filter" aria-label="Filter the table of cases"></p>',
        f"<div class=tall>{html.table(columns, rows, name='cases', sortable=True)}</div>",
    ]


def predicted(evaluation: Evaluation, key: str, score: ClassScore) -> float | None:
    """The DSC that a model predicts of its own mask."""
    return None if evaluation.by_region else evaluation.sureness[key].predicted_dsc[score.class_id - 1]


def rest(count: int) -> str:
    """What a table leaves out."""
    return f"The {MOST_ROWS:,} rows with the lowest DSC of {count:,}." if count > MOST_ROWS else ""


def trust(evaluation: Evaluation) -> list[str]:
    """Calibration, and how well the predicted DSC ranks the cases."""
    found, review = evaluation.summary.get("calibration"), evaluation.summary.get("review")
    if not found or not review or not evaluation.sureness:
        return []
    own = "no temperature"
    if found["temperature"] != 1:
        own = f"temperature {found['temperature']:g}{', fitted to these cases' if evaluation.part == 'val' else ''}"
    rows = [
        ["around the foreground", fixed(found["ece_raw"]), fixed(found["ece"])],
        ["all pixels", fixed(found["ece_all_raw"]), fixed(found["ece_all"])],
    ]
    points = []
    for key, scores in evaluation.cases.items():
        if known := [score.strict_dsc for score in scores if score.strict_dsc is not None]:
            points.append((key, evaluation.sureness[key].mean_dsc, sum(known) / len(known)))
    correlation = "unknown" if review["spearman"] is None else f"{review['spearman']:.2f}"
    return [
        "<h2>Can its probabilities be trusted?</h2>",
        f"<p>Expected calibration error, {found['bins']} bins of the confidence of the chosen class (Guo et al. 2017), "
        f"of every pixel. The model has {own}.</p>",
        html.table(["ECE", "temperature 1", "as the model gives them"], rows, name="calibration"),
        "<div class=beside><div>",
        distributions.reliability(found["reliability_raw"], found["reliability"]),
        "<p class=note>Pixels around the foreground; below the dashed line: too sure.</p></div><div>",
        distributions.scatter(points),
        "<p class=note>The DSC of each case as its probabilities predict it, and the true one. Spearman's rank "
        f"correlation {correlation} over {review['cases']} cases. In the table below, 1 is to be looked at first.</p>"
        "</div></div>",
    ]


# Pictures -----------------------------------------------------------------------------------------------------------


def figures(evaluation: Evaluation) -> tuple[list[str], str]:
    """The worst and the median cases, and what is left out for the page's size."""
    parts: list[str] = []
    used = dropped = 0
    for title, slices in (("Worst cases", evaluation.worst), ("Median cases", evaluation.median)):
        made = []
        for each in slices:
            text = figure(each, evaluation)
            if used + len(text) > MOST_BYTES:
                dropped += 1
                continue
            used += len(text)
            made.append(text)
        if made:
            parts += [f"<h2>{title}</h2>", *made]
    said = f"{dropped} pictures are left out, as the page would be too large; the worst cases are in overlays/."
    return parts, said if dropped else ""


def figure(of: Slice, evaluation: Evaluation) -> str:
    """Image, truth and prediction side by side, over them which case it is and how it scored."""
    image = html.data_uri(shown.photo(of.image), "jpeg")
    height, width = of.truth.shape
    panels = "".join(
        f'<div><small>{name}</small><div style="aspect-ratio:{width}/{height}">'
        + (f'<img alt="{name}" src="{html.data_uri(shown.outlines(labels))}">' if labels is not None else "")
        + "</div></div>"
        for name, labels in (("image", None), ("truth", of.truth), ("prediction", of.pred))
    )
    place = f", {of.place}" if of.place else ""
    return (
        f'<figure style="--image:url({image})"><figcaption><b>{html.escape(of.key)}</b>{place}<br>'
        f"{legend(evaluation.cases[of.key], evaluation.classes)}</figcaption><div class=panels>{panels}</div></figure>"
    )


def legend(scores: Sequence[ClassScore], classes: Sequence[str]) -> str:
    """Colour, name and scores of every class that is in one of the masks."""
    items = [
        f"<span>{swatch(score.class_id)}{html.escape(classes[score.class_id])}: {html.escape(score.in_words())}</span> "
        for score in scores
        if score.strict_dsc is not None
    ]
    return f"<span class=legend>{''.join(items) or 'no class is in either mask'}</span>"


def swatch(class_id: int) -> str:
    return f'<i class=swatch style="background:rgb({",".join(map(str, palette()[class_id].tolist()))})"></i>'


def viewer(evaluation: Evaluation) -> list[str]:
    """The worst volume, to scroll through."""
    of = evaluation.volume
    if of is None:
        return []
    first = int((shown.foreground(of.truth) + shown.foreground(of.pred)).argmax())
    data = {
        "zs": of.zs,
        "depth": of.shape[0],
        "first": first,
        "images": [encoded(shown.photo(each)) for each in of.images],
        "truth": [encoded(shown.outlines(each)) for each in of.truth],
        "prediction": [encoded(shown.transparent(each)) for each in of.pred],
    }
    height, width = of.images.shape[1:]
    boxes = "".join(
        f"<label><input type=checkbox checked data-layer={layer}> {layer} ({how})</label>"
        for layer, how in (("truth", "outline"), ("prediction", "filled"))
    )
    last = len(of.zs) - 1
    left_out = f"<p class=note>Shown: {html.escape(of.left_out)}.</p>" if of.left_out else ""
    return [
        "<h2>Worst volume</h2>",
        f"<p><b>{html.escape(of.key)}</b><br>{legend(evaluation.cases[of.key], evaluation.classes)}</p>{left_out}",
        "<div class=viewer data-volume=volume tabindex=0 aria-label='Volume: arrow keys or wheel change the slice'>"
        f'<div class=layers style="aspect-ratio:{width}/{height}">'
        "<img class=slice alt=image><img class=prediction alt=prediction><img class=truth alt=truth></div>"
        f"<div class=controls><input type=range min=0 max={last} aria-label=slice><output></output>{boxes}</div></div>",
        html.data_block("volume", data),
    ]


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()
