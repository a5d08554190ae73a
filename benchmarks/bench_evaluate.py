"""HD95 of a volume, and volumes evaluated per minute: ours beside medpy and the authors' way.

    python benchmarks/bench_evaluate.py [--hd95 150x512x512] [--volumes 3] [--shape 24x512x512] [--processes 1]
    python benchmarks/bench_evaluate.py --memory 1000x512x512

First HD95 in voxels and mm of all eight organs of one volume: ours; scipy's distance transforms in the box around both
masks, which is what ours replaced; and medpy on whole arrays, on every fourth pixel of every slice because it takes so
long. One process, one thread.

Then whole evaluations of RWKV-UNet T at 224 px, from shards to scores. The authors' way is slice by slice: `zoom` of
order 3 to 224 px, the network, `zoom` of order 0 of the mask, and medpy's DSC and HD95 on whole volumes, in voxels.
Ours is what `rwkvctl evaluate` runs, with HD95 in voxels and mm by both definitions, ASSD, NSD and overlap. Volumes
are made: ellipsoids where Synapse has its organs. No trained weights are needed: the network is run, but organs are
told by their grey values.

With `--memory` one volume is evaluated with the smallest network, and nothing is compared: it prints the most memory
that every process has had.
"""

from __future__ import annotations

import argparse
import gc
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import h5py
import numpy as np
import psutil
import torch
from medpy.metric.binary import dc, hd95
from numpy.typing import NDArray
from scipy.ndimage import binary_erosion, distance_transform_edt, generate_binary_structure, zoom
from torch import Tensor, nn

from rwkv_jobs import scoring
from rwkv_jobs.worker import Worker
from rwkv_unet import create_model, fuse_for_inference
from rwkvctl.config.specs.parts import DataSpec
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth.synapse import ORGANS, TRANSUNET
from rwkvctl.data.feed.cases import iter_cases
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.training import metrics

Labels = NDArray[np.uint8]
Shape = tuple[int, int, int]
Figures = dict[str, float]

SIDE, CLASSES = 224, 9
SPACINGS = {"square pixels": (3.0, 0.76, 0.76), "not square": (3.0, 0.76, 0.7)}


# Volumes ------------------------------------------------------------------------------------------------------------


def organs(shape: Shape, seed: int, wobble: float = 0.0) -> Labels:
    """Eight ellipsoids; `wobble` moves their surfaces and adds a stray blob each, as a prediction has them."""
    rng = np.random.default_rng(seed)
    z, y, x = np.ogrid[: shape[0], : shape[1], : shape[2]]
    axes = [
        (axis / side).astype(np.float32) for axis, side in zip((x, y, z), (shape[2], shape[1], shape[0]), strict=True)
    ]
    level = np.float32(1)
    if wobble:
        coarse = rng.standard_normal([max(2, side // 12) for side in shape]).astype(np.float32)
        level = 1 + wobble * zoom(coarse, np.divide(shape, coarse.shape), order=1)
    labels = np.zeros(shape, np.uint8)
    for organ, (centre, radii, _) in ORGANS.items():
        if organ not in TRANSUNET:
            continue
        at = zip(axes, centre, radii, strict=True)
        labels[sum(((axis - c) / r) ** 2 for axis, c, r in at) < level] = TRANSUNET[organ]
    if wobble:
        for organ in range(1, CLASSES):
            corner = [int(rng.integers(0, side - 4)) for side in shape]
            labels[tuple(slice(c, c + 4) for c in corner)] = organ
    return labels


def grey(labels: Labels, rng: np.random.Generator) -> NDArray[np.float32]:
    """Grey values 0.1, 0.2 ... of the classes, under noise."""
    return ((labels + 1) / 10 + rng.normal(0, 0.02, labels.shape)).clip(0, 1).astype(np.float32)


def write_synapse(folder: Path, volumes: int, shape: Shape) -> None:
    """The files of TransUNet: a few slices to train on, and so many volumes to test."""
    rng, root = np.random.default_rng(0), folder / "Synapse"
    lists = root / "lists" / "lists_Synapse"
    for path in (root / "train_npz", root / "test_vol_h5", lists):
        path.mkdir(parents=True)
    slices, cases = [f"case0005_slice{z:03d}" for z in range(4)], [8, 22, 38, 36, 32, 2, 29, 3, 1, 4, 25, 35][:volumes]
    for z, name in enumerate(slices):
        labels = organs((1, *shape[1:]), z)[0]
        np.savez(root / "train_npz" / f"{name}.npz", image=grey(labels, rng), label=labels.astype(np.float32))
    for case in cases:
        labels = organs(shape, case, wobble=0.05)
        with h5py.File(root / "test_vol_h5" / f"case{case:04d}.npy.h5", "w") as file:
            file["image"], file["label"] = grey(labels, rng), labels.astype(np.float32)
    (lists / "train.txt").write_text("\n".join(slices) + "\n")
    (lists / "test_vol.txt").write_text("".join(f"case{case:04d}\n" for case in cases))
    (lists / "all.lst").write_text("".join(f"case{case:04d}.npy.h5\n" for case in (5, *cases)))


# HD95 ---------------------------------------------------------------------------------------------------------------


def ours(pred: Labels, truth: Labels, spacing: tuple[float, ...]) -> list[tuple[float | None, ...]]:
    return [
        (one.strict_hd95_vox, one.strict_hd95_max_vox, one.strict_hd95_mm, one.strict_hd95_max_mm)
        for one in metrics.score_case(pred, truth, CLASSES, spacing)
    ]


def in_box(pred: Labels, truth: Labels, spacing: tuple[float, ...]) -> list[tuple[float, ...]]:
    """scipy's distance transforms of both surfaces in the box around both masks, for voxels and again for mm."""
    found, faces = [], generate_binary_structure(3, 1)
    for organ in range(1, CLASSES):
        masks = pred == organ, truth == organ
        box = metrics.bounding_box(masks[0] | masks[1])
        inside = [np.ascontiguousarray(mask[box]) for mask in masks]
        first, second = (mask ^ binary_erosion(mask, structure=faces) for mask in inside)
        row: list[float] = []
        for sampling in (None, spacing):
            there = distance_transform_edt(~second, sampling=sampling)[first]
            back = distance_transform_edt(~first, sampling=sampling)[second]
            row += [np.percentile(np.hstack((there, back)), 95)]
            row += [max(np.percentile(there, 95), np.percentile(back, 95))]
        found.append(tuple(map(float, row)))
    return found


def medpys(pred: Labels, truth: Labels, spacing: tuple[float, ...]) -> list[tuple[float, ...]]:
    masks = [(pred == organ, truth == organ) for organ in range(1, CLASSES)]
    return [(hd95(*pair), hd95(*pair, voxelspacing=spacing)) for pair in masks]


class Took(NamedTuple):
    """Seconds on the clock, and of the processor in this process, which other programs do not lengthen."""

    wall: float
    cpu: float


def timed(function: Callable[..., Any], *given: Any) -> tuple[Took, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    found = function(*given)
    return Took(time.perf_counter() - wall, time.process_time() - cpu), found


def compare_hd95(shape: Shape) -> Figures:
    """Seconds of the processor of each way."""
    truth, pred = organs(shape, 0), organs(shape, 1, wobble=0.1)
    print(f"\nHD95 in voxels and mm of 8 classes, {'x'.join(map(str, shape))}, seconds of the processor, one thread")
    print(f"{'':44} {'seconds':>9} {'of ours':>9}  largest difference")
    found: Figures = {}
    for name, spacing in SPACINGS.items():
        mine, figures = timed(ours, pred, truth, spacing)
        box, theirs = timed(in_box, pred, truth, spacing)
        print(f"{'ours, ' + name:44} {mine.cpu:9.2f} {'1.0x':>9}")
        away = difference(figures, theirs)
        found |= {f"ours, {name}": mine.cpu, f"scipy in the box, {name}": box.cpu}
        print(f"{'scipy in the box, ' + name:44} {box.cpu:9.2f} {box.cpu / mine.cpu:8.1f}x  {away:.1e}")
    small = [np.ascontiguousarray(labels[:, ::4, ::4]) for labels in (pred, truth)]
    mine, figures = timed(ours, *small, spacing)
    whole, theirs = timed(medpys, *small, spacing)
    title, pairs = "x".join(map(str, small[0].shape)), [(row[0], row[2]) for row in figures]
    print(f"{'ours, ' + title:44} {mine.cpu:9.2f} {'1.0x':>9}")
    print(f"{'medpy, ' + title:44} {whole.cpu:9.2f} {whole.cpu / mine.cpu:8.1f}x  {difference(pairs, theirs):.1e}")
    return found | {f"ours, {title}": mine.cpu, f"medpy, {title}": whole.cpu}


def difference(some: Any, others: Any) -> float:
    return float(np.abs(np.subtract(some, others)).max())


# Evaluation ---------------------------------------------------------------------------------------------------------


class Told(nn.Module):
    """Runs a network and takes the class whose grey value is nearest, so that masks look like a trained one's."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        logits = self.network(x)
        levels = (torch.arange(CLASSES, device=x.device).view(1, -1, 1, 1) + 1) / 10
        smooth = nn.functional.avg_pool2d(x, 5, 1, 2)
        return 0 * logits - (smooth - levels) ** 2


@torch.no_grad()
def as_the_authors(model: nn.Module, manifest: Manifest, device: str) -> float:
    """Mean DSC over cases and classes, slice by slice and with medpy; HD95 is computed beside it."""
    means = []
    for case in iter_cases(manifest, split=None, part="test"):
        image, truth = np.array(case.image), case.mask
        prediction = np.zeros_like(truth)
        for z, one in enumerate(image):
            height, width = one.shape
            small = zoom(one, (SIDE / height, SIDE / width), order=3)
            logits = model(torch.from_numpy(small)[None, None].float().to(device))
            mask = torch.argmax(torch.softmax(logits, dim=1), dim=1)[0].cpu().numpy()
            prediction[z] = zoom(mask, (height / SIDE, width / SIDE), order=0)
        for organ in range(1, CLASSES):
            masks = prediction == organ, truth == organ
            if masks[0].any() and masks[1].any():
                means.append(dc(*masks))
                hd95(*masks)
    return float(np.mean(means))


def as_ours(model: nn.Module, manifest: Manifest, processes: int, device: str) -> float:
    data = DataSpec(path=str(manifest.root), image_size=SIDE, workers=processes)
    me = Worker(0, 1, torch.device(device))
    return scoring.score_cases(model, manifest, data, "test", me, hd95=True).mean("dsc_official")


def compare_evaluations(volumes: int, shape: Shape, processes: int, device: str) -> Figures:
    """Volumes a minute of the authors' way and of ours."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_synapse(folder / "raw", volumes, shape)
        manifest = prepare("synapse", [folder / "raw"], folder / "shards", allow_partial=True)
        torch.manual_seed(0)
        network = create_model("rwkv_unet_t", num_classes=CLASSES, in_channels=manifest.channels).eval().to(device)
        theirs, their_dsc = timed(as_the_authors, Told(network).eval(), manifest, device)
        model = Told(fuse_for_inference(network)).eval()
        found = {"authors' way, slice by slice, medpy": (theirs, their_dsc)}
        scoring.processes_for = lambda _, data: data.workers  # else none for so little data
        for count in sorted({0, processes}):
            found[f"ours, {count} loader and {count} metric processes"] = timed(as_ours, model, manifest, count, device)
    size, threads = "x".join(map(str, shape)), torch.get_num_threads()
    print(f"\nevaluation of {volumes} volumes of {size}, T at {SIDE} px on {device}, {threads} threads")
    print(f"{'':44} {'volumes a minute':>17} {'ratio':>7} {'processor s/volume':>19} {'ratio':>7} {'mean DSC':>9}")
    for title, (took, dsc) in found.items():
        rate, spent = 60 * volumes / took.wall, took.cpu / volumes
        ratios = theirs.wall / took.wall, theirs.cpu / took.cpu
        print(f"{title:44} {rate:17.2f} {ratios[0]:6.1f}x {spent:19.1f} {ratios[1]:6.1f}x {dsc:9.4f}")
    return {title: 60 * volumes / took.wall for title, (took, _) in found.items()}


# Memory -------------------------------------------------------------------------------------------------------------


def report_memory(shape: Shape, processes: int) -> None:
    """The most that every process of an evaluation of one volume has had in memory."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_synapse(folder / "raw", 1, shape)
        manifest = prepare("synapse", [folder / "raw"], folder / "shards", allow_partial=True)
        shutil.rmtree(folder / "raw")
        network = create_model("rwkv_unet_xt", num_classes=CLASSES, in_channels=manifest.channels).eval()
        model = Told(fuse_for_inference(network)).eval()
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # forget what making the volume took
        with watched() as peaks:
            took, _ = timed(as_ours, model, manifest, processes, "cpu")
    print(f"\nevaluation of one volume of {'x'.join(map(str, shape))}, XT at {SIDE} px, {processes} loader processes")
    for who, (most, own) in peaks.items():
        print(f"{who:30} {most:6.2f} GiB at most, {own:6.2f} of it not of files")
    print(f"{'all together':30} {sum(most for most, _ in peaks.values()):6.2f} GiB at most; {took.wall:.0f} s")


@contextmanager
def watched() -> Iterator[dict[str, list[float]]]:
    """GiB that this process and its children have had at most: [VmHWM, RssAnon], looked at ten times a second."""
    peaks: dict[str, list[float]] = {}
    done = threading.Event()

    def look() -> None:
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            with suppress(psutil.Error, OSError, KeyError):
                lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
                status = dict(line.split(":", 1) for line in lines)
                found = [int(status[field].split()[0]) / 2**20 for field in ("VmHWM", "RssAnon")]
                who = "this process" if process == me else f"child {process.pid}"
                peaks[who] = [max(pair) for pair in zip(found, peaks.get(who, found), strict=True)]

    def watch() -> None:
        while not done.wait(0.1):
            look()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        look()
        done.set()
        thread.join()


def shape_of(text: str) -> Shape:
    depth, height, width = map(int, text.split("x"))
    return depth, height, width


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hd95", type=shape_of, default=(150, 512, 512), help="size of the volume for HD95 alone")
    parser.add_argument("--volumes", type=int, default=3)
    parser.add_argument("--shape", type=shape_of, default=(24, 512, 512), help="size of the volumes that are evaluated")
    parser.add_argument("--processes", type=int, default=1, help="loader processes, and as many for the metrics")
    parser.add_argument("--device", default="cpu", help="what the network runs on")
    parser.add_argument("--memory", type=shape_of, metavar="SHAPE", help="only the memory that such a volume takes")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, OpenCV {cv2.__version__}")
    if options.memory:
        report_memory(options.memory, options.processes)
        return
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    figures = {"seconds for HD95": compare_hd95(options.hd95)}
    cv2.setNumThreads(threads)
    figures["volumes a minute"] = compare_evaluations(options.volumes, options.shape, options.processes, options.device)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
