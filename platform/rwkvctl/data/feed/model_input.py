"""From a batch as the loaders make it to what a network takes."""

from __future__ import annotations

import torch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def to_input(images: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """The model's input, float32 (B, C, H, W) on `device`: uint8 normalised by ImageNet's mean and deviation there
    (a quarter of the bytes to copy), float32 as it is."""
    images = images.to(device, non_blocking=True, memory_format=torch.channels_last)
    if images.dtype != torch.uint8:
        return images.float()
    mean = torch.tensor(IMAGENET_MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=images.device).view(1, 3, 1, 1)
    return images.float().div_(255).sub_(mean).div_(std)
