"""Two epochs of every model on one data set: the loss must fall, the Dice score is what so short a run gives.

    python benchmarks/train_every_model.py shards/clinicdb [NAME[,FIELD=VALUE...] ...]

A line of a Markdown table each: parameters, MACs at the training size (the paper's convention), the mean training loss
of either epoch, DSC on the validation part after the last, and seconds in all. Without names: every model there is, one
or two of every optional library, and the paper's ablations of the smallest.
"""

from __future__ import annotations

import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rwkv_jobs.entry import guarded
from rwkv_unet import list_models
from rwkv_unet.config import ATTENTIONS, SCANS, SHIFTS

SETTINGS = [
    "data.image_size=64", "data.workers=0", "train.epochs=2", "train.batch_size=8", "train.log_steps=1",
    "optimizer.lr=1e-3", "cluster.launcher=process", "tracking.register_as=",
]  # fmt: skip
ABLATIONS = [
    *(f"attention={attention}" for attention in ATTENTIONS if attention != "spatial_mix"),
    *(f"shift={shift}" for shift in SHIFTS if shift != "q"), *(f"scan={scan}" for scan in SCANS if scan != "raster"),
    "shallow_attention=true", "glsp_channel_mix=true", "num_skips=0", "ccm=false", "decoder_kernel_size=3",
    "encoder=resnet18",
]  # fmt: skip


def every_model() -> list[str]:
    """Names with their fields, as on this command line; those for volumes are trained on others."""
    flat = [name for name in list_models(examples=True) if "3d" not in name]
    return [*flat, *(f"rwkv_unet_t,{ablation}" for ablation in ABLATIONS)]


def train(data: str, model: str, storage: Path) -> str:
    """Train a model and give its line of the table."""
    name, *fields = model.split(",")
    where = [f"data.path={Path(data).absolute()}", f"storage={storage}", "name=run"]
    settings = [*SETTINGS, *where, f"model.name={name}", *(f"model.{field}" for field in fields)]
    said = io.StringIO()
    began = time.perf_counter()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        code = guarded("finetune", "binary", settings)
    seconds = time.perf_counter() - began
    if code:
        return f"| {model} | {said.getvalue().strip().splitlines()[-1]} |"
    run = storage / "run"
    summary = json.loads((run / "summary.json").read_text())
    first, second = losses(run / "journal.jsonl")
    size = f"{summary['parameters'] / 1e6:.2f} | {summary['macs_paper'] / 1e9:.3f}"
    dice = summary["val"]["mean"]["dsc_strict"]
    return f"| {model} | {size} | {first:.4f} | {second:.4f} | {dice:.3f} | {seconds:.0f} |"


def losses(journal: Path) -> tuple[float, float]:
    """Mean training loss of the first and of the second epoch."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in journal.read_text().splitlines()]
    steps = [line["values"]["train/loss"] for line in lines if "train/loss" in line.get("values", {})]
    half = len(steps) // 2
    return statistics.fmean(steps[:half]), statistics.fmean(steps[half:])


def main() -> None:
    data, *models = sys.argv[1:]
    print("| model | parameters, M | MACs, G | loss, epoch 1 | epoch 2 | DSC | s |\n|---|---|---|---|---|---|---|")
    for model in models or every_model():
        with tempfile.TemporaryDirectory() as storage:
            print(train(data, model, Path(storage)), flush=True)


if __name__ == "__main__":
    main()
