"""How long a model takes for one image."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from rwkv_unet import fuse_for_inference
from rwkvctl.models import bundle
from rwkvctl.models.export import example_image, training_size

REPEATS = 15


@dataclass(frozen=True)
class Latency:
    """The median of `REPEATS` passes of one image, layers fused, after three that are not counted."""

    ms: float
    size: str
    """Height and width, as 224 x 224."""
    device: str


def latency(folder: Path) -> Latency:
    """Of a model folder, on the GPU if there is one, else on this CPU with the threads that torch takes."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, info = bundle.load(folder, device=device)
    model = fuse_for_inference(model).eval()
    height, width = training_size(info)
    image = example_image(info, batch=1, size=(height, width)).to(device)
    seconds = []
    with torch.inference_mode():
        for _ in range(REPEATS + 3):
            begun = time.perf_counter()
            model(image)
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begun)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU"
    return Latency(1000 * statistics.median(seconds[3:]), f"{height} x {width}", name)
