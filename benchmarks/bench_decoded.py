"""What it saves that training samples are decoded once a machine: epochs of the same batches, with and without.

    python benchmarks/bench_decoded.py [DATA] [--image-size 224] [--rounds 5]

DATA is a prepared data set of segmentation; without it, pictures are made. A round is two trials of two epochs, without
the decoded samples and with them, from a cache that is empty when the round begins: so the first epoch of the first
trial decodes all samples and writes them, and every other epoch reads them. Both sides run in this process, on one
core, without loader workers, and take turns; seconds are those of the processor, which other programs do not lengthen.
The batches of both are compared bit by bit. Medians, and what they are to those without.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import cv2
import torch

from rwkvctl.config.specs.augment import PRESETS, SegmentationAugment
from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth import phantom
from rwkvctl.data.feed.loaders import TrainLoader
from rwkvctl.data.feed.samples import Batch
from rwkvctl.data.store.manifest import Manifest

STEPS = ("first trial, first epoch", "first trial, second epoch", "second trial, first epoch")


def trial(manifest: Manifest, size: int, augment: SegmentationAugment | None, keep: bool, epochs: int) -> list[float]:
    """Processor seconds of each epoch; the first has what comes before it."""
    seconds, began = [], time.process_time()
    loader = TrainLoader(
        manifest, split=None, image_size=size, global_batch=8, rank=0, world_size=1, seed=0, workers=0, augment=augment
    )
    if keep:
        loader.keep_decoded()
    for epoch in range(epochs):
        for _ in loader.epoch(epoch):
            pass
        seconds.append(time.process_time() - began)
        began = time.process_time()
    return seconds


def two_trials(manifest: Manifest, size: int, augment: SegmentationAugment | None, keep: bool) -> list[float]:
    """The seconds of STEPS, on an empty cache."""
    with tempfile.TemporaryDirectory(prefix="bd-") as home:
        os.environ["RWKVCTL_HOME"] = home
        return trial(manifest, size, augment, keep, 2) + trial(manifest, size, augment, keep, 1)


def first_epoch(manifest: Manifest, size: int, keep: bool) -> list[Batch]:
    loader = TrainLoader(
        manifest, split=None, image_size=size, global_batch=8, rank=0, world_size=1, seed=0, workers=0, augment=None
    )
    assert not keep or loader.keep_decoded()
    return list(loader.epoch(0))


def are_the_same(manifest: Manifest, size: int) -> bool:
    with tempfile.TemporaryDirectory(prefix="bd-") as home:
        os.environ["RWKVCTL_HOME"] = home
        plain, kept = (first_epoch(manifest, size, keep) for keep in (False, True))
    return all(
        a.keys == b.keys and torch.equal(a.images, b.images) and torch.equal(a.targets, b.targets)
        for a, b in zip(plain, kept, strict=True)
    )


def pictures(folder: Path) -> Path:
    """Synthetic endoscopy, prepared."""
    phantom.write_polyps(folder / "raw", n=120, size=384)
    return prepare("folder", [folder / "raw"], folder / "data", seeds=[41]).root


def main() -> None:
    """A table for every preset of augmentation, and for none."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bd-") as made:
        compare(Manifest.load(options.data or pictures(Path(made))), options.image_size, options.rounds)


def compare(manifest: Manifest, size: int, repeats: int) -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    samples = len(manifest.ids(None, "train"))
    same = "the same" if are_the_same(manifest, size) else "NOT THE SAME"
    print(f"{manifest.dataset}: {samples} training samples to {size} px; the batches of both sides are {same}")
    for name in (None, *PRESETS):
        augment = SegmentationAugment(preset=name) if name else None
        found: dict[bool, list[list[float]]] = {False: [], True: []}
        for _ in range(repeats):
            for keep, rounds in found.items():
                rounds.append(two_trials(manifest, size, augment, keep))
        plain, kept = ([statistics.median(step) for step in zip(*found[keep], strict=True)] for keep in (False, True))
        print(f"\naugmentation {name or 'none':19}  decoded anew   kept  ratio")
        for step, without, with_it in zip(STEPS, plain, kept, strict=True):
            print(f"{step:32}  {without:10.2f} s {with_it:4.2f} s  {with_it / without:5.2f}")


if __name__ == "__main__":
    main()
