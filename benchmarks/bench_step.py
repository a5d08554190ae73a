"""A training step as `rwkvctl pretrain` takes it, beside a plain loop of 40 lines over the same model.

    python benchmarks/bench_step.py [--model rwkv_unet_enc_b] [--size 224] [--batch 128] [--steps 100] [--workers 8]

The plain loop is fed twice: from one tensor in memory, which is the floor, and by timm's loader with as many processes
and timm's own augmentation. Ours reads shards, augments and copies to the device as the job does. All train the same
network, in the same arithmetic, with cross entropy, clipping and AdamW; the moving average of the weights is left out.
They take turns; a loader's processes end with its turn, and the first steps of a turn are not counted.

"Waiting" is the share of the loop's time in which it asked for the next batch. On a GPU the loop runs ahead of the
device, so there the images a second beside the floor's say what the data cost. The last row is our loader with nothing
to feed: beside the floor it says how much faster data come than a step takes them.

Photos are made: gratings under noise, as JPEGs. Needs what a job needs, but neither Ray nor MLflow.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_dataset, create_loader
from torch import Tensor, nn

import rwkv_unet  # noqa: F401  (registers the encoders)
from rwkv_jobs.epochs import train_loader
from rwkv_jobs.form import TrainingForm
from rwkv_jobs.meter import Meter
from rwkv_jobs.pretrain import Objective, make_model
from rwkv_jobs.stepper import Stepper
from rwkv_jobs.worker import Worker, set_arithmetic
from rwkvctl.config.specs.jobs import PretrainSpec
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth.phantom import write_textures
from rwkvctl.data.feed.ahead import ahead
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.training.checkpoint import Position
from rwkvctl.training.optimizer import make_optimizer

CLASSES, DISTINCT, WARM_UP = 4, 16, 2
"""Classes, different photos of each, and the first steps of a turn, which are not counted."""
CPUS = os.cpu_count() or 1
DEFAULTS = {
    "cpu": {"model": "rwkv_unet_enc_xt", "size": 64, "batch": 16, "steps": 12, "workers": 1},
    "cuda": {
        "model": "rwkv_unet_enc_b",
        "size": 224,
        "batch": 128,
        "steps": 100,
        "workers": min(8, os.cpu_count() or 1),
    },
}

Pairs = Iterable[tuple[Tensor, Tensor]]
Turn = Callable[[int], tuple[float, float]]
"""Takes so many steps: images a second, and the share of the time in which it waited for data."""


# Data ---------------------------------------------------------------------------------------------------------------


def write_photos(folder: Path, side: int, images: int) -> Path:
    """An image folder of gratings; files beyond the first few of a class are links to those."""
    write_textures(folder, CLASSES, DISTINCT, side)
    for first in sorted(folder.glob("train/*/*.jpg")):
        for number in range(int(first.stem) + DISTINCT, -(-images // CLASSES), DISTINCT):
            os.link(first, first.with_name(f"{number:06d}.jpg"))
    return folder


def in_memory(raw: Path, size: int, batch: int, device: torch.device) -> Callable[[], Pairs]:
    """Batches out of one tensor on the device."""
    names = sorted(path.name for path in (raw / "train").iterdir())
    files = sorted(raw.glob("train/*/????.jpg"))
    pixels = np.stack([np.asarray(Image.open(file).resize((size, size))) for file in files])
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).to(device).float() / 255
    images = (images - 0.45) / 0.225
    targets = torch.tensor([names.index(file.parent.name) for file in files], device=device)
    orders = [torch.randint(len(files), (batch,), device=device) for _ in range(16)]
    batches = [(images[order].contiguous(memory_format=torch.channels_last), targets[order]) for order in orders]
    return lambda: itertools.cycle(batches)


def from_timm(raw: Path, spec: PretrainSpec, device: torch.device) -> Callable[[], Pairs]:
    """Batches of timm's loader; a new one every turn, whose processes end with it."""

    def begin() -> Pairs:
        side = spec.data.image_size
        return create_loader(  # type: ignore[no-any-return]
            create_dataset("", root=str(raw / "train")),
            input_size=(3, side, side),
            batch_size=spec.train.batch_size,
            is_training=True,
            use_prefetcher=device.type == "cuda",
            auto_augment=spec.augment.rand_augment,
            interpolation="random",
            mean=IMAGENET_DEFAULT_MEAN,
            std=IMAGENET_DEFAULT_STD,
            num_workers=spec.data.workers,
            pin_memory=device.type == "cuda",
            persistent_workers=False,
            device=device,
        )

    return begin


# Contenders ---------------------------------------------------------------------------------------------------------


def plain_loop(spec: PretrainSpec, batches: Callable[[], Pairs], device: torch.device) -> Turn:
    """What one would write in an afternoon."""
    torch.manual_seed(0)
    model = timm.create_model(spec.model.name, num_classes=CLASSES).to(device).to(memory_format=torch.channels_last)
    on_gpu = device.type == "cuda"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05, fused=on_gpu)

    def train_step(images: Tensor, targets: Tensor) -> None:
        images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
        targets = targets.to(device, non_blocking=True)
        with torch.autocast(device.type, torch.bfloat16, enabled=on_gpu):
            logits = model(images)
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), targets, label_smoothing=0.1).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    def turn(steps: int) -> tuple[float, float]:
        model.train()
        source = iter(batches())
        for _ in range(WARM_UP):
            train_step(*next(source))
        synchronise(device)
        waited, begun = 0.0, time.perf_counter()
        for _ in range(steps):
            asked = time.perf_counter()
            images, targets = next(source)
            waited += time.perf_counter() - asked
            train_step(images, targets)
        synchronise(device)
        seconds = time.perf_counter() - begun
        return steps * spec.train.batch_size / seconds, waited / seconds

    return turn


def ours(spec: PretrainSpec, manifest: Manifest, me: Worker) -> Turn:
    """The step of `rwkv_jobs.pretrain.train`, without its journal and checkpoints."""
    model = make_model(spec, manifest).to(me.device).to(memory_format=torch.channels_last)
    form = TrainingForm(model, spec, me)
    position, epochs = Position(), itertools.count()
    optimizer = make_optimizer(model, spec.optimizer)
    stepper = Stepper(spec, me, form, optimizer, 10**6, position, print)
    objective = Objective(spec, me, form)

    def turn(steps: int) -> tuple[float, float]:
        model.train()
        loader = train_loader(spec, spec.augment, manifest, me)
        meter = Meter(me, spec.train.batch_size, macs=0)
        for number, batch in enumerate(meter.batches(ahead(loader.epoch(next(epochs)), me.device)), 1):
            stepper.step(objective.of(batch, position.step, stepper.parts), position.step, linear=True)
            position.step += 1
            if number in (WARM_UP, WARM_UP + steps):
                stepper.metrics()  # waits for the device, as with every line of a job's log
                figures = meter.metrics()
            if number == WARM_UP + steps:
                break
        loader.close()
        return figures["train/images_per_second"], figures["train/data_wait"]

    return turn


def loader_alone(spec: PretrainSpec, manifest: Manifest, me: Worker) -> Turn:
    """Our batches on the device, and nothing done with them; without those that are ready when the first one is."""

    def turn(steps: int) -> tuple[float, float]:
        loader = train_loader(spec, spec.augment, manifest, me)
        batches: Iterator[Any] = ahead(loader.epoch(0), me.device)
        for _ in range(WARM_UP + spec.data.workers):
            next(batches)
        begun = time.perf_counter()
        for _ in range(steps):
            next(batches)
        synchronise(me.device)
        seconds = time.perf_counter() - begun
        loader.close()
        return steps * spec.train.batch_size / seconds, 1.0

    return turn


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


# Measuring ----------------------------------------------------------------------------------------------------------


def compare(spec: PretrainSpec, raw: Path, manifest: Manifest, device: torch.device, steps: int, rounds: int) -> Any:
    """Medians by contender: images a second, and the share of waiting."""
    me = Worker(0, 1, device)
    memory = in_memory(raw, spec.data.image_size, spec.train.batch_size, device)
    contenders = {
        "plain loop, data in memory": plain_loop(spec, memory, device),
        "ours": ours(spec, manifest, me),
        "plain loop, timm's loader": plain_loop(spec, from_timm(raw, spec, device), device),
        "our loader alone": loader_alone(spec, manifest, me),
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(rounds + 1):  # the first is short, and warms up
        for name, turn in contenders.items():
            figures = turn(steps if number else 1)
            if number:
                found[name].append(figures)
    return {
        name: {"images_per_second": statistics.median(rates), "waiting": statistics.median(waits)}
        for name, (rates, waits) in ((name, zip(*turns, strict=True)) for name, turns in found.items())
    }


def print_table(figures: dict[str, dict[str, float]]) -> None:
    floor = figures["plain loop, data in memory"]["images_per_second"]
    print(f"\n{'':30}{'images/s':>10}{'of the floor':>14}{'waiting':>10}")
    for name, values in figures.items():
        rate = values["images_per_second"]
        waiting = f"{values['waiting']:10.1%}" if name != "our loader alone" else ""
        print(f"{name:30}{rate:10.1f}{rate / floor:13.2f}x{waiting}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--model", help="a classifier by its timm name")
    parser.add_argument("--size", type=int, help="side of the images")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, help="of a turn")
    parser.add_argument("--workers", type=int, help="loader processes")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each, whose median is printed")
    parser.add_argument("--photo", type=int, default=350, help="side of the photos on disk")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args()
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if args.device == "auto" else args.device
    for name, value in DEFAULTS[kind].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    device = torch.device(kind, 0) if kind == "cuda" else torch.device(kind)
    set_arithmetic(False, device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        raw = write_photos(folder / "raw", args.photo, args.batch * (args.steps + WARM_UP + args.workers + 1))
        manifest = prepare("imagefolder", [raw], folder / "shards")
        spec = PretrainSpec.model_validate(
            {
                "model": {"name": args.model},
                "data": {"path": str(manifest.root), "image_size": args.size, "workers": args.workers},
                "optimizer": {"lr": 1e-3, "weight_decay": 0.05, "clip_grad": 5.0},
                "train": {"epochs": 1, "batch_size": args.batch},
                "ema_decay": None,
            }
        )
        where = torch.cuda.get_device_name() if kind == "cuda" else f"CPU, {torch.get_num_threads()} threads"
        print(f"{where}, torch {torch.__version__}, timm {timm.__version__}, {args.model}")
        print(
            f"{args.size} px, batch {args.batch}, {'bf16' if kind == 'cuda' else 'float32'}; photos of {args.photo} px"
        )
        print(f"{args.workers} loader processes; the median of {args.rounds} turns of {args.steps} steps")
        figures = compare(spec, raw, manifest, device, args.steps, args.rounds)
    print_table(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
