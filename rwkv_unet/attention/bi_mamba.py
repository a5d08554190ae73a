"""Bidirectional Mamba as in Vision Mamba (Zhu et al. 2024, https://arxiv.org/abs/2401.09417, Algorithm 1).

Tokens in row order, one selective state space a direction (Gu & Dao 2023, https://arxiv.org/abs/2312.00752):

    h_t = exp(step_t A) h_{t-1} + step_t B_t x_t,      y_t = C_t h_t + D x_t

with step, B and C computed from x_t: `biwkv.selective_scan`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biwkv import selective_scan

DIRECTIONS = 2
EXPAND = 2
"""Inner over outer width."""
STATE = 16
"""Numbers that a channel remembers."""
KERNEL = 4
"""Of the causal convolution before the scan."""
STEPS = (0.001, 0.1)
"""Range of the step at the start."""


class BiMamba(nn.Module):
    """Global attention, linear in the number of tokens: (B, H, W, C) -> (B, H, W, C).

    Both directions are computed together: parameters have a first axis of 2.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        inner, rank = EXPAND * dim, math.ceil(dim / 16)
        self.sizes = [rank, STATE, STATE]
        self.input = nn.Linear(dim, 2 * inner, bias=False)
        self.conv = nn.Conv1d(DIRECTIONS * inner, DIRECTIONS * inner, KERNEL, groups=DIRECTIONS * inner)
        self.select = nn.Parameter(torch.empty(DIRECTIONS, inner, sum(self.sizes)).uniform_(-1, 1) / math.sqrt(inner))
        self.step_weight = nn.Parameter(torch.empty(DIRECTIONS, rank, inner).uniform_(-1, 1) / math.sqrt(rank))
        self.step_bias = nn.Parameter(_first_step_bias(DIRECTIONS, inner))
        self.log_rate = nn.Parameter(torch.arange(1.0, STATE + 1).log().repeat(DIRECTIONS, inner, 1))  # log(-A)
        self.skip = nn.Parameter(torch.ones(DIRECTIONS, inner))  # D
        self.output = nn.Linear(inner, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        tokens, gate = self.input(x.flatten(1, 2)).chunk(2, dim=2)  # (B, T, inner)
        both = torch.cat([tokens, tokens.flip(1)], dim=2).transpose(1, 2)  # (B, 2 inner, T)
        both = F.silu(self.conv(F.pad(both, (KERNEL - 1, 0))))
        both = both.transpose(1, 2).unflatten(2, (DIRECTIONS, -1))  # (B, T, 2, inner)

        low_rank, b, c = torch.einsum("btgd,gdr->btgr", both, self.select).split(self.sizes, dim=3)
        step = F.softplus(torch.einsum("btgr,grd->btgd", low_rank, self.step_weight) + self.step_bias)
        forth, back = selective_scan(both, step, -self.log_rate.exp(), b, c, self.skip).unbind(2)
        return self.output((forth + back.flip(1)) * F.silu(gate)).unflatten(1, x.shape[1:3])


def _first_step_bias(*shape: int) -> Tensor:
    """The inverse of softplus for steps spread evenly over the logarithm of their range."""
    low, high = (math.log(x) for x in STEPS)
    step = torch.exp(torch.rand(shape) * (high - low) + low)
    return step + torch.log(-torch.expm1(-step))
