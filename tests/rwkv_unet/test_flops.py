"""MACs and parameters: the paper's columns, and ptflops itself."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from ptflops import get_model_complexity_info
from ptflops.pytorch_ops import MODULES_MAPPING
from torch import Tensor, nn

from rwkv_unet import RWKVUNetEncoder, create_model
from rwkv_unet.attention.bi_mamba import KERNEL, BiMamba
from rwkv_unet.ccm import CrossChannelMix
from rwkv_unet.config import SIZES
from rwkv_unet.flops import WKV_MACS, count_macs, count_parameters
from rwkv_unet.layers import LayerNorm
from rwkv_unet.volumetric_blocks import LayerNorm3d


def giga(name: str, side: int, num_classes: int = 9, **overrides) -> float:
    with torch.device("meta"):  # where nothing is initialised; that a device changes nothing has a test of its own
        model = create_model(name, num_classes=num_classes, **overrides)
    return count_macs(model, (3, side, side)).paper / 1e9


@pytest.mark.parametrize(("size", "expected"), [("b", 8.9589), ("s", 4.7339), ("t", 1.8270)])
def test_encoders_without_classifier(size: str, expected: float) -> None:
    with torch.device("meta"):
        encoder = create_model(f"rwkv_unet_{size}", num_classes=1).encoder
    assert count_macs(encoder, (3, 224, 224)).paper / 1e9 == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("size", "side", "num_classes", "expected"),
    [
        ("b", 256, 1, 14.498), ("s", 256, 1, 7.638), ("t", 256, 1, 3.696),
        ("b", 224, 9, 11.110), ("s", 224, 9, 5.858), ("b", 512, 9, 58.045),
    ],
)  # fmt: skip
def test_nets(size: str, side: int, num_classes: int, expected: float) -> None:
    assert giga(f"rwkv_unet_{size}", side, num_classes) == pytest.approx(expected, abs=1e-3)


TABLES = (  # without the row of each table that is the net itself, 11.110: it is in test_nets
    [({"attention": a}, g) for a, g in [("mhsa", 18.547), ("focused_linear", 11.192)]]
    + [({"glsp_channel_mix": True}, 19.430)]
    + [({"decoder_kernel_size": k}, g) for k, g in [(3, 10.971), (5, 11.002), (7, 11.049), (11, 11.187)]]
    + [({"num_skips": n, "ccm": False}, g) for n, g in enumerate([9.177, 9.331, 9.410, 9.477])]
    + [({"num_skips": n}, g) for n, g in [(1, 10.964), (2, 11.043)]]
    + [({"ccm_hidden_rate": n}, g) for n, g in [(1, 10.588), (3, 11.632), (4, 12.154)]]
)


@pytest.mark.parametrize(("overrides", "expected"), TABLES)
def test_tables_ii_ix_xi_xii_xiii(overrides: dict, expected: float) -> None:
    assert giga("rwkv_unet_b", 224, **overrides) == pytest.approx(expected, abs=1e-3)


def test_table_x() -> None:
    assert giga("rwkv_unet_s", 224, shallow_attention=True) == pytest.approx(6.917, abs=1e-3)


def test_bi_mamba_is_near_the_paper() -> None:
    """Projections, convolutions and activations; 14.53 in Table II."""
    assert giga("rwkv_unet_b", 224, attention="bi_mamba") == pytest.approx(14.500, abs=1e-3)


def test_true_count_of_bi_mamba_is_its_products_and_three_a_state() -> None:
    mixer, tokens = BiMamba(32), 4 * 6
    inner, rank, states = 64, 2, 16
    products = tokens * (32 * 2 * inner + inner * 32) + tokens * 2 * inner * ((rank + 2 * states) + rank + KERNEL)
    scan = tokens * 2 * inner * 3 * states
    assert count_macs(Tokens(mixer), (32, 4, 6)).true == products + scan


class Tokens(nn.Module):
    """A token mixer as a layer of images."""

    def __init__(self, mixer: nn.Module) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(self, x: Tensor) -> Tensor:
        return self.mixer(x.permute(0, 2, 3, 1))


class Mixed(nn.Module):
    """One of everything that the convention has an opinion about."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=2)
        self.layers = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.GELU(), nn.SiLU(), nn.GroupNorm(2, 8))
        self.pools = nn.Sequential(nn.MaxPool2d(2), nn.AvgPool2d(2), nn.Upsample(scale_factor=2), nn.ELU())
        self.back = nn.ConvTranspose2d(8, 4, 2, stride=2)
        self.linear = nn.Linear(4, 5)
        self.norm = nn.LayerNorm(5)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pools(self.layers(self.conv(x)))
        tokens = x.flatten(2).transpose(1, 2)
        x = self.back(x + self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(x.shape))
        x = torch.add(nn.functional.interpolate(x, size=(9, 7)), 1).permute(0, 2, 3, 1).flatten(1, 2)
        x = self.norm(self.linear(x))
        x = x @ x.transpose(1, 2) * 2 + 1
        x = torch.softmax(nn.functional.softmax(torch.bmm(x, x), dim=-1), dim=-1)
        return torch.addmm(x[0], x[0], torch.mul(x[0], x[0]))


class PublishedCCM(CrossChannelMix):
    """In the authors' order: resized, then projected, and back."""

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        def resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
            return nn.functional.interpolate(x, size=like.shape[2:], mode="bilinear", align_corners=False)

        same = [project(resize(x, features[-1])) for project, x in zip(self.project_in, features, strict=True)]
        tokens = torch.cat(same, dim=1).permute(0, 2, 3, 1)
        tokens = tokens + self.norm(self.channel_mix(tokens))
        parts = tokens.permute(0, 3, 1, 2).chunk(len(features), dim=1)
        return [resize(project(part), x) for project, part, x in zip(self.project_out, parts, features, strict=True)]


def published(model: Any) -> Any:
    """A copy with the same weights and the published order."""
    model = copy.deepcopy(model)
    model.ccm.__class__ = PublishedCCM
    return model


def test_the_ccm_counts_as_published_and_is_the_same_function() -> None:
    model: Any = create_model("rwkv_unet_t", num_classes=3).eval()
    ours, theirs = (count_macs(m, (3, 32, 48)) for m in (model, published(model)))
    assert ours.paper == theirs.paper
    assert ours.true < theirs.true
    image = torch.randn(2, 3, 32, 48)
    torch.testing.assert_close(model(image), published(model)(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [published(create_model("rwkv_unet_t", num_classes=3)), RWKVUNetEncoder(**SIZES["t"]), Mixed()],
    ids=["net", "encoder", "mixed"],
)
def test_agrees_with_ptflops(model: nn.Module) -> None:
    size = (4 if isinstance(model, Mixed) else 3, 32, 48)
    ours = count_macs(model, size).paper
    theirs, _ = get_model_complexity_info(
        model, size, as_strings=False, print_per_layer_stat=False, verbose=False, backend="pytorch",
        custom_modules_hooks={LayerNorm: MODULES_MAPPING[nn.LayerNorm]},
    )  # fmt: skip
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rwkv_unet_3d_t", {"norm": "instance"}),
        ("rwkv_unet_3d_xt", {"strides": [[1, 2, 2], [2, 2, 2], [1, 1, 1], [2, 2, 1]], "norm": "group"}),
        ("monai:UNet", {"channels": [4, 8, 16], "strides": [[1, 2, 2], 2]}),
        ("monai:DynUNet", {"strides": [1, [1, 2, 2], 2, 2], "filters": [4, 8, 8, 8], "deep_supervision": True}),
        ("monai:SegResNet", {"init_filters": 8}),
        ("monai:VNet", {}),
        pytest.param("monai:UNETR", {"img_size": [16, 32, 32]}, marks=pytest.mark.slow),
    ],
)
def test_volumes_agree_with_ptflops(name: str, options: dict[str, Any]) -> None:
    axes = {"spatial_dims": 3} if name.startswith("monai:") else {}
    model: Any = create_model(name, num_classes=3, in_channels=1, **axes, **options).eval()
    if name == "monai:DynUNet":
        del model.network.skip_layers  # of the same modules, which ptflops counts as often as they are registered
    if name == "monai:SegResNet":
        model.network.act_mod = nn.Identity()
    size = (1, 16, 32, 32)
    theirs, _ = get_model_complexity_info(
        model, size, as_strings=False, print_per_layer_stat=False, verbose=False, backend="pytorch",
        custom_modules_hooks=dict.fromkeys((LayerNorm, LayerNorm3d), MODULES_MAPPING[nn.LayerNorm]),
    )  # fmt: skip
    assert count_macs(model, size).paper == theirs


def test_true_count_of_volumes_is_products_and_wkv_over_three_axes() -> None:
    parts = nn.Sequential(
        nn.Conv3d(2, 6, (1, 3, 5), stride=(1, 2, 2), padding=(0, 1, 2), groups=2),
        nn.InstanceNorm3d(6, affine=True),
        nn.Upsample(scale_factor=(1, 2, 2), mode="trilinear"),
        nn.ConvTranspose3d(6, 4, 2, stride=2),
    )
    assert count_macs(parts, (2, 3, 8, 8)).true == 3 * 4 * 4 * 6 * 15 + 3 * 8 * 8 * 6 * 4 * 8

    model: Any = create_model("rwkv_unet_3d_xt", num_classes=2, in_channels=1, flat_stages=0).eval()
    sums = []

    def add(module: Any, inputs: tuple, output: torch.Tensor) -> None:
        positions = output.numel() // output.shape[1 if isinstance(module, nn.Conv3d) else -1]
        sums.append(module.weight.numel() * positions)

    for module in model.modules():
        if isinstance(module, nn.Conv3d | nn.Linear):
            module.register_forward_hook(add)
    model(torch.zeros(1, 1, 32, 32, 32))
    products = sum(sums)
    wkv = sum(
        (WKV_MACS + 4 * 2) * tokens * block.attention[0].decay.shape[1]
        for stage, tokens in zip(model.stages, (0, 0, 4**3, 2**3), strict=True)
        for block in stage
        if block.attention is not None
    )
    assert count_macs(model, (1, 32, 32, 32)).true == products + wkv


def test_true_count_is_products_and_wkv() -> None:
    matmul = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(128, 5))
    assert count_macs(matmul, (3, 4, 4)).true == 16 * 27 * 8 + 128 * 5

    model: Any = create_model("rwkv_unet_t", num_classes=1)
    wkv = sum(
        WKV_MACS * tokens * block.attention.decay.numel()
        for stage, tokens in zip(model.encoder.stages, (0, 0, 64, 16), strict=True)
        for block in stage
        if block.attention is not None
    )
    sums = []

    def add(module: Any, inputs: tuple, output: torch.Tensor) -> None:
        positions = output.numel() // output.shape[1 if isinstance(module, nn.Conv2d) else -1]
        sums.append(module.weight.numel() * positions)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(add)
    model.eval()(torch.zeros(1, 3, 64, 64))
    products = sum(sums)
    assert count_macs(model, (3, 64, 64)).true == products + wkv


def test_counting_leaves_the_model_as_it_was() -> None:
    model = create_model("rwkv_unet_xt", num_classes=1).train()
    model.encoder.stem.eval()
    modes = [module.training for module in model.modules()]
    state = {name: x.clone() for name, x in model.state_dict().items()}
    first = count_macs(model, (3, 32, 32))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(x, state[name]) for name, x in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(x.requires_grad and x.grad is None for x in model.parameters())
    assert type(next(model.parameters())) is nn.Parameter
    assert count_macs(model.to(torch.bfloat16), (3, 32, 32)) == first
    assert count_macs(model.to("meta"), (3, 32, 32)) == first


def test_counting_cleans_up_after_an_error() -> None:
    model = create_model("rwkv_unet_xt", num_classes=1).train()
    with pytest.raises(ValueError, match="not divisible by 16"):
        count_macs(model, (3, 30, 32))
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_true_count_of_spatial_mix_adds_four_an_axis() -> None:
    rows, axes = (create_model("rwkv_unet_xt", num_classes=1, attention=a) for a in ("spatial_mix", "spatial_mix_2d"))
    tokens_and_channels = 64 * 2 * 96 + 16 * 288  # of stages III and IV at 64 x 64
    more = count_macs(axes, (3, 64, 64)).true - count_macs(rows, (3, 64, 64)).true
    assert more == 4 * tokens_and_channels


def test_parameters() -> None:
    encoders = {"t": 2_938_472, "s": 9_416_048, "b": 16_694_040}
    nets = {"t": 3_146_785, "s": 9_703_225, "b": 17_127_049}
    unused_norms = {"t": 1_024, "s": 1_280, "b": 1_536}
    for size in encoders:
        with torch.device("meta"):
            model = create_model(f"rwkv_unet_{size}", num_classes=1)
        assert count_parameters(model.encoder) == encoders[size]
        assert count_parameters(model) == nets[size] - unused_norms[size]
