"""Spatial mix: RWKV attention over the tokens of an image (eqs. 4 to 8 of the paper)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from biwkv import bi_wkv
from rwkv_unet.layers import LayerNorm, TokenMix, q_shift


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
        height, width = key.shape[1:3]
        tokens = height * width
        attended = bi_wkv(self.decay / tokens, self.first / tokens, key.flatten(1, 2), value.flatten(1, 2))
        return attended.unflatten(1, (height, width))
