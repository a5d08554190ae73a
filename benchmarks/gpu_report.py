"""All that is to be measured on a machine with one GPU, in under ten minutes: `make gpu`.

    make gpu PYTHON=python3 OUT=gpu-report [CARRIED=FOLDER]
    make gpu PYTHON=.venv/bin/python OUT=/tmp/report ARGS='--device cpu --model rwkv_unet_xt --size 32 --steps 2'

The parts: the tests that need a GPU, the operator, 200 training steps in bf16 (eager and compiled) and float32, whole
networks, the training step with its loader, evaluation. Each is a process of its own with a time limit; the time that
one leaves over is given to the next. A part that fails does not stop the others. Installs nothing: that Python has
torch, triton and timm; a part that needs a package which is not there is left out and says so. CARRIED is a folder of
packages to take along (`pip install --target FOLDER pytest pydantic ...`).

Writes OUT/gpu.json with all figures and goals, anew after every part, and what each part printed to OUT/PART.log. Exit
code 1 if a part failed; a missed goal is only printed. On a CPU everything is small, and the figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
OURS = ("bench_wkv", "rwkv_unet", "rwkv_jobs", "rwkvctl", "biwkv")
REQUIRED = ("torch", "triton", "timm")
MEMORY, BOTH = "plain loop, data in memory", "forward+backward"
PARTS = ("tests", "wkv", "precision", "model", "step", "evaluate")


@dataclass(frozen=True)
class Part:
    """One process: its name, its share of the time in seconds, and its command without the interpreter."""

    name: str
    seconds: float
    command: list[str]


OPTIONS = {
    "cuda": {
        "wkv": "--seconds 2",
        "model": "--model rwkv_unet_t --model rwkv_unet_b --size 224 --batch 128 --dtype bfloat16 --seconds 6",
        "step": "--steps 60 --rounds 1",
        "evaluate": "--hd95 40x256x256 --volumes 1 --shape 24x256x256",
    },
    "cpu": {
        "wkv": "--seconds 0.1 --shape 2,196,64",
        "model": "--model rwkv_unet_xt --size 32 --batch 1 --seconds 0.1",
        "step": "--size 32 --batch 4 --steps 2 --rounds 1 --workers 0",
        "evaluate": "--hd95 8x64x64 --volumes 1 --shape 8x64x64 --processes 0",
    },
}


def make_parts(args: argparse.Namespace) -> list[Part]:
    """In this order; on a GPU the shares add up to 570 s, on a CPU there is no hurry."""
    slower = 1 if args.device == "cuda" else 6
    options, given = OPTIONS[args.device], []
    for name in ("model", "size", "batch", "steps"):
        if getattr(args, name) is not None:
            given += [f"--{name}", str(getattr(args, name))]

    def script(name: str, seconds: float, *arguments: str) -> Part:
        return Part(name, slower * seconds, [str(HERE / f"bench_{name}.py"), "--device", args.device, *arguments])

    return [
        Part("tests", 150, ["-m", "pytest", "-m", "gpu", "-W", "default", "-rs", *args.tests]),
        script("wkv", 60, *options["wkv"].split()),
        script("precision", 130, *given),
        script("model", 150, "--direction", "training", *options["model"].split()),
        script("step", 50, *options["step"].split()),
        script("evaluate", 30, *options["evaluate"].split()),
    ]


# Running ------------------------------------------------------------------------------------------------------------


def run(part: Part, out: Path, limit: float) -> dict[str, Any]:
    """What became of it: `status`, `seconds` and, where it left any, `figures`."""
    log, figures = out / f"{part.name}.log", out / f"{part.name}.json"
    figures.unlink(missing_ok=True)
    command = [sys.executable, *part.command]
    if part.name != "tests":
        command += ["--json", str(figures)]
    begun = time.monotonic()
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    text = log.read_text(errors="replace")
    print(text, flush=True)
    found: dict[str, Any] = {"status": status_of(code, text, limit), "seconds": round(time.monotonic() - begun, 1)}
    if figures.exists():  # of a part that was stopped, as far as it came
        found["figures"] = json.loads(figures.read_text())
        figures.unlink()
    elif part.name == "tests":
        found["figures"] = counts(text)
    return found


def status_of(code: int | None, text: str, limit: float) -> str:
    """`ran`, `left out: no module X`, or `failed: ...`."""
    if code == 0:
        return "ran"
    if code is None:
        return f"failed: stopped after {limit:.0f} s"
    missing = re.search(r"No module named '?(\w+)", last_line(text))
    if missing and missing[1] not in OURS + REQUIRED:
        return f"left out: no module {missing[1]}"
    return f"failed: exit code {code}"


def counts(text: str) -> dict[str, int]:
    """`3 passed, 1 skipped` of pytest's last line."""
    found = re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", last_line(text))
    return {what: int(number) for number, what in found}


def last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def run_all(parts: list[Part], out: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each part's name and what became of it; a part has its own share of the time and what others left over."""
    end = time.monotonic() + sum(part.seconds for part in parts)
    for number, part in enumerate(parts):
        print(f"== {part.name}", flush=True)
        found = run(part, out, end - time.monotonic() - sum(later.seconds for later in parts[number + 1 :]))
        print(f"-- {part.name}: {found['status']}, {found['seconds']:.0f} s\n", flush=True)
        yield part.name, found


# Goals --------------------------------------------------------------------------------------------------------------


def goals(parts: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Value and goal of each on an H100; `met` is null where there is no value."""
    figures = {name: part.get("figures", {}) for name, part in parts.items()}
    trained = figures.get("model", {}).get("training 224 bfloat16", {})
    precision, steps = figures.get("precision", {}), figures.get("step", {})

    def fastest(name: str) -> float | None:
        return max((rate for row, rate in trained.items() if row.split()[0] == name), default=None)

    def of_copy(shape: str, direction: str) -> float | None:
        rows = figures.get("wkv", {}).get(shape, {}).get(direction, {})
        return max((row["of_copy"] for name, row in rows.items() if name in ("cuda", "triton")), default=None)

    alone, floor = (steps.get(name, {}).get("images_per_second") for name in ("our loader alone", MEMORY))
    wanted = [
        ("rwkv_unet_b, training at 224 px, bf16, images/s", fastest("rwkv_unet_b"), ">=", 1580.0),
        ("rwkv_unet_t, training at 224 px, bf16, images/s", fastest("rwkv_unet_t"), ">=", 4000.0),
        ("operator, 128,784,576 bf16, forward, of a copy", of_copy("128,784,576", "forward"), ">=", 0.75),
        ("operator, 128,196,960 bf16, forward, of a copy", of_copy("128,196,960", "forward"), ">=", 0.75),
        ("operator, 128,784,576 bf16, forward+backward, of a copy", of_copy("128,784,576", BOTH), ">=", 0.6),
        ("operator, 8,4096,576 bf16, forward, of a copy", of_copy("8,4096,576", "forward"), ">=", 0.6),
        ("loader alone, of what the step takes", alone / floor if alone and floor else None, ">=", 1.2),
    ]
    for form in ("bf16 eager", "bf16 compiled"):
        difference = precision.get(form, {}).get("difference")
        wanted.append((f"{form}, loss after 200 steps, difference to float32", difference, "<=", 0.02))
    return [
        {"name": name, "value": value, "goal": f"{sign} {goal:g}", "met": is_met(value, sign, goal)}
        for name, value, sign, goal in wanted
    ]


def is_met(value: float | None, sign: str, goal: float) -> bool | None:
    if value is None:
        return None
    return value >= goal if sign == ">=" else value <= goal


def print_goals(found: list[dict[str, Any]]) -> None:
    print(f"{'goals on an H100':58}{'value':>10}  {'goal':10}")
    for goal in found:
        value = "-" if goal["value"] is None else f"{goal['value']:.4g}"
        verdict = {True: "met", False: "missed", None: "not measured"}[goal["met"]]
        print(f"{goal['name']:58}{value:>10}  {goal['goal']:10}{verdict}")


def versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in REQUIRED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found | {"python": sys.version.split()[0], "cuda": torch.version.cuda}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-report"), help="folder for gpu.json and the logs")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"], help="cpu: only to try this script")
    parser.add_argument("--model", help="of the 200 steps; rwkv_unet_b on a GPU")
    parser.add_argument("--size", type=int, help="of the 200 steps; 224 on a GPU")
    parser.add_argument("--batch", type=int, help="of the 200 steps; 64 on a GPU")
    parser.add_argument("--steps", type=int, help="in place of the 200")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="some parts alone")
    parser.add_argument("--tests", nargs="*", default=[], help="files with GPU tests")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch sees no GPU here; --device cpu tries the script without one", file=sys.stderr)
        return 2
    parts = make_parts(args)
    args.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    report = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else f"CPU, {torch.get_num_threads()} threads",
        "versions": versions(),
        "parts": found,
    }
    for name, part in run_all([part for part in parts if not args.only or part.name in args.only], args.out):
        found[name] = part
        report["goals"] = goals(found) if args.device == "cuda" else []
        (args.out / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    if args.device == "cuda":
        print_goals(goals(found))
    for name, part in found.items():
        print(f"{name:12}{part['status']}")
    print(f"figures: {args.out / 'gpu.json'}")
    return int(any(part["status"].startswith("failed") for part in found.values()))


if __name__ == "__main__":
    sys.exit(main())
