"""The same training in bf16, eager and compiled, and in float32: images per second, and whether it comes to one loss.

    python benchmarks/bench_precision.py [--model rwkv_unet_b] [--size 224] [--batch 64] [--steps 200]

Every form starts from the same weights and sees the same images in the same order. Compared are the mean losses of the
last quarter of the steps; within 2 % of float32's they count as the same. Images are made on the device: disks of the
colours of their classes under noise. Every fifth pixel's label is random, so that the loss has a floor well above zero
(0.84), and a relative difference a meaning. float32 is without TF32.

Needs torch and timm, and triton on a GPU; rwkv_unet and biwkv may be on PYTHONPATH (PYTHONPATH=kernels:.).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_unet import create_model

CLASSES, WRONG, TOLERANCE = 9, 0.2, 0.02
"""Classes, the share of random labels, and the relative difference of the losses that is allowed."""
FORMS = {"bf16 eager": (True, False), "bf16 compiled": (True, True), "float32": (False, False)}
"""Whether in bf16 autocast, and whether compiled."""


def make_images(count: int, size: int, device: str, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images (count, 3, size, size) of about unit variance, channels last, and class ids (count, size, size)."""
    random = torch.Generator(device).manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=random, device=device)

    y, x = torch.meshgrid(*[torch.arange(size, device=device) / size] * 2, indexing="ij")
    truth = torch.zeros(count, size, size, dtype=torch.int64, device=device)
    for label in range(1, CLASSES):
        centre_x, centre_y = 0.1 + 0.8 * uniform(2, count, 1, 1)
        radius = 0.05 + 0.1 * uniform(count, 1, 1)
        truth[(x - centre_x) ** 2 + (y - centre_y) ** 2 < radius**2] = label
    colours = 3 * uniform(CLASSES, 3) - 1.5
    images = colours[truth].permute(0, 3, 1, 2)  # channels last in memory
    images = images + 0.5 * torch.randn(images.shape, generator=random, device=device)
    wrong = torch.randint(CLASSES, truth.shape, generator=random, device=device)
    targets = torch.where(uniform(*truth.shape) < WRONG, wrong, truth)
    return images.contiguous(memory_format=torch.channels_last), targets


def train(name: str, form: str, images: Tensor, targets: Tensor, batch: int, steps: int) -> dict[str, float]:
    """Images per second without the first tenth of the steps, and the mean loss of the last quarter."""
    half, compiled = FORMS[form]
    kind = images.device.type
    torch.manual_seed(0)
    model = create_model(name, num_classes=CLASSES).to(images.device).to(memory_format=torch.channels_last).train()
    called = torch.compile(model) if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, fused=kind == "cuda")
    order = torch.randint(len(images), (steps, batch), generator=torch.Generator().manual_seed(1)).to(images.device)
    warm_up = steps // 10
    losses = []
    for step in range(steps):
        if step == warm_up:
            synchronise(kind)
            begun = time.perf_counter()
        own = images[order[step]].contiguous(memory_format=torch.channels_last)
        torch.manual_seed(step)  # of what is random in the model
        with torch.autocast(kind, torch.bfloat16, enabled=half):
            logits = called(own)
        optimizer.zero_grad()
        loss = F.cross_entropy(logits.float(), targets[order[step]])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    synchronise(kind)
    seconds = time.perf_counter() - begun
    last = torch.stack(losses[-max(1, steps // 4) :]).double().mean()
    rate = (steps - warm_up) * batch / seconds
    return {"images_per_second": rate, "first_loss": losses[0].item(), "loss": last.item()}


def synchronise(kind: str) -> None:
    if kind == "cuda":
        torch.cuda.synchronize()


def compare(
    name: str, size: int, batch: int, steps: int, device: str, forms: list[str], file: Path | None = None
) -> dict[str, dict[str, Any]]:
    """The figures of each form; float32 comes first, and others have their relative difference to it. What there is so
    far is in the file after every form."""
    images, targets = make_images(4 * batch, size, device)
    figures: dict[str, dict[str, Any]] = {}
    for form in sorted(forms, key=lambda form: form != "float32"):
        found: dict[str, Any] = train(name, form, images, targets, batch, steps)
        if "float32" in figures:
            found["difference"] = abs(found["loss"] / figures["float32"]["loss"] - 1)
            found["same"] = found["difference"] <= TOLERANCE
        figures[form] = found
        shown = f"{found['difference']:12.2%}" if "difference" in found else ""
        losses = f"{found['first_loss']:12.4f}{found['loss']:9.4f}"
        print(f"{form:16}{found['images_per_second']:10.2f}{losses}{shown}", flush=True)
        if file:
            file.write_text(json.dumps(figures, indent=1))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--model", help="any name that create_model takes; rwkv_unet_b on a GPU, rwkv_unet_xt on a CPU")
    parser.add_argument("--size", type=int, help="side of the images; 224 on a GPU, 32 on a CPU")
    parser.add_argument("--batch", type=int, help="64 on a GPU, 4 on a CPU")
    parser.add_argument("--steps", type=int, help="200 on a GPU, 10 on a CPU")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, help="compiled too; default on a GPU")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    cuda = torch.device(args.device).type == "cuda"
    name, size = args.model or ("rwkv_unet_b" if cuda else "rwkv_unet_xt"), args.size or (224 if cuda else 32)
    batch, steps = args.batch or (64 if cuda else 4), args.steps or (200 if cuda else 10)
    forms = [form for form in FORMS if "compiled" not in form or (cuda if args.compile is None else args.compile)]
    where = torch.cuda.get_device_name() if cuda else f"CPU, {torch.get_num_threads()} threads"
    print(f"{where}, torch {torch.__version__}, {name}, {size} px, batch {batch}, {steps} steps")
    print(f"{'':16}{'images/s':>10}{'first loss':>12}{'last':>9}{'to float32':>12}")
    compare(name, size, batch, steps, args.device, forms, args.json)


if __name__ == "__main__":
    main()
