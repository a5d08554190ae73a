"""From a batch as the loaders make it to what a network takes."""

from __future__ import annotations

import functools

import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_input(images: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The model's input, float32 (B, C, H, W) on `device`: uint8 normalised by ImageNet's mean and deviation there
    (a quarter of the bytes to copy), float32 as it is. Channels stay last in memory, and nothing is copied that is
    there already. Patches of volumes are float32 (B, C, D, H, W)."""
    images = images.to(device, non_blocking=True, memory_format=format_of(images))
    if images.dtype != torch.uint8:
        return images.float()
    mean, std = _constants(images.device)
    return images.float().div_(255).sub_(mean).div_(std)


def format_of(images: torch.Tensor) -> torch.memory_format:
    """Channels last, of images (B, C, H, W) or patches (B, C, D, H, W)."""
    return torch.channels_last if images.ndim == 4 else torch.channels_last_3d


@functools.cache
def _constants(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation (1, 3, 1, 1), made once on a device: from Python numbers it would take a copy, for which the
    host waits, at every step."""
    with torch.inference_mode(False):  # whoever asks first: they are used in training too
        mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return mean, std
