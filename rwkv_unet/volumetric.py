"""RWKV-UNet for volumes, the paper's future work: 3-D convolutions, and Bi-WKV over depth, height and width.

The net is that of the paper (Fig. 2) with one axis more. Slices are often thicker than pixels are wide, so the first
`flat_stages` stages leave the depth as it is and look along height and width alone; the others halve all three axes
and look one slice to either side. `strides` and `kernels` say it stage by stage and axis by axis, as nnU-Net plans it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from rwkv_unet.config import FIELDS_OF_IMAGES, ModelConfig, model_config, suggest
from rwkv_unet.images import check_images
from rwkv_unet.layers import NORM_EPS
from rwkv_unet.rwkv_unet_enc import init_linear, not_weights
from rwkv_unet.volumetric_blocks import (
    NORMS,
    Block3D,
    ConvNormAct3D,
    CrossChannelMix3D,
    LayerNorm3d,
    Triple,
    kernel,
)

STAGES = 4
SUPERVISED = 2
"""Decoder blocks above the deepest but the last, whose maps deep supervision compares as well: all scales but the
coarsest, as in nnU-Net."""


class RWKVUNet3D(nn.Module):
    """Segments (B, in_channels, D, H, W) into logits (B, num_classes, D, H, W).

    Fields of the config are those of RWKVUNet; the stem has no squeeze-excite, and with fewer skips than three the CCM
    takes those alone. D, H and W may be any multiples of `divisor`.

    Args:
        flat_stages: so many stages, 1 by default, leave the depth as it is; the short form of the next two.
        strides: of each of the four stages, 1 or 2 along depth, height and width.
        kernels: of the stem and the four stages, 3 along the axes where their convolutions look at neighbours, else 1;
            by default 1 along the depth before it is halved.
        norm: "batch", "instance" or "group", between convolutions.
        deep_supervision: in training mode a list of logits, the finest first, each at its own scale.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        flat_stages: int | None = None,
        strides: Sequence[Sequence[int]] | None = None,
        kernels: Sequence[Sequence[int]] | None = None,
        norm: str = "batch",
        deep_supervision: bool = False,
    ) -> None:
        super().__init__()
        if norm not in NORMS:
            raise ValueError(f"model.norm: unknown norm {norm!r}; {suggest(norm, list(NORMS))}")
        steps, along = _levels(flat_stages, strides, kernels)
        self.config = config
        self.divisor = _product(steps)
        self.stem = Block3D(
            config.in_channels,
            config.stem_dim,
            expansion=max(1, 3 / config.in_channels),  # three channels inside, as for images
            first_norm=nn.Identity(),
            norm=norm,
            along=along[0],
        )
        self.stages = _stages(config, steps, along[1:], norm)
        self.ccm = _ccm(config)
        self.decoder = _decoder(config, steps, along[1:], norm)
        self.head = nn.Conv3d(config.stem_dim, config.num_classes, 1)
        for part in (self.stem, self.stages):
            part.apply(init_linear)
        heads = [nn.Conv3d(dim, config.num_classes, 1) for dim in config.dims[:SUPERVISED]] if deep_supervision else []
        self.coarse_heads = nn.ModuleList(heads)  # the finest first

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        """Logits (B, num_classes, D, H, W), with deep supervision those of every scale in training mode; ValueError for
        a volume of the wrong shape."""
        x = self.stem(check_images(x, in_channels=self.config.in_channels, divisor=self.divisor))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        skips = features[: self.config.num_skips][::-1]  # deepest first
        if self.ccm is not None:
            skips = self.ccm(skips)
        first_skip = len(self.decoder) - len(skips)
        maps = []
        for i, block in enumerate(self.decoder):
            x = block(torch.cat([x, skips[i - first_skip]], dim=1) if i >= first_skip else x)
            maps.append(x)
        logits = self.head(x)
        if not (self.training and self.coarse_heads):
            return logits
        return [logits, *(head(x) for head, x in zip(self.coarse_heads, maps[-2:0:-1], strict=True))]

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are no weights (timm's optimizer factory asks)."""
        return not_weights(self)


def create_rwkv_unet_3d(
    name: str,
    *,
    flat_stages: int | None = None,
    strides: Sequence[Sequence[int]] | None = None,
    kernels: Sequence[Sequence[int]] | None = None,
    norm: str = "batch",
    deep_supervision: bool = False,
    **fields: Any,
) -> RWKVUNet3D:
    """A volumetric net; ValueError for a field that images alone have, an unknown one, or a bad value."""
    for field in FIELDS_OF_IMAGES:
        if field in fields:
            raise ValueError(f"model.{field} does not apply to {name}, whose attention is over three axes")
    return RWKVUNet3D(
        model_config(name, **fields),
        flat_stages=flat_stages,
        strides=strides,
        kernels=kernels,
        norm=norm,
        deep_supervision=deep_supervision,
    )


def _levels(
    flat_stages: int | None, strides: Sequence[Sequence[int]] | None, kernels: Sequence[Sequence[int]] | None
) -> tuple[list[Triple], list[Triple]]:
    """Strides of the four stages, and axes along which the stem and they look, from either form."""
    if flat_stages is not None and (strides is not None or kernels is not None):
        raise ValueError("model.flat_stages is a short form of model.strides and model.kernels: leave one out")
    flat = 1 if flat_stages is None else flat_stages
    if flat not in range(STAGES + 1) or isinstance(flat, bool):
        raise ValueError(f"model.flat_stages must be 0, 1, 2, 3 or 4, not {flat_stages!r}")
    steps: list[Triple] = [(1 if i < flat else 2, 2, 2) for i in range(STAGES)]
    if strides is not None:
        steps = triples("model.strides", strides, STAGES, (1, 2))
    if kernels is not None:
        return steps, triples("model.kernels", kernels, 1 + STAGES, (1, 3))
    deepest = accumulate([step[0] for step in [steps[0], *steps]], max)  # looks along the depth once it is halved
    return steps, [(3 if step > 1 else 1, 3, 3) for step in deepest]


def triples(name: str, values: Sequence[Sequence[int]], count: int | None, choices: tuple[int, int]) -> list[Triple]:
    """Values along three axes, of so many levels; ValueError with the field's name for anything else."""
    sequence = isinstance(values, Sequence) and all(isinstance(x, Sequence) and len(x) == 3 for x in values)
    if not sequence or count not in (None, len(values)) or any(n not in choices for each in values for n in each):
        low, high = choices
        raise ValueError(
            f"{name} must be {count or 'some'} triples of {low} or {high}, along depth, height and width, "
            f"not {values!r}"
        )
    return [(z, y, x) for z, y, x in values]


def _product(steps: Sequence[Triple]) -> Triple:
    depth, height, width = (prod(sizes) for sizes in zip(*steps, strict=True))
    return depth, height, width


def _stages(config: ModelConfig, steps: Sequence[Triple], along: Sequence[Triple], norm: str) -> nn.ModuleList:
    """Stages I to IV: the first block of each halves, the others keep the size, with attention in III and IV."""
    rates = iter(torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist())
    stages = nn.ModuleList()
    for i, (in_dim, dim) in enumerate(pairwise([config.stem_dim, *config.dims])):
        blocks = nn.Sequential()
        for j in range(config.depths[i]):
            first, width = j == 0, in_dim if j == 0 else dim
            blocks.append(
                Block3D(
                    width,
                    dim,
                    expansion=config.expansions[i] * (2 if first else 1),
                    first_norm=NORMS[norm](width) if i < 2 else LayerNorm3d(width, eps=NORM_EPS),
                    norm=norm,
                    along=along[i],
                    stride=steps[i] if first else (1, 1, 1),
                    attention=i >= 2 and not first,
                    residual=not first,
                    drop_path=next(rates),
                )
            )
        stages.append(blocks)
    return stages


def _ccm(config: ModelConfig) -> CrossChannelMix3D | None:
    if not config.ccm or config.num_skips == 0:
        return None
    dims = config.dims[config.num_skips - 1 :: -1]  # deepest first
    return CrossChannelMix3D(dims, hidden_rate=config.ccm_hidden_rate, drop_path=config.drop_path)


def _decoder(config: ModelConfig, steps: Sequence[Triple], along: Sequence[Triple], norm: str) -> nn.ModuleList:
    """A block for each stage, the deepest first, which undoes that stage's halving."""
    blocks = nn.ModuleList()
    for i, (in_dim, out_dim) in enumerate(pairwise([*config.dims[::-1], config.stem_dim])):
        dim = in_dim * (2 if i >= STAGES - config.num_skips else 1)
        size = kernel(config.decoder_kernel_size, along[-1 - i])
        blocks.append(
            nn.Sequential(
                ConvNormAct3D(dim, dim, nn.ReLU, norm=norm),
                ConvNormAct3D(dim, dim, nn.SiLU, norm=norm, kernel=size, groups=dim),
                ConvNormAct3D(dim, out_dim, nn.ReLU, norm=norm),
                nn.Upsample(scale_factor=steps[-1 - i], mode="trilinear"),
            )
        )
    return blocks
