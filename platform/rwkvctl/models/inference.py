"""From an image or a volume to a mask at its own resolution.

The image is resized to what the model was trained on, the logits are resized back and the best class is taken last,
so that borders come out smooth. The authors resize the finished mask with nearest neighbour instead (`zoom`, order 0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from rwkvctl.base.ahead import ahead
from rwkvctl.base.errors import UserError
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.models.memory import Memory
from rwkvctl.models.segmenting import Volume, check_values, is_volume, not_seen

ImageKind = Literal["rgb8", "float"]
Mask = NDArray[np.uint8]


Watch = Callable[[int, Tensor, Tensor], None]
"""Is told the place of the first of some images in their batch, their logits (B, C, *native) and their masks."""


def segment_image(
    model: nn.Module,
    image: NDArray[Any],
    *,
    image_size: int | tuple[int, int],
    image_kind: ImageKind,
    channels: int | None = None,
    device: str | torch.device = "cpu",
    bf16: bool = False,
    watch: Watch | None = None,
) -> Mask:
    """The class of every pixel of one image.

    Args:
        model: gives logits (B, num_classes, H, W); one class means a logit of the foreground. In evaluation mode, on
            `device`.
        image: uint8 (H, W, 3) for `rgb8`, float32 (H, W) for `float`, or (H, W, C) of several channels.
        channels: of the image; by default 3 for `rgb8`, 1 for `float`.
        image_size: side, or (height, width), of what the model sees.
        bf16: bfloat16 autocast, on CUDA only.

    Returns:
        uint8 (H, W).
    """
    _check(image, image_kind, channels, axes=2)
    how: dict[str, Any] = {"image_size": image_size, "image_kind": image_kind, "channels": channels, "device": device}
    return segment_volume(model, image[None], **how, bf16=bf16, watch=watch)[0]


def segment_volume(
    model: nn.Module,
    volume: Volume,
    *,
    image_size: int | tuple[int, int],
    image_kind: ImageKind = "float",
    channels: int | None = None,
    device: str | torch.device = "cpu",
    bf16: bool = False,
    memory: Memory | None = None,
    seen: Callable[[int], None] = not_seen,
    watch: Watch | None = None,
) -> Mask:
    """The class of every voxel of a volume, slice by slice along its first axis, as many at a time as `memory` says;
    the next ones are brought to the network's size meanwhile.

    Args:
        volume: float32 (D, H, W), or (D, H, W, C) of several channels, or uint8 (D, H, W, 3) for `rgb8`.
        seen: is told how many slices were segmented, each time.

    Returns:
        uint8 (D, H, W).
    """
    _check(volume, image_kind, channels, axes=3)
    memory = memory or Memory.of(model, image_size)
    masks = np.empty(volume.shape[:3], np.uint8)
    parts = [slice(start, start + memory.at_once) for start in range(0, len(volume), memory.at_once)]
    native = volume.shape[1], volume.shape[2]

    def masks_at_once(images: Tensor) -> list[Mask]:
        where = next(model.parameters(), torch.empty(0, device=device)).device  # it may have left a full GPU
        with torch.autocast(where.type, torch.bfloat16, enabled=bf16 and where.type == "cuda"):
            return masks_of(model, images, [native] * len(images), where, watch)

    for part, resized in ahead(lambda part: _resized(volume[part], image_size), parts):
        masks[part] = np.concatenate(memory.each(model, resized, masks_at_once))
        seen(len(resized))
    return masks


def segment(
    model: nn.Module,
    info: BundleInfo,
    image: Volume,
    memory: Memory | None = None,
    seen: Callable[[int], None] = not_seen,
    watch: Watch | None = None,
) -> Mask:
    """The mask of an image, a slice or a volume."""
    device = next(model.parameters()).device
    how: dict[str, Any] = {
        "image_size": info.image_size, "image_kind": info.image_kind, "channels": info.channels, "device": device
    }  # fmt: skip
    if is_volume(info, image):
        return segment_volume(model, image, **how, memory=memory, seen=seen, watch=watch)
    mask = segment_image(model, image[...], **how, watch=watch)
    seen(1)
    return mask


def _resized(images: NDArray[Any], image_size: int | tuple[int, int]) -> Tensor:
    """(B, C, *size) of images or slices (B, H, W[, C])."""
    check_values(images)  # of a volume slice by slice: one on the disk is not read as a whole
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    return torch.from_numpy(resize_batch(images, size))


@torch.inference_mode()
def masks_of(
    model: nn.Module,
    images: Tensor,
    natives: Sequence[tuple[int, int]],
    device: str | torch.device,
    watch: Watch | None = None,
) -> list[Mask]:
    """The masks of a batch, each uint8 (height, width) of its own native size.

    images: (B, C, H, W) at the network's size, as loaders make them, of one image or volume or of many; `model` in
    evaluation mode on `device`; autocast is the caller's.
    """
    from rwkvctl.data.feed.model_input import to_input

    assert not model.training, "call model.eval() first"
    logits = model(to_input(images, device)).float()
    return best_of(lambda part, native: at_native_size(logits[part], native), logits.shape[1], natives, watch)


def best_of(
    at_native: Callable[[slice, tuple[int, int]], Tensor],
    classes: int,
    natives: Sequence[tuple[int, int]],
    watch: Watch | None,
) -> list[Mask]:
    """The best class of each pixel of a batch, as many images of one size at a time as `NATIVE_LOGITS` allows.

    at_native: the logits (B, classes, *native) of a part of the batch.
    """
    masks: list[Mask] = []
    while len(masks) < len(natives):
        begin = len(masks)
        native = natives[begin]
        same = next((i for i in range(begin, len(natives)) if natives[i] != native), len(natives))
        at_once = max(1, NATIVE_LOGITS // (classes * native[0] * native[1]))
        resized = at_native(slice(begin, min(same, begin + at_once)), native)
        best = best_class(resized)
        if watch is not None:
            watch(begin, resized, best)
        masks.extend(best.cpu().numpy())
    return masks


NATIVE_LOGITS = 2**25
"""Logits that are resized at once: 128 MB, the 9 classes of 14 slices of 512 x 512."""


def chunks(slices: int, classes: int, native: Sequence[int]) -> Iterator[slice]:
    """Slices of a volume that are held at once with their logits: eight, or fewer where they are large."""
    at_once = min(8, max(1, NATIVE_LOGITS // (classes * native[0] * native[1])))
    for start in range(0, slices, at_once):
        yield slice(start, start + at_once)


def at_native_size(logits: Tensor, native: tuple[int, int]) -> Tensor:
    """(B, C, *native)."""
    if tuple(logits.shape[-2:]) == native:
        return logits
    return F.interpolate(logits, size=native, mode="bilinear", align_corners=False)


def best_class(logits: Tensor) -> Tensor:
    """uint8 (B, H, W) from logits (B, num_classes, H, W); of equal ones the first."""
    if logits.shape[1] == 1:
        return (logits[:, 0] > 0).to(torch.uint8)
    return logits.max(dim=1).indices.to(torch.uint8)  # argmax gives the same and takes seven times as long on a CPU


def resize_batch(images: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """(B, H, W, C) or (B, H, W) to (B, C, *size), contiguous."""
    from rwkvctl.data.feed.transforms import resize_image

    return channels_first(np.stack([resize_image(image, size) for image in images]))


def channels_first(images: NDArray[Any]) -> NDArray[Any]:
    """(B, H, W, C) or (B, H, W) to (B, C, H, W), contiguous."""
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2) if images.ndim == 4 else images[:, None])


def _check(image: Volume, image_kind: ImageKind, channels: int | None, axes: int) -> None:
    """UserError unless dtype, axes and size are those of the kind; never a silent conversion of intensities.

    axes: (H, W) or (D, H, W), without that of the channels."""
    channels = channels or (3 if image_kind == "rgb8" else 1)
    dtype = np.dtype(np.uint8 if image_kind == "rgb8" else np.float32)
    several = (channels,) if channels > 1 else ()
    fits = image.ndim == axes + len(several) and image.dtype == dtype and image.shape[axes:] == several
    if not fits or 0 in image.shape:
        names = ", ".join([*"DHW"[3 - axes :], *map(str, several)])
        raise UserError(
            f"image is {image.dtype} {image.shape}, but a model of kind {image_kind!r} takes "
            f"{dtype} ({names}): convert it as the training data was"
        )
