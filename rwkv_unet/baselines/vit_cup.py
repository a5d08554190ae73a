"""ViT-CUP: a plain ViT-B/16 and TransUNet's decoder, which has no skip connection to take.

J. Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation",
https://arxiv.org/abs/2102.04306, Sections 3.1 and 4.3 (ViT-CUP).
"""

from __future__ import annotations

from torch import Tensor

from rwkv_unet.baselines.transunet import CascadedUpsampler, transformed, vision_transformer

VITS = tuple(f"vit_{size}_patch16_{side}" for side in (224, 384) for size in ("base", "tiny", "small", "large"))


class ViTCup(CascadedUpsampler):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W)."""

    def __init__(self, num_classes: int, in_channels: int = 3, *, encoder: str = VITS[0]) -> None:
        super().__init__(num_classes, in_channels, vision_transformer(encoder, in_channels, VITS), num_skips=0)

    def _encode(self, x: Tensor) -> list[Tensor]:
        return [transformed(self.encoder, self.encoder.patch_embed(x))]
