"""GLSP, the global-local spatial perception block that the encoder is built from (Fig. 2b, eqs. 1 to 3)."""

from __future__ import annotations

from typing import Literal

from timm.layers import DropPath
from torch import Tensor, nn

from rwkv_unet.attention import token_mixer
from rwkv_unet.channel_mix import ChannelMix
from rwkv_unet.layers import NORM_EPS, ConvNormAct, LayerNorm, LayerNorm2d, SqueezeExcite

Norm = Literal["batch", "layer", "none"]


class GLSP(nn.Module):
    """Inverted bottleneck with global attention and a local depthwise convolution at its wide point.

    (B, in_dim, H, W) -> (B, out_dim, H / stride, W / stride). Both shortcuts, around the depthwise convolution and
    around the block, are there if `residual` is set. The norm of the attention comes after it, as in the authors'
    code (in eq. 3 it comes before). `attention` is a name of `rwkv_unet.attention.ATTENTIONS`, `shift` and `scan` are
    those of its spatial mix; `channel_mix` puts a channel mix of hidden rate 2 after it, with a norm on either side
    (Table XI). The wide point has `in_dim * expansion` channels, or `width`.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        expansion: float = 1,
        width: int | None = None,
        norm: Norm,
        stride: int = 1,
        attention: str = "none",
        shift: str = "q",
        scan: str = "raster",
        channel_mix: bool = False,
        squeeze_excite: bool = False,
        residual: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        dim = width or int(in_dim * expansion)
        self.residual = residual
        self.norm = _norm(norm, in_dim)
        self.expand = ConvNormAct(in_dim, dim, nn.ReLU)
        self.attention = token_mixer(attention, dim, shift=shift, scan=scan)
        self.attention_norm = LayerNorm(dim) if self.attention is not None else None
        self.channel_mix = nn.Sequential(LayerNorm(dim), ChannelMix(dim, hidden_rate=2)) if channel_mix else None
        self.channel_mix_norm = LayerNorm(dim) if channel_mix else None
        self.local = ConvNormAct(dim, dim, nn.SiLU, kernel_size=5, stride=stride, groups=dim)
        self.squeeze_excite = SqueezeExcite(dim) if squeeze_excite else nn.Identity()
        self.project = nn.Conv2d(dim, out_dim, 1, bias=False)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        wide = self.expand(self.norm(x))
        tokens = wide.permute(0, 2, 3, 1)  # (B, H, W, C)
        if self.attention is not None and self.attention_norm is not None:
            tokens = tokens + self.drop_path(self.attention_norm(self.attention(tokens)))
        if self.channel_mix is not None and self.channel_mix_norm is not None:
            tokens = tokens + self.drop_path(self.channel_mix_norm(self.channel_mix(tokens)))
        wide = tokens.permute(0, 3, 1, 2)  # (B, C, H, W)
        local = self.squeeze_excite(self.local(wide))
        if not self.residual:
            return self.project(local)
        return x + self.drop_path(self.project(wide + local))


def _norm(kind: Norm, dim: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm2d(dim, eps=NORM_EPS)
    return LayerNorm2d(dim) if kind == "layer" else nn.Identity()
