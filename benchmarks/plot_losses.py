"""Training losses of several runs in one figure: python benchmarks/plot_losses.py RUN_FOLDER ... --out losses.svg"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot

from rwkvctl.runs.journal import read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, help="run folders; their names go into the legend")
    parser.add_argument("--out", required=True, type=Path, help="an SVG")
    args = parser.parse_args()
    _, axes = pyplot.subplots(figsize=(6, 3), layout="constrained")
    for run in args.runs:
        steps, losses = zip(*training_losses(run), strict=True)
        axes.plot(steps, losses, label=run.name, linewidth=1)
    axes.set(xlabel="step", ylabel="training loss")
    axes.legend(frameon=False)
    pyplot.savefig(args.out, metadata={"Date": None})


def training_losses(run: Path) -> list[tuple[int, float]]:
    """(step, loss), as the run's journal has them."""
    entries = [entry for entry in read(run / "journal.jsonl")[0] if entry["kind"] == "metrics"]
    return [(e["step"], e["values"]["train/loss"]) for e in entries if "train/loss" in e["values"]]


if __name__ == "__main__":
    main()
