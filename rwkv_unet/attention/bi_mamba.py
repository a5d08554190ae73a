"""Bidirectional Mamba as in Vision Mamba (Zhu et al. 2024, https://arxiv.org/abs/2401.09417, Algorithm 1).

Tokens in row order, one selective state space a direction:

    h_t = exp(step_t A) h_{t-1} + step_t B_t x_t,      y_t = C_t h_t + D x_t

with step, B and C computed from x_t.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rwkv_unet.attention.state_space import StateSpaces

DIRECTIONS = 2
EXPAND = 2
"""Inner over outer width."""
KERNEL = 4
"""Of the causal convolution before the scan."""


class BiMamba(StateSpaces):
    """Global attention, linear in the number of tokens: (B, H, W, C) -> (B, H, W, C).

    Both directions are computed together: parameters have a first axis of 2.
    """

    def __init__(self, dim: int) -> None:
        inner = EXPAND * dim
        super().__init__(DIRECTIONS, dim, inner)
        self.input = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = nn.Conv1d(DIRECTIONS * inner, DIRECTIONS * inner, KERNEL, groups=DIRECTIONS * inner)
        self.output = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens, gate = self.input(x.flatten(1, 2)).chunk(2, dim=2)  # (B, T, inner)
        both = torch.cat([tokens, tokens.flip(1)], dim=2).transpose(1, 2)  # (B, 2 inner, T)
        both = F.silu(self.conv(F.pad(both, (KERNEL - 1, 0))))
        both = both.transpose(1, 2).unflatten(2, (DIRECTIONS, -1))  # (B, T, 2, inner)
        forth, back = self.scan(both).unbind(2)
        return self.output((forth + back.flip(1)) * F.silu(gate)).unflatten(1, x.shape[1:3])
