"""From the logits of a network to a mask's file on the scan's grid: ours beside nnU-Net's export of the same logits.

    pip install nnunetv2
    python benchmarks/bench_mask_export.py [--shape 60x512x512] [--size 224] [--repeats 3]

Logits of 9 classes, float32 (9, D, size, size), are made; each side resizes them to the scan's size, takes the best
class and writes a compressed NIfTI file. nnU-Net's is `export_prediction_from_logits` with its default resampling
(order 1) and SimpleITK writer, with as many threads as ours; it is given the logits of the whole scan, as its
predictor does. Ours takes them as `rwkvctl predict` does: eight slices at a time, as the network gives them. Each run
is a process of its own; "memory" is the most that it has had (resident) beyond what it had with its libraries and the
logits. The masks may differ where two classes are nearly equal: the share is printed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import torch

CLASSES = 9
SPACING = (3.0, 0.8, 0.8)
Shape = tuple[int, int, int]


class Cost(NamedTuple):
    seconds: float
    mib: float


def logits_of(depth: int, size: int) -> torch.Tensor:
    """Smooth, so that classes are regions."""
    torch.manual_seed(0)
    coarse = torch.randn(depth, CLASSES, 12, 12)
    large = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic")
    return (4 * large).transpose(0, 1).contiguous()


def ours(logits: torch.Tensor, shape: Shape, out: Path) -> None:
    from rwkvctl.base.files import atomic_open
    from rwkvctl.data.images import nifti
    from rwkvctl.models.inference import at_native_size, best_class

    mask = np.empty(shape, np.uint8)
    with torch.inference_mode():
        for start in range(0, shape[0], 8):
            part = slice(start, start + 8)
            mask[part] = best_class(at_native_size(logits[:, part].transpose(0, 1), shape[1:])).numpy()
    image = nibabel.Nifti1Image(np.broadcast_to(np.uint8(0), shape[::-1]), np.diag([*SPACING[::-1], 1]))
    with atomic_open(out / "ours.nii.gz") as file:
        nifti.write_like(file, image.header, mask.transpose(2, 1, 0), gzipped=True)


def nnunet(logits: torch.Tensor, shape: Shape, out: Path) -> None:
    from nnunetv2.inference.export_prediction import export_prediction_from_logits
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    plans = PlansManager(plans_of(shape, logits.shape[-1]))
    affine_parts = {"spacing": SPACING[::-1], "origin": (0.0, 0.0, 0.0), "direction": tuple(np.eye(3).ravel())}
    properties = {
        "sitk_stuff": affine_parts,
        "spacing": list(SPACING),
        "shape_before_cropping": shape,
        "shape_after_cropping_and_before_resampling": shape,
        "bbox_used_for_cropping": [[0, side] for side in shape],
    }
    labels = {"background": 0} | {f"class {number}": number for number in range(1, CLASSES)}
    dataset = {"labels": labels, "file_ending": ".nii.gz", "channel_names": {"0": "CT"}}
    configuration = plans.get_configuration("2d")
    threads = torch.get_num_threads()
    target = str(out / "nnunet")
    export_prediction_from_logits(logits, properties, configuration, plans, dataset, target, False, threads)


def plans_of(shape: Shape, size: int) -> dict[str, Any]:
    """What nnU-Net's planner writes of it, for a scan whose slices are resampled to the network's size."""
    kwargs = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    return {
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "configurations": {
            "2d": {
                "spacing": [SPACING[1] * shape[1] / size, SPACING[2] * shape[2] / size],
                "architecture": {},  # no network is built
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": kwargs,
            }
        },
    }


SIDES = {"ours": ours, "nnunet": nnunet}


def resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def measure(side: str, shape: Shape, size: int, out: Path, answer: Any) -> None:
    logits = logits_of(shape[0], size)
    SIDES[side](logits[:, :2].clone(), (2, *shape[1:]), out)  # its libraries are imported
    Path("/proc/self/clear_refs").write_text("5")
    before, started = resident("VmRSS"), time.perf_counter()
    SIDES[side](logits, shape, out)
    answer.send(Cost(time.perf_counter() - started, resident("VmHWM") - before))


def in_a_process(side: str, shape: Shape, size: int, out: Path) -> Cost:
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(side, shape, size, out, its))
    process.start()
    its.close()
    try:
        return mine.recv()
    finally:
        process.join()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", default="60x512x512")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    depth, height, width = map(int, arguments.shape.split("x"))
    shape = depth, height, width
    try:
        import nnunetv2  # noqa: F401

        sides = list(SIDES)
    except ImportError:
        print("nnU-Net is not installed (pip install nnunetv2): ours alone")
        sides = ["ours"]
    with tempfile.TemporaryDirectory() as name:
        found = {side: [] for side in sides}  # type: dict[str, list[Cost]]
        for _ in range(arguments.repeats):
            for side in sides:
                found[side].append(in_a_process(side, shape, arguments.size, Path(name)))
        print(f"{arguments.shape}, {CLASSES} classes at {arguments.size} px, {torch.get_num_threads()} threads")
        print(f"{'':10}{'seconds':>9}{'of ours':>9}{'memory, MiB':>13}")
        base = statistics.median(cost.seconds for cost in found["ours"])
        for side, costs in found.items():
            seconds = statistics.median(cost.seconds for cost in costs)
            print(f"{side:10}{seconds:9.2f}{seconds / base:8.1f}x{max(cost.mib for cost in costs):13.0f}")
        if len(sides) == 2:
            one, other = (np.asarray(nibabel.load(Path(name) / f"{side}.nii.gz").dataobj) for side in sides)
            print(f"voxels of another class: {100 * (one != other).mean():.3f} %")


if __name__ == "__main__":
    main()
