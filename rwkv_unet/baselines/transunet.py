"""TransUNet: a ResNet-50 whose deepest features are tokens of a ViT-B/16, and a decoder that gets the ResNet's others.

J. Chen et al., "TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation",
https://arxiv.org/abs/2102.04306, Figure 1, equations 1 to 3, Section 3.2 (CUP). The encoder is timm's
`vit_base_r50_s16_224` without its class token, whose position embeddings are resized to the image's grid.
"""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.images import check_images

DROPOUT = 0.1
BRIDGE_DIM = 512
DECODER_DIMS = (256, 128, 64, 16)
SKIP_DIMS = (512, 256, 64, 0)  # of strides 8, 4 and 2; the last level has none


class TransUNet(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W)."""

    divisor = 16

    def __init__(self, num_classes: int, in_channels: int = 3) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.encoder = vision_transformer(in_channels)
        self.bridge = conv_norm_relu(self.encoder.embed_dim, BRIDGE_DIM)
        self.decoder = nn.ModuleList(
            nn.Sequential(conv_norm_relu(before + skip, dim), conv_norm_relu(dim, dim))
            for before, skip, dim in zip((BRIDGE_DIM, *DECODER_DIMS), SKIP_DIMS, DECODER_DIMS, strict=False)
        )
        self.head = nn.Conv2d(DECODER_DIMS[-1], num_classes, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        tokens, skips = self._encode(x)
        x = self.bridge(tokens)
        for level in self.decoder:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = level(torch.cat([x, skips.pop()], 1) if skips else x)
        return self.head(x)

    def _encode(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The transformer's tokens (B, 768, H / 16, W / 16) and the ResNet's features of strides 2, 4 and 8."""
        vit = self.encoder
        resnet = vit.patch_embed.backbone
        skips = [resnet.stem.norm(resnet.stem.conv(x))]
        x = resnet.stem.pool(skips[0])
        *stages, last = resnet.stages
        for stage in stages:
            x = stage(x)
            skips.append(x)
        grid = vit.patch_embed.proj(last(x)).permute(0, 2, 3, 1)  # (B, H / 16, W / 16, 768)
        tokens = vit.norm(vit.blocks(vit._pos_embed(grid)))
        return tokens.transpose(1, 2).unflatten(2, grid.shape[1:3]), skips


def vision_transformer(in_channels: int) -> Any:
    """timm's hybrid of a ResNet-50 and a ViT-B/16, for images of any size."""
    vit: Any = timm.create_model(
        "vit_base_r50_s16_224",
        pretrained=False,
        in_chans=in_channels,
        num_classes=0,
        class_token=False,
        global_pool="",
        dynamic_img_size=True,
        pos_drop_rate=DROPOUT,
        proj_drop_rate=DROPOUT,
    )
    for norm in (x for x in vit.patch_embed.backbone.modules() if isinstance(x, nn.GroupNorm)):
        nn.init.ones_(norm.weight)  # timm starts the last one of a block at 0
    for block in vit.blocks:
        block.attn.proj_drop = nn.Identity()  # the authors drop in the MLPs only
    return vit


def conv_norm_relu(in_dim: int, out_dim: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_dim, out_dim, 3, padding=1, bias=False), nn.BatchNorm2d(out_dim), nn.ReLU(inplace=True)
    )
