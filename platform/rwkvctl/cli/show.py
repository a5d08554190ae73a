"""Results as text: of jobs, comparisons and studies."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from rwkvctl.runs import mirror
from rwkvctl.runs.folder import mlflow_address

if TYPE_CHECKING:
    from rwkvctl.config.specs.study import StudySpec
    from rwkvctl.reports.compare import Figures
    from rwkvctl.reports.studies import Row


def wide_console() -> Console:
    """A terminal as it is; a file has no edge to fold at."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 200
    return console


def result(job: str, run_dir: Path, values: dict[str, Any]) -> None:
    """Print what a finished job made, and what may come next."""
    console = wide_console()
    match job:
        case "evaluate" if "classes" in values:
            show_scores(console, values)
            folds_table(console, values)
            artifacts = f"{mirror.address(run_dir)}/artifacts/{values['part']}"
            console.print(f"cases and pictures: {artifacts}/evaluation.html", soft_wrap=True)
        case "evaluate" if "by_class" in values:
            classification(console, values)
            folds_table(console, values)
            console.print(
                f"images: {mirror.address(run_dir)}/artifacts/{values['part']}/evaluation.html", soft_wrap=True
            )
        case "evaluate" | "pretrain":
            console.print(f"top-1 {values['top1']:.2f} %  top-5 {values['top5']:.2f} %")
        case "finetune" if "val" in values:
            show_scores(console, values["val"])
        case "tune" if "cross_validation" in values:
            cross_validation(console, run_dir, values)
        case "tune":
            sweep(run_dir, values)
        case "predict":
            for path in values["written"]:
                console.print(path, markup=False)
            if values["kept"]:
                console.print(f"{values['kept']} masks were whole and kept")
            for note in values["notes"]:
                console.print(f"note: {note}", markup=False)
    if (address := mlflow_address(run_dir)) is not None:
        console.print(f"in MLflow: {address}", soft_wrap=True)
    if job in ("pretrain", "finetune"):
        console.print(f"model: {values['model_uri'] or values['model']}")
        console.print(f"next: rwkvctl evaluate {run_dir.name}")


def cross_validation(console: Console, run_dir: Path, values: dict[str, Any]) -> None:
    """The scores of the cases by the models that have not seen them, by fold, and what may come next."""
    found = values["cross_validation"]
    classification(console, found) if "by_class" in found else show_scores(console, found)
    folds_table(console, found)
    console.print(f"cases and pictures: {mirror.address(run_dir)}/artifacts/val/evaluation.html", soft_wrap=True)
    console.print(f"model, the mean of all folds: {values['model_uri'] or values['model']}")
    console.print(f"next: rwkvctl evaluate {run_dir.name}")


def folds_table(console: Console, summary: dict[str, Any]) -> None:
    """The means of each fold and how they spread."""
    if (found := summary.get("folds")) is None:
        return
    figures = [name for name in (*BY_CLASS, *OF_IMAGES) if found["mean"].get(name) is not None]
    table = Table(title="folds: each by the model that was trained on the others", title_justify="left")
    for heading in ("fold", "cases", *figures):
        table.add_column(heading, justify="right")
    for one in found["each"]:
        table.add_row(str(one["fold"]), str(one["cases"]), *(number(one[name]) for name in figures))
    for label in ("mean", "deviation"):
        table.add_row(label, "", *(number(found[label][name]) for name in figures))
    console.print(table)


def classification(console: Console, summary: dict[str, Any]) -> None:
    """The figures of a classifier, by class and over all, below each its interval."""
    ends = summary.get("intervals") or {"mean": {}, "classes": {}}
    over = f"; below each figure its {ends['level']:.0%} interval, drawn over {ends['over']}" if ends["mean"] else ""

    def cell(value: float | None, found: list[float] | None) -> str:
        return f"{number(value)}\n{interval(found)}" if over and found else number(value)

    table = Table(title=f"{summary['cases']} images{over}", title_justify="left")
    for name in summary["mean"]:
        table.add_column(name, justify="right")
    table.add_row(*(cell(value, ends["mean"].get(name)) for name, value in summary["mean"].items()))
    console.print(table)
    by_class = summary["by_class"]
    table = Table(title="classes, each against all others", title_justify="left")
    names = [name for name in next(iter(by_class.values())) if name != "images"]
    for heading in ("class", "images", *names):
        table.add_column(heading, justify="left" if heading == "class" else "right")
    for label, own in by_class.items():
        of_class = ends["classes"].get(label, {})
        table.add_row(label, str(own["images"]), *(cell(own[name], of_class.get(name)) for name in names))
    console.print(table)


OF_IMAGES = ("accuracy", "balanced_accuracy", "auroc", "ece")
BY_CLASS = ("dsc_strict", "dsc_official", "hd95_vox_strict", "hd95_vox_official", "hd95_mm_strict")
LEFT_OUT = {
    "both_empty": "in neither mask",
    "empty_prediction": "not predicted",
    "empty_truth": "not in the truth",
    "no_spacing": "without spacing",
}


def show_scores(console: Console, summary: dict[str, Any]) -> None:
    """DSC and HD95 by class, the means of all other figures, and what they leave out."""
    console.print(scores_table(summary))
    console.print(means_table(summary))
    mean = summary["mean"]
    words_for = {count: words for count, words in LEFT_OUT.items() if count != "no_spacing" or has_mm(mean)}
    if left_out := [f"{mean[count]} {words}" for count, words in words_for.items() if mean.get(count)]:
        console.print(f"of all cases and classes: {', '.join(left_out)}")
    if "lesions" in mean:
        console.print(
            f"lesions: {mean['lesions']}, predicted {mean['lesions_predicted']}, found {mean['lesions_found']}"
        )


def has_mm(mean: dict[str, Any]) -> bool:
    """Whether any case has distances in mm; of photos none has."""
    return mean["hd95_mm_strict"] is not None


def scores_table(summary: dict[str, Any]) -> Table:
    """DSC and HD95 by class, the convention in every heading; below a mean its interval."""
    figures = [figure for figure in BY_CLASS if figure != "hd95_mm_strict" or has_mm(summary["mean"])]
    intervals = intervals_of(summary)
    title = f"{summary['cases']} cases"
    if intervals:
        title += f"; below each mean its {intervals['level']:.0%} interval, drawn over {intervals['over']}"
    table = Table(title=title, title_justify="left")
    table.add_column("class")
    for figure in figures:
        table.add_column(figure, justify="right")
    ends = {**intervals["classes"], "mean": intervals["mean"]} if intervals else {}
    rows = [*summary["classes"].items(), ("mean", summary["mean"])]
    for name, values in rows:
        cells = [number(values[figure]) for figure in figures]
        if intervals:
            cells = [f"{cell}\n{interval(ends[name][figure])}" for cell, figure in zip(cells, figures, strict=True)]
        table.add_row(name, *cells)
    if groups := summary.get("groups"):
        table.add_row(over_groups(groups), *(number(groups["mean"][figure]) for figure in figures))
    return table


def means_table(summary: dict[str, Any]) -> Table:
    """A row for every other figure that has a value: its mean over cases and classes."""
    mean, intervals, groups = summary["mean"], intervals_of(summary), summary.get("groups")
    table = Table(title="means over cases and classes", title_justify="left")
    headings = ["figure", "mean", *(["interval"] if intervals else []), *([over_groups(groups)] if groups else [])]
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "figure" else "right")
    for figure, value in mean.items():
        if figure in BY_CLASS or not isinstance(value, float):
            continue
        cells = [number(value)]
        cells += [interval(intervals["mean"][figure])] if intervals else []
        cells += [number(groups["mean"][figure])] if groups else []
        table.add_row(figure, *cells)
    return table


def intervals_of(summary: dict[str, Any]) -> dict[str, Any] | None:
    """The intervals of a summary, if there are any: one case or one patient has none."""
    found: dict[str, Any] | None = summary.get("intervals")
    return found if found is not None and any(found["mean"].values()) else None


def over_groups(groups: dict[str, Any]) -> str:
    return "over one patient or sequence" if groups["count"] == 1 else f"over {groups['count']} patients or sequences"


def interval(ends: list[float] | None) -> str:
    """Both ends, or nothing where too few cases have a value."""
    return "" if ends is None else f"{number(ends[0])} to {number(ends[1])}"


def sweep(run_dir: Path, values: dict[str, Any]) -> None:
    """The table of a sweep, what became of the other trials, which parameters matter, and where the pictures are."""
    console = wide_console()
    console.print(trials_table(values["trials"]))
    for outcome, count in Counter(other["outcome"] for other in values.get("others", [])).items():
        whys = Counter(other["why"] for other in values["others"] if other["outcome"] == outcome)
        console.print(f"{count} {outcome}: {whys.most_common(1)[0][0]}", markup=False)
    for metric, shares in values.get("importance", {}).items():
        shown = ", ".join(f"{path} {share:.0%}" for path, share in shares.items())
        console.print(f"importance for {metric}: {shown}", markup=False)
    if "page" in values:
        console.print(f"pictures: {run_dir / values['page']}", markup=False)


def trials_table(rows: list[dict[str, Any]]) -> Table:
    """A row a trial, best first, those of the front marked: what was varied, scores, MACs."""
    figures = ["dsc_strict", "dsc_official", "hd95_vox_strict", "hd95_vox_official"]
    hidden = {*figures, "macs_paper", "macs_true", "parameters", "run", "run_id", "front"}
    varied = [key for key in rows[0] if key not in hidden] if rows else []
    front = rows and "front" in rows[0]
    title = f"{len(rows)} trials, scores on the validation part" + (", * on the front" if front else "")
    table = Table(title=title, title_justify="left")
    for heading in [*(["front"] if front else []), *varied, *figures, "MACs (paper) G", "parameters M"]:
        table.add_column(heading, justify="right")
    for row in rows:
        mark = ["*" if row["front"] else ""] if front else []
        shown = [f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key]) for key in varied]
        sizes = [f"{row['macs_paper'] / 1e9:.3f}", shown_millions(row.get("parameters"))]
        table.add_row(*mark, *shown, *(number(row[figure]) for figure in figures), *sizes)
    return table


def shown_millions(count: float | None) -> str:
    """A number of parameters."""
    return "-" if count is None else f"{count / 1e6:.3f}"


def comparison(rows: list[Figures], title: str) -> None:
    """A row a model: size, speed, memory."""
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    headings = "parameters, M", "MACs (paper), G", "MACs (true), G", "inference, img/s", "training, img/s"
    for heading in (*headings, "peak inference, MB", "peak training, MB"):
        table.add_column(heading, justify="right")
    for row in rows:
        sizes = row.parameters / 1e6, row.macs_paper / 1e9, row.macs_true / 1e9
        speeds = row.inference_images_per_second, row.train_images_per_second
        peaks = row.inference_peak_bytes / 1e6, row.train_peak_bytes / 1e6
        table.add_row(
            row.model, *(f"{x:.3f}" for x in sizes), *(f"{x:.2f}" for x in speeds), *(f"{x:.0f}" for x in peaks)
        )
    wide_console().print(table)


def study(spec: StudySpec, rows: list[Row]) -> None:
    """A study's table: every figure of ours beside the paper's, and what to know before one compares."""
    from rwkvctl.reports import study_table

    table = Table(
        title=f"{spec.title}, {spec.image_size} px, DSC in %, HD95 in voxels, `official`", title_justify="left"
    )
    table.add_column("row")
    columns = ["M", "M, paper", "G MACs", "G, paper"]
    for dataset in spec.datasets:
        columns += [f"DSC {dataset}", "paper"]
        if study_table.has_hd95(rows, dataset):
            columns += [f"HD95 {dataset}", "paper"]
    for heading in columns:
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*study_table.cells(spec, row, rows))
    wide_console().print(table)
    for note in study_table.notes(spec, rows):
        wide_console().print(note, markup=False, soft_wrap=True)


def shown(value: float | None, digits: int) -> str:
    """A number, or a dash for none."""
    return "-" if value is None else f"{value:.{digits}f}"


def number(value: float | None) -> str:
    """Four decimals, or a dash where there is nothing to count."""
    return shown(value, 4)
