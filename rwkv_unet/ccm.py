"""CCM, the cross-channel mix that lets the skip connections see one another (Fig. 2c)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from rwkv_unet.channel_mix import ChannelMix
from rwkv_unet.layers import LayerNorm, resize


class CrossChannelMix(nn.Module):
    """Mixes feature maps of several stages at the size and width of the shallowest one.

    Takes and returns (B, dims[i], H_i, W_i), deepest first. The authors run the 1x1 convolutions at the largest size.
    Here they run at the size of each map, which gives the same for less: bilinear weights are the same for every
    channel and sum to 1, so that resizing changes places with a convolution of single pixels, its bias included.

    With `num_outputs` below the number of inputs only so many of the shallowest outputs are used. The convolutions
    of the others stay, frozen: Table XII counts them.
    """

    def __init__(self, dims: Sequence[int], *, hidden_rate: int, drop_path: float, num_outputs: int) -> None:
        super().__init__()
        width = dims[-1]
        total = width * len(dims)
        self.project_in = nn.ModuleList(nn.Conv2d(dim, width, 1) for dim in dims)
        self.channel_mix = ChannelMix(total, hidden_rate)
        self.norm = LayerNorm(total)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.project_out = nn.ModuleList(nn.Conv2d(width, dim, 1) for dim in dims)
        for unused in self.project_out[: len(dims) - num_outputs]:
            unused.requires_grad_(False)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        size = features[-1].shape[2:]
        same = [resize(project(x), size) for project, x in zip(self.project_in, features, strict=True)]
        tokens = torch.cat(same, dim=1).permute(0, 2, 3, 1)  # (B, H, W, C)
        tokens = tokens + self.drop_path(self.norm(self.channel_mix(tokens)))
        mixed = tokens.permute(0, 3, 1, 2).chunk(len(features), dim=1)
        return [
            project(resize(part, x.shape[2:]))
            for project, part, x in zip(self.project_out, mixed, features, strict=True)
        ]
