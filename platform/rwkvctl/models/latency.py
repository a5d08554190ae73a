"""How long a model takes for one image, or one patch of a volume."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from rwkv_unet import fuse_for_inference
from rwkvctl.models import bundle
from rwkvctl.models.export import example_image, training_size

REPEATS = 15


@dataclass(frozen=True)
class Latency:
    """The median of `REPEATS` passes of one image or patch, layers fused, after three that are not counted."""

    ms: float
    what: str
    """`image of 224 x 224 px`, or `patch of 16 x 128 x 128 voxels`."""
    device: str


def latency(folder: Path) -> Latency:
    """Of a model folder, on the GPU if there is one, else on this CPU with the threads that torch takes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, info = bundle.load(folder, device=device)
    model = fuse_for_inference(model).eval()
    size = training_size(info) if info.volumes is None else info.volumes.patch
    image = example_image(info, batch=1, size=size).to(device)
    shown = " x ".join(map(str, size))
    what = f"image of {shown} px" if info.volumes is None else f"patch of {shown} voxels"
    name = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU"
    return Latency(median_ms(model, image, REPEATS, warm_up=3), what, name)


@torch.inference_mode()
def median_ms(model: nn.Module, image: Tensor, repeats: int, *, warm_up: int) -> float:
    """Of so many passes of an image, (B, C, H, W) on the model's device, after those that are not counted."""
    seconds = []
    for _ in range(warm_up + repeats):
        begun = time.perf_counter()
        model(image)
        if image.device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begun)
    return 1000 * statistics.median(seconds[warm_up:])
