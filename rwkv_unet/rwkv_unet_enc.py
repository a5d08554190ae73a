"""The RWKV-UNet encoder (Table I), by itself an image classifier; timm knows it as `rwkv_unet_enc_xt|t|s|b`.

Paper: "RWKV-UNet: Improving UNet with Long-Range Cooperation for Effective Medical Image Segmentation",
https://arxiv.org/abs/2501.08458
"""

# Annotations are classes here, not text: torch.fx writes them into its code, which TorchScript then reads.
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import SelectAdaptivePool2d, trunc_normal_
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from rwkv_unet.blocks import GLSP, Norm
from rwkv_unet.config import SIZES
from rwkv_unet.layers import LayerNorm2d

NOT_WEIGHTS = (".decay", ".first", ".ratio", ".scale", ".log_rate", ".step_bias", ".skip")
"""Last parts of the names of parameters that are no weights, of spatial mix and of the other token mixers."""

STEM_WIDTH = 3
POOLS = ("avg", "max", "avgmax", "catavgmax", "")


class RWKVUNetEncoder(nn.Module):
    """A stem at full size and four stages, each of which halves it; attention in stages III and IV.

    `forward_features` maps (B, in_chans, H, W) to (B, dims[3], H / 16, W / 16); `forward` goes on to the classifier
    and gives (B, num_classes), or (B, dims[3]) for `num_classes=0`. With `with_head=False` there is no classifier, no
    final norm, and `forward` is `forward_features`. `attention`, `shallow_attention` (in stages I and II too) and
    `channel_mix` are the ablations of Tables II, X and XI; `shift` and `scan` are those of the spatial mix.

    The stem is as wide as a colour image for any `in_chans`, so that timm can adapt pretrained weights by its first
    convolution alone. `output_stride` can only be the 16 that it is.
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
        output_stride: int = 16,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.05,
        attention: str = "spatial_mix",
        shift: str = "q",
        scan: str = "raster",
        shallow_attention: bool = False,
        channel_mix: bool = False,
        with_head: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if output_stride != 16:
            raise ValueError(f"output_stride {output_stride}: the encoder reduces images 16 times; leave it out")
        self.num_classes, self.in_chans, self.num_features = num_classes, in_chans, dims[-1]
        self.dims, self.reductions, self.divisor = dims, (2, 4, 8, 16), 16
        self.grad_checkpointing = False
        self.stem = GLSP(in_chans, stem_dim, width=STEM_WIDTH, norm="none", squeeze_excite=True)
        first = 0 if shallow_attention else 2
        mixer = {"attention": attention, "shift": shift, "scan": scan, "channel_mix": channel_mix}
        mixers: list[dict[str, Any]] = [mixer if i >= first else {} for i in range(len(dims))]
        self.stages = _stages(stem_dim, depths, dims, expansions, drop_path_rate, mixers)
        self.head = ClassifierHead(dims[-1], num_classes, global_pool, drop_rate) if with_head else None
        self.head_hidden_size = dims[-1] if self.head is None else self.head.pooled_dim
        self.feature_info = [{"num_chs": stem_dim, "reduction": 1, "module": "stem"}] + [
            {"num_chs": dim, "reduction": 2 ** (i + 1), "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]
        self.apply(init_linear)
        self.to(device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x)
        return x if self.head is None else self.forward_head(x)

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) -> (B, dims[3], H / 16, W / 16), before the final norm."""
        x = self.stem(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.stages, x, flatten=True)
        return self.stages(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, dims[3], h, w) -> (B, num_classes), or the pooled (B, dims[3]) with `pre_logits`."""
        if self.head is None:
            raise ValueError("this encoder was made with with_head=False; it has no classifier")
        return self.head(x, pre_logits=pre_logits)

    @torch.jit.ignore
    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The last map and those of `feature_info` at `indices` (the last n, or all), as timm's models give them.

        With `norm` the map of stage IV gets the classifier's norm. With `stop_early` nothing is run behind the last
        index, and the last map is that one's.
        """
        if output_fmt != "NCHW":
            raise ValueError(f"output_fmt must be 'NCHW', not {output_fmt!r}")
        wanted, last = feature_take_indices(len(self.stages) + 1, indices)
        x = self.stem(x)
        maps = [x] if 0 in wanted else []
        for index, stage in enumerate(self.stages[:last] if stop_early else self.stages, start=1):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if index in wanted:
                final = norm and index == len(self.dims) and self.head is not None
                maps.append(self.head.norm(x) if final and self.head is not None else x)
        return maps if intermediates_only else (x, maps)

    @torch.jit.ignore
    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last of `indices`, and the classifier, as timm's models do; returns indices from
        the front. Without its last stage the encoder has no norm and no classifier."""
        wanted, last = feature_take_indices(len(self.stages) + 1, indices)
        cut = last < len(self.stages)
        self.stages = self.stages[:last]
        if cut:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if self.head is not None and (cut or prune_norm):
            self.head.norm = nn.Identity()
        if self.head is not None and (cut or prune_head):
            self.reset_classifier(0, "")
        return wanted

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the stages in the backward pass instead of keeping what is inside them."""
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def forward_stages(self, x: Tensor) -> list[Tensor]:
        """(B, in_chans, H, W) -> the outputs of stages I to IV, reduced 2, 4, 8 and 16 times."""
        x = self.stem(x)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last linear layer, `nn.Identity` without one."""
        return nn.Identity() if self.head is None else self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier, or none (features) for 0 classes; with another pooling if one is given."""
        if self.head is None:
            raise ValueError("this encoder was made with with_head=False; it has no classifier")
        self.head.reset(num_classes, global_pool)
        self.num_classes = num_classes
        if len(self.stages) == len(self.dims):
            self.head_hidden_size = self.head.pooled_dim

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that are no weights (timm's optimizer factory asks)."""
        return not_weights(self)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Layer groups for timm's layer-wise learning rate decay."""
        blocks: Any = r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None), (r"^head\.norm", (99999,))]
        return {"stem": r"^stem", "blocks": blocks}


class ClassifierHead(nn.Module):
    """Norm, pooling over the image, dropout, linear: (B, dim, h, w) -> (B, num_classes).

    `global_pool` is avg, max, avgmax, catavgmax (twice as many channels), or empty: then nothing is pooled, and there
    can be no linear layer.
    """

    def __init__(self, dim: int, num_classes: int, global_pool: str, drop_rate: float) -> None:
        super().__init__()
        self.dim, self.pool_type = dim, global_pool
        self.norm: nn.Module = LayerNorm2d(dim)
        self.drop = nn.Dropout(drop_rate)
        self.reset(num_classes, global_pool)

    def reset(self, num_classes: int, global_pool: str | None = None) -> None:
        pool_type = self.pool_type if global_pool is None else global_pool
        if pool_type not in POOLS:
            raise ValueError(f"global_pool must be one of {', '.join(map(repr, POOLS))}, not {pool_type!r}")
        if not pool_type and num_classes:
            raise ValueError("global_pool='' leaves the maps as they are, so num_classes must be 0")
        self.pool_type = pool_type
        self.pool: nn.Module = nn.Identity()
        if pool_type:
            self.pool = SelectAdaptivePool2d(pool_type=f"fast{pool_type}", flatten=True)
        self.pooled_dim = self.dim * (2 if pool_type == "catavgmax" else 1)
        like = next(self.norm.parameters(), None)
        place: dict[str, Any] = {} if like is None else {"device": like.device, "dtype": like.dtype}
        self.fc: nn.Module = nn.Linear(self.pooled_dim, num_classes, **place) if num_classes else nn.Identity()
        self.fc.apply(init_linear)
        self.fc.train(self.training)

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.drop(self.pool(self.norm(x)))
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
