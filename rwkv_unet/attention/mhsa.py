"""Multi-head self-attention, quadratic in the number of tokens (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762)."""

from __future__ import annotations

import math

from torch import Tensor, nn

HEADS = 8


def heads(dim: int) -> int:
    """8, or the largest smaller power of two that divides the channels."""
    return math.gcd(dim, HEADS)


class MultiHeadSelfAttention(nn.Module):
    """Global attention without positions: (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads(dim), batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(1, 2)  # (B, T, C)
        same = tokens.view_as(tokens)  # another object, as nn.MultiheadAttention's own inference path is slow and large
        attended, _ = self.attention(tokens, same, same, need_weights=False)
        return attended.view_as(x)
