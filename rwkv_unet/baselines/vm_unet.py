"""VM-UNet: a U-Net of visual state space blocks, whose decoder adds the skips.

J. Ruan, S. Xiang, "VM-UNet: Vision Mamba UNet for Medical Image Segmentation", https://arxiv.org/abs/2402.02491,
Figure 1, Section 3; depths as in the authors' configuration (Apache 2.0).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rwkv_unet.baselines.options import check_depths
from rwkv_unet.baselines.vss import (
    LEVELS,
    PATCH,
    PatchEmbedding,
    PatchExpanding,
    PatchMerging,
    doubling_dims,
    drop_paths,
    vss_blocks,
)
from rwkv_unet.images import check_images
from rwkv_unet.rwkv_unet_enc import init_linear, not_weights

WIDTH = 96
DEPTHS = (2, 2, 2, 2)
DECODER_DEPTHS = (2, 2, 2, 1)  # the deepest first


class VMUNet(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W).

    Args:
        width: of the first level; every other is twice as wide as the one before.
        depths: blocks of the levels, the shallowest first.
        decoder_depths: the same of the decoder, the deepest first.
    """

    divisor = PATCH * 8

    def __init__(
        self,
        num_classes: int,
        in_channels: int = 3,
        *,
        width: int = WIDTH,
        depths: Sequence[int] = DEPTHS,
        decoder_depths: Sequence[int] = DECODER_DEPTHS,
        drop_path: float = 0.2,
    ) -> None:
        super().__init__()
        dims = doubling_dims(width)
        check_depths(depths, LEVELS)
        check_depths(decoder_depths, LEVELS, "decoder_depths")
        self.in_channels = in_channels
        self.embed = PatchEmbedding(in_channels, dims[0])
        rates = drop_paths(drop_path, depths)
        self.levels = nn.ModuleList(vss_blocks(dim, rate) for dim, rate in zip(dims, rates, strict=True))
        self.merges = nn.ModuleList(PatchMerging(dim) for dim in dims[:-1])
        rates = drop_paths(drop_path, decoder_depths, falling=True)
        self.decoder = nn.ModuleList(vss_blocks(dim, rate) for dim, rate in zip(dims[::-1], rates, strict=True))
        self.expands = nn.ModuleList(PatchExpanding(dim, dim // 2) for dim in dims[:0:-1])
        self.expand = PatchExpanding(dims[0], dims[0] // 4, scale=PATCH)
        self.head = nn.Conv2d(dims[0] // 4, num_classes, 1)
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        skips = [self.embed(x)]  # what enters a level, (B, H, W, C); that of the first is no skip
        for level, merge in zip(self.levels, self.merges, strict=False):
            skips.append(merge(level(skips[-1])))
        x = self.decoder[0](self.levels[-1](skips[-1]))
        for expand, level in zip(self.expands, self.decoder[1:], strict=True):
            x = level(expand(x + skips.pop()))
        return self.head(self.expand(x).permute(0, 3, 1, 2))

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are no weights (timm's optimizer factory asks)."""
        return not_weights(self)
