"""Focused linear attention (Han et al. 2023, "FLatten Transformer", https://arxiv.org/abs/2308.00442).

Not here: the positional encoding of the keys, which fits one image size only. The depthwise convolution sees positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.attention.mhsa import heads

FOCUS = 3
"""The power p of eq. 5: the larger, the sharper the attention."""
EPS = 1e-6


class FocusedLinearAttention(nn.Module):
    """Global attention, linear in the number of tokens: (B, H, W, C) -> (B, H, W, C).

    phi(q) (phi(k)^T v), normalised, + a depthwise convolution of v (eqs. 4 to 7).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads = heads(dim)
        head_dim = dim // self.heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.scale = nn.Parameter(torch.zeros(dim))
        self.local = nn.Conv2d(head_dim, head_dim, 5, padding=2, groups=head_dim)  # one for all heads
        self.output = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        _, height, width, _ = x.shape
        query, key, value = self.qkv(x).flatten(1, 2).chunk(3, dim=2)  # (B, T, C)
        query, key = self._split(self._focus(query)), self._split(self._focus(key))  # (B, heads, T, C / heads)
        value = self._split(value)

        context = key.transpose(2, 3) @ value / key.shape[2]  # (B, heads, C / heads, C / heads)
        total = query @ key.mean(dim=2).unsqueeze(3)  # (B, heads, T, 1)
        attended = self._join(query @ context / (total + EPS), height, width)

        maps = value.transpose(2, 3).unflatten(3, (height, width)).flatten(0, 1)  # (B heads, C / heads, H, W)
        local = self.local(maps).flatten(2).unflatten(0, (-1, self.heads)).transpose(2, 3)
        return self.output(attended + self._join(local, height, width))

    def _focus(self, x: Tensor) -> Tensor:
        """phi_p of eq. 5: turns every token of (B, T, C) towards its largest channels and keeps its length."""
        x = (F.relu(x).float() + EPS) / F.softplus(self.scale)
        return F.normalize(x**FOCUS, dim=2) * x.norm(dim=2, keepdim=True)

    def _split(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, heads, T, C / heads)."""
        return x.unflatten(2, (self.heads, -1)).transpose(1, 2)

    def _join(self, x: Tensor, height: int, width: int) -> Tensor:
        """(B, heads, T, C / heads) -> (B, H, W, C)."""
        return x.transpose(1, 2).flatten(2).unflatten(1, (height, width))
