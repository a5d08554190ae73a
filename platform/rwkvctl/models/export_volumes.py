"""A trained network over three axes as one file: patches of a volume in, logits out.

Resampling and windows are no part of the file: `rwkvctl predict NAME.onnx` does them without torch, and `NAME.json`
says how for other programs. A file whose masks are not those of `predict` is not left.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from torch import nn

from rwkvctl.base.errors import JobFailedError
from rwkvctl.data.images import normalise
from rwkvctl.models import export_contract
from rwkvctl.models.bundle import BundleInfo, VolumeInput
from rwkvctl.models.certainty import probabilities_of
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.models.export import TOLERANCE, Graph, example_image
from rwkvctl.models.export_parity import Compared
from rwkvctl.models.onnx_model import Runs
from rwkvctl.models.onnx_segmenter import OnnxSegmenter

MADE_UP_SPACING = ((1.0, 1.0, 1.0), (1.6, 0.7, 0.8), (0.6, 1.3, 1.2))
"""Of the volumes that are compared, in spacings of the model."""


def graph(model: nn.Module, info: BundleInfo, form: str) -> Graph:
    """The network and its input, of any number of patches."""
    assert info.volumes is not None
    example = example_image(info, batch=2, size=info.volumes.patch)
    shapes: tuple[dict[int, Any], ...] = ({0: torch.export.Dim("n", min=1)},)
    facts = export_contract.metadata(info, form)
    return Graph(model.requires_grad_(False).eval(), (example,), shapes, ("patches",), ("logits",), facts)


def compared(model: nn.Module, info: BundleInfo, exported: Runs) -> Iterator[Compared]:
    """Patches by their logits, and volumes that are made up by masks and probabilities."""
    own = info.volumes
    assert own is not None
    patches = example_image(info, batch=3, size=own.patch)
    with torch.inference_mode():
        expected = model(patches)
    found = torch.from_numpy(exported.patches(patches.numpy()))
    difference = float((found - expected).abs().max() / expected.abs().max())
    if not difference <= TOLERANCE:
        raise JobFailedError(f"its logits differ from the model's by {difference:.1e} (at most {TOLERANCE:.0e})")
    differences = probabilities_of(found.flatten(2)[..., None]) - probabilities_of(expected.flatten(2)[..., None])
    yield Compared("patches of noise", list(patches.shape), 0.0, float(differences.abs().max()))
    ours, theirs = Segmenter([Member(model, info)]), OnnxSegmenter([exported])
    for values, spacing in made_up(info, own):
        [one, other] = [each.segment(values, spacing=spacing).mask for each in (ours, theirs)]
        yield Compared("made-up volumes", list(values.shape), float((one != other).mean()))


def made_up(info: BundleInfo, own: VolumeInput) -> Iterator[tuple[NDArray[Any], tuple[float, ...]]]:
    """Volumes as the model's rule makes them, and their spacing."""
    rng = np.random.default_rng(0)
    depth, height, width = own.patch
    shapes = ((depth + depth // 2, height, width), (depth, height + 3, width + 5), (max(1, depth // 3), height, width))
    for shape, factors in zip(shapes, MADE_UP_SPACING, strict=True):
        spacing = [step * factor for step, factor in zip(own.spacing or (1.0, 1.0, 1.0), factors, strict=True)]
        yield blobs(rng, shape, info), (spacing[0], spacing[1], spacing[2])


def blobs(rng: np.random.Generator, shape: tuple[int, ...], info: BundleInfo) -> NDArray[np.float32]:
    """(D, H, W[, C]): soft ones with a little noise, in [0, 1], or around 0 where the model's rule gives deviations."""
    several = [info.channels] if info.channels > 1 else []
    noise = rng.normal(size=(*shape, *several))
    soft = gaussian_filter(noise, [max(1.0, side / 12) for side in shape] + [0.0] * len(several))
    unit = (soft - soft.min()) / (soft.max() - soft.min()) + 0.02 * noise
    in_unit = all(rule.is_range for rule in normalise.rules_of(info.intensity) or ())
    return (unit if in_unit else 4 * unit - 2).astype(np.float32)
