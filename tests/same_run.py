"""Prove that a refactoring changed nothing: short runs of this tree and of an earlier commit, compared bit for bit.

    .venv/bin/python tests/same_run.py HEAD~1 [--keep FOLDER]

Each side prepares the same synthetic downloads, pretrains and fine-tunes (supervised and semi-supervised). Compared are
the data sets' fingerprints, every metric of every step but the timings, and the SHA-256 of all weights and optimiser
states, which hang on the order of the samples too. Exits 1 on a difference.
Both sides run on the same interpreter and libraries; only the four packages come from the commit.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCES = (".", "kernels", "platform", "jobs")
TIMINGS = ("images_per_second", "seconds", "share", "seconds_per_step", "data_wait", "bytes", "percentage", "mfu")
"""Metrics that differ from run to run end like this."""
COMMON = ["cluster.launcher=process", "data.workers=0", "train.log_steps=1", "data.image_size=32", "train.epochs=2"]
RUNS = {
    "pretrain": (
        "pretrain", "imagefolder", "textures",
        ["model.name=rwkv_unet_enc_t", "train.batch_size=8", "optimizer.lr_reference_batch=8"],
    ),
    "binary": ("finetune", "binary", "polyps", ["model.name=rwkv_unet_t", "train.batch_size=4"]),
    "volumes": ("finetune", "acdc", "hearts", ["model.name=rwkv_unet_t", "train.batch_size=4"]),
    "unlabeled": (
        "finetune", "fugc", "cervix",
        ["model.name=rwkv_unet_t", "train.batch_size=4", "train.epoch_steps=3", "consistency.batch_size=4"],
    ),
}  # fmt: skip
DATA = {"textures": "imagefolder", "polyps": "folder", "hearts": "acdc", "cervix": "fugc"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("commit", help="what this tree is compared with")
    parser.add_argument("--keep", type=Path, help="folder that keeps both sides' files")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        before = folder / "before-tree"
        subprocess.run(["git", "worktree", "add", "--detach", before, arguments.commit], cwd=ROOT, check=True)
        try:
            for library in (ROOT / "kernels" / "biwkv").glob("*.so"):  # compiled when the package was installed
                shutil.copy(library, before / "kernels" / "biwkv")
            then, now = outcome(before, folder / "before"), outcome(ROOT, folder / "now")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", before], cwd=ROOT, check=True)
    different = [key for key in then.keys() | now.keys() if then.get(key) != now.get(key)]
    for key in sorted(different):
        print(f"differs: {key}: {then.get(key)} -> {now.get(key)}")
    verdict = f"{len(different)} differ" if different else "all equal"
    print(f"{len(then)} facts compared with {arguments.commit}: {verdict}")
    return 1 if different else 0


def outcome(tree: Path, folder: Path) -> dict[str, Any]:
    """Every fact about what a tree computes, by name."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("RWKVCTL_", "MLFLOW_"))}
    environment |= {
        "PYTHONPATH": os.pathsep.join(str(tree / source) for source in SOURCES),
        "RWKVCTL_HOME": str(folder / "home"),
        "OMP_NUM_THREADS": "1",
    }

    def run(*words: str) -> None:
        subprocess.run([sys.executable, "-P", "-m", *words], env=environment, cwd=folder, check=True, text=True)

    facts: dict[str, Any] = {}
    for name, form in DATA.items():
        run("rwkvctl.cli.app", "data", "synth", form, "--out", f"raw/{name}")
        run("rwkvctl.cli.app", "data", "prepare", form, "--source", f"raw/{name}", "--out", name, "--allow-partial")
        facts[f"{name}/fingerprint"] = json.loads((folder / name / "manifest.json").read_text())["fingerprint"]
    for name, (job, recipe, data, settings) in RUNS.items():
        own = [f"data.path={folder / data}", f"data.dataset={data}", f"name={name}", *COMMON, *settings]
        run(f"rwkv_jobs.{job}", recipe, *(word for setting in own for word in ("--set", setting)))
        facts |= {f"{name}/{key}": value for key, value in facts_of_run(folder / "home" / "runs" / name).items()}
    return facts


def facts_of_run(run_dir: Path) -> dict[str, Any]:
    """Metrics of every step, and the hash of every file of weights."""
    facts: dict[str, Any] = {}
    for line in (run_dir / "journal.jsonl").read_text().splitlines():
        entry = json.loads(line)
        if entry["kind"] == "metrics":
            values = {key: value for key, value in entry["values"].items() if not key.endswith(TIMINGS)}
            facts |= {f"{key}@{entry['step']}": value for key, value in values.items()}
    for path in [*run_dir.glob("checkpoints/step-*/*.safetensors"), *run_dir.glob("model/*.safetensors")]:
        facts[str(path.relative_to(run_dir))] = hashlib.sha256(path.read_bytes()).hexdigest()
    assert facts, run_dir
    return facts


if __name__ == "__main__":
    sys.exit(main())
