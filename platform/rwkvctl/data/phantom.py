"""Procedural data in the raw forms that `prepare` takes: for the demo, for tests, for trying things out.

Everything is a function of the seed. The images are made so that learning is visible within seconds yet not trivial:
organs vary in place, size, brightness and contrast, under a bias field and noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]


def write_volumes(folder: Path | str, n_patients: int = 8, size: int = 64, depth: int = 8, seed: int = 0) -> Path:
    """An ACDC tree (h5 slices and volumes, two frames a patient) with three nested organs; returns `folder`.

    Patients are numbered so that ACDC's split has all three parts: about a fifth each for test (from 1) and
    validation (from 21), the rest for training (from 31). At least 3 patients, at most 100.
    """
    if not 3 <= n_patients <= 100:
        raise ValueError(f"n_patients = {n_patients}; give 3 to 100")
    folder = Path(folder)
    held_out = max(1, min(10, n_patients // 5))
    numbers = [*range(1, 1 + held_out), *range(21, 21 + held_out), *range(31, 31 + n_patients - 2 * held_out)]
    for number in numbers:
        rng = np.random.default_rng([seed, number])
        heart = _heart(rng)
        for frame, squeeze in ((1, 1.0), (10, rng.uniform(0.7, 0.85))):
            image, label = _volume(heart, size, depth, squeeze, rng)
            _write_case(folder, f"patient{number:03d}_frame{frame:02d}", image, label)
    return folder


def _heart(rng: np.random.Generator) -> dict[str, float]:
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


def _volume(
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
    image = levels[label] + 0.12 * _blobs(rng, (depth, size, size), size // 6)
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

    from rwkvctl.data import images

    folder = Path(folder)
    y, x = np.mgrid[:size, :size] / size
    for number in range(1, n + 1):
        rng = np.random.default_rng([seed, number])
        mask = np.zeros((size, size), bool)
        for _ in range(rng.integers(1, 3)):
            cx, cy = rng.uniform(0.25, 0.75, 2)
            distance, angle = np.hypot(x - cx, y - cy), np.arctan2(y - cy, x - cx)
            mask |= distance < rng.uniform(0.1, 0.2) * (1 + 0.15 * np.sin(2 * angle + rng.uniform(0, 6)))
        tissue = np.array([0.65, 0.35, 0.3]) + rng.uniform(-0.08, 0.08, 3)
        polyp = tissue + np.array([0.15, 0.12, 0.08]) * rng.uniform(0.7, 1.3)
        shade = 1 + 0.25 * _blobs(rng, (size, size), size // 6) + rng.normal(0, 0.03, (size, size))
        pixels = np.where(mask[..., None], polyp, tissue) * shade[..., None]
        rgb = np.ascontiguousarray(np.clip(pixels * 255, 0, 255).astype(np.uint8))
        _write(folder / "images" / f"{number}.jpg", simplejpeg.encode_jpeg(rgb, quality=92))
        _write(folder / "masks" / f"{number}.png", images.encode_png(mask.astype(np.uint8) * 255))
    return folder


def write_textures(folder: Path | str, classes: int = 4, per_class: int = 50, size: int = 64, seed: int = 0) -> Path:
    """`train/<class>/N.jpg` and, a fifth as many, `val/<class>/N.jpg`: gratings; returns `folder`.

    A class is a spatial frequency and an orientation. Neighbouring classes overlap a little, colours say nothing.
    """
    import simplejpeg

    folder = Path(folder)
    y, x = np.mgrid[:size, :size] / size
    for part, count in (("train", per_class), ("val", max(1, per_class // 5))):
        for label in range(classes):
            for number in range(count):
                rng = np.random.default_rng([seed, part == "val", label, number])
                turn = np.pi * (label / classes + rng.normal(0, 0.12 / classes))
                cycles = (4 + 3 * (label % 3)) * rng.uniform(0.85, 1.15)
                wave = np.sin(2 * np.pi * cycles * (x * np.cos(turn) + y * np.sin(turn)) + rng.uniform(0, 6.3))
                grey = 0.5 + 0.16 * wave + 0.15 * _blobs(rng, (size, size), size // 8)
                grey = grey + rng.normal(0, 0.12, (size, size))
                pixels = grey[..., None] * rng.uniform(0.6, 1.4, 3)
                rgb = np.ascontiguousarray(np.clip(pixels * 255, 0, 255).astype(np.uint8))
                path = folder / part / f"texture_{label:02d}" / f"{number:04d}.jpg"
                _write(path, simplejpeg.encode_jpeg(rgb, quality=92))
    return folder


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def _blobs(rng: np.random.Generator, shape: tuple[int, ...], width: int) -> Float:
    """Smooth noise of mean 0 and deviation 1; `width` pixels is the extent of a blob in the last two axes."""
    from scipy.ndimage import gaussian_filter

    sigma = [0.0] * (len(shape) - 2) + [max(1.0, width / 2)] * 2
    noise = gaussian_filter(rng.normal(size=shape), sigma, mode="wrap")
    return (noise - noise.mean()) / noise.std()
