"""A whole volume through a network over three axes: seconds and memory, beside a script around MONAI's inferer.

    python benchmarks/bench_volumes.py [--shape 120x512x512] [--spacing 1.5,0.8,0.8] [--to native] [--patch 32x128x128]
    python benchmarks/bench_volumes.py --shape 600x512x512 --sides ours [--probabilities]

The script scales the volume, resamples it, gives it to `SlidingWindowInferer` (Gaussian weights, overlap 0.5), brings
the logits back by `interpolate` and takes the best class, as most do. Ours is what `rwkvctl predict` runs, how sure it
is of the mask included. Both have the same volume (int16), resampling and network; each runs in a process of its own.
Memory is the most that the process has had beside what it had with libraries, network and the volume as it is stored.
--network conv takes one 1x1x1 convolution for a network that takes next to no time, as one does on a GPU.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rwkv_unet import create_model, fuse_for_inference
from rwkvctl.data.feed.resample import resize_image, shape_at
from rwkvctl.data.images.intensity import ScaledSlices, rule
from rwkvctl.models.bundle import BundleInfo, VolumeInput
from rwkvctl.models.ensemble import Member, Options, Segmenter

CLASSES, LOW, HIGH = 9, -125, 275
Triple = tuple[int, int, int]
Ids = NDArray[np.uint8]


class Task(NamedTuple):
    shape: Triple
    spacing: tuple[float, float, float]
    seen: VolumeInput
    network: str
    probabilities: bool


class Result(NamedTuple):
    seconds: float
    peak: int
    """Bytes."""
    mask: Ids


def volume(shape: Triple) -> NDArray[np.int16]:
    """Soft structures and noise, in HU."""
    rng = np.random.default_rng(0)
    found = np.empty(shape, np.int16)
    y, x = np.mgrid[: shape[1], : shape[2]] / 40
    for z in range(shape[0]):
        plane = 200 * np.sin(x + z / 11) * np.cos(y - z / 17) + rng.normal(0, 20, shape[1:])
        found[z] = plane + 75
    return found


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "conv":
        return nn.Conv3d(1, CLASSES, 1).eval()
    return fuse_for_inference(create_model(name, num_classes=CLASSES, in_channels=1).eval())


def ours(model: nn.Module, stored: NDArray[np.int16], task: Task) -> Ids:
    info = BundleInfo(
        kind="segmentation", model={"name": task.network}, classes=[f"c{n}" for n in range(CLASSES)],
        image_size=task.seen.patch[1:], volumes=task.seen, image_kind="float", channels=1, intensity=rule(LOW, HIGH),
    )  # fmt: skip
    segmenter = Segmenter([Member(model, info)], Options(probabilities=task.probabilities))
    return segmenter.segment(ScaledSlices(stored, LOW, HIGH), spacing=task.spacing).mask


def script(model: nn.Module, stored: NDArray[np.int16], task: Task) -> Ids:
    from monai.inferers import SlidingWindowInferer

    values = torch.from_numpy((np.clip(stored.astype(np.float32), LOW, HIGH) - LOW) / (HIGH - LOW))[None]
    native = (task.shape[0], task.shape[1], task.shape[2])
    shape = native if task.seen.spacing is None else shape_at(native, task.spacing, task.seen.spacing)
    inferer = SlidingWindowInferer(
        task.seen.patch, 1, task.seen.overlap, mode="gaussian", padding_mode="replicate", cache_roi_weight_map=True
    )
    with torch.inference_mode():
        logits = inferer(resize_image(values, shape)[None], model)
        assert isinstance(logits, Tensor)
        if shape != native:
            logits = F.interpolate(logits, native, mode="trilinear", align_corners=False)
        return logits[0].argmax(dim=0).to(torch.uint8).numpy()


SIDES: dict[str, Callable[[nn.Module, NDArray[np.int16], Task], Ids]] = {"ours": ours, "script": script}


def measured(side: str, task: Task) -> Result:
    model, stored = network(task.network), volume(task.shape)
    warm = task._replace(shape=(4, 64, 64), seen=task.seen.model_copy(update={"patch": (16, 64, 64)}))
    SIDES[side](model, volume(warm.shape), warm)  # libraries and their threads are there
    before, begun = peak(), time.perf_counter()
    mask = SIDES[side](model, stored, task)
    return Result(time.perf_counter() - begun, peak() - before, mask)


def peak() -> int:
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def alone(side: str, task: Task) -> Result:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(measured, side, task).result()


def numbers(text: str, sign: str, kind: Callable[[str], Any]) -> Any:
    first, second, third = map(kind, text.split(sign))
    return first, second, third


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="120x512x512")
    parser.add_argument("--spacing", default="1.5,0.8,0.8", help="mm of the volume, z, y, x")
    parser.add_argument("--to", default="native", help="mm that the network sees, or native")
    parser.add_argument("--patch", default="32x128x128")
    parser.add_argument("--network", default="conv", help="conv, or a name of create_model")
    parser.add_argument("--sides", nargs="+", default=list(SIDES), choices=list(SIDES))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--probabilities", action="store_true")
    wanted = parser.parse_args()
    spacing = None if wanted.to == "native" else numbers(wanted.to, ",", float)
    seen = VolumeInput(patch=numbers(wanted.patch, "x", int), spacing=spacing)
    shape = numbers(wanted.shape, "x", int)
    task = Task(shape, numbers(wanted.spacing, ",", float), seen, wanted.network, wanted.probabilities)
    found: dict[str, list[Result]] = {side: [] for side in wanted.sides}
    for _ in range(wanted.rounds):
        for side in wanted.sides:
            found[side].append(alone(side, task))
    threads = torch.get_num_threads()
    print(f"{wanted.shape}, {CLASSES} classes, {wanted.network}, seen {seen.in_words()}, {threads} threads")
    print(f"{'':10}{'seconds':>10}{'memory, MiB':>14}")
    for side, results in found.items():
        seconds = statistics.median(result.seconds for result in results)
        print(f"{side:10}{seconds:>10.1f}{max(result.peak for result in results) >> 20:>14,}")
    if len(found) == 2:
        one, other = (results[0].mask for results in found.values())
        print(f"voxels of another class: {(one != other).mean():.4%}, classes in the mask: {len(np.unique(other))}")


if __name__ == "__main__":
    main()
