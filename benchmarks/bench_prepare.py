"""From raw files to shards: `data prepare` on one core beside a plain loop with Pillow or nibabel.

    python benchmarks/bench_prepare.py [--images 200] [--volumes 6] [--rounds 3] [--only jpeg|tiff|nifti|nifti.gz]

Both sides make a training set of the same samples: the loop opens image and mask, checks no more than that they can be
decoded, and writes them with webdataset. `prepare` also pairs and checks all of it (sizes, labels, grids, odd masks),
hashes files and voxels, looks for near-duplicates, and writes indices, splits and a manifest. Each run is a process of
its own whose libraries are imported; seconds are of its processor, which other programs do not lengthen, and memory is
the most that it has had (resident) beyond what it had then. The median of the rounds is printed; files are in the
page cache.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import nibabel
import numpy as np
import simplejpeg
import webdataset
from PIL import Image

Write = Callable[[webdataset.TarWriter, Path], None]


class Cost(NamedTuple):
    seconds: float
    mib: float


class Case(NamedTuple):
    """A kind of source: how it is made, its format for `prepare`, and the plain loop over it."""

    make: Callable[[Path, int], None]
    format: str
    loop: Write


# Sources ------------------------------------------------------------------------------------------------------------


def noise(rng: np.random.Generator, shape: tuple[int, ...], finest: int = 10) -> np.ndarray:
    """The spectrum of a photo: noise at every scale, the finer the weaker; float32 in [0, 1]."""
    pixels = np.zeros(shape, np.float32)
    for octave in range(2, finest):
        grid = *(max(2, side >> (9 - octave)) for side in shape[:2]), *shape[2:]
        coarse = rng.standard_normal(grid).astype(np.float32) / 1.3**octave
        pixels += cv2.resize(coarse, shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return (pixels - pixels.min()) / np.ptp(pixels)


def blob(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """One lesion with a wavy rim, bool (H, W)."""
    return noise(rng, (height, width), finest=5) > 0.68


def jpegs(folder: Path, count: int) -> None:
    """Photos of 1024 x 768 px with PNG masks, as in ISIC at a size that is trained on."""
    for number in range(count):
        rng = np.random.default_rng(number)
        photo = (noise(rng, (768, 1024, 3)) * 255).astype(np.uint8)
        save(folder / "images" / f"{number}.jpg", simplejpeg.encode_jpeg(photo, quality=92, colorsubsampling="420"))
        Image.fromarray(blob(rng, 768, 1024).astype(np.uint8) * 255).save(made(folder / "masks" / f"{number}.png"))


def tiffs(folder: Path, count: int) -> None:
    """Frames of 384 x 288 px, image and mask a TIFF each, as in CVC-ClinicDB."""
    for number in range(count):
        rng = np.random.default_rng(number)
        frame = (noise(rng, (288, 384, 3)) * 255).astype(np.uint8)
        Image.fromarray(frame).save(made(folder / "images" / f"{number}.tif"))
        Image.fromarray(blob(rng, 288, 384).astype(np.uint8) * 255).save(made(folder / "masks" / f"{number}.tif"))


def scans(folder: Path, count: int, ending: str = ".nii") -> None:
    """CT-like volumes of 256 x 256 x 48 voxels in int16 with 3 organs, an nnU-Net folder."""
    top = folder / "Dataset001_Bench"
    for number in range(count):
        rng = np.random.default_rng(number)
        slices = np.stack([noise(rng, (256, 256)) for _ in range(48)], axis=-1)
        voxels, labels = (
            (slices * 1400 - 1000).astype(np.int16),
            np.digitize(slices, [0.5, 0.62, 0.74]).astype(np.uint8),
        )
        affine = np.diag([-0.8, -0.8, 3.0, 1.0])
        nibabel.save(nibabel.Nifti1Image(voxels, affine), made(top / "imagesTr" / f"case{number:02d}_0000{ending}"))
        nibabel.save(nibabel.Nifti1Image(labels, affine), made(top / "labelsTr" / f"case{number:02d}{ending}"))
    told = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "spleen": 2, "kidney": 3},
        "numTraining": count,
        "file_ending": ending,
    }
    (top / "dataset.json").write_text(json.dumps(told))


def packed_scans(folder: Path, count: int) -> None:
    scans(folder, count, ".nii.gz")


def made(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def save(path: Path, data: bytes) -> None:
    made(path).write_bytes(data)


# Plain loops --------------------------------------------------------------------------------------------------------


def loop_over_images(tar: webdataset.TarWriter, source: Path) -> None:
    """Files that a loader reads keep their bytes; others become PNG."""
    for path in sorted((source / "images").iterdir()):
        mask_path = next((source / "masks").glob(f"{path.stem}.*"))
        image = Image.open(path).convert("RGB")
        mask = (np.asarray(Image.open(mask_path).convert("L")) > 127).astype(np.uint8)
        data = {"jpg": path.read_bytes()} if path.suffix == ".jpg" else {"png": png(image)}
        meta = {"id": path.stem, "size": image.size}
        tar.write(
            {"__key__": path.stem, **data, "mask.png": png(Image.fromarray(mask)), "json": json.dumps(meta).encode()}
        )


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def loop_over_scans(tar: webdataset.TarWriter, source: Path) -> None:
    """Slices of four cases in five and whole volumes of the rest, float32 in [0, 1]."""
    top = source / "Dataset001_Bench"
    paths = sorted((top / "imagesTr").iterdir())
    for number, path in enumerate(paths):
        scan = nibabel.load(path)
        image = np.asarray(scan.dataobj, dtype=np.float32)
        labels = nibabel.load(top / "labelsTr" / path.name.replace("_0000", "")).dataobj
        ids = np.asarray(labels, dtype=np.uint8).transpose(2, 1, 0)
        low, high = np.percentile(image, [0.5, 99.5])
        image = ((image.clip(low, high) - low) / (high - low)).transpose(2, 1, 0)
        meta = json.dumps({"id": path.name, "spacing": [float(step) for step in scan.header.get_zooms()]}).encode()
        name = path.name.partition("_")[0]
        slices = [(f"{name}_{z}", image[z], ids[z]) for z in range(len(image))]
        for key, one, own in [(name, image, ids)] if number % 5 == 4 else slices:
            tar.write({"__key__": key, "image.npy": npy(one), "mask.npy": npy(own), "json": meta})


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.ascontiguousarray(array))
    return buffer.getvalue()


CASES = {
    "jpeg": Case(jpegs, "folder", loop_over_images),
    "tiff": Case(tiffs, "folder", loop_over_images),
    "nifti": Case(scans, "nnunet", loop_over_scans),
    "nifti.gz": Case(packed_scans, "nnunet", loop_over_scans),
}


# Measuring ----------------------------------------------------------------------------------------------------------


def ours(case: Case, source: Path, out: Path) -> None:
    from rwkvctl.data.convert.prepare import prepare

    prepare(case.format, [source], out, workers=1, ratio="8:1:1")


def plain(case: Case, source: Path, out: Path) -> None:
    with webdataset.TarWriter(str(made(out / "all.tar")), encoder=False) as tar:
        case.loop(tar, source)


SIDES = {"plain loop": plain, "prepare": ours}


def measure(side: str, name: str, warm: Path, source: Path, out: Path, answer: Any) -> None:
    SIDES[side](CASES[name], warm, out / "warm")  # its libraries are imported
    Path("/proc/self/clear_refs").write_text("5")
    before, began = resident("VmRSS"), time.process_time()
    SIDES[side](CASES[name], source, out / "made")
    answer.send(Cost(time.process_time() - began, resident("VmHWM") - before))


def resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def in_a_process(side: str, name: str, warm: Path, source: Path, out: Path) -> Cost:
    context = multiprocessing.get_context("spawn")
    mine, its = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(side, name, warm, source, out, its))
    process.start()
    its.close()
    try:
        return mine.recv()
    finally:
        process.join()
        shutil.rmtree(out, ignore_errors=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--volumes", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=CASES)
    arguments = parser.parse_args()
    print(f"{'source':10}{'samples':>9}{'raw, MB':>9}  {'':12}{'seconds':>9}{'ratio':>8}{'memory, MiB':>13}")
    for name, case in CASES.items():
        if arguments.only not in (None, name):
            continue
        count = arguments.volumes if name.startswith("nifti") else arguments.images
        with tempfile.TemporaryDirectory() as folder:
            source, warm = Path(folder) / "raw", Path(folder) / "warm"
            case.make(source, count)
            case.make(warm, 10)
            megabytes = sum(path.stat().st_size for path in source.rglob("*.*")) / 1e6
            found = {side: [] for side in SIDES}  # type: dict[str, list[Cost]]
            for _ in range(arguments.rounds):
                for side in SIDES:
                    found[side].append(in_a_process(side, name, warm, source, Path(folder) / "out"))
        base = statistics.median(cost.seconds for cost in found["plain loop"])
        for side, costs in found.items():
            seconds, memory = statistics.median(cost.seconds for cost in costs), max(cost.mib for cost in costs)
            print(
                f"{name:10}{count:9}{megabytes:9.1f}  {side:12}{seconds:9.2f}{seconds / base:7.2f}x{memory:13.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
