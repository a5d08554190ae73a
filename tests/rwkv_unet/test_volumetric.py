"""Networks for volumes: what they divide and look along, plans of nnU-Net, and logits at several scales."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rwkv_unet import create_model, deep_supervision, dimensions, list_models, planned_options
from rwkv_unet.baselines import BASELINES
from rwkv_unet.baselines.monai_networks import MONAI

SMALL: dict[str, Any] = {"stem_dim": 8, "depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24), "expansions": (2.0,) * 4}
OURS = [name for name in list_models() if name.startswith("rwkv_unet_3d_")]
THEIRS = [f"monai:{name}" for name in MONAI]
# nnU-Net's plan of 3d_fullres for ACDC (Dataset027): patches of 20 x 256 x 224 at 5 x 1.5625 x 1.5625 mm.
STRIDES = [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2], [1, 2, 2], [1, 2, 2]]
KERNELS = [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]]
PATCH = (20, 256, 224)


def made(name: str, seed: int = 0, in_channels: int = 1, **options: Any) -> Any:
    torch.manual_seed(seed)
    return create_model(name, num_classes=2, in_channels=in_channels, **options)


def looks(model: Any, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """How far along each axis the middle voxel of the logits sees, without the attention."""
    x = torch.randn(1, 1, *shape, requires_grad=True)
    middle = model(x)[(0, 0, *(side // 2 for side in shape))]
    seen = torch.autograd.grad(middle, x)[0][0, 0] != 0
    depth, height, width = (int(places.max() - places.min()) + 1 for places in seen.nonzero(as_tuple=True))
    return depth, height, width


# Names and axes ------------------------------------------------------------------------------------------------------


def test_names_that_take_volumes() -> None:
    assert [name.removeprefix("rwkv_unet_3d_") for name in OURS] == ["xt", "t", "s", "b"]
    assert {dimensions(name) for name in OURS} == {3}
    assert {dimensions(name, spatial_dims=3) for name in THEIRS} == {3}
    of_images = [*BASELINES, "rwkv_unet_b", "smp:unet-resnet18", *(name for name in THEIRS if name != "monai:VNet")]
    assert {dimensions(name) for name in of_images} == {2}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("monai:DynUnet", {}, r"^unknown model 'monai:DynUnet'; did you mean monai:DynUNet"),
        ("monai:DynUNet", {"spatial_dims": 4}, r"^model.spatial_dims must be 2 or 3, not 4$"),
        ("monai:VNet", {}, r"^monai:VNet takes volumes: set model.spatial_dims to 3$"),
        ("rwkv_unet_3d_l", {}, r"^unknown model 'rwkv_unet_3d_l'; did you mean rwkv_unet_3d_"),
    ],
)
def test_axes_that_no_network_has(name: str, options: dict[str, Any], message: str) -> None:
    for ask in (dimensions, made):
        with pytest.raises(ValueError, match=message):
            ask(name, **options)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("rwkv_unet_3d_t", {"flat_stages": 5}, r"^model.flat_stages must be 0, 1, 2, 3 or 4, not 5$"),
        (
            "rwkv_unet_3d_t",
            {"norm": "layer"},
            r"^model.norm: unknown norm 'layer'; choose from batch, instance, group$",
        ),
        ("rwkv_unet_3d_t", {"strides": [[1, 2, 2]] * 5}, r"^model.strides must be 4 triples of 1 or 2, along depth"),
        ("rwkv_unet_3d_t", {"strides": [[1, 2, 3]] * 4}, r"^model.strides must be 4 triples of 1 or 2"),
        ("rwkv_unet_3d_t", {"strides": 2}, r"^model.strides must be 4 triples .*, not 2$"),
        ("rwkv_unet_3d_t", {"kernels": [[3, 5, 5]] * 5}, r"^model.kernels must be 5 triples of 1 or 3"),
        ("rwkv_unet_3d_t", {"kernels": [[3, 3, 3]] * 5, "flat_stages": 2}, r"^model.flat_stages is a short form of"),
        ("rwkv_unet_3d_t", {"attention": "mhsa"}, r"^model.attention does not apply to rwkv_unet_3d_t"),
        ("rwkv_unet_3d_t", {"stride": 2}, r"^unknown model field 'stride'; did you mean strides\?$"),
        (
            "rwkv_unet_3d_t",
            {"foo": 2},
            r"^unknown model field 'foo'; choose from strides, kernels, flat_stages, norm, ",
        ),
        ("monai:DynUNet", {"strides": [1, 2]}, r"^monai:DynUNet: model.strides must be those of three or more levels"),
        ("monai:DynUNet", {"strides": [1, [2, 2], 2]}, r"^length of stride in block 1 should be the same"),
        ("monai:UNet", {"strides": [[2, 2]] * 4}, r"monai:UNet: |^model.strides must have one number for all axes"),
        ("monai:BasicUNetPlusPlus", {"deep_supervision": True}, r"^model.deep_supervision does not apply to"),
        ("monai:VNet", {"in_channels": 3}, r"divisible by in_channels"),
    ],
)
def test_options_that_no_network_has(name: str, options: dict[str, Any], message: str) -> None:
    axes = {"spatial_dims": 3} if name.startswith("monai:") else {}
    with pytest.raises(ValueError, match=message):
        made(name, **axes, **options)


@pytest.mark.parametrize("name", ["rwkv_unet_3d_t", "monai:DynUNet"])
def test_channels_are_exact_and_a_network_of_one_size_says_so(name: str) -> None:
    options = SMALL if name in OURS else {"spatial_dims": 3}
    model = made(name, in_channels=3, **options)
    with pytest.raises(ValueError, match="the model takes volumes of 3 channels, not 1"):
        model(torch.zeros(1, 1, *model.divisor))
    with pytest.raises(ValueError, match=r"a volume batch must be \(B, C, D, H, W\)"):
        model(torch.zeros(1, 3, 32, 32))
    unetr = made("monai:UNETR", spatial_dims=3, img_size=[16, 32, 32], hidden_size=48, mlp_dim=48)
    with pytest.raises(ValueError, match="the model is built for volumes of 16 x 32 x 32; its option img_size says so"):
        unetr(torch.zeros(1, 1, 32, 32, 32))


# Strides and kernels -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flat", range(5))
def test_flat_stages_are_a_short_form(flat: int) -> None:
    strides = [[1 if i < flat else 2, 2, 2] for i in range(4)]
    kernels = [[1 if i < flat else 3, 3, 3] for i in (0, 0, 1, 2, 3)]
    short, whole, by_strides = (
        made("rwkv_unet_3d_t", **SMALL, **options)
        for options in ({"flat_stages": flat}, {"strides": strides, "kernels": kernels}, {"strides": strides})
    )
    x = torch.randn(1, 1, *short.divisor)
    for other in (whole, by_strides):
        assert other.divisor == short.divisor == (2 ** (4 - flat), 16, 16)
        assert torch.equal(other.eval()(x), short.eval()(x))


def test_an_axis_is_left_alone_early_or_late() -> None:
    """Without attention, a voxel sees as far along an axis as the kernels and strides of that axis let it."""
    fields = {
        **SMALL,
        "depths": (1, 1, 1, 1),
        "ccm": False,
        "drop_path": 0.0,
        "decoder_kernel_size": 3,
        "norm": "group",
    }
    strides = [[1, 2, 2], [2, 2, 2], [2, 1, 2], [1, 1, 1]]
    model = made("rwkv_unet_3d_t", **fields, strides=strides).eval()
    assert model.divisor == (4, 4, 8)
    assert model(torch.randn(1, 1, 4, 4, 8)).shape == (1, 2, 4, 4, 8)
    flat = made("rwkv_unet_3d_t", **fields, strides=[[1, 2, 2]] * 4, kernels=[[1, 3, 3]] * 5)
    for module in flat.modules():  # a norm over a whole volume sees all of it
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    depth, height, width = looks(flat.double().eval().float(), (3, 64, 64))
    assert depth == 1
    assert min(height, width) == 64
    in_plane = made("rwkv_unet_3d_t", **fields, strides=[[2, 1, 1]] * 4, kernels=[[3, 1, 1]] * 5)
    for module in in_plane.modules():
        if isinstance(module, torch.nn.Conv3d):
            assert module.kernel_size[1:] == (1, 1)
    assert in_plane.divisor == (16, 1, 1)


@pytest.mark.parametrize("name", [*OURS, *THEIRS])
def test_one_plan_suits_every_network(name: str) -> None:
    options = planned_options(name, STRIDES, KERNELS, PATCH)
    assert planned_options(name, STRIDES, KERNELS, PATCH, options) == options
    assert dimensions(name, **options) == 3
    with torch.device("meta"):
        model: Any = create_model(name, num_classes=2, in_channels=1, **options)
    divisors = {"DynUNet": (4, 32, 32), "UNet": (4, 32, 32), "AttentionUnet": (4, 32, 32), "SegResNet": (8, 8, 8)}
    divisors |= {"SwinUNETR": (32,) * 3}
    assert model.divisor == divisors.get(name.removeprefix("monai:"), (4, 16, 16) if name in OURS else (16,) * 3)
    if name == "monai:DynUNet":
        assert model.network.filters == [32, 64, 128, 256, 320, 320]
        assert [list(x) for x in model.network.kernel_size] == KERNELS
    if name == "monai:UNETR":
        assert model.size == (32, 256, 224)


def test_what_is_chosen_already_stays() -> None:
    assert planned_options("rwkv_unet_3d_t", STRIDES, KERNELS, PATCH, {"flat_stages": 2}) == {"flat_stages": 2}
    assert planned_options("rwkv_unet_3d_t", STRIDES, KERNELS, PATCH, {"norm": "group"}) == {
        "strides": STRIDES[1:5],
        "kernels": KERNELS[:5],
        "norm": "group",
    }
    own = {"strides": [1, 2, 2, 2]}
    assert planned_options("monai:DynUNet", STRIDES, KERNELS, PATCH, own) == {"spatial_dims": 3, **own}
    two_levels = planned_options("rwkv_unet_3d_xt", STRIDES[:2], KERNELS[:2], (8, 8, 8))
    assert two_levels == {"strides": [[1, 2, 2], *[[1, 1, 1]] * 3], "kernels": [[1, 3, 3], *[[3, 3, 3]] * 4]}


@pytest.mark.parametrize(
    ("name", "strides", "kernels", "message"),
    [
        ("rwkv_unet_t", STRIDES, KERNELS, r"^rwkv_unet_t is no network for volumes; did you mean rwkv_unet_3d_t"),
        ("monai:DynUNet", STRIDES[1:], KERNELS[1:], r"^strides must begin with \(1, 1, 1\)"),
        ("monai:DynUNet", STRIDES, KERNELS[1:], r"^kernels must be 6 triples of 1 or 3"),
        ("monai:DynUNet", [[1, 1, 1], [1, 3, 3]], KERNELS[:2], r"^strides must be some triples of 1 or 2"),
    ],
)
def test_a_plan_of_another_form(name: str, strides: Any, kernels: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planned_options(name, strides, kernels, PATCH)


# Deep supervision ----------------------------------------------------------------------------------------------------


def test_which_networks_have_logits_at_several_scales() -> None:
    assert {deep_supervision(name) for name in [*OURS, "monai:DynUNet"]} == {"scales"}
    assert {deep_supervision(name) for name in ("pvt_cascade", "emcad", "trans_cascade")} == {"full_size"}
    assert {deep_supervision(name) for name in ("unet", "rwkv_unet_b", "monai:UNet", "smp:unet-resnet18")} == {None}


@pytest.mark.parametrize("name", ["rwkv_unet_3d_t", "monai:DynUNet"])
def test_training_gives_every_scale_but_the_coarsest(name: str) -> None:
    own = {**SMALL, "drop_path": 0.0} if name in OURS else {}
    options = planned_options(name, STRIDES[:5], KERNELS[:5], PATCH, own)
    plain, deep = made(name, **options), made(name, deep_supervision=True, **options)
    deep.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 1, 8, 32, 32)
    maps = deep.train()(x)
    assert [tuple(logits.shape[2:]) for logits in maps] == [(8, 32, 32), (8, 16, 16), (4, 8, 8)]
    torch.testing.assert_close(maps[0], plain.train()(x))
    sum(logits.square().mean() for logits in maps).backward()
    assert not [key for key, weight in deep.named_parameters() if weight.grad is None]
    plain.load_state_dict(deep.state_dict(), strict=False)  # statistics of the norms too
    with torch.no_grad():
        torch.testing.assert_close(deep.eval()(x), plain.eval()(x))


@pytest.mark.parametrize(("axes", "shape"), [(2, (64, 32)), (3, (16, 32, 16))])
def test_the_scales_of_dyn_unet_are_those_that_monai_resizes(axes: int, shape: tuple[int, ...]) -> None:
    model = made("monai:DynUNet", deep_supervision=True, deep_supr_num=3, spatial_dims=axes)
    x = torch.randn(1, 1, *shape)
    maps, stacked = model(x), model.network(x)
    assert len(maps) == stacked.shape[1] == 4
    for logits, resized in zip(maps, stacked.unbind(1), strict=True):
        torch.testing.assert_close(F.interpolate(logits, size=shape), resized)
