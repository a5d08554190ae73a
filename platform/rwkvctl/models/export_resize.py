"""OpenCV's resize in operators that torch.export and ONNX have, for an exported model that takes images of any size.

`data.images.files.resize` is what models were trained on: the area average where an image shrinks, bilinear
where it grows, and where it shrinks along one axis and grows along the other OpenCV's bilinear with area's positions.
Bytes come out bit for bit as OpenCV's on x86 gives them (weights of 11 bits, products cut to 16), floats within 1e-6.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

ONE = 2048.0
"""OpenCV's 1.0 among the weights of bytes."""
LEAST_OVERLAP = 1e-3
"""Of a pixel: OpenCV leaves out what an output pixel covers less of."""


class Taps(NamedTuple):
    """Along one axis: each output is `weight[0] * x[place[0]] + weight[1] * x[place[1]]`; weights float32."""

    places: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor]


class Resize(NamedTuple):
    """How images of one size are brought to another; all tensors, so that the sizes are free in an exported graph."""

    rows: Taps
    columns: Taps
    covered: tuple[Tensor, Tensor]
    """float32 (out, in) of rows and of columns: the share that an input pixel has in an output pixel; ones and zeros
    where whole pixels are added up."""
    averages: Tensor
    """bool: whether it shrinks along no axis less than not at all, which takes the area average."""
    halves: Tensor
    """bool: by two along both axes, where OpenCV rounds halves up."""
    scale: Tensor
    """float32: what sums of covered pixels are multiplied by, if their weights do not add up to one yet."""


def resize_of(height: int, width: int, size: tuple[int, int]) -> Resize:
    """From (height, width), symbols while a graph is made, to `size`."""
    tall, wide = (torch.scalar_tensor(side, dtype=torch.float64) for side in (height, width))
    factors = [1 / (torch.full_like(side, out) / side) for side, out in zip((tall, wide), size, strict=True)]
    shrinks = tall * wide > size[0] * size[1]
    whole = (factors[0] == factors[0].round()) & (factors[1] == factors[1].round())
    return Resize(
        taps(tall, size[0], shrinks, clamp=False),
        taps(wide, size[1], shrinks, clamp=True),
        (covered(height, size[0], factors[0], whole), covered(width, size[1], factors[1], whole)),
        shrinks & (factors[0] >= 1) & (factors[1] >= 1),
        (factors[0] == 2) & (factors[1] == 2),
        torch.where(whole, 1 / (factors[0] * factors[1]), 1.0).float(),
    )


def taps(side: Tensor, out: int, shrinks: Tensor, *, clamp: bool) -> Taps:
    """clamp: at the border one pixel has the whole weight, as OpenCV has it along rows; else both are the same one."""
    target = torch.arange(out, dtype=torch.float64)
    inverse = torch.full_like(side, out) / side  # a number over a tensor would be its reciprocal times the number
    factor = 1 / inverse
    # bilinear: centres on centres
    centre = ((target + 0.5) * factor - 0.5).float()
    first = centre.floor()
    share = centre - first
    if clamp:
        share = torch.where((first < 0) | (first >= side - 1), 0.0, share)
    # bilinear of an image that is smaller on the whole: borders on borders
    begin = (target * factor).floor()
    over = ((target + 1) - (begin + 1) * inverse).float()
    over = torch.where(over <= 0, 0.0, over - over.floor())
    over = torch.where(begin >= side - 1, 0.0, over)
    first, share = torch.where(shrinks, begin, first.double()), torch.where(shrinks, over, share)
    last, zero = side - 1, torch.zeros_like(side)
    places = tuple(torch.minimum(torch.maximum(first + i, zero), last).long() for i in (0, 1))
    return Taps((places[0], places[1]), (1 - share, share))


def covered(side: int, out: int, factor: Tensor, whole: Tensor) -> Tensor:
    begin = torch.arange(out, dtype=torch.float64)[:, None] * factor
    pixel = torch.arange(side, dtype=torch.float64)[None]
    overlap = torch.minimum(begin + factor, pixel + 1) - torch.maximum(begin, pixel)
    overlap = torch.where(overlap > LEAST_OVERLAP, overlap, 0.0)
    return torch.where(whole, overlap, overlap / torch.minimum(factor, side - begin)).float()


def resized(image: Tensor, resize: Resize, *, is_bytes: bool) -> Tensor:
    """float32 (C, *size) of an image float32 (H, W, C); of bytes the result has whole numbers."""
    averaged, between = average(image, resize), bilinear_bytes(image, resize) if is_bytes else bilinear(image, resize)
    if is_bytes:
        averaged = torch.where(resize.halves, (averaged + 0.5).floor(), averaged.round()).clamp(0, 255)
    return torch.where(resize.averages, averaged, between).permute(2, 0, 1)


def average(image: Tensor, resize: Resize) -> Tensor:
    rows, columns = resize.covered
    channels = image.shape[2]
    shrunk = rows @ image.flatten(1)  # (out, W * C)
    shrunk = shrunk.reshape(rows.shape[0], -1, channels).permute(2, 0, 1) @ columns.T
    return shrunk.permute(1, 2, 0) * resize.scale


def bilinear(image: Tensor, resize: Resize) -> Tensor:
    (left, right), (from_left, from_right) = resize.columns.places, (w[:, None] for w in resize.columns.weights)
    lines = []
    for place, weight in zip(resize.rows.places, resize.rows.weights, strict=True):
        line = image[place]
        lines.append((line[:, left] * from_left + line[:, right] * from_right) * weight[:, None, None])
    return lines[0] + lines[1]


def bilinear_bytes(image: Tensor, resize: Resize) -> Tensor:
    """As `bilinear`, in whole numbers as OpenCV has them; float64 holds all of them."""
    (left, right), weights = (
        resize.columns.places,
        [(w * ONE).round().double()[:, None] for w in resize.columns.weights],
    )
    lines = []
    for place, weight in zip(resize.rows.places, resize.rows.weights, strict=True):
        line = image[place].double()
        line = ((line[:, left] * weights[0] + line[:, right] * weights[1]) / 16).floor()
        lines.append((line * (weight * ONE).round().double()[:, None, None] / 65536).floor())
    return ((lines[0] + lines[1] + 2) / 4).floor().clamp(0, 255).float()
