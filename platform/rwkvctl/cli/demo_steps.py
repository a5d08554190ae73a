"""The demo: every step is the command that a user would type, on data that is made on the spot."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.base.files import write_bytes

MARKER = ".rwkvctl-demo"


class Demo:
    """The demo's folder, and commands that run in it and are printed as they run."""

    def __init__(self, folder: Path, seed: int):
        self.folder, self.seed = folder, seed
        self.raw, self.shards, self.home = folder / "raw", folder / "shards", folder / "home"
        self.environment = os.environ | {"RWKVCTL_HOME": str(self.home)}
        for variable in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RWKVCTL_STORAGE", "RWKVCTL_DATA_ROOT"):
            self.environment.pop(variable, None)
        self.seconds: dict[str, float] = {}

    def command(self, *words: str) -> dict[str, Any]:
        """Run `rwkvctl ...` and return what it printed with --json."""
        print(f"\n$ rwkvctl {' '.join(words)}", flush=True)
        began = time.monotonic()
        full = [sys.executable, "-P", "-m", "rwkvctl.cli.app", *words, "--json"]
        done = subprocess.run(full, env=self.environment, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise JobFailedError(f"demo: `rwkvctl {' '.join(words)}` ended with code {done.returncode}")
        step = words[0] if words[0] in ("evaluate", "predict") else " ".join(words[:2])
        self.seconds[step] = time.monotonic() - began
        found: dict[str, Any] = json.loads(done.stdout)
        return found


def run(out: str, seed: int) -> None:
    """Run the demo; its last line is one JSON object with what it measured."""
    folder = fresh_folder(Path(out).absolute())
    demo = Demo(folder, seed)
    began = time.monotonic()
    make_raw_data(demo)
    prepare(demo)
    pretrained, tuned = train(demo)
    scores = demo.command("evaluate", tuned["run"], "--part", "test")
    name, version = tuned["model_uri"].removeprefix("models:/").split("/")
    demo.command("model", "promote", name, version, "--alias", "champion")
    predicted = predict(demo, name)
    report(demo, pretrained, tuned, scores, predicted, time.monotonic() - began)


def fresh_folder(folder: Path) -> Path:
    """An empty folder; an earlier demo's is emptied, anything else is left alone."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARKER).exists():
            raise UserError(f"--out {folder}: is not empty and not a demo's folder; give another")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / MARKER, b"")
    return folder


def make_raw_data(demo: Demo) -> None:
    """Class images for pretraining, and volumes in the form of the ACDC download."""
    from rwkvctl.data.convert.synth import phantom

    print(f"making raw data in {demo.raw}: textured images in 4 classes, phantom heart volumes of 10 patients")
    phantom.write_textures(demo.raw / "textures", classes=4, per_class=96, size=48, seed=demo.seed)
    phantom.write_volumes(demo.raw / "hearts", n_patients=10, size=64, depth=6, seed=demo.seed)


def prepare(demo: Demo) -> None:
    """Raw downloads into verified shards."""
    textures, hearts = str(demo.shards / "textures"), str(demo.shards / "hearts")
    demo.command("data", "prepare", "imagefolder", "--source", str(demo.raw / "textures"), "--out", textures)
    demo.command("data", "prepare", "acdc", "--source", str(demo.raw / "hearts"), "--out", hearts)
    demo.command("data", "verify", hearts)


def train(demo: Demo) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pretrain an encoder, then train the segmentation model from it."""
    common = ["--variant", "t", "--workers", "2", "--set", f"seed={demo.seed}", "--set", "data.workers=0"]
    pretrained = demo.command(
        "pretrain", "imagefolder", "--data", str(demo.shards / "textures"), *common,
        "--set", "train.epochs=10", "--set", "train.batch_size=16", "--set", "data.image_size=32",
        "--set", "optimizer.lr_reference_batch=16",
    )  # fmt: skip
    tuned = demo.command(
        "finetune", "acdc", "--data", str(demo.shards / "hearts"), "--encoder", pretrained["run"], *common,
        "--set", "data.dataset=hearts", "--set", "train.epochs=12", "--set", "train.batch_size=8",
        "--set", "data.image_size=64", "--set", "optimizer.lr=2e-3",
    )  # fmt: skip
    return pretrained, tuned


def predict(demo: Demo, name: str) -> dict[str, Any]:
    """Masks for one volume, by the model's alias."""
    volume = sorted((demo.raw / "hearts").rglob("ACDC_training_volumes/*.h5"))[0]
    return demo.command("predict", f"models:/{name}@champion", str(volume), "--out", str(demo.folder / "masks"))


def report(
    demo: Demo,
    pretrained: dict[str, Any],
    tuned: dict[str, Any],
    scores: dict[str, Any],
    predicted: dict[str, Any],
    seconds: float,
) -> None:
    """A table, the way to the UI, and one JSON object."""
    mean = scores["mean"]
    print("\nstep                  seconds")
    for step, took in demo.seconds.items():
        print(f"{step:20}  {took:7.1f}")
    print(f"{'all':20}  {seconds:7.1f}")
    print(f"\npretraining top-1 {pretrained['top1']:.1f} %")
    print("test volumes, by class (dsc_strict, hd95_vox_strict):")
    for name, values in [*scores["classes"].items(), ("mean", mean)]:
        shown = "-" if values["hd95_vox_strict"] is None else f"{values['hd95_vox_strict']:.2f}"
        print(f"  {name:12} {values['dsc_strict']:.4f}  {shown}")
    print(f"\nmask: {predicted['written'][0]}")
    print(f"look at the runs: RWKVCTL_HOME={demo.home} rwkvctl ui")
    print(
        json.dumps(
            {
                "pretrain_top1": pretrained["top1"],
                "dsc": mean["dsc_strict"],
                "hd95": mean["hd95_vox_strict"],
                "macs": tuned["macs_paper"],
                "run_id": tuned["run_id"],
                "model_uri": tuned["model_uri"],
            }
        )
    )
