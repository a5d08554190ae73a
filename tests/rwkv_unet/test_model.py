"""Every model: shapes, gradients, determinism, ablations, and errors that name what is wrong."""

from __future__ import annotations

import shutil
import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounter

from rwkv_unet import ModelConfig, RWKVUNetEncoder, create_model
from rwkv_unet.layers import q_shift


def tiny(**overrides: Any) -> Any:
    """A whole RWKV-UNet, small enough for tests."""
    sizes = {"stem_dim": 8, "depths": (1, 2, 2, 2), "dims": (8, 12, 16, 20), "expansions": (2, 2, 2, 2)}
    return create_model("rwkv_unet_t", num_classes=2, **{**sizes, **overrides})


def test_shape_and_a_finite_gradient_for_every_parameter() -> None:
    model = create_model("rwkv_unet_xt", num_classes=4, drop_path=0.0)
    logits = model(torch.randn(2, 3, 48, 32))
    assert logits.shape == (2, 4, 48, 32)
    logits.square().mean().backward()
    for key, x in model.named_parameters():
        assert x.grad is not None, key
        assert x.grad.isfinite().all(), key
        # decay and bonus start at 0, where the gradient is small but not 0
        assert x.grad.abs().max() > 0, key


@settings(max_examples=10, deadline=None)
@given(height=st.integers(1, 6), width=st.integers(1, 6), batch=st.integers(1, 2))
def test_any_multiple_of_16_from_call_to_call(height: int, width: int, batch: int) -> None:
    model = tiny().eval()
    with torch.no_grad():
        for h, w in ((height, width), (width, height)):
            assert model(torch.randn(batch, 3, 16 * h, 16 * w)).shape == (batch, 2, 16 * h, 16 * w)


def test_other_sizes_are_refused_with_the_next_that_works() -> None:
    with pytest.raises(ValueError, match=r"40 x 64 is not divisible by 16; the next that works is 48 x 64"):
        tiny()(torch.zeros(1, 3, 40, 64))


@pytest.mark.parametrize(
    ("shape", "message"),
    [((3, 32, 32), r"must be \(B, C, H, W\)"), ((1, 4, 32, 32), "3 channels, not 4"), ((1, 3, 0, 32), "16 x 32")],
)
def test_other_shapes_are_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny()(torch.zeros(shape))


def test_grey_images() -> None:
    grey = torch.randn(1, 1, 32, 32)
    model = tiny().eval()
    assert torch.equal(model(grey), model(grey.repeat(1, 3, 1, 1)))
    assert tiny(in_channels=1).eval()(grey).shape == (1, 2, 32, 32)
    with pytest.raises(ValueError, match="1 channels, not 3"):
        tiny(in_channels=1)(torch.zeros(1, 3, 32, 32))


def test_evaluation_is_deterministic_and_training_is_not() -> None:
    model, x = tiny(drop_path=0.5), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        assert not torch.equal(model.train()(x), model(x))
        assert torch.equal(model.eval()(x), model(x))


def test_construction_follows_the_seed() -> None:
    states = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        states.append(tiny().state_dict())
    assert all(torch.equal(states[0][name], x) for name, x in states[1].items())
    assert any(not torch.equal(states[0][name], x) for name, x in states[2].items())


def test_state_dict_round_trip() -> None:
    model, other, x = tiny().eval(), tiny().eval(), torch.randn(1, 3, 32, 32)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model(x), other(x))


def test_memory_format_changes_nothing() -> None:
    model, x = tiny().eval(), torch.randn(2, 3, 32, 48)
    expected = model(x)
    nhwc = model.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(nhwc, expected, rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast() -> None:
    model, x = tiny(), torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(x).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_drop_path_rises_over_the_encoder() -> None:
    with torch.device("meta"):
        model: Any = create_model("rwkv_unet_s", num_classes=1)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.encoder.stages for block in stage]
    assert rates == pytest.approx([0.05 * i / 14 for i in range(15)])
    assert model.ccm.drop_path.drop_prob == 0.05


@pytest.mark.parametrize("num_skips", [0, 1, 2, 3])
@pytest.mark.parametrize("ccm", [True, False])
def test_skips_and_ccm(num_skips: int, ccm: bool) -> None:
    model = tiny(num_skips=num_skips, ccm=ccm)
    assert (model.ccm is not None) == (ccm and num_skips > 0)
    model(torch.randn(2, 3, 32, 32)).square().mean().backward()
    unused = {name for name, x in model.named_parameters() if x.grad is None}
    frozen = {name for name, x in model.named_parameters() if not x.requires_grad}
    assert unused == frozen  # so DistributedDataParallel finds no unused parameter
    assert len(frozen) == (2 * (3 - num_skips) if model.ccm is not None else 0)


def test_skips_are_the_shallowest() -> None:
    widths = [block.mix.conv.in_channels for block in tiny(num_skips=2).decoder.blocks]
    assert widths == [20, 16, 2 * 12, 2 * 8]


def test_other_sizes_of_the_ablations() -> None:
    model = tiny(decoder_kernel_size=3, ccm_hidden_rate=4)
    assert {block.local.conv.kernel_size for block in model.decoder.blocks} == {(3, 3)}
    assert model.ccm.channel_mix.key.out_features == 4 * 24
    assert model(torch.randn(2, 3, 32, 16)).shape == (2, 2, 32, 16)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_classes", 0), ("in_channels", 1.5), ("stem_dim", True), ("depths", (1, 2, 3)), ("dims", (8, 8, 8, 0)),
        ("expansions", "2222"), ("drop_path", 1.0), ("decoder_kernel_size", 4), ("decoder_kernel_size", -1),
        ("num_skips", 4), ("ccm", 1), ("ccm_hidden_rate", 0), ("attention", "flash"), ("encoder", 3),
    ],
)  # fmt: skip
def test_bad_fields_are_named(field: str, value: object) -> None:
    fields: dict[str, Any] = {"num_classes": 2, field: value}
    with pytest.raises(
        ValueError, match=rf"^model\.{field} must be .*{value!r}$".replace("(", r"\(").replace(")", r"\)")
    ):
        create_model("rwkv_unet_t", **fields)


def test_unknown_names_have_near_matches() -> None:
    with pytest.raises(ValueError, match="did you mean rwkv_unet_"):
        create_model("rwkv_unet_x", num_classes=1)
    with pytest.raises(ValueError, match="did you mean ccm_hidden_rate"):
        create_model("rwkv_unet_t", num_classes=1, ccm_hidden=3)


def test_config_from_lists() -> None:
    config = ModelConfig(2, 8, depths=[1, 1, 1, 1], dims=[8, 8, 8, 8], expansions=[2, 2, 2, 2])  # type: ignore[arg-type]
    assert config.depths == (1, 1, 1, 1)
    assert hash(config) == hash(config)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5), (4, 1), (3, 4)])
def test_q_shift_by_hand(height: int, width: int) -> None:
    x = torch.randn(2, height, width, 8)
    y = q_shift(x)
    for i in range(height):
        for j in range(width):
            for quarter, (di, dj) in enumerate([(0, -1), (0, 1), (-1, 0), (1, 0)]):
                a, b = i + di, j + dj
                inside = 0 <= a < height and 0 <= b < width
                channels = slice(2 * quarter, 2 * quarter + 2)
                expected = x[:, a, b, channels] if inside else torch.zeros(2, 2)
                assert torch.equal(y[:, i, j, channels], expected)


def test_q_shift_of_a_volume_by_hand() -> None:
    x = torch.randn(2, 3, 4, 5, 7)  # seven channels: parts of 1, 1, 1, 1, 1 and 2
    y = q_shift(x)
    assert torch.equal(y[..., 1:, 0], x[..., :-1, 0])
    assert torch.equal(y[..., :-1, 1], x[..., 1:, 1])
    assert torch.equal(y[:, :, 1:, :, 2], x[:, :, :-1, :, 2])
    assert torch.equal(y[:, :, :-1, :, 3], x[:, :, 1:, :, 3])
    assert torch.equal(y[:, 1:, ..., 4], x[:, :-1, ..., 4])
    assert torch.equal(y[:, :-1, ..., 5:], x[:, 1:, ..., 5:])
    edges = [y[..., 0, 0], y[..., -1, 1], y[:, :, 0, :, 2], y[:, :, -1, :, 3], y[:, 0, ..., 4], y[:, -1, ..., 5:]]
    assert all(not edge.any() for edge in edges)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiles_as_one_graph() -> None:
    model, x = tiny(depths=(1, 1, 2, 1), drop_path=0.0), torch.randn(2, 3, 32, 48)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    output = compiled(x)
    torch.testing.assert_close(output, model(x), rtol=1e-4, atol=1e-5)
    output.square().mean().backward()
    assert all(p.grad is not None for p in model.parameters())


REALLY_COMPILED = """
import torch
from torch import nn
from rwkv_unet.blocks import GLSP
from rwkv_unet.ccm import CrossChannelMix
from rwkv_unet.decoder import UpBlock

class EveryKind(nn.Module):  # a whole network takes minutes
    def __init__(self):
        super().__init__()
        self.local = GLSP(3, 8, norm="batch", stride=2, attention="none")
        self.attentive = GLSP(8, 8, expansion=2, norm="layer", attention="spatial_mix", residual=True)
        self.mix = CrossChannelMix((8, 8), hidden_rate=2, drop_path=0.0, num_outputs=2)
        self.up = UpBlock(16, 2, 9)

    def forward(self, x):
        x = self.local(x)
        return self.up(torch.cat(list(self.mix([self.attentive(x), x])), dim=1))

torch.manual_seed(0)
model, x = EveryKind().eval(), torch.randn(1, 3, 32, 32)
assert model(x).shape == (1, 2, 32, 32)
with torch.no_grad():
    torch.testing.assert_close(torch.compile(model, fullgraph=True)(x), model(x), rtol=1e-3, atol=1e-4)
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of torch.compile needs a C++ compiler")
def test_what_the_real_compiler_makes_of_it_gives_the_same() -> None:
    """In a process of its own: the compiler loads setuptools, which takes offence at a distutils that is there."""
    done = subprocess.run([sys.executable, "-c", REALLY_COMPILED], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_it_takes_other_sizes_without_compiling_for_each_and_refuses_as_before() -> None:
    torch.compiler.reset()
    model, graphs = tiny(depths=(1, 1, 2, 1)).eval(), CompileCounter()
    compiled = torch.compile(model, backend=graphs)
    with torch.no_grad():
        for height, width in [(32, 48), (48, 32), (64, 64), (96, 64), (32, 80)]:
            x = torch.randn(2, 3, height, width)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)
    assert graphs.frame_count == 2  # for the first size, then for all
    with pytest.raises(ValueError, match="40 x 64 is not divisible by 16; the next that works is 48 x 64"):
        compiled(torch.zeros(2, 3, 40, 64))


def test_timm_classifier() -> None:
    model: Any = timm.create_model("rwkv_unet_enc_t", num_classes=7).eval()
    x = torch.randn(2, 3, 64, 48)
    assert RWKVUNetEncoder in type(model).mro()
    assert model(x).shape == (2, 7)
    assert model.forward_features(x).shape == (2, 160, 4, 3)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 160)
    assert model.get_classifier().out_features == model.num_classes == 7
    assert model.default_cfg["input_size"] == (3, 224, 224)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, 160)
    assert model(torch.randn(1, 3, 50, 37)).shape == (1, 160)  # a backbone takes any size


@pytest.mark.parametrize("size", ["t", "s", "b"])
def test_timm_features(size: str) -> None:
    with torch.device("meta"):
        model: Any = timm.create_model(f"rwkv_unet_enc_{size}", features_only=True)
        some: Any = timm.create_model(f"rwkv_unet_enc_{size}", features_only=True, out_indices=(2, 4), in_chans=1)
        shapes = [tuple(x.shape) for x in model(torch.randn(1, 3, 32, 64))]
        maps = some(torch.randn(1, 1, 32, 32))
    assert model.feature_info.reduction() == [1, 2, 4, 8, 16]
    assert shapes == [
        (1, channels, 32 // r, 64 // r)
        for channels, r in zip(model.feature_info.channels(), model.feature_info.reduction(), strict=True)
    ]
    assert [x.shape[1] for x in maps] == some.feature_info.channels()


def test_weight_decay_leaves_decays_and_mix_ratios_alone() -> None:
    model = tiny()
    kept = model.no_weight_decay()
    assert "encoder.stages.3.1.attention.decay" in kept
    assert "encoder.stages.3.1.attention.first" in kept
    assert "ccm.channel_mix.mix_key.ratio" in kept
    assert kept < {name for name, _ in model.named_parameters()}
    assert all(x.ndim == 1 for name, x in model.named_parameters() if name in kept)


@pytest.mark.slow
def test_imports_stay_light() -> None:
    code = (
        "import sys, biwkv;"
        "bad = {'timm', 'torchvision', 'rwkv_unet', 'biwkv.triton_kernels'} & set(sys.modules); assert not bad, bad;"
        "import rwkv_unet, rwkv_unet.flops;"
        "bad = {'ray', 'mlflow', 'monai', 'rwkvctl', 'rwkv_jobs'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
