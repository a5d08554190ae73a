"""Size and speed of models side by side, on random images; each in a process of its own, for its peak memory."""

from __future__ import annotations

import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rwkv_unet.flops import count_macs, count_parameters
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.parts import ModelSpec
from rwkvctl.models import build as networks
from rwkvctl.training.losses import segmentation_loss


@dataclass(frozen=True)
class Setting:
    """What all models of a comparison are measured on."""

    size: int
    """Height and width in pixels."""
    num_classes: int
    """Output channels."""
    batch: int
    device: str
    seconds: float
    """About how long training and inference are each measured."""


@dataclass(frozen=True)
class Figures:
    """One model's row. MACs are of one image; peaks are bytes beyond those of the bare process, inference first."""

    model: str
    parameters: int
    macs_paper: int
    macs_true: int
    inference_images_per_second: float
    train_images_per_second: float
    inference_peak_bytes: int
    train_peak_bytes: int


def compare(models: Sequence[str], setting: Setting) -> Iterator[Figures]:
    """Measure models, given as `NAME` or `NAME,field=value,...`, one after the other; yields a row as it is known.

    UserError, before anything is measured, for a model that cannot be built.
    """
    specs = [networks.parse(text) for text in models]
    for spec in specs:
        if spec.takes_volumes:
            raise UserError(f"{spec.name}: takes volumes, and images are measured here: leave it out")
    with torch.device("meta"):
        for spec in specs:
            networks.network(spec, setting.num_classes)
    # A fresh process each: memory that another model has left in the allocator would hide this one's peak.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as processes:
        for text, spec in zip(models, specs, strict=True):
            yield processes.submit(measure, text, spec, setting).result()


def measure(text: str, spec: ModelSpec, setting: Setting) -> Figures:
    """One row, in a process that has done nothing else."""
    device = torch.device(setting.device)
    bare = peak(device)
    torch.manual_seed(0)
    model = networks.network(spec, setting.num_classes).to(device)
    model = model.to(memory_format=torch.channels_last)
    image = torch.randn(setting.batch, 3, setting.size, setting.size, device=device)
    image = image.contiguous(memory_format=torch.channels_last)
    try:
        macs = count_macs(model, (3, setting.size, setting.size))
    except ValueError as error:
        raise UserError(f"{text}: --size {setting.size}: {error}") from None
    inference = rate(inference_step(model, image), setting)
    inference_peak = peak(device) - bare
    train = rate(train_step(model, image, setting), setting)
    return Figures(
        text, count_parameters(model), macs.paper, macs.true, inference, train, inference_peak, peak(device) - bare
    )


def inference_step(model: nn.Module, image: Tensor) -> Callable[[], object]:
    """A forward pass in evaluation mode."""

    def step() -> None:
        model.eval()
        with torch.inference_mode():
            model(image)

    return step


def train_step(model: nn.Module, image: Tensor, setting: Setting) -> Callable[[], object]:
    """Forward, loss, backward and update, as fine-tuning does them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    high = max(2, setting.num_classes)
    target = torch.randint(high, (setting.batch, setting.size, setting.size), device=image.device).to(torch.uint8)

    def step() -> None:
        model.train()
        loss = segmentation_loss(model(image), target, alpha=0.5, beta=0.5, ignore_index=255)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def rate(step: Callable[[], object], setting: Setting) -> float:
    """Images per second, from the fastest of the steps that fit the time; at least 3 after a warm-up."""
    wait = torch.cuda.synchronize if setting.device.startswith("cuda") else (lambda: None)
    step()
    wait()
    best, steps, end = float("inf"), 0, time.perf_counter() + setting.seconds
    while steps < 3 or time.perf_counter() < end:
        began = time.perf_counter()
        step()
        wait()
        best, steps = min(best, time.perf_counter() - began), steps + 1
    return setting.batch / best


def peak(device: torch.device) -> int:
    """Peak memory so far in bytes: of the allocator on a GPU, of the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "linux":  # where getrusage begins with the peak of the process that started this one
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
