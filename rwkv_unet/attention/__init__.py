"""Token mixers of the encoder's blocks, by the names that `ModelConfig.attention` takes (Table II and Fig. 3).

spatial_mix_2d is beyond the paper. All map (B, H, W, C) to (B, H, W, C) for any H and W.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from rwkv_unet.attention.bi_mamba import BiMamba
from rwkv_unet.attention.focused_linear import FocusedLinearAttention
from rwkv_unet.attention.mhsa import MultiHeadSelfAttention
from rwkv_unet.attention.spatial_mix_nd import SpatialMixND
from rwkv_unet.spatial_mix import SpatialMix

TOKEN_MIXERS: dict[str, Callable[..., nn.Module]] = {
    "spatial_mix": SpatialMix,
    "spatial_mix_2d": partial(SpatialMixND, axes=2),
    "mhsa": MultiHeadSelfAttention,
    "focused_linear": FocusedLinearAttention,
    "bi_mamba": BiMamba,
}
ATTENTIONS = (*TOKEN_MIXERS, "none")


def token_mixer(attention: str, dim: int, *, shift: str = "q", scan: str = "raster") -> nn.Module | None:
    """The token mixer of that name for `dim` channels, None for "none"; ValueError for an unknown name.

    `shift` and `scan` are those of `rwkv_unet.spatial_mix.SpatialMix`; other token mixers have none.
    """
    if attention not in ATTENTIONS:
        raise ValueError(f"attention must be one of {', '.join(ATTENTIONS)}, not {attention!r}")
    if attention == "none":
        return None
    if attention == "spatial_mix":
        return SpatialMix(dim, shift=shift, scan=scan)
    options = {"shift": shift} if attention == "spatial_mix_2d" else {}
    return TOKEN_MIXERS[attention](dim, **options)
