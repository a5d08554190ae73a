"""The networks that the paper compares with: sizes, images, options, and libraries that are missing."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import nn

from rwkv_unet import create_model, list_models
from rwkv_unet.baselines import BASELINES, has_deep_supervision, levit_unet, missformer, mt_unet
from rwkv_unet.baselines.hiformer import HiFormer
from rwkv_unet.baselines.monai_networks import MONAI
from rwkv_unet.baselines.rolling_unet import roll_channels
from rwkv_unet.baselines.swin import PatchExpand
from rwkv_unet.baselines.u_kan import ORDER, UKAN, b_splines
from rwkv_unet.baselines.unext import shift
from rwkv_unet.baselines.vss import SS2D
from rwkv_unet.baselines.zig_rir import Stem, ZigzagMix, joined
from rwkv_unet.flops import count_macs, count_parameters, dry_run

TABLE_VI = [
    ("unet", 7_765_985, 12.1630),
    ("att_unet", 8_726_077, 16.7758),
    ("unet_plus_plus", 9_163_329, 34.7140),
    ("transunet", 105_275_921, 32.1699),
    ("fcbformer", 52_962_337, 39.0840),
    ("unext", 1_471_921, 0.5766),
    ("unext_s", 253_561, 0.1056),
    ("pvt_cascade", 35_272_783, 8.1924),
    ("rolling_unet_s", 1_782_161, 2.1158),
    ("rolling_unet_m", 7_096_353, 8.3083),
    ("rolling_unet_l", 28_320_833, 32.9240),
    ("emcad", 26_763_436, 5.6328),
    ("u_kan", 25_359_265, 6.9105),
    ("swin_unet", 27_168_132, 9.0202),
    ("missformer", 35_452_225, 7.1432),
    ("uctransnet", 66_430_657, 50.6701),
    ("trans_deeplab", 21_142_140, 22.5275),
    ("hiformer_s", 23_253_195, 10.8920),
    ("hiformer_b", 25_510_955, 11.9442),
    ("hiformer_l", 29_518_059, 12.7202),
    ("levit_unet_128s", 15_894_627, 22.7520),
    ("levit_unet_192", 19_894_150, 24.5261),
    ("levit_unet_384", 52_154_213, 33.0907),
    ("mt_unet", 75_268_139, 52.0958),
    ("metaseg_t", 4_642_945, 1.3419),
    ("metaseg_b", 29_705_729, 7.8099),
    ("pvtformer", 34_516_993, 42.5931),
    ("trans_cascade", 123_474_895, 52.6226),
    ("vit_cup", 91_673_041, 29.0725),
    ("r50_vit_cup", 103_764_497, 29.1500),
    ("vm_unet", 27_427_561, 4.0946),
    ("mamba_unet", 19_121_376, 4.5661),
    ("h_vmunet", 8_569_231, 0.7556),
    ("zig_rir", 24_269_820, 2.7632),
    ("samed_b", 93_324_160, 32.3254),
    ("samed_h", 641_187_200, 259.2987),
]
LIBRARIES = [
    ("smp:unet-resnet50", 32_521_105, 10.7096),
    ("smp:unet-tu-pvt_v2_b2", 28_130_577, 7.9169),
    ("monai:BasicUNet", 7_783_425, 12.8873),
    ("monai:SwinUNETR", 25_139_275, 17.7967),
]


@pytest.mark.parametrize(("name", "parameters", "giga"), TABLE_VI + LIBRARIES)
def test_parameters_and_macs_at_256(name: str, parameters: int, giga: float) -> None:
    with torch.device("meta"):
        model = create_model(name, num_classes=1)
    assert count_parameters(model) == parameters
    assert count_macs(model, (3, 256, 256)).paper / 1e9 == pytest.approx(giga, abs=1e-4)


def options(name: str) -> dict[str, Any]:
    return {"monai:UNETR": {"img_size": 64}}.get(name, {})


OF_IMAGES = [f"monai:{name}" for name in MONAI if name != "VNet"]


@pytest.mark.parametrize("name", [*OF_IMAGES, "smp:fpn-resnet18"])  # ours: every model's test
def test_images_in_logits_out_and_a_gradient_for_every_parameter(name: str) -> None:
    model = create_model(name, num_classes=3, **options(name))
    logits = model(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 3, 64, 64)
    logits.square().mean().backward()
    assert not [key for key, x in model.named_parameters() if x.requires_grad and x.grad is None]


SMALLER: dict[str, dict[str, Any]] = {
    **{name: {"encoder": "pvt_v2_b0"} for name in ("fcbformer", "pvt_cascade", "emcad", "pvtformer")},
    "u_kan": {"dims": (8,) * 5},
    "vit_cup": {"encoder": "vit_tiny_patch16_224"},
    **{name: {"width": 8} for name in ("uctransnet", "mt_unet")},
    **{name: {"width": 8} for name in ("vm_unet", "mamba_unet")},
    "h_vmunet": {"dims": (4, 4, 8, 16, 32, 32)},
    "zig_rir": {"dims": (8,) * 4},
    "samed_b": {"width": 64, "depth": 4},
}
LARGER = (
    "samed_h",
    *("rolling_unet_m", "rolling_unet_l", "unext", "r50_vit_cup", "trans_cascade"),
    *("hiformer_b", "hiformer_l", "levit_unet_192", "levit_unet_384", "metaseg_b"),
)
"""What is said of images is said of a smaller one with the same encoder."""
KINDS = [name for name in BASELINES if name not in LARGER]


@pytest.mark.parametrize("name", [*KINDS, "smp:unet-resnet18", "monai:BasicUNet"])
def test_grey_images_and_sizes_that_do_not_fit(name: str) -> None:
    model: Any = create_model(name, num_classes=2, **SMALLER.get(name, {})).eval()
    grey = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(grey), model(grey.repeat(1, 3, 1, 1)))
    with torch.device("meta"):
        of_one = create_model(name, num_classes=2, in_channels=1).eval()
    with torch.no_grad():
        assert of_one(grey.to(next(of_one.parameters()).device)).shape == (1, 2, 64, 64)
    with pytest.raises(ValueError, match=f"65 x 64 is not divisible by {model.divisor}"):
        model(torch.zeros(1, 3, 65, 64))


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("unett", {}, r"unknown model 'unett'; did you mean unet"),
        ("monai:SwinUNet", {}, r"unknown model 'monai:SwinUNet'; did you mean .*monai:SwinUNETR"),
        ("smp:unett-resnet50", {}, r"unknown architecture 'unett'; did you mean unet"),
        ("smp:unet-resnet5", {}, r"unknown encoder 'resnet5'; did you mean resnet50"),
        ("smp:unet-tu-pvt_v2_b9", {}, r"unknown encoder 'tu-pvt_v2_b9'; did you mean tu-pvt_v2_b5"),
        ("smp:unet", {}, r"names no encoder; write for example smp:unet-resnet50"),
        ("unet", {"attention": "mhsa"}, r"^model.attention does not apply to unet, which has dims$"),
        ("smp:unet-resnet18", {"attention": "mhsa"}, r"^model.attention does not apply to smp:unet-resnet18"),
        ("smp:unet-resnet18", {"encoder_weights": "imagenet"}, r"^model.encoder_weights does not apply"),
        ("monai:UNETR", {"image_size": 64}, r"^model.image_size does not apply to monai:UNETR, which has img_size"),
        ("monai:BasicUNet", {"features": 32}, r"^monai:BasicUNet: "),
        ("unet", {"dims": 32}, r"^model.dims must be the widths of two or more levels, not 32$"),
        ("u_kan", {"dims": (8, 8)}, r"^model.dims must be the widths of 5 levels"),
        (
            "swin_unet",
            {"encoder": "swin_tinny_patch4_window7_224"},
            r"^model.encoder: unknown Swin 'swin_tinny_.*'; did you",
        ),
        (
            "vit_cup",
            {"encoder": "vit_base"},
            r"^model.encoder: unknown ViT 'vit_base'; choose from vit_base_patch16_224, ",
        ),
        ("hiformer_l", {"encoder": "resnet35"}, r"^model.encoder: unknown ResNet 'resnet35'; did you mean resnet"),
        ("hiformer_l", {"heads": (6,)}, r"^model.depths, model.heads and model.mlp_ratios must be two each"),
        ("levit_unet_384", {"encoder": "levit_256"}, r"^model.encoder: unknown LeViT 'levit_256'; did you mean levit_"),
        ("mt_unet", {"width": 12}, r"^model.width must be a multiple of 8, not 12$"),
        ("metaseg_b", {"dims": (8, 8)}, r"^model.dims must be the widths of 4 levels"),
        ("transunet", {"num_skips": 4}, r"^model.num_skips must be 0, 1, 2 or 3, not 4$"),
        ("vm_unet", {"width": 6}, r"^model.width must be a positive multiple of 4, not 6$"),
        ("vm_unet", {"depths": (2, 2)}, r"^model.depths must be the blocks of 4 levels, not \(2, 2\)$"),
        ("vm_unet", {"decoder_depths": 2}, r"^model.decoder_depths must be the blocks of 4 levels, not 2$"),
        ("zig_rir", {"depths": (2, 4, 9, 0)}, r"^model.depths must be the blocks of 4 levels"),
        ("h_vmunet", {"dims": (8, 16, 32, 64, 128, 200)}, r"^model.dims: level 6 must be divisible by 32, not 200$"),
        ("h_vmunet", {"orders": (2, 3)}, r"^model.orders must be four numbers from 2 to 8, not \(2, 3\)$"),
        ("h_vmunet", {"depth": 0}, r"^model.depth must be a positive integer, not 0$"),
        ("samed_b", {"encoder": "samvit_base"}, r"^model.encoder: unknown image encoder of SAM 'samvit_base'; did you"),
        ("samed_b", {"rank": 0}, r"^model.rank must be a positive integer, not 0$"),
        ("samed_b", {"width": 96}, r"^model.width must be a positive multiple of 64, not 96$"),
        ("samed_b", {"depth": 6}, r"^model.depth must be a positive multiple of 4, not 6$"),
        ("emcad", {"encoder": "pvt_v2_b9"}, r"^model.encoder: unknown PVTv2 'pvt_v2_b9'; did you mean"),
    ],
)
def test_wrong_names_and_options(name: str, overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, num_classes=2, **overrides)


@pytest.mark.parametrize(
    ("name", "absent"),
    [("smp:unet-resnet18", "segmentation_models_pytorch"), ("monai:BasicUNet", "monai.networks")],
)
def test_a_library_that_is_missing(name: str, absent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(ValueError, match=r"^[^\n]* needs [^\n]*: pip install 'rwkvctl\[baselines\]' \([^\n]*\)$"):
        create_model(name, num_classes=2)


def test_names_are_listed() -> None:
    assert {"rwkv_unet_t", "unet"} <= set(list_models())
    assert not [name for name in list_models() if ":" in name]
    assert {name.split(":")[0] for name in list_models(examples=True) if ":" in name} == {"smp", "monai"}


def test_channels_shift_and_zeros_come_in() -> None:
    x = torch.arange(1.0, 5.0).reshape(1, 4, 1, 1).expand(1, 4, 1, 5)  # every channel: 1 2 3 4 downwards
    down = [[3, 4, 0, 0], [2, 3, 4, 0], [1, 2, 3, 4], [0, 1, 2, 3], [0, 0, 1, 2]]
    assert shift(x, axis=1)[0, :, 0].T.tolist() == down
    assert torch.equal(shift(x.transpose(1, 2), axis=2), shift(x, axis=1).transpose(1, 2))


@pytest.mark.parametrize("direction", [1, -1])
def test_channels_roll_in_a_circle(direction: int) -> None:
    x = torch.randn(2, 5, 3, 7)
    for axis in (1, 2):
        rolled = [x[..., c].roll(direction * c, dims=axis) for c in range(7)]
        assert torch.equal(roll_channels(x, axis, direction), torch.stack(rolled, -1))


def test_scans_in_equal_directions_do_not_know_one_from_another() -> None:
    torch.manual_seed(0)
    mixer, x = SS2D(8), torch.randn(2, 5, 7, 8)
    with torch.no_grad():
        for parameter in (mixer.select, mixer.step_weight, mixer.step_bias, mixer.log_rate, mixer.skip):
            parameter.copy_(parameter[:1].clone().expand_as(parameter))
        mixer.step_bias += 4  # at the start the states say little
        mixer.conv.weight.copy_(mixer.conv.weight.mean((2, 3), keepdim=True).expand_as(mixer.conv.weight))
        y = mixer(x)
        torch.testing.assert_close(mixer(x.flip(1).flip(2)), y.flip(1).flip(2))
        torch.testing.assert_close(mixer(x.transpose(1, 2)), y.transpose(1, 2))
        mixer.step_bias[2] -= 3  # rows from the back alone
        assert (mixer(x.flip(1).flip(2)) - mixer(x).flip(1).flip(2)).abs().max() > 1e-4


def test_zigzag_along_rows_and_columns() -> None:
    numbers = torch.arange(6).view(1, 2, 3, 1)
    rows, columns = ZigzagMix(1, columns=False), ZigzagMix(1, columns=True)
    assert rows._zigzag(numbers).flatten().tolist() == [0, 1, 2, 5, 4, 3]
    assert columns._zigzag(numbers).flatten().tolist() == [2, 5, 4, 1, 0, 3]  # from the last; odd columns upwards


def test_words_of_neighbouring_patches_are_joined_as_in_the_image() -> None:
    places = torch.arange(16.0 * 16).view(1, 1, 16, 16)  # 4 x 4 patches of 4 x 4 words
    stem = Stem(1, 4, 8)
    stem.common, stem.words, stem.patches = nn.Identity(), nn.Identity(), nn.AvgPool2d(4)
    words, patches = stem(places)
    assert torch.equal(words[1], places[0, :, :4, 4:8].permute(1, 2, 0))
    assert torch.equal(joined(words, patches)[3], places[0, :, 8:, 8:].permute(1, 2, 0))


def test_splines_are_a_partition_of_one_that_reproduces_cubics() -> None:
    knots = UKAN(1, dims=(8,) * 5).token_levels[0].mix.layers[0].knots.double()
    x = torch.linspace(-0.99, 0.99, 101, dtype=torch.float64)
    bases = b_splines(x, knots)
    torch.testing.assert_close(bases.sum(-1), torch.ones_like(x), rtol=1e-6, atol=0)  # the knots are float32
    assert bases.min() > -1e-12
    assert (bases > 1e-12).sum(-1).max() == ORDER + 1
    cubic = (x**3 - x)[:, None]
    assert (bases @ torch.linalg.lstsq(bases, cubic).solution - cubic).abs().max() < 1e-6


def test_a_token_becomes_a_patch_of_tokens() -> None:
    expand = PatchExpand(3, 4, scale=2)
    with torch.no_grad():
        tokens = torch.randn(1, 2, 5, 3)
        own = expand.expand(tokens)[..., 4:8]  # of the patch's first row, second column
        torch.testing.assert_close(expand(tokens)[:, ::2, 1::2], expand.norm(own))


def test_missformer_cuts_the_tokens_of_all_scales_back_into_maps() -> None:
    maps = [torch.randn(2, 16 >> i, 8 >> i, dim) for i, dim in enumerate(missformer.DIMS)]
    tokens = missformer.sequence(maps)
    assert tokens.shape == (2, 128 + 2 * 32 + 5 * 8 + 8 * 2, 64)
    assert all(torch.equal(a, b) for a, b in zip(missformer.split(tokens, maps), maps, strict=True))


@pytest.mark.parametrize("stage", [0, 1])
def test_levit_attends_as_timm_does_on_the_grid_that_it_is_made_for(stage: int) -> None:
    levit: Any = create_model("levit_unet_128s", num_classes=1).encoder.eval()
    levit.apply(lambda module: [torch.nn.init.normal_(x) for x in getattr(module, "attention_biases", [])])
    before = torch.randn(1, 14, 14, 128)
    with torch.no_grad():
        expected = levit.stages[stage](before.flatten(1, 2))
        got = levit_unet.run_stage(levit.stages[stage], before)
        assert got.shape[1:3] == ((14, 14), (7, 7))[stage]
        torch.testing.assert_close(got.flatten(1, 2), expected, rtol=1e-4, atol=1e-5)


def test_windows_of_mt_unet_are_filled_up() -> None:
    x = torch.arange(1.0, 31).reshape(1, 5, 6, 1)
    whole = mt_unet.filled(x)[0, ..., 0]
    assert whole.shape == (8, 8)
    assert torch.equal(whole[:5, :6], x[0, ..., 0])
    assert torch.equal(whole[5:, 6:], x[0, 2:, 4:, 0])
    assert whole[5:, :6].abs().sum() == whole[:5, 6:].abs().sum() == 0
    assert mt_unet.filled(x[:, :4]).shape == mt_unet.filled(x[:, :, :4]).transpose(1, 2)[:, :4].shape == (1, 4, 8, 1)
    windows = mt_unet.into_windows(mt_unet.filled(x))
    assert torch.equal(windows[0, 0, 1, :, 0].reshape(4, 4), whole[:4, 4:])


def test_the_class_tokens_of_hiformer_reach_the_other_map() -> None:
    """What the authors' code drops; without the fusion the maps meet in the decoder alone."""
    torch.manual_seed(0)
    fusion = HiFormer(1, depths=(1, 1), heads=(3, 3), mlp_ratios=(1, 1)).fusion
    assert fusion is not None
    fine, coarse = torch.randn(1, 8, 8, 96), torch.randn(1, 2, 2, 384)
    with torch.no_grad():
        fused = fusion([fine, coarse], [fine, coarse])
        other = fusion([fine, coarse], [fine, torch.randn(1, 2, 2, 384)])
    assert [y.shape for y in fused] == [fine.shape, coarse.shape]
    assert (fused[0] - other[0]).abs().amax() > 1e-6
    assert HiFormer(1, fusion=False).fusion is None


def test_cascade_adds_the_maps_of_four_scales() -> None:
    model: Any = create_model("pvt_cascade", num_classes=2, encoder="pvt_v2_b0").eval()
    x, logits = torch.randn(1, 3, 32, 32), []
    with torch.no_grad():
        logits.append(model(x))
        for head in model.heads:
            head.bias += 1
        logits.append(model(x))
    torch.testing.assert_close(logits[1], logits[0] + len(model.heads))


@pytest.mark.parametrize("name", ["pvt_cascade", "emcad"])
def test_deep_supervision_gives_the_logits_of_every_scale_in_training_alone(name: str) -> None:
    def made(**options: Any) -> Any:
        torch.manual_seed(3)
        return create_model(name, num_classes=2, encoder="pvt_v2_b0", drop_path=0.0, **options)

    plain, deep = made(), made(deep_supervision=True)
    x = torch.randn(2, 3, 64, 64)
    maps = deep(x)
    assert [logits.shape for logits in maps] == [(2, 2, 64, 64)] * 4
    # Straight lines between the pixels of a map of stride 32, 16, 8 or 4: the second difference is 0 but at its nodes.
    corners = [float((logits.detach().diff(n=2, dim=-1).abs() > 1e-5).float().mean()) for logits in maps]
    assert corners == sorted(corners)
    torch.testing.assert_close(deep.combined(maps), plain(x), rtol=1e-6, atol=1e-6)
    sum(logits.square().mean() for logits in maps).backward()
    assert not [key for key, weight in deep.named_parameters() if weight.grad is None]
    with torch.no_grad():
        torch.testing.assert_close(deep.eval()(x), plain.eval()(x), rtol=1e-6, atol=1e-6)


def test_deep_supervision_adds_three_heads_to_emcad_and_nothing_to_cascade() -> None:
    def made(name: str, **options: Any) -> Any:
        with torch.device("meta"):
            return create_model(name, num_classes=1, encoder="pvt_v2_b0", **options)

    for name, heads in {"emcad": 256 + 1 + 160 + 1 + 64 + 1, "pvt_cascade": 0}.items():
        plain, deep = made(name), made(name, deep_supervision=True)
        assert count_parameters(deep) - count_parameters(plain) == heads
        assert count_macs(deep, (3, 64, 64)) == count_macs(plain, (3, 64, 64))
        assert set(plain.state_dict()) <= set(deep.state_dict())
    assert [name for name in BASELINES if has_deep_supervision(name)] == ["pvt_cascade", "emcad", "trans_cascade"]


def samed() -> Any:
    torch.manual_seed(0)
    return create_model("samed_b", num_classes=3, width=64, depth=8)


def test_samed_adds_to_queries_and_values_alone_and_at_first_nothing() -> None:
    model, x = samed(), torch.randn(1, 3, 64, 64)
    kept = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert kept == [name for name, _ in model.named_parameters() if name.startswith("encoder.")]
    assert [block.window_size for block in model.encoder.blocks] == 4 * [14, 0]
    qkv, adapter, tokens = model.encoder.blocks[0].attn.qkv, model.adapters[0], torch.randn(2, 5, 64)
    with torch.no_grad():
        logits, before = model(x), qkv(tokens)
        torch.testing.assert_close(before, tokens @ qkv.weight.T + qkv.bias)
        for up in (adapter.up_q, adapter.up_v):
            nn.init.normal_(up.weight)
        q, k, v = (qkv(tokens) - before).chunk(3, -1)
        torch.testing.assert_close(q, tokens @ (adapter.up_q.weight @ adapter.down_q.weight).T, rtol=0, atol=1e-5)
        torch.testing.assert_close(v, tokens @ (adapter.up_v.weight @ adapter.down_v.weight).T, rtol=0, atol=1e-5)
        assert k.abs().max() == 0
        assert (model(x) - logits).abs().max() > 1e-4


def test_a_copy_of_samed_has_additions_of_its_own() -> None:
    """A moving average is such a copy."""
    model, x = samed().eval(), torch.randn(1, 3, 64, 64)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        logits = model(x)
        for parameter in copied.adapters.parameters():
            nn.init.normal_(parameter)
        assert torch.equal(model(x), logits)
        assert (copied(x) - logits).abs().max() > 1e-4


def test_positions_of_sam_are_resized_to_the_image() -> None:
    model = samed().eval()
    ramp = torch.linspace(-1, 1, 64)
    with torch.no_grad():
        model.encoder.pos_embed.copy_(ramp[:, None, None].expand(1, 64, 64, 64))
        seen: list[torch.Tensor] = []
        model.encoder.blocks[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        model(torch.zeros(1, 3, 64, 96))
    rows = (seen[0] - model.encoder.patch_embed.proj.bias)[0, :, :, 0]
    assert rows.shape == (4, 6)
    torch.testing.assert_close(rows, ramp.reshape(4, 16)[:, 7:9].mean(1)[:, None].expand(4, 6), rtol=0, atol=1e-6)
    places = model.prompt_encoder.pe_layer
    with torch.no_grad():  # the middle of a map of any size is the image's
        torch.testing.assert_close(places(3, 5)[:, 1, 2], places(7, 1)[:, 3, 0], rtol=0, atol=1e-5)
        assert (places(3, 5)[:, 0, 2] - places(3, 5)[:, 2, 2]).abs().max() > 0.1


SMP = ["unet", "unetplusplus", "manet", "linknet", "fpn", "pspnet", "deeplabv3", "deeplabv3plus", "pan", "upernet"]


@pytest.mark.filterwarnings("ignore:Encoder does not have prefix tokens")  # smp's advice to whoever chooses dpt
@pytest.mark.parametrize("arch", [*SMP, "segformer", "dpt"])
def test_every_architecture_of_smp_takes_our_encoder_and_gives_logits_of_the_images_size(arch: str):
    pytest.importorskip("segmentation_models_pytorch")
    model = create_model(f"smp:{arch}-tu-rwkv_unet_enc_xt", num_classes=2)
    _, logits = dry_run(model, (3, 128, 192))
    assert logits.shape == (1, 2, 128, 192)
    assert model.divisor in (8, 16)


def test_depth_and_decoder_of_smp_follow_the_encoder():
    pytest.importorskip("segmentation_models_pytorch")
    model: Any = create_model("smp:unet-tu-rwkv_unet_enc_xt", num_classes=2)
    assert model.network.encoder.out_channels == [8, 12, 24, 48, 96]
    assert len(model.network.decoder.blocks) == 4
    shallow: Any = create_model(
        "smp:unet-tu-rwkv_unet_enc_xt", num_classes=2, encoder_depth=3, decoder_channels=(64, 32, 16)
    )
    assert (len(shallow.network.decoder.blocks), shallow.divisor) == (3, 8)
    own: Any = create_model("smp:unet-resnet18", num_classes=2)
    assert len(own.network.decoder.blocks) == 5


def test_a_stride_that_an_encoder_cannot_have_is_one_line():
    pytest.importorskip("segmentation_models_pytorch")
    with pytest.raises(ValueError, match="output_stride 8: the encoder reduces images 16 times") as caught:
        create_model("smp:deeplabv3-tu-rwkv_unet_enc_xt", num_classes=2, encoder_output_stride=8)
    assert "\n" not in str(caught.value)
