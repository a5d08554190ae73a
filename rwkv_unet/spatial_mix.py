"""Spatial mix: RWKV attention over the tokens of an image (eqs. 4 to 8 of the paper)."""

from __future__ import annotations

import torch
from timm.layers import register_notrace_module
from torch import Tensor, nn

from biwkv import bi_wkv
from rwkv_unet.layers import LayerNorm, TokenMix
from rwkv_unet.scan_order import mirrored_and_turned, put_back, serpentine
from rwkv_unet.shifts import make_shift

SCANS = ("raster", "quad", "zigzag", "separable")
MIXED_SHIFTS = ("q", "deformable")
"""Shifts that a token is blended with; the others are seen alone."""


@register_notrace_module  # torch.fx cannot follow sizes that are computed with
class SpatialMix(nn.Module):
    """Global attention, linear in the number of tokens: (B, H, W, C) -> (B, H, W, C).

    Args:
        shift: what stands for a token's neighbours, a name of `rwkv_unet.shifts.SHIFTS`.
        scan: the order of the row of all tokens. "raster": row by row. "zigzag": every other row from right to left.
            "quad": the mean over rows from the left, rows from the right, columns from the top and from the bottom,
            with the same weights. "separable": row by row, and then over the result column by column, with a decay
            and a bonus of its own.
    """

    def __init__(self, dim: int, *, shift: str = "q", scan: str = "raster") -> None:
        super().__init__()
        if scan not in SCANS:
            raise ValueError(f"scan must be one of {', '.join(SCANS)}, not {scan!r}")
        self.scan = scan
        mixed = shift in MIXED_SHIFTS
        self.mix_key, self.mix_value, self.mix_receptance = (TokenMix(dim) if mixed else Shifted() for _ in range(3))
        self.shift = make_shift(shift, dim)
        self.key = nn.Linear(dim, dim, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.receptance = nn.Linear(dim, dim, bias=False)
        # Of any sign, and spread over the whole image: the decay from one token to the next is decay / T.
        passes = (2,) if scan == "separable" else ()
        self.decay = nn.Parameter(torch.zeros(*passes, dim))
        self.first = nn.Parameter(torch.zeros(*passes, dim))
        self.norm = LayerNorm(dim)
        self.output = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        shifted = self.shift(x)
        key = self.key(self.mix_key(x, shifted))
        value = self.value(self.mix_value(x, shifted))
        gate = torch.sigmoid(self.receptance(self.mix_receptance(x, shifted)))
        return self.output(gate * self.norm(self.attend(key, value)))

    def attend(self, key: Tensor, value: Tensor) -> Tensor:
        """Bi-WKV over all tokens in one row; (B, H, W, C), as its result."""
        if self.scan == "zigzag":
            return serpentine(attend_rows(self.decay, self.first, serpentine(key), serpentine(value)))
        if self.scan == "quad":
            height, width = key.shape[1], key.shape[2]
            keys, values = mirrored_and_turned(key), mirrored_and_turned(value)
            return put_back(attend_row(self.decay, self.first, keys, values), height, width)
        if self.scan == "separable":
            value = attend_rows(self.decay[0], self.first[0], key, value)
            turned = attend_rows(self.decay[1], self.first[1], key.transpose(1, 2), value.transpose(1, 2))
            return turned.transpose(1, 2)
        return attend_rows(self.decay, self.first, key, value)


class Shifted(nn.Module):
    """In the place of a TokenMix: the shifted tokens alone."""

    def forward(self, x: Tensor, shifted: Tensor) -> Tensor:
        return shifted


def attend_rows(decay: Tensor, first: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Bi-WKV of (B, H, W, C), row by row."""
    attended = attend_row(decay, first, key.flatten(1, 2), value.flatten(1, 2))
    return attended.unflatten(1, (key.shape[1], key.shape[2]))


def attend_row(decay: Tensor, first: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Bi-WKV of (B, T, C), with decay and bonus spread over the tokens."""
    tokens = key.shape[1]
    if torch.jit.is_scripting():
        return torch.ops.biwkv.forward(decay / tokens, first / tokens, key, value, "auto")
    return bi_wkv(decay / tokens, first / tokens, key, value)
