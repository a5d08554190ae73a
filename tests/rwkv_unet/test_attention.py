"""The token mixers of Table II against their formulas, written out token by token."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rwkv_unet.attention import TOKEN_MIXERS, token_mixer
from rwkv_unet.attention.bi_mamba import BiMamba
from rwkv_unet.attention.focused_linear import EPS, FocusedLinearAttention
from rwkv_unet.attention.mhsa import MultiHeadSelfAttention
from rwkv_unet.attention.spatial_mix_nd import SpatialMixND
from rwkv_unet.spatial_mix import SpatialMix


@pytest.mark.parametrize("attention", TOKEN_MIXERS)
@pytest.mark.parametrize(("height", "width", "dim"), [(1, 1, 8), (3, 5, 24), (4, 2, 20)])
def test_every_token_sees_every_token(attention: str, height: int, width: int, dim: int) -> None:
    torch.manual_seed(0)
    mixer = token_mixer(attention, dim)
    assert mixer is not None
    x = torch.randn(2, height, width, dim, requires_grad=True)
    y = mixer(x)
    assert y.shape == x.shape
    corner = [y[:, 0, 0].square().sum(), y[:, -1, -1].square().sum()]
    for loss in corner:
        (gradient,) = torch.autograd.grad(loss, x, retain_graph=True)
        assert (gradient.abs().amax(dim=3) > 0).all()


def test_unknown_token_mixers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"attention must be one of spatial_mix, .*, none, not 'flash'"):
        token_mixer("flash", 8)
    assert token_mixer("none", 8) is None


def test_spatial_mix_over_axes_of_one_row_is_spatial_mix() -> None:
    """But for the weight of a neighbour: e^{-decay / W} over axes, 1 in a row, so the bonus takes up the difference."""
    torch.manual_seed(0)
    row, axes = SpatialMix(8), SpatialMixND(8, axes=2)
    torch.nn.init.normal_(row.decay, std=3)
    torch.nn.init.normal_(row.first, std=3)
    state = row.state_dict()
    axes.load_state_dict({**state, "decay": torch.stack([torch.randn(8), row.decay]), "first": row.first - row.decay})
    x = torch.randn(2, 1, 9, 8)
    torch.testing.assert_close(axes(x), row(x))


def test_spatial_mix_over_axes_does_not_know_rows_from_columns() -> None:
    torch.manual_seed(0)
    mixer = SpatialMixND(8, axes=2)
    torch.nn.init.normal_(mixer.decay, std=3)
    transposed = copy.deepcopy(mixer)
    transposed.decay.data = mixer.decay.data.flip(0)
    key, value = torch.randn(2, 2, 3, 5, 8)
    turned = transposed.attend(key.transpose(1, 2), value.transpose(1, 2))
    torch.testing.assert_close(turned.transpose(1, 2), mixer.attend(key, value))


def neighbours(x: torch.Tensor) -> torch.Tensor:
    """What a token of (B, D, H, W, 6) sees beside it: of each channel the value from another of its six neighbours."""
    seen = torch.zeros_like(x)
    steps = [(0, 0, -1), (0, 0, 1), (0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0)]
    for place in itertools.product(*(range(side) for side in x.shape[1:4])):
        for channel, step in enumerate(steps):
            z, y, w = (a + b for a, b in zip(place, step, strict=True))
            if min(z, y, w) >= 0 and z < x.shape[1] and y < x.shape[2] and w < x.shape[3]:
                seen[:, *place, channel] = x[:, z, y, w, channel]
    return seen


def test_spatial_mix_over_three_axes_is_the_formula_token_by_token() -> None:
    """Shift, projections, gate and Bi-WKV written out; the decay of an axis is spread over its size."""
    torch.manual_seed(0)
    mixer, x = SpatialMixND(6, axes=3).double(), torch.randn(2, 3, 4, 5, 6, dtype=torch.float64)
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter)
    shifted, sizes = neighbours(x), torch.tensor([3, 4, 5])
    key, value, receptance = (
        (x * mix.ratio + shifted * (1 - mix.ratio)) @ layer.weight.T
        for mix, layer in (
            (mixer.mix_key, mixer.key),
            (mixer.mix_value, mixer.value),
            (mixer.mix_receptance, mixer.receptance),
        )
    )
    places = torch.cartesian_prod(*(torch.arange(side) for side in (3, 4, 5)))
    steps = (places[:, None] - places[None]).abs()  # (60, 60, 3)
    weight = (-(steps.double() / sizes) @ mixer.decay)[None] + key.flatten(1, 3)[:, None]  # (B, 60, 60, C)
    own = (torch.eye(60, dtype=torch.bool)[None, :, :, None]).expand_as(weight)
    weight = torch.where(own, weight + mixer.first / 60, weight).softmax(2)
    attended = torch.einsum("bijc,bjc->bic", weight, value.flatten(1, 3)).unflatten(1, (3, 4, 5))
    expected = (torch.sigmoid(receptance) * mixer.norm(attended)) @ mixer.output.weight.T
    torch.testing.assert_close(mixer(x), expected)


def test_every_voxel_sees_all_voxels_and_the_shift_its_six_neighbours() -> None:
    torch.manual_seed(0)
    mixer, x = SpatialMixND(12, axes=3), torch.randn(1, 3, 4, 5, 12, requires_grad=True)
    for corner in ((0, 0, 0), (-1, -1, -1), (1, 2, 3)):
        (gradient,) = torch.autograd.grad(mixer(x)[0][corner].square().sum(), x)
        assert (gradient.abs().amax(dim=-1) > 0).all()
    (gradient,) = torch.autograd.grad(mixer.shift(x)[0, 1, 2, 2].sum(), x)
    seen = {tuple(place) for place in gradient[0].abs().amax(dim=-1).nonzero().tolist()}
    assert seen == {(0, 2, 2), (2, 2, 2), (1, 1, 2), (1, 3, 2), (1, 2, 1), (1, 2, 3)}


def test_mhsa_is_the_same_in_evaluation() -> None:
    mixer, x = MultiHeadSelfAttention(24), torch.randn(2, 3, 5, 24)
    with torch.no_grad():
        torch.testing.assert_close(mixer.eval()(x), mixer.train()(x))


def test_heads_divide_the_width() -> None:
    assert MultiHeadSelfAttention(180).attention.num_heads == 4  # stage II of B
    assert FocusedLinearAttention(576).heads == 8


def test_focused_linear_attention_is_attention_with_a_kernel_for_softmax() -> None:
    torch.manual_seed(0)
    mixer, x = FocusedLinearAttention(64).double(), torch.randn(2, 3, 4, 64).double()
    torch.nn.init.normal_(mixer.scale)
    query, key, value = mixer.qkv(x).flatten(1, 2).chunk(3, dim=2)

    def phi(x: Tensor) -> Tensor:
        x = (x.relu() + EPS) / F.softplus(mixer.scale)
        return x**3 / (x**3).norm(dim=2, keepdim=True) * x.norm(dim=2, keepdim=True)

    heads = []
    for q, k, v in zip(phi(query).chunk(8, 2), phi(key).chunk(8, 2), value.chunk(8, 2), strict=True):
        weights = q @ k.transpose(1, 2)
        attended = weights / (weights.sum(dim=2, keepdim=True) + 12 * EPS) @ v
        maps = v.unflatten(1, (3, 4)).permute(0, 3, 1, 2)
        heads.append(attended.unflatten(1, (3, 4)) + mixer.local(maps).permute(0, 2, 3, 1))
    torch.testing.assert_close(mixer(x), mixer.output(torch.cat(heads, dim=3)), rtol=1e-5, atol=1e-5)


def test_bi_mamba_is_exported_for_any_size() -> None:
    mixer, x, any_size = BiMamba(8), torch.randn(1, 4, 4, 8), torch.export.Dim.DYNAMIC
    with torch.no_grad():
        exported = torch.export.export(mixer, (x,), dynamic_shapes=({1: any_size, 2: any_size},)).module()
        other = torch.randn(1, 3, 7, 8)
        torch.testing.assert_close(exported(other), mixer(other))


def test_bi_mamba_with_equal_directions_does_not_know_left_from_right() -> None:
    torch.manual_seed(0)
    mixer, x = BiMamba(8), torch.randn(2, 1, 9, 8)
    inner = mixer.skip.shape[1]
    with torch.no_grad():
        for parameter in (mixer.select, mixer.step_weight, mixer.step_bias, mixer.log_rate, mixer.skip):
            parameter[1] = parameter[0]
        for parameter in (mixer.conv.weight, mixer.conv.bias):
            parameter[inner:] = parameter[:inner]
        torch.testing.assert_close(mixer(x.flip(2)), mixer(x).flip(2))
