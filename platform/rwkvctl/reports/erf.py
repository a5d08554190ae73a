"""Effective receptive fields: how much each input pixel moves the centre of the last encoder stage (Fig. 3).

Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks", NeurIPS 2016. How wide
a field is, in one number, follows Ding et al., "Scaling Up Your Kernels to 31x31", CVPR 2022.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from rwkv_unet import list_models
from rwkvctl.base.errors import UserError
from rwkvctl.data.feed.cases import iter_cases
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import build as networks
from rwkvctl.models import bundle
from rwkvctl.models.inference import resize_batch
from rwkvctl.pictures import figures
from rwkvctl.registry import references

SHARES = (0.2, 0.5, 0.9, 0.99)


@dataclass(frozen=True)
class ReceptiveField:
    """A field (H, W), the mean absolute gradient at each pixel, its largest 1.

    `sides`: for a share of its sum, the side of the smallest centred square that holds it, over the image's side.
    """

    field: NDArray[np.float64]
    sides: dict[float, float]


def open_model(name: str, storage: str, tracking_uri: str) -> nn.Module:
    """A network with random weights by `NAME` or `NAME,field=value,...`, or a trained one by its reference."""
    head = name.split(",")[0]
    if head in list_models() or head.startswith(("smp:", "monai:")):
        torch.manual_seed(0)
        spec = networks.parse(name)
        refuse_volumes(name, spec.takes_volumes)
        return networks.network(spec, 1).eval()
    model, info = bundle.load(references.find_model_folder(name, storage, tracking_uri))
    refuse_volumes(name, info.volumes is not None)
    return model


def refuse_volumes(name: str, takes_volumes: bool) -> None:
    if takes_volumes:
        raise UserError(f"{name}: takes volumes, and fields of images are drawn here: leave it out")


def images(data: Path | None, count: int, size: int) -> Tensor:
    """Normalised images (count, C, size, size): the first test images of a data set, or noise."""
    if data is None:
        return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(0))
    manifest = Manifest.load(data)
    cases = itertools.islice(iter_cases(manifest, split=None, part="test"), count)
    slices = [case.image if case.mask.ndim == 2 else case.image[len(case.image) // 2] for case in cases]
    return torch.cat([to_input(torch.from_numpy(resize_batch(image[None], (size, size))), "cpu") for image in slices])


def receptive_field(model: nn.Module, images: Tensor) -> ReceptiveField:
    """The field of `model.encoder`'s last map, or of the logits of a model without an encoder.

    images: float32 (N, C, H, W), normalised. The gradient of the positive part of the centre, summed over channels, is
    taken for each image and averaged in absolute value over images and channels.
    """
    total = torch.zeros(images.shape[2:], dtype=torch.float64)
    for image in images:
        x = image[None].clone().requires_grad_()
        centre = last_map(model, x)
        height, width = centre.shape[2:]
        score = centre[0, :, height // 2, width // 2].relu().sum()
        (gradient,) = torch.autograd.grad(score, x)
        total += gradient[0].abs().sum(0).double()
    if not total.max() > 0:
        raise UserError("the centre of the last feature map is 0 for every image: use other images or another model")
    field = (total / total.max()).numpy()
    return ReceptiveField(field, {share: side(field, share) for share in SHARES})


def last_map(model: nn.Module, x: Tensor) -> Tensor:
    """(B, C, h, w): the deepest map of the encoder, or the logits."""
    encoder: Any = getattr(model, "encoder", None)
    if hasattr(encoder, "forward_stages"):
        return encoder.forward_stages(x)[-1]
    return model(x)


def side(field: NDArray[np.float64], share: float) -> float:
    """Side of the smallest centred square that holds `share` of the sum, over the side of the image."""
    height, width = field.shape
    rows, columns = np.ogrid[:height, :width]
    ring = np.maximum(np.abs(rows - height // 2) / height, np.abs(columns - width // 2) / width)
    order = np.argsort(ring, axis=None)
    reached = np.searchsorted(np.cumsum(field.ravel()[order]), share * field.sum())
    return float(min(1.0, 2 * ring.ravel()[order[min(reached, ring.size - 1)]]))


def draw(fields: Mapping[str, ReceptiveField], out: Path) -> None:
    """A PNG with a panel a model, on a logarithmic scale from 1e-4 to the maximum."""
    count = len(fields)
    with figures.written(out, width=3.2 * count + 0.8, height=3.7) as figure:
        axes = figure.subplots(1, count, squeeze=False)[0]
        for axis, (name, found) in zip(axes, fields.items(), strict=True):
            shown = axis.imshow(np.log10(np.maximum(found.field, 1e-4)), cmap="viridis", vmin=-4, vmax=0)
            sides = ", ".join(f"{share:.0%}: {value:.0%}" for share, value in found.sides.items())
            axis.set_title(f"{name}\n{sides}", fontsize=8)
            axis.set_axis_off()
        figure.colorbar(shown, ax=list(axes), label="log10 of the gradient over its largest", shrink=0.8)
