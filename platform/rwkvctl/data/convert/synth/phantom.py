"""Procedural data in the raw forms that `prepare` takes: for the demo, for tests, for trying things out.

Everything is a function of the seed. The images are made so that learning is visible within seconds yet not trivial:
organs vary in place, size, brightness and contrast, under a bias field and noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def write_volumes(folder: Path | str, n_patients: int = 8, size: int = 64, depth: int = 8, seed: int = 0) -> Path:
    """An ACDC tree (h5 slices and volumes, two frames a patient) with three nested organs; returns `folder`.

    Patients are numbered so that ACDC's split has all three parts. At least 3 patients, at most 100.
    """
    folder = Path(folder)
    for number in acdc_patients(n_patients):
        rng = np.random.default_rng([seed, number])
        heart = heart_anatomy(rng)
        for frame, squeeze in ((1, 1.0), (10, rng.uniform(0.7, 0.85))):
            image, label = heart_volume(heart, size, depth, squeeze, rng)
            _write_case(folder, f"patient{number:03d}_frame{frame:02d}", image, label)
    return folder


def acdc_patients(n: int) -> list[int]:
    """`n` patient numbers with some of each part of ACDC's split: 1-20 test, 21-30 validation, 31-100 training."""
    if not 3 <= n <= 100:
        raise ValueError(f"n_patients = {n}; give 3 to 100")
    held_out = max(1, min(10, n // 5))
    return [*range(1, 1 + held_out), *range(21, 21 + held_out), *range(31, 31 + n - 2 * held_out)]


def heart_anatomy(rng: np.random.Generator) -> dict[str, float]:
    """One patient's anatomy, in units of the image's side."""
    return {
        "x": rng.uniform(0.42, 0.58),
        "y": rng.uniform(0.42, 0.58),
        "radius": rng.uniform(0.13, 0.18),
        "wall": rng.uniform(0.05, 0.07),
        "angle": rng.uniform(-0.6, 0.6),
        "blood": rng.uniform(0.65, 0.9),
        "muscle": rng.uniform(0.3, 0.45),
        "tissue": rng.uniform(0.1, 0.25),
    }


def heart_volume(
    heart: dict[str, float], size: int, depth: int, squeeze: float, rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """image (depth, size, size) in [0, 1] and label 0..3: right ventricle, myocardium, left ventricle."""
    y, x = np.mgrid[:size, :size] / size
    label = np.zeros((depth, size, size), np.uint8)
    for z in range(depth):
        taper = np.sqrt(max(0.15, 1 - ((z + 0.5) / depth) ** 2))  # the apex is narrow
        inner = heart["radius"] * taper * squeeze
        distance = np.hypot(x - heart["x"], y - heart["y"])
        angle = np.arctan2(y - heart["y"], x - heart["x"]) - heart["angle"]
        wobble = 1 + 0.08 * np.sin(3 * angle)
        outer = inner * wobble + heart["wall"]
        beside = (np.abs(np.angle(np.exp(1j * (angle - np.pi)))) < 1.0) & (distance < outer + 1.1 * inner)
        label[z][beside & (distance >= outer)] = 1
        label[z][distance < outer] = 2
        label[z][distance < inner * wobble] = 3
    levels = np.array([heart["tissue"], heart["blood"] * 0.9, heart["muscle"], heart["blood"]])
    image = levels[label] + 0.12 * smooth_noise(rng, (depth, size, size), size // 6)
    image *= 1 + 0.25 * (x - 0.5) * rng.choice([-1, 1])  # bias field of the coil
    image += rng.normal(0, 0.05, image.shape)
    low, high = image.min(), image.max()
    return ((image - low) / (high - low)).astype(np.float32), label


def _write_case(folder: Path, name: str, image: NDArray[np.float32], label: NDArray[np.uint8]) -> None:
    _write_h5(folder / "ACDC_training_volumes" / f"{name}.h5", image, label)
    for z in range(len(image)):
        _write_h5(folder / "ACDC_training_slices" / f"{name}_slice_{z}.h5", image[z], label[z])


def _write_h5(path: Path, image: NDArray[np.float32], label: NDArray[np.uint8]) -> None:
    import h5py

    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("image", data=image, compression="gzip", compression_opts=1)
        file.create_dataset("label", data=label, compression="gzip", compression_opts=1)
        file.create_dataset("scribble", data=label.astype(np.uint16), compression="gzip", compression_opts=1)


def write_polyps(folder: Path | str, n: int = 40, size: int = 96, seed: int = 0) -> Path:
    """`images/N.jpg` and `masks/N.png` ({0, 255}): one or two bright blobs on mucosa-like texture; returns `folder`."""
    import simplejpeg

    from rwkvctl.data.images import files as image_files

    folder = Path(folder)
    for number in range(1, n + 1):
        rng = np.random.default_rng([seed, number])
        mask = blobs(rng, (size, size))
        tissue = np.array([0.65, 0.35, 0.3]) + rng.uniform(-0.08, 0.08, 3)
        polyp = tissue + np.array([0.15, 0.12, 0.08]) * rng.uniform(0.7, 1.3)
        rgb = paint(rng, mask.astype(np.uint8), [tissue, polyp])
        _write(folder / "images" / f"{number}.jpg", simplejpeg.encode_jpeg(rgb, quality=92))
        _write(folder / "masks" / f"{number}.png", image_files.encode_png(mask.astype(np.uint8) * 255))
    return folder


def write_textures(folder: Path | str, classes: int = 4, per_class: int = 50, size: int = 64, seed: int = 0) -> Path:
    """`train/<class>/N.jpg` and, a fifth as many, `val/<class>/N.jpg`: gratings; returns `folder`.

    A class is a spatial frequency and an orientation. Neighbouring classes overlap a little, colours say nothing.
    """
    import simplejpeg

    folder = Path(folder)
    for part, count in (("train", per_class), ("val", max(1, per_class // 5))):
        for label in range(classes):
            for number in range(count):
                rng = np.random.default_rng([seed, part == "val", label, number])
                rgb = texture(rng, label, classes, size)
                path = folder / part / f"texture_{label:02d}" / f"{number:04d}.jpg"
                _write(path, simplejpeg.encode_jpeg(rgb, quality=92))
    return folder


def texture(rng: np.random.Generator, label: int, classes: int, size: int) -> NDArray[np.uint8]:
    """A grating (size, size, 3) of a class."""
    y, x = np.mgrid[:size, :size] / size
    turn = np.pi * (label / classes + rng.normal(0, 0.12 / classes))
    cycles = (4 + 3 * (label % 3)) * rng.uniform(0.85, 1.15)
    wave = np.sin(2 * np.pi * cycles * (x * np.cos(turn) + y * np.sin(turn)) + rng.uniform(0, 6.3))
    grey = 0.5 + 0.16 * wave + 0.15 * smooth_noise(rng, (size, size), size // 8)
    grey = grey + rng.normal(0, 0.12, (size, size))
    return _to_bytes(grey[..., None] * rng.uniform(0.6, 1.4, 3))


def blobs(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask (H, W) of one or two lobed disks."""
    y, x = np.mgrid[: shape[0], : shape[1]] / min(shape)
    mask = np.zeros(shape, bool)
    for _ in range(rng.integers(1, 3)):
        cx, cy = rng.uniform(0.25, 0.75, 2) * (shape[1] / min(shape), shape[0] / min(shape))
        distance, angle = np.hypot(x - cx, y - cy), np.arctan2(y - cy, x - cx)
        mask |= distance < rng.uniform(0.1, 0.2) * (1 + 0.15 * np.sin(2 * angle + rng.uniform(0, 6)))
    return mask


def paint(
    rng: np.random.Generator,
    ids: NDArray[np.uint8],
    colours: Sequence[Sequence[float] | Float],
    shading: float = 0.25,
    noise: float = 0.03,
) -> NDArray[np.uint8]:
    """Class ids (H, W) -> an image (H, W, 3): a colour (RGB in [0, 1]) a class, under uneven light and noise."""
    shade = 1 + shading * smooth_noise(rng, ids.shape, min(ids.shape) // 6) + rng.normal(0, noise, ids.shape)
    return _to_bytes(np.asarray(colours, float)[ids] * shade[..., None])


def _to_bytes(pixels: Float) -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.clip(pixels * 255, 0, 255).astype(np.uint8))


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], width: int) -> Float:
    """Smooth noise of mean 0 and deviation 1; `width` pixels is the extent of a blob in the last two axes."""
    from scipy.ndimage import gaussian_filter

    sigma = [0.0] * (len(shape) - 2) + [max(1.0, width / 2)] * 2
    noise = gaussian_filter(rng.normal(size=shape), sigma, mode="wrap")
    return (noise - noise.mean()) / noise.std()
