"""Spatial mix: RWKV attention over the tokens of an image (eqs. 4 to 8 of the paper)."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from biwkv import bi_wkv
from rwkv_unet.layers import LayerNorm, TokenMix, q_shift


@register_notrace_module  # torch.fx cannot follow sizes that are computed with
class SpatialMix(nn.Module):
    """Global attention, linear in the number of tokens: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mix_key = TokenMix(dim)
        self.mix_value = TokenMix(dim)
        self.mix_receptance = TokenMix(dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        # Of any sign, and spread over the whole image: the decay from one token to the next is decay / T.
        self.decay = nn.Parameter(torch.zeros(dim))
        self.first = nn.Parameter(torch.zeros(dim))
        self.norm = LayerNorm(dim)
        self.output = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shifted = q_shift(x)
        key = self.key(self.mix_key(x, shifted))
        value = self.value(self.mix_value(x, shifted))
        gate = torch.sigmoid(self.receptance(self.mix_receptance(x, shifted)))
        return self.output(gate * self.norm(self.attend(key, value)))

    def attend(self, key: Tensor, value: Tensor) -> Tensor:
        """Bi-WKV over all tokens in one row; (B, H, W, C), as its result."""
        height, width = key.shape[1], key.shape[2]
        decay, first = self.decay / (height * width), self.first / (height * width)
        keys, values = key.flatten(1, 2), value.flatten(1, 2)
        if torch.jit.is_scripting():
            attended = torch.ops.biwkv.forward(decay, first, keys, values, "auto")
        else:
            attended = bi_wkv(decay, first, keys, values)
        return attended.unflatten(1, (height, width))
