"""Masks by torch (as `rwkvctl predict`: compiled kernel, norms folded) and by onnxruntime, of the exported file.

    python benchmarks/bench_export.py [--model rwkv_unet_t] [--size 224] [--seconds 20]

Whole calls, in turns: from a photograph and from a volume of 8 slices to their masks. Needs `rwkvctl[platform,onnx]`.
Threads of both are OMP_NUM_THREADS, where it is set.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch
from bench_wkv import least_times

from rwkv_unet import create_model, fuse_for_inference
from rwkvctl.data.images import intensity
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.export_whole import export
from rwkvctl.models.onnx_model import open_file
from rwkvctl.models.onnx_segmenter import OnnxSegmenter

NATIVE = 512
"""Side of the images and slices."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="rwkv_unet_t")
    parser.add_argument("--size", type=int, default=224, help="side of what the network sees")
    parser.add_argument("--seconds", type=float, default=20.0, help="about how long to measure a table")
    args = parser.parse_args()
    print(f"{args.model}, {args.size} px of {NATIVE}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    rng = np.random.default_rng(0)
    photograph = rng.integers(0, 256, (NATIVE, NATIVE, 3), dtype=np.uint8)
    volume = rng.random((8, NATIVE, NATIVE), dtype=np.float32)
    for kind, channels, image in (("rgb8", 3, photograph), ("float", 1, volume)):
        fields = {"name": args.model, "num_classes": 9, "in_channels": channels}
        info = BundleInfo(
            model=fields, classes=[str(i) for i in range(9)], image_size=args.size, image_kind=kind, channels=channels,
            intensity=None if kind == "rgb8" else intensity.rule(0, 1), kind="segmentation",
        )  # fmt: skip
        torch.manual_seed(0)
        model = fuse_for_inference(create_model(**fields).eval())
        with tempfile.TemporaryDirectory() as folder:
            made = export(model, info, Path(folder) / "model.onnx", "onnx")
            ours = Segmenter([Member(model, info)])
            theirs = OnnxSegmenter([open_file(Path(made.path))])
            different = (ours.segment(image).mask != theirs.segment(image).mask).mean()
            steps = {"torch": lambda: ours.segment(image), "onnxruntime": lambda: theirs.segment(image)}  # noqa: B023
            times = least_times(steps, "cpu", args.seconds)
        count = len(image) if kind == "float" else 1
        print(f"\n{image.shape}: {different:.4%} of the pixels differ")
        for name, seconds in times.items():
            print(
                f"{name:<12}{seconds * 1000:9.1f} ms {count / seconds:8.2f} images/s {times['torch'] / seconds:6.2f}x"
            )


if __name__ == "__main__":
    main()
