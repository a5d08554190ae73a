"""Whether an exported file with its processing gives the masks that `predict` gives."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from rwkvctl.base.errors import JobFailedError
from rwkvctl.base.lineage import code_version
from rwkvctl.base.paths import as_text
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.images import intensity, normalise
from rwkvctl.models import export_rules, inference, onnx_model
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.ensemble import Member, Segmenter, probabilities_of
from rwkvctl.models.onnx_model import SCALED, Ids, Logits, Runs
from rwkvctl.models.onnx_segmenter import OnnxSegmenter
from rwkvctl.models.predict import plan, predict_one

MOST_DIFFERENT = 1e-3
"""Share of an input's pixels whose class may differ: bytes that OpenCV rounds by the last bit of a sum, and ties."""
PROBABILITY = 1e-2
"""Largest difference of probabilities, at the network's size: a step of one in 255 of a pixel is seen there."""
LIBRARIES = ("torch", "onnxruntime", "onnx", "numpy", "opencv-python-headless")

RAW = (-1000.0, 1000.0)
"""Made-up values of a scan whose rule has no numbers of its own."""


@dataclass(frozen=True)
class Compared:
    """One input: how its masks differ."""

    input: str
    shape: list[int]
    different: float
    """Share of the pixels."""
    probability: float | None = None
    """Largest difference at the network's size; files are compared by their masks alone."""


@dataclass(frozen=True)
class Parity:
    """All that were compared, and with which versions."""

    compared: list[Compared]
    versions: dict[str, str]

    @property
    def different(self) -> float:
        return max(one.different for one in self.compared)

    @property
    def probability(self) -> float:
        return max(one.probability or 0.0 for one in self.compared)

    def as_fields(self) -> dict[str, Any]:
        """The content of `NAME.parity.json`."""
        return {
            "schema": "rwkv-parity/1",
            "bounds": {"different": MOST_DIFFERENT, "probability": PROBABILITY},
            "different": self.different,
            "probability": self.probability,
            "compared": [asdict(one) for one in self.compared],
            "versions": self.versions,
            "program": code_version(),
        }


def opened(path: Path, info: BundleInfo, form: str) -> Runs:
    """A file that was just written."""
    return onnx_model.open_file(path) if form == "onnx" else Pt2Model(path, info)


def compared_images(model: nn.Module, info: BundleInfo, exported: Runs) -> Iterator[Compared]:
    """Images and slices that are made up."""
    return (of_values(model, info, exported, values) for values in made_up(info))


def judged(compared: Iterable[Compared], *, shown: Path) -> Parity:
    """JobFailedError, which names the file as `shown`, where it gives something else than the model."""
    every = list(compared)
    for one in every:
        if not (one.different <= MOST_DIFFERENT and (one.probability or 0.0) <= PROBABILITY):
            raise JobFailedError(
                f"{shown}: of {one.input} {tuple(one.shape)} {one.different:.2%} of the pixels are of other classes "
                f"than predict's (at most {MOST_DIFFERENT:.2%}), probabilities differ by {one.probability or 0:.1e} "
                f"(at most {PROBABILITY:.0e})"
            )
    return Parity(every, {name: found for name in LIBRARIES if (found := installed(name))})


def installed(library: str) -> str:
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


class Pt2Model:
    """A program of torch.export, as an exported file that is open."""

    def __init__(self, path: Path, info: BundleInfo):
        import biwkv  # noqa: F401  registers torch.ops.biwkv

        self.info = info
        with path.open("rb") as file:
            self.module = torch.export.load(file).module()

    def run(self, images: NDArray[Any], *, raw: bool = False) -> tuple[Ids, Logits]:
        """See `onnx_model.Runs`."""
        given = [torch.from_numpy(np.ascontiguousarray(images))]
        given += [torch.from_numpy(own) for own in onnx_model.numbers(self.info, raw=raw).values()]
        ids, logits = self.module(*given)
        return ids.numpy(), logits.numpy()

    def patches(self, x: Logits) -> Logits:
        """See `onnx_model.Runs`."""
        found: Logits = self.module(torch.from_numpy(np.ascontiguousarray(x))).numpy()
        return found


# Values that are made up --------------------------------------------------------------------------------------------


def made_up(info: BundleInfo) -> Iterator[NDArray[Any]]:
    """Images uint8 (N, H, W, 3) or raw slices float32 (D, H, W): of the network's size, larger and smaller, odd, thin,
    one and several."""
    size = info.image_size
    height, width = (size, size) if isinstance(size, int) else size
    rng = np.random.default_rng(0)
    for count, rows, columns in (
        (1, height, width),
        (2, 2 * height, 2 * width),
        (3, height + height // 2 + 1, 2 * width - 3),
        (1, 3 * height + 1, 2 * width + 5),
        (2, height // 2 + 1, width // 3),
        (1, 2 * height + 1, width // 2 + 1),
    ):
        yield smooth(rng, (count, rows, columns), info)


def smooth(rng: np.random.Generator, shape: tuple[int, int, int], info: BundleInfo) -> NDArray[Any]:
    """Soft blobs with a little noise: of noise alone most networks see nothing."""
    noise = rng.normal(size=(*shape, info.channels)).astype(np.float32)
    blobs = np.stack([cv2.GaussianBlur(one, (0, 0), max(shape[1:]) / 12).reshape(one.shape) for one in noise])
    blobs = (blobs - blobs.min()) / (blobs.max() - blobs.min()) + 0.02 * noise
    if info.image_kind == "rgb8":
        return (blobs * 255).clip(0, 255).astype(np.uint8)
    ends = limits(info)
    planes = [(blobs[..., place] * 1.4 - 0.2) * (high - low) + low for place, (low, high) in enumerate(ends)]
    return (planes[0] if len(planes) == 1 else np.stack(planes, axis=-1)).astype(np.float32)


def limits(info: BundleInfo) -> list[tuple[float, float]]:
    """Between which raw values of each channel lie, about."""
    rules = normalise.rules_of(info.intensity)
    if rules is None:
        return [SCALED] * info.channels
    if not export_rules.knows(rules):
        return [(-2.0, 2.0)] * info.channels  # given in deviations
    clips = [rule.clip or RAW for rule in rules]
    return [RAW if isinstance(low, str) or isinstance(high, str) else (float(low), float(high)) for low, high in clips]


def of_values(model: nn.Module, info: BundleInfo, exported: Runs, values: NDArray[Any]) -> Compared:
    """Raw values, by the file's own rule and by predict's."""
    ids, logits = exported.run(values, raw=True)
    given, rules = values, normalise.rules_of(info.intensity)
    if info.image_kind == "float" and rules is None and info.channels == 1:
        given = intensity.scaled(values, *SCALED)
    elif info.image_kind == "float" and rules is not None and export_rules.knows(rules):
        given = normalise.stacked(list(np.moveaxis(values, -1, 0)) if info.channels > 1 else [values], rules)[0]
    segmenter = Segmenter([Member(model, info)])
    masks = np.stack([segmenter.segment(one).mask for one in given])
    size = info.image_size
    resized = inference.resize_batch(given, (size, size) if isinstance(size, int) else size)
    with torch.inference_mode():
        expected = probabilities_of(model(to_input(torch.from_numpy(resized), "cpu")).float())
    difference = float((probabilities_of(torch.from_numpy(logits)) - expected).abs().max())
    return Compared("made-up images", list(values.shape), float((ids != masks).mean()), difference)


# Files --------------------------------------------------------------------------------------------------------------


def compared_files(inputs: list[Path], info: BundleInfo) -> list[Path]:
    """The files that are meant; UserError for what predict would refuse."""
    with tempfile.TemporaryDirectory() as folder:
        return plan(inputs, info, Path(folder)).inputs if inputs else []


def of_files(model: nn.Module, info: BundleInfo, exported: Runs, files: list[Path]) -> Iterator[Compared]:
    """Files, read and segmented as predict does it."""
    for path in files:
        with tempfile.TemporaryDirectory() as folder:
            [target] = plan([path], info, Path(folder)).targets
            ours = predict_one(Segmenter([Member(model, info)]), path, target).ids
            theirs = predict_one(OnnxSegmenter([exported]), path, target).ids
        yield Compared(as_text(path), list(ours.shape), float((ours != theirs).mean()))
