"""The shifts and scans of the spatial mix: orders of tokens, kernels, offsets, and what goes together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from biwkv import bi_wkv_reference
from rwkv_unet import ModelConfig, create_model, fuse_for_inference
from rwkv_unet.config import model_config
from rwkv_unet.layers import q_shift
from rwkv_unet.shifts import SHIFTS, DeformableShift, OmniShift, QShift
from rwkv_unet.spatial_mix import SCANS, SpatialMix


def mixer(dim: int, **fields: str) -> SpatialMix:
    torch.manual_seed(0)
    made = SpatialMix(dim, **fields)
    for parameter in (made.decay, made.first):
        nn.init.normal_(parameter, std=3)
    return made


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("height", "width", "dim"), [(1, 1, 8), (3, 5, 20), (4, 2, 6)])
def test_every_token_sees_every_token(shift: str, scan: str, height: int, width: int, dim: int) -> None:
    made, x = mixer(dim, shift=shift, scan=scan), torch.randn(2, height, width, dim, requires_grad=True)
    y = made(x)
    assert y.shape == x.shape
    for corner in (y[:, 0, 0], y[:, -1, -1]):
        (gradient,) = torch.autograd.grad(corner.square().sum(), x, retain_graph=True)
        assert (gradient.abs().amax(dim=3) > 0).all()


ROWS = [0, 1, 2, 3, 4, 5]  # of an image of 2 x 3
ORDERS = {
    "raster": [ROWS],
    "zigzag": [[0, 1, 2, 5, 4, 3]],
    "quad": [ROWS, [2, 1, 0, 5, 4, 3], [0, 3, 1, 4, 2, 5], [3, 0, 4, 1, 5, 2]],
}


@pytest.mark.parametrize("scan", ORDERS)
def test_scans_are_orders_of_the_tokens(scan: str) -> None:
    made = mixer(4, scan=scan)
    key, value = torch.randn(2, 2, 2, 3, 4)
    expected = torch.zeros(2, 6, 4)
    for order in ORDERS[scan]:
        row = bi_wkv_reference(
            made.decay / 6, made.first / 6, key.flatten(1, 2)[:, order], value.flatten(1, 2)[:, order]
        )
        expected[:, order] += row.float().detach() / len(ORDERS[scan])
    torch.testing.assert_close(made.attend(key, value).flatten(1, 2), expected)


def test_the_separable_scan_goes_over_rows_and_then_columns() -> None:
    made = mixer(4, scan="separable")
    key, value = torch.randn(2, 2, 2, 3, 4)
    columns = [0, 3, 1, 4, 2, 5]
    key, value = key.flatten(1, 2), value.flatten(1, 2)
    rows = bi_wkv_reference(made.decay[0] / 6, made.first[0] / 6, key, value)
    expected = torch.empty(2, 6, 4)
    expected[:, columns] = bi_wkv_reference(
        made.decay[1] / 6, made.first[1] / 6, key[:, columns], rows[:, columns]
    ).float()
    attended = made.attend(key.unflatten(1, (2, 3)), value.unflatten(1, (2, 3)))
    torch.testing.assert_close(attended.flatten(1, 2), expected.detach())


def test_omni_shift_is_the_sum_of_its_convolutions_merged_or_not() -> None:
    shift, x = OmniShift(6), torch.randn(2, 5, 4, 6)
    nn.init.normal_(shift.scale)
    maps = x.permute(0, 3, 1, 2)
    kernels = (shift.one, shift.three, shift.five)
    branches = [maps, *(F.conv2d(maps, kernel, padding=kernel.shape[3] // 2, groups=6) for kernel in kernels)]
    expected = torch.einsum("i,ibchw->bhwc", shift.scale, torch.stack(branches))
    torch.testing.assert_close(shift(x), expected)
    torch.testing.assert_close(shift.merged()(x), expected)


def test_a_deformable_shift_starts_as_none_and_can_be_that_of_the_paper() -> None:
    shift, x = DeformableShift(16), torch.randn(2, 5, 4, 16)
    torch.testing.assert_close(shift(x), x, rtol=1e-5, atol=1e-5)
    one_pixel = torch.tensor([-1.0, 0, 1, 0, 0, -1, 0, 1])  # x and y of each quarter: from left, right, above, below
    shift.offsets[-1].bias.data = 20 * one_pixel
    torch.testing.assert_close(shift(x), q_shift(x), rtol=1e-5, atol=1e-5)


def test_no_shift_is_that_of_the_paper_without_its_neighbours() -> None:
    alone, paper = mixer(8, shift="none"), mixer(8)
    paper.load_state_dict(alone.state_dict(), strict=False)
    for mix in (paper.mix_key, paper.mix_value, paper.mix_receptance):
        nn.init.ones_(mix.ratio)
    x = torch.randn(2, 3, 4, 8)
    torch.testing.assert_close(alone(x), paper(x))


def test_the_default_has_the_parameters_of_the_paper() -> None:
    assert isinstance(SpatialMix(8).shift, QShift)
    assert sum(x.numel() for x in SpatialMix(8).parameters()) == 4 * 64 + 7 * 8


SMALL: dict[str, Any] = {"stem_dim": 8, "depths": (1, 1, 2, 2), "dims": (8, 12, 16, 24), "expansions": (2.0,) * 4}


def test_a_fused_model_has_one_kernel_and_the_same_logits() -> None:
    torch.manual_seed(0)
    model: Any = create_model("rwkv_unet_t", num_classes=2, shift="omni", scan="quad", **SMALL).eval()
    for module in model.modules():
        if isinstance(module, OmniShift):
            nn.init.normal_(module.scale)
    x = torch.randn(1, 3, 32, 48)
    with torch.no_grad():
        expected = model(x)
        fused = fuse_for_inference(model)
        torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-5)
    assert not [module for module in fused.modules() if isinstance(module, OmniShift)]


@pytest.mark.parametrize("fields", [{"shift": "omni", "scan": "quad"}, {"shift": "deformable", "scan": "separable"}])
def test_scripts_give_the_same(fields: dict[str, str]) -> None:
    made, x = mixer(16, **fields), torch.randn(2, 3, 4, 16)
    with pytest.warns(FutureWarning, match="jit"):
        script = torch.jit.script(made)
    assert torch.equal(script(x), made(x))


@pytest.mark.parametrize("fields", [*({"shift": shift} for shift in SHIFTS), *({"scan": scan} for scan in SCANS[1:])])
def test_exports_for_any_batch_and_size(fields: dict[str, str]) -> None:
    made, sizes = mixer(16, **fields), dict.fromkeys(range(3), torch.export.Dim.DYNAMIC)
    with torch.no_grad():
        program = torch.export.export(made, (torch.randn(2, 4, 6, 16),), dynamic_shapes=(sizes,))
        x = torch.randn(3, 5, 3, 16)
        torch.testing.assert_close(program.module()(x), made(x))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shift": "omnis"}, r"^model.shift must be one of q, omni, deformable, none, not 'omnis'$"),
        ({"scan": "zig"}, r"^model.scan must be one of raster, quad, zigzag, separable, not 'zig'$"),
        (
            {"scan": "quad", "attention": "mhsa"},
            r"^model.scan='quad' is a field of spatial_mix, which model.attention=",
        ),
        ({"scan": "quad", "attention": "spatial_mix_2d"}, r"^model.scan='quad' is a field of spatial_mix, which"),
        ({"shift": "omni", "attention": "none"}, r"^model.shift='omni' is a field of spatial_mix and spatial_mix_2d, "),
        ({"shift": "omni", "encoder": "resnet18"}, r"^model.shift='omni' changes the blocks of our encoder, and"),
    ],
)
def test_what_does_not_go_together(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config("rwkv_unet_t", num_classes=2, **fields)


def test_shift_goes_with_a_decay_for_each_axis() -> None:
    assert isinstance(model_config("rwkv_unet_t", num_classes=2, attention="spatial_mix_2d", shift="omni"), ModelConfig)


@pytest.mark.parametrize("field", [{"shift": "omni"}, {"scan": "quad"}])
def test_volumes_have_neither(field: dict[str, str]) -> None:
    [name] = field
    with pytest.raises(ValueError, match=f"^model.{name} does not apply to rwkv_unet_3d_t"):
        create_model("rwkv_unet_3d_t", num_classes=2, **field)


def test_unknown_names_of_a_layer() -> None:
    with pytest.raises(ValueError, match=r"^scan must be one of raster, .*, not 'spiral'$"):
        SpatialMix(8, scan="spiral")
    with pytest.raises(ValueError, match=r"^shift must be one of q, .*, not 'p'$"):
        SpatialMix(8, shift="p")


def tokens(shift: str) -> Tensor:
    """Places where a token of the middle is seen."""
    made, x = mixer(32, shift=shift).shift, torch.zeros(1, 7, 7, 32)
    x[0, 3, 3] = 1
    with torch.no_grad():
        return (made(x).abs().sum(dim=3)[0] > 1e-4).sum()


def test_how_far_a_shift_sees() -> None:
    assert [int(tokens(shift)) for shift in SHIFTS] == [4, 25, 1, 1]
