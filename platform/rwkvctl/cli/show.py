"""Results of jobs as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def result(job: str, run_dir: Path, values: dict[str, Any]) -> None:
    """Print what a finished job made, and what may come next."""
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = 160  # a file has no edge to fold at
    match job:
        case "evaluate" if "classes" in values:
            console.print(scores_table(values))
            console.print(f"cases and overlays: {run_dir / 'artifacts'}")
        case "evaluate" | "pretrain":
            console.print(f"top-1 {values['top1']:.2f} %  top-5 {values['top5']:.2f} %")
        case "finetune" if "val" in values:
            console.print(scores_table(values["val"]))
        case "tune":
            console.print(trials_table(values["trials"]))
        case "predict":
            for path in values["written"]:
                console.print(path)
    if job in ("pretrain", "finetune"):
        console.print(f"model: {values['model_uri'] or values['model']}")
        console.print(f"next: rwkvctl evaluate {run_dir.name} --split test")


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


def trials_table(rows: list[dict[str, Any]]) -> Table:
    """A row a trial, best first: what was varied, scores, MACs."""
    figures = ["dsc_strict", "dsc_official", "hd95_vox_strict", "hd95_vox_official"]
    hidden = {*figures, "macs_paper", "macs_true", "parameters", "run", "run_id"}
    varied = [key for key in rows[0] if key not in hidden] if rows else []
    table = Table(title=f"{len(rows)} trials, scores on the validation part", title_justify="left")
    for heading in [*varied, *figures, "MACs (paper) G"]:
        table.add_column(heading, justify="right")
    for row in rows:
        shown = [f"{row[key]:.4g}" if isinstance(row[key], float) else str(row[key]) for key in varied]
        table.add_row(*shown, *(number(row[figure]) for figure in figures), f"{row['macs_paper'] / 1e9:.3f}")
    return table


def number(value: float | None) -> str:
    """Four decimals, or a dash where there is nothing to count."""
    return "-" if value is None else f"{value:.4f}"
