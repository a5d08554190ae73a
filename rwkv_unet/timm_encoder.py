"""Any timm model that gives feature maps, in the place of our encoder (Table VII)."""

from __future__ import annotations

from typing import Any

import timm
from torch import Tensor, nn

from rwkv_unet.config import suggest

STAGES = 4


class TimmEncoder(nn.Module):
    """The four deepest maps of a timm model, as stages I to IV of ours.

    ResNet-50, PVT v2, ConvNeXt and MaxViT reduce 4, 8, 16 and 32 times; maps before these are not used. Weights are
    random.

    Attributes:
        dims: channels of the maps.
        reductions: how many times smaller than the image each is, twice the one before.
        divisor: height and width of an image must be divisible by it: the last reduction, or the image side that a
            model with fixed windows or positions (MaxViT, Swin) was made for.

    Raises:
        ValueError: for a name that timm does not know (with near matches), or whose maps are not such a pyramid.
    """

    def __init__(self, name: str, in_channels: int) -> None:
        super().__init__()
        self.features = _features(name, in_channels)
        info: Any = self.features.feature_info
        self.dims: list[int] = info.channels()
        self.reductions: list[int] = info.reduction()
        if self.reductions != [self.reductions[0] * 2**i for i in range(STAGES)]:
            raise ValueError(
                f"model.encoder {name} reduces images {', '.join(map(str, self.reductions))} times: a U-Net needs one "
                "whose stages halve them"
            )
        config = timm.get_pretrained_cfg(name)
        fixed = config is not None and config.fixed_input_size
        self.divisor: int = config.input_size[-1] if config is not None and fixed else self.reductions[-1]
        self.channels_last = str(getattr(self.features, "output_fmt", "NCHW")).endswith("NHWC")

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """(B, in_channels, H, W) -> four maps (B, dims[i], H / reductions[i], W / reductions[i])."""
        maps = self.features(x)
        return [x.permute(0, 3, 1, 2) for x in maps] if self.channels_last else maps


def _features(name: str, in_channels: int) -> nn.Module:
    if not timm.is_model(name):
        raise ValueError(f"model.encoder {name!r} is no model of timm; {suggest(name, timm.list_models())}")
    last = tuple(range(-STAGES, 0))
    try:
        return timm.create_model(name, features_only=True, out_indices=last, in_chans=in_channels)
    except Exception as error:  # each family has errors of its own
        raise ValueError(f"model.encoder {name} has no {STAGES} feature maps to give: {error}") from None
