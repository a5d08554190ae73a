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
            console.print(scores_table(values))
            console.print(f"cases and overlays: {mirror.address(run_dir)}/artifacts")
        case "evaluate" | "pretrain":
            console.print(f"top-1 {values['top1']:.2f} %  top-5 {values['top5']:.2f} %")
        case "finetune" if "val" in values:
            console.print(scores_table(values["val"]))
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
        console.print(f"next: rwkvctl evaluate {run_dir.name} --part test")


def scores_table(summary: dict[str, Any]) -> Table:
    """DSC and HD95 by class, the convention in every heading."""
    figures = ["dsc_strict", "dsc_official", "hd95_vox_strict", "hd95_vox_official"]
    if summary["mean"]["hd95_mm_strict"] is not None:
        figures.append("hd95_mm_strict")
    table = Table(title=f"{summary['cases']} cases", title_justify="left")
    table.add_column("class")
    for figure in figures:
        table.add_column(figure, justify="right")
    for name, values in [*summary["classes"].items(), ("mean", summary["mean"])]:
        table.add_row(name, *(number(values[figure]) for figure in figures))
    return table


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
