"""Selective state spaces (Gu & Dao 2023, https://arxiv.org/abs/2312.00752), one for every direction of the tokens."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biwkv import selective_scan

STATES = 16
"""Numbers that a channel remembers."""
STEPS = (0.001, 0.1)
"""Range of the step at the start."""


class StateSpaces(nn.Module):
    """What Bi-Mamba and SS2D are built on: parameters with a first axis of `directions`, and `scan`.

    Args:
        dim: channels outside, from which the rank of the steps follows.
        inner: channels of the tokens that are scanned.
    """

    def __init__(self, directions: int, dim: int, inner: int) -> None:
        super().__init__()
        rank = math.ceil(dim / 16)
        self.sizes = [rank, STATES, STATES]
        self.select = nn.Parameter(torch.empty(directions, inner, sum(self.sizes)).uniform_(-1, 1) / math.sqrt(inner))
        self.step_weight = nn.Parameter(torch.empty(directions, rank, inner).uniform_(-1, 1) / math.sqrt(rank))
        self.step_bias = nn.Parameter(_first_step_bias(directions, inner))
        self.log_rate = nn.Parameter(torch.arange(1.0, STATES + 1).log().repeat(directions, inner, 1))  # log(-A)
        self.skip = nn.Parameter(torch.ones(directions, inner))  # D

    def scan(self, x: Tensor) -> Tensor:
        """(B, T, directions, inner), in the order in which each direction sees them -> the same shape and order."""
        low_rank, b, c = torch.einsum("btgd,gdr->btgr", x, self.select).split(self.sizes, dim=3)
        step = F.softplus(torch.einsum("btgr,grd->btgd", low_rank, self.step_weight) + self.step_bias)
        return selective_scan(x, step, -self.log_rate.exp(), b, c, self.skip)


def _first_step_bias(*shape: int) -> Tensor:
    """The inverse of softplus for steps spread evenly over the logarithm of their range."""
    low, high = (math.log(x) for x in STEPS)
    step = torch.exp(torch.rand(shape) * (high - low) + low)
    return step + torch.log(-torch.expm1(-step))
