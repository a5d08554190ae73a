"""Images per second of RWKV-UNet T, S and B, in training and inference, beside networks of smp and MONAI.

    python benchmarks/bench_model.py [--model NAME[,FIELD=WORD...]] [--size 224] [--batch 24] [--dtype bfloat16]
    python benchmarks/bench_model.py --size 32x64x64     # networks for volumes, of one channel, at such a patch

Needs torch and timm, and triton on a GPU; rwkv_unet and biwkv may be on PYTHONPATH (PYTHONPATH=kernels:.). Networks
whose library is not installed are left out, with a line that says so. A training step is forward pass, cross entropy,
backward pass and AdamW, a model in channels_last. All rows of a table are measured in turns, as in bench_wkv.py.
Memory is what a step needs at its peak beside the weights: on CUDA from the allocator; on a CPU, if asked for, by how
much the resident size of a process grows that does nothing else.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from bench_wkv import Step, least_times
from torch import Tensor, nn

from rwkv_unet import create_model

OURS = ["rwkv_unet_t", "rwkv_unet_s", "rwkv_unet_b"]
THEIRS = ["smp:unet-resnet50", "monai:SwinUNETR"]
OF_VOLUMES = ["rwkv_unet_3d_t", "monai:DynUNet", "monai:SegResNet", "monai:SwinUNETR"]
CLASSES = 9


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--model",
        action="append",
        help="a name that create_model takes; may be repeated",
    )
    parser.add_argument("--size", action="append", help="side of the images, or DxHxW of volumes; may be repeated")
    parser.add_argument("--batch", type=int, help="images a step; 24 on a GPU, 1 on a CPU")
    parser.add_argument("--dtype", action="append", choices=["float32", "bfloat16"], help="may be repeated")
    parser.add_argument("--seconds", type=float, default=10.0, help="about how long to measure a table")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="compiled rows too; default on a GPU")
    parser.add_argument("--memory", action="store_true", help="memory on a CPU too")
    parser.add_argument("--direction", choices=["training", "inference"], help="one of them; default both")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args()
    torch.backends.cudnn.benchmark = True  # as in training jobs
    cuda = torch.device(args.device).type == "cuda"
    sizes = args.size or (["224", "512"] if cuda else ["224"])
    dtypes = [getattr(torch, name) for name in args.dtype or (["float32", "bfloat16"] if cuda else ["float32"])]
    batch = args.batch or (24 if cuda else 1)
    print(torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads", torch.__version__)
    figures: dict[str, dict[str, float]] = {}
    for size in sizes:
        sides = sides_of(size)
        names = list(available(args.model or (OF_VOLUMES if len(sides) == 3 else OURS + THEIRS), len(sides)))
        for dtype in dtypes:
            for train in (True, False) if args.direction is None else (args.direction == "training",):
                forms = ["eager", "compiled"] if (cuda if args.compile is None else args.compile) else ["eager"]
                shape = (batch, 1 if len(sides) == 3 else 3, *sides)
                found = table(names, forms, shape, dtype, train, args.device, args.seconds, args.memory)
                what = "training" if train else "inference"
                figures[f"{what} {size} {str(dtype).removeprefix('torch.')}"] = found
                if args.json:  # after every table, for one that is stopped
                    args.json.write_text(json.dumps(figures, indent=1))


def sides_of(size: str) -> tuple[int, ...]:
    """224 is (224, 224), and 32x64x64 is (32, 64, 64)."""
    sides = tuple(map(int, size.split("x")))
    return sides * 2 if len(sides) == 1 else sides


def available(names: list[str], axes: int) -> Iterator[str]:
    """Those that can be made here."""
    for name in names:
        try:
            with torch.device("meta"):
                make(name, axes)
        except ValueError as error:
            print(f"without {name}: {error}")
        else:
            yield name


def make(name: str, axes: int) -> nn.Module:
    """A model by its name, with fields whose values are words: rwkv_unet_t,scan=quad."""
    name, *fields = name.split(",")
    options: dict[str, Any] = dict(field.split("=") for field in fields)
    if axes == 3:
        options |= {"in_channels": 1} | ({"spatial_dims": 3} if name.startswith("monai:") else {})
    return create_model(name, num_classes=CLASSES, **options)


def table(
    names: list[str],
    forms: list[str],
    shape: tuple[int, ...],
    dtype: torch.dtype,
    train: bool,
    device: str,
    seconds: float,
    memory: bool,
) -> dict[str, float]:
    """Prints the rows of one image size, dtype and direction; the last column is against the first row.

    Returns images per second by row.
    """
    torch.compiler.reset()  # it gives up on code that it has compiled for more than eight models
    rows = [(name, form) for name in names for form in forms]
    steps = {f"{name} {form}": make_step(name, form, shape, dtype, train, device) for name, form in rows}
    times = least_times(steps, device, seconds)
    what = "training" if train else "inference"
    print(f"\n{what}, {' x '.join(map(str, shape[2:]))}, batch {shape[0]}, {str(dtype).removeprefix('torch.')}")
    width = max(28, *(len(label) + 1 for label in times))
    print(f"{'':{width}}{'ms':>10}{'images/s':>10}{'MiB':>8}{'speed':>8}")
    first = next(iter(times.values()))
    for (name, form), (label, t) in zip(rows, times.items(), strict=True):
        mib = "-"
        if torch.device(device).type == "cuda":
            mib = f"{cuda_peak(steps[label]) / 2**20:.0f}"
        elif memory and form == "eager":
            mib = f"{cpu_peak(name, shape, dtype, train) / 2**20:.0f}"
        print(f"{label:{width}}{t * 1e3:10.1f}{shape[0] / t:10.2f}{mib:>8}{first / t:7.2f}x", flush=True)
    return {label: shape[0] / t for label, t in times.items()}


def make_step(name: str, form: str, shape: tuple[int, ...], dtype: torch.dtype, train: bool, device: str) -> Step:
    """A step of a new model on images and targets that stay the same."""
    layout = torch.channels_last if len(shape) == 4 else torch.channels_last_3d  # as in training
    model: nn.Module = make(name, len(shape) - 2).to(device).to(memory_format=layout).train(train)
    images = torch.randn(shape, device=device).contiguous(memory_format=layout)
    called = torch.compile(model) if form == "compiled" else model
    if not train:
        return partial(infer, called, images, dtype)
    targets = torch.randint(CLASSES, (shape[0], *shape[2:]), device=device)
    return partial(train_once, called, torch.optim.AdamW(model.parameters(), lr=1e-4), images, targets, dtype)


@torch.no_grad()
def infer(model: nn.Module, images: Tensor, dtype: torch.dtype) -> Tensor:
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        return model(images)


def train_once(
    model: nn.Module, optimizer: torch.optim.Optimizer, images: Tensor, targets: Tensor, dtype: torch.dtype
) -> None:
    with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
        logits = model(images)
    optimizer.zero_grad()
    F.cross_entropy(logits.float(), targets).backward()
    optimizer.step()


def cuda_peak(step: Step) -> int:
    """Bytes that a step allocates at its peak, over those that are there before it (weights, optimiser, images)."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def cpu_peak(name: str, shape: tuple[int, ...], dtype: torch.dtype, train: bool) -> int:
    """Bytes by which the peak of a fresh process grows in its first step (Linux)."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(growth, (name, shape, dtype, train))


def growth(name: str, shape: tuple[int, ...], dtype: torch.dtype, train: bool) -> int:
    step = make_step(name, "eager", shape, dtype, train, "cpu")
    before = peak_size()
    step()
    return peak_size() - before


def peak_size() -> int:
    """Not getrusage's, which starts at the parent's."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return 1024 * int(line.split()[1])


if __name__ == "__main__":
    main()
