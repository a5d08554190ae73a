"""The RWKV-UNet encoder (Table I), by itself an image classifier; timm knows it as `rwkv_unet_enc_xt|t|s|b`.

Paper: "RWKV-UNet: Improving UNet with Long-Range Cooperation for Effective Medical Image Segmentation",
https://arxiv.org/abs/2501.08458
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import trunc_normal_
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from rwkv_unet.blocks import GLSP, Norm
from rwkv_unet.config import SIZES
from rwkv_unet.layers import LayerNorm2d

NOT_WEIGHTS = (".decay", ".first", ".ratio", ".scale", ".log_rate", ".step_bias", ".skip")
"""Last parts of the names of parameters that are no weights, of spatial mix and of the other token mixers."""


class RWKVUNetEncoder(nn.Module):
    """A stem at full size and four stages, each of which halves it; attention in stages III and IV.

    `forward_features` maps (B, in_chans, H, W) to (B, dims[3], H / 16, W / 16); `forward` goes on to the classifier
    and gives (B, num_classes), or (B, dims[3]) for `num_classes=0`. With `with_head=False` there is no classifier, no
    final norm, and `forward` is `forward_features`. `attention`, `shallow_attention` (in stages I and II too) and
    `channel_mix` are the ablations of Tables II, X and XI.
    """

    def __init__(
        self,
        stem_dim: int,
        depths: Sequence[int],
        dims: Sequence[int],
        expansions: Sequence[float],
        *,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.05,
        attention: str = "spatial_mix",
        shallow_attention: bool = False,
        channel_mix: bool = False,
        with_head: bool = True,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = dims[-1]
        self.dims, self.reductions, self.divisor = dims, (2, 4, 8, 16), 16
        self.stem = GLSP(in_chans, stem_dim, expansion=1, norm="none", squeeze_excite=True)
        first = 0 if shallow_attention else 2
        mixers = [{"attention": attention, "channel_mix": channel_mix} if i >= first else {} for i in range(len(dims))]
        self.stages = _stages(stem_dim, depths, dims, expansions, drop_path_rate, mixers)
        self.head = ClassifierHead(dims[-1], num_classes, global_pool, drop_rate) if with_head else None
        self.feature_info = [{"num_chs": stem_dim, "reduction": 1, "module": "stem"}] + [
            {"num_chs": dim, "reduction": 2 ** (i + 1), "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        self.apply(init_linear)

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x)
        return x if self.head is None else self.forward_head(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, dims[3], H / 16, W / 16), before the final norm."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, dims[3], h, w) -> (B, num_classes), or (B, dims[3]) with `pre_logits`."""
        if self.head is None:
            raise ValueError("this encoder was made with with_head=False; it has no classifier")
        return self.head(x, pre_logits=pre_logits)

    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) -> the outputs of stages I to IV, reduced 2, 4, 8 and 16 times."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    def get_classifier(self) -> nn.Module:
        """The last linear layer, `nn.Identity` without one."""
        return nn.Identity() if self.head is None else self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier, or none (features) for 0 classes."""
        if self.head is None:
            raise ValueError("this encoder was made with with_head=False; it has no classifier")
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are no weights (timm's optimizer factory asks)."""
        return not_weights(self)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for timm's layer-wise learning rate decay."""
        blocks: Any = r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None), (r"^head\.norm", (99999,))]
        return {"stem": r"^stem", "blocks": blocks}


class ClassifierHead(nn.Module):
    """Norm, mean over the image, dropout, linear: (B, dim, h, w) -> (B, num_classes)."""

    def __init__(self, dim: int, num_classes: int, global_pool: str, drop_rate: float) -> None:
        super().__init__()
        self.dim = dim
        self.norm = LayerNorm2d(dim)
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool must be 'avg', not {global_pool!r}")
        self.fc = nn.Linear(self.dim, num_classes) if num_classes else nn.Identity()
        self.fc.apply(init_linear)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.norm(x).mean((2, 3)))
        return x if pre_logits else self.fc(x)


def not_weights(model: nn.Module) -> set[str]:
    """Names of decays, bonuses, mix ratios and their like: weight decay would pull them to where they do not belong."""
    return {name for name, _ in model.named_parameters() if name.endswith(NOT_WEIGHTS)}


def _stages(
    stem_dim: int,
    depths: Sequence[int],
    dims: Sequence[int],
    expansions: Sequence[float],
    drop_path: float,
    mixers: Sequence[dict[str, Any]],
) -> nn.Sequential:
    """Stages I to IV; `mixers` are the arguments that the blocks of a stage have beside the first block's."""
    rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
    stages = nn.Sequential()
    for index, (in_dim, dim) in enumerate(pairwise([stem_dim, *dims])):
        norm: Norm = "batch" if index < 2 else "layer"
        stage = nn.Sequential(
            GLSP(in_dim, dim, expansion=2 * expansions[index], norm=norm, stride=2, drop_path=next(rates))
        )
        for _ in range(depths[index] - 1):
            stage.append(
                GLSP(
                    dim,
                    dim,
                    expansion=expansions[index],
                    norm=norm,
                    residual=True,
                    drop_path=next(rates),
                    **mixers[index],
                )
            )
        stages.append(stage)
    return stages


def init_linear(module: nn.Module) -> None:
    """The start of linear layers in the encoder, for `Module.apply`; others keep PyTorch's."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def _cfg() -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (14, 14),
        "crop_pct": 224 / 256,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.expand.conv",
        "classifier": "head.fc",
        "license": "apache-2.0",
    }


default_cfgs = generate_default_cfgs({f"rwkv_unet_enc_{size}": _cfg() for size in SIZES})


def _create(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    return build_model_with_cfg(
        RWKVUNetEncoder,
        variant,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2, 3, 4), "flatten_sequential": True},
        **{**SIZES[variant.rsplit("_", 1)[1]], **kwargs},
    )


@register_model
def rwkv_unet_enc_xt(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The encoder of RWKV-UNet-XT, which the paper does not have."""
    return _create("rwkv_unet_enc_xt", pretrained, **kwargs)


@register_model
def rwkv_unet_enc_t(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The encoder of RWKV-UNet-T."""
    return _create("rwkv_unet_enc_t", pretrained, **kwargs)


@register_model
def rwkv_unet_enc_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The encoder of RWKV-UNet-S."""
    return _create("rwkv_unet_enc_s", pretrained, **kwargs)


@register_model
def rwkv_unet_enc_b(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The encoder of RWKV-UNet (B)."""
    return _create("rwkv_unet_enc_b", pretrained, **kwargs)
