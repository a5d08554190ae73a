"""What UNeXt and U-KAN share: three levels of convolutions, two of tokens, and a decoder that adds the skips."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.baselines.options import check_dims
from rwkv_unet.images import check_images

Block = Callable[[int, int], nn.Module]
"""(input channels, output channels) -> a module (B, C, H, W) -> (B, C', H, W)."""


class TokenizedUNet(nn.Module):
    """Segments (B, in_channels, H, W) into logits (B, num_classes, H, W).

    `dims` are the widths of three convolutional levels and two of tokens. `encode` and `decode` make the convolutions
    of a level, `mix` makes what mixes tokens (B, H, W, C) of a width.
    """

    divisor = 32

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        dims: Sequence[int],
        *,
        encode: Block,
        decode: Block,
        mix: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()
        check_dims(dims, levels=5)
        self.in_channels = in_channels
        one, two, three, four, five = dims
        self.convs = nn.ModuleList([encode(in_channels, one), encode(one, two), encode(two, three)])
        self.embeddings = nn.ModuleList([PatchEmbedding(three, four), PatchEmbedding(four, five)])
        self.token_levels = nn.ModuleList([TokenLevel(mix(four), four), TokenLevel(mix(five), five)])
        self.decoder_convs = nn.ModuleList(
            [decode(five, four), decode(four, three), decode(three, two), decode(two, one), decode(one, one)]
        )
        self.decoder_token_levels = nn.ModuleList([TokenLevel(mix(four), four), TokenLevel(mix(three), three)])
        self.head = nn.Conv2d(one, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes, H, W); ValueError for an image of the wrong shape."""
        x = check_images(x, in_channels=self.in_channels, divisor=self.divisor)
        skips = []
        for conv in self.convs:
            x = F.relu(F.max_pool2d(conv(x), 2))
            skips.append(x)
        for embed, tokens in zip(self.embeddings, self.token_levels, strict=True):
            x = tokens(embed(x))
            skips.append(x)
        skips.pop()  # the deepest level is where the decoder starts
        tokens_of = dict(enumerate(self.decoder_token_levels))
        for i, conv in enumerate(self.decoder_convs):
            x = F.relu(F.interpolate(conv(x), scale_factor=2, mode="bilinear"))
            if skips:
                x = x + skips.pop()
            if i in tokens_of:
                x = tokens_of[i](x)
        return self.head(x)


class PatchEmbedding(nn.Module):
    """Overlapping patches: (B, C, H, W) -> (B, C', H / 2, W / 2), normalised over the channels."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_dim, out_dim, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(out_dim)
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class TokenLevel(nn.Module):
    """x + mix(norm(x)), and a norm after it: (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, mix: nn.Module, dim: int) -> None:
        super().__init__()
        self.norm_before, self.mix, self.norm_after = nn.LayerNorm(dim), mix, nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x.permute(0, 2, 3, 1)  # (B, H, W, C)
        x = self.norm_after(x + self.mix(self.norm_before(x)))
        return x.permute(0, 3, 1, 2)


class DepthwiseConv(nn.Module):
    """A 3 x 3 convolution of every channel of tokens (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


def init_weights(module: nn.Module) -> None:
    """Truncated normal 0.02 in linear layers, He's normal over the fan-out in convolutions, no bias."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
