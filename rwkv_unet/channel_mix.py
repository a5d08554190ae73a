"""Channel mix: the feed-forward half of RWKV (eqs. 9 to 11 of the paper)."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from rwkv_unet.layers import LayerNorm, TokenMix, q_shift


@register_notrace_module  # torch.fx cannot follow sizes that are computed with
class ChannelMix(nn.Module):
    """Gated feed-forward layer with a squared ReLU: (B, *spatial, C) -> (B, *spatial, C)."""

    def __init__(self, dim: int, hidden_rate: int) -> None:
        super().__init__()
        hidden = dim * hidden_rate
        self.mix_key = TokenMix(dim)
        self.mix_receptance = TokenMix(dim)
        self.key = nn.Linear(dim, hidden, bias=False)
        self.norm = LayerNorm(hidden)
        self.receptance = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shifted = q_shift(x)
        hidden = torch.relu(self.key(self.mix_key(x, shifted)))
        hidden = hidden * hidden  # autocast would square in float32
        gate = torch.sigmoid(self.receptance(self.mix_receptance(x, shifted)))
        return gate * self.value(self.norm(hidden))
