"""Scans predicted per minute, ours beside a script that goes slice by slice, and the memory of one large scan.

    python benchmarks/bench_predict.py [--volumes 3] [--shape 40x512x512] [--models rwkv_unet_t:224,rwkv_unet_xt:32]
    python benchmarks/bench_predict.py --memory 1000x512x512 [--with probabilities]

The script is what the authors' code and most others do: nibabel reads a scan, each slice is clipped, brought to the
network's size by `zoom` of order 3, segmented alone by the model as it was trained, its mask brought back by `zoom` of
order 0, and nibabel writes the mask. Ours is what `rwkvctl predict` runs. Scans are CT-like noise (int16, gzip),
masks have 9 classes and are mostly background; weights are random. The second, tiny model stands for a network that
takes no time, as one does on a GPU: what is left is reading, resizing and writing, and of ours how sure the model is,
which `run.json` says. Both sides run on the same files, one after the other, `--repeats` times in turn.

With `--memory` one scan is predicted with the tiny model, after one slice of its size; it prints the most memory that
the process has had (resident, also what it has mapped of files) beside what it had before.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
from scipy.ndimage import zoom

from rwkv_jobs import predict
from rwkv_unet import create_model
from rwkvctl.cli.assemble import predict_spec
from rwkvctl.config.specs.jobs import PredictSpec
from rwkvctl.data.images import intensity
from rwkvctl.models import bundle

CLASSES = 9
LOW, HIGH = -125, 275
Shape = tuple[int, int, int]


def write_scan(path: Path, shape: Shape, seed: int) -> None:
    """A scan of `shape` (D, H, W) as dcm2niix writes a CT: int16, slope 1, intercept -1024."""
    rng = np.random.default_rng(seed)
    depth, height, width = shape
    coarse = rng.integers(800, 1400, (17, 17)).astype(np.float32)
    plane = zoom(coarse, (width / 17, height / 17), order=1)
    voxels = np.empty((width, height, depth), np.int16, order="F")
    for z in range(depth):
        voxels[..., z] = np.roll(plane, 3 * z, axis=0) + rng.normal(0, 20, plane.shape)
    image = nibabel.Nifti1Image(voxels, np.diag([-0.7, 0.7, 1.5, 1.0]))
    image.header.set_slope_inter(1, -1024)
    nibabel.save(image, path)


def write_model(folder: Path, name: str, size: int) -> str:
    torch.manual_seed(0)
    info = bundle.BundleInfo(
        model={"name": name, "num_classes": CLASSES},
        classes=[f"class {number}" for number in range(CLASSES)],
        image_size=size,
        image_kind="float",
        channels=1,
        intensity=intensity.rule(LOW, HIGH),
        orientation="itk",
    )
    model = create_model(name, num_classes=CLASSES).eval()
    mostly_background(model, size)
    bundle.save(folder, model.state_dict(), info)
    return str(folder)


@torch.no_grad()
def mostly_background(model: torch.nn.Module, size: int) -> None:
    """Nine of ten pixels are background, as in a scan of organs."""
    logits = model(torch.randn(2, 3, size, size))
    above = logits[:, 1:].max(dim=1).values - logits[:, 0]
    bias = [parameter for key, parameter in model.named_parameters() if key.endswith("bias")][-1]
    assert bias.shape == (CLASSES,), "of the last layer"
    bias[0] += above.quantile(0.9)


@torch.no_grad()
def slice_by_slice(model: torch.nn.Module, size: int, path: Path, out: Path) -> None:
    image = nibabel.load(path)
    volume = (np.clip(image.get_fdata(), LOW, HIGH) - LOW) / (HIGH - LOW)
    mask = np.zeros(volume.shape, np.uint8)
    for z in range(volume.shape[2]):
        one = volume[..., z]
        x, y = one.shape
        seen = torch.from_numpy(zoom(one, (size / x, size / y), order=3)).float()[None, None].repeat(1, 3, 1, 1)
        ids = torch.argmax(torch.softmax(model(seen), dim=1), dim=1)[0].numpy().astype(np.uint8)
        mask[..., z] = zoom(ids, (x / size, y / size), order=0)
    nibabel.save(nibabel.Nifti1Image(mask, image.affine, dtype=np.uint8), out / path.name)


def spec_of(model: str, inputs: list[Path], out: Path, *options: str) -> PredictSpec:
    given = {"overwrite": True, **dict.fromkeys(options, True)}
    return predict_spec([model, *map(str, inputs)], str(out), None, [], given)


def compare(models: list[str], shape: Shape, volumes: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scans = [folder / f"ct{number}.nii.gz" for number in range(volumes)]
        for number, scan in enumerate(scans):
            write_scan(scan, shape, number)
        for text in models:
            network, _, size = text.partition(":")
            model = write_model(folder / network, network, int(size))
            theirs, out = bundle.load(model)[0], folder / "theirs"
            out.mkdir(exist_ok=True)
            spec = spec_of(model, scans, folder / "ours")

            def script(theirs: torch.nn.Module = theirs, size: int = int(size), out: Path = out) -> None:
                for scan in scans:
                    slice_by_slice(theirs, size, scan, out)

            def ours(spec: PredictSpec = spec) -> None:
                predict.run(spec, folder)

            print(f"\n{volumes} scans of {'x'.join(map(str, shape))}, {network} at {size} px, "
                  f"{torch.get_num_threads()} threads")  # fmt: skip
            report(shape[0] * volumes, volumes, *(times(repeats, script, ours)))


def times(repeats: int, *sides: Callable[[], None]) -> list[list[float]]:
    """Seconds of each side, run in turn."""
    found: list[list[float]] = [[] for _ in sides]
    for _ in range(repeats):
        for seconds, side in zip(found, sides, strict=True):
            started = time.perf_counter()
            side()
            seconds.append(time.perf_counter() - started)
    return found


def report(slices: int, volumes: int, script: list[float], ours: list[float]) -> None:
    base = statistics.median(script)
    print(f"{'':22}{'volumes a minute':>18}{'s a slice':>11}{'ratio':>8}{'of the pairs':>16}")
    for name, seconds in (("slice by slice", script), ("ours", ours)):
        middle = statistics.median(seconds)
        pairs = [one / other for one, other in zip(script, seconds, strict=True)]
        print(f"{name:22}{60 * volumes / middle:18.2f}{middle / slices:11.4f}{base / middle:7.1f}x"
              f"{min(pairs):8.1f} to {max(pairs):.1f}")  # fmt: skip


def memory(shape: Shape, options: list[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = write_model(folder / "model", "rwkv_unet_xt", 32)
        write_scan(folder / "one.nii.gz", (1, *shape[1:]), 0)
        write_scan(folder / "ct.nii.gz", shape, 1)
        predict.run(spec_of(model, [folder / "one.nii.gz"], folder / "first"), folder)
        Path("/proc/self/clear_refs").write_text("5")  # the most that was resident is counted from here
        before, started = resident("VmRSS"), time.perf_counter()
        predict.run(spec_of(model, [folder / "ct.nii.gz"], folder / "masks", *options), folder)
        seconds = time.perf_counter() - started
    most = resident("VmHWM")
    print(f"{'x'.join(map(str, shape))}, {CLASSES} classes{', ' if options else ''}{', '.join(options)}: "
          f"{most - before:.0f} MiB beside the {before:.0f} MiB of libraries and model; {seconds:.0f} s")  # fmt: skip


def resident(field: str) -> float:
    """MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def shape_of(text: str) -> Shape:
    depth, height, width = map(int, text.split("x"))
    return depth, height, width


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--volumes", type=int, default=3)
    parser.add_argument("--shape", type=shape_of, default=(40, 512, 512))
    parser.add_argument("--models", default="rwkv_unet_t:224,rwkv_unet_xt:32")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memory", type=shape_of)
    parser.add_argument("--with", dest="options", action="append", default=[])
    arguments = parser.parse_args()
    if arguments.memory:
        memory(arguments.memory, arguments.options)
    else:
        compare(arguments.models.split(","), arguments.shape, arguments.volumes, arguments.repeats)


if __name__ == "__main__":
    main()
