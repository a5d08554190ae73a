"""What holds for every model by name and every ablation; one that is registered joins by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rwkv_unet import create_model, list_models
from rwkv_unet.baselines import fcbformer
from rwkv_unet.baselines.libraries import LibraryNetwork
from rwkv_unet.blocks import GLSP

SMALL = {"stem_dim": 8, "depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24), "expansions": (2.0, 2.0, 2.0, 2.0)}
ATTENTIONS = ("spatial_mix_2d", "mhsa", "focused_linear", "bi_mamba", "none")
SPATIAL_MIXES = (("omni", "quad"), ("deformable", "zigzag"), ("none", "separable"))
SHALLOW = {"shallow_attention": True, "depths": (1, 2, 1, 1)}
ABLATIONS: list[dict[str, Any]] = [
    *({"attention": attention} for attention in ATTENTIONS),
    SHALLOW,
    {"glsp_channel_mix": True},
    {"num_skips": 1},
    {"encoder": "convnext_atto"},
    *({"shift": shift, "scan": scan} for shift, scan in SPATIAL_MIXES),
]
THREE_AXES = {"spatial_dims": 3}
UNEVEN = {"strides": [[1, 2, 2], [2, 2, 2], [2, 1, 2], [1, 2, 1]], "kernels": [[1, 3, 3], *[[3, 3, 3]] * 3, [3, 1, 3]]}
VOLUMES: list[tuple[str, dict[str, Any]]] = [
    *(("rwkv_unet_3d_t", {**SMALL, "flat_stages": flat, "num_skips": skips}) for flat, skips in ((0, 3), (2, 1))),
    ("rwkv_unet_3d_t", {**SMALL, **UNEVEN, "norm": "instance"}),
    ("rwkv_unet_3d_t", {**SMALL, **UNEVEN, "norm": "group"}),
    ("monai:AttentionUnet", {**THREE_AXES, "channels": [4, 8, 8], "strides": [[1, 2, 2], 2]}),
    ("monai:BasicUNet", {**THREE_AXES, "features": [4] * 6}),
    ("monai:BasicUNetPlusPlus", {**THREE_AXES, "features": [4] * 6}),
    ("monai:DynUNet", {**THREE_AXES, "strides": [1, [1, 2, 2], 2, [2, 1, 2]], "filters": [4, 8, 8, 8]}),
    ("monai:SegResNet", {**THREE_AXES, "init_filters": 8}),
    ("monai:SwinUNETR", {**THREE_AXES, "feature_size": 12, "num_heads": [1, 1, 1, 1]}),
    ("monai:UNet", {**THREE_AXES, "channels": [4, 8, 8], "strides": [[1, 2, 2], 2]}),
    ("monai:VNet", {**THREE_AXES, "in_channels": 4}),
]
"""Small, and uneven along the axes where they can be. UNETR takes volumes of one size alone: test_volumetric.py."""
Case = tuple[str, dict[str, Any]]
TOO_LARGE = ("samed_h",)
"""Of 2.6 GB; those of a smaller one are its modules."""
CASES: list[Case] = [
    *((name, {}) for name in list_models(examples=True) if name not in TOO_LARGE),
    *(("rwkv_unet_t", {**SMALL, **ablation}) for ablation in ABLATIONS),
    ("vit_cup", {"encoder": "vit_tiny_patch16_224"}),
    ("uctransnet", {"width": 8}),
    ("mt_unet", {"width": 8}),
    ("pvtformer", {"encoder": "pvt_v2_b0"}),
    ("samed_b", {"width": 64, "depth": 4}),
    *VOLUMES,
]

LARGER = (
    *TOO_LARGE,
    *("rolling_unet_m", "rolling_unet_l", "unext", "r50_vit_cup"),
    *("hiformer_b", "hiformer_l", "levit_unet_192", "levit_unet_384", "metaseg_b", "rwkv_unet_3d_s", "rwkv_unet_3d_b"),
)
"""The modules of a smaller one, which is traced in their place."""
HEAVY = [
    (name, {})
    for name in ("trans_cascade", "vit_cup", "uctransnet", "mt_unet", "pvtformer", "samed_b", *LARGER)
    if not name.startswith(("rolling", "unext"))
]
HEAVY += [case for case in VOLUMES if case[0] == "monai:SwinUNETR"]
"""Of many parameters, which take seconds to draw, and blocks that other cases have."""

# Tracing takes as long as there are layers: each network is traced with one of every kind of block that it has.
SHORT: dict[str, dict[str, Any]] = {
    **{name: {"dims": (8, 8, 16)} for name in ("unet", "att_unet", "unet_plus_plus")},
    **{name: {"encoder": "pvt_v2_b0"} for name in ("fcbformer", "pvt_cascade", "emcad", "pvtformer")},
    "u_kan": {"dims": (8, 8, 8, 8, 8)},
    "vit_cup": {"encoder": "vit_tiny_patch16_224"},
    **{name: {"width": 8} for name in ("uctransnet", "mt_unet")},
    "vm_unet": {"width": 4, "depths": (1, 1, 1, 1), "decoder_depths": (1, 1, 1, 1)},
    "mamba_unet": {"width": 4, "depths": (1, 1, 1, 1)},
    "h_vmunet": {"dims": (4, 4, 4, 4, 4, 4), "orders": (2, 2, 2, 2), "depth": 1},
    "zig_rir": {"dims": (8, 8, 8, 8), "depths": (1, 1, 1, 1)},
    "samed_b": {"width": 64, "depth": 4},
}
BASELINES = [name for name in list_models() if not name.startswith("rwkv_unet_")]
EQUAL_BLOCKS = ("transunet", "fcbformer", "pvt_cascade", "emcad", "trans_cascade", "vit_cup", "pvtformer")
"""With an encoder of timm, of stages of equal blocks: one of each is traced."""
TRACED: list[Case] = [
    ("rwkv_unet_t", SMALL),
    *(("rwkv_unet_t", {**SMALL, "shift": shift, "scan": scan}) for shift, scan in SPATIAL_MIXES),
    ("rwkv_unet_t", {**SMALL, "encoder": "test_convnext"}),
    *VOLUMES[1:3],
    *((name, SHORT.get(name, {})) for name in BASELINES if name not in LARGER),
]
EXPORTED: list[Case] = [
    (
        "rwkv_unet_t",
        {**SMALL, "num_skips": 1, **SHALLOW, "glsp_channel_mix": True},
    ),
    *((name, {}) for name in list_models(examples=True) if ":" in name),
    *(case for case in VOLUMES if ":" in case[0]),
]
"""Those of other libraries, and other wiring of the same blocks, are traced once."""


def _label(case: Case) -> str:
    name, overrides = case
    return "-".join([name, *(f"{key}={value}" for key, value in overrides.items() if SMALL.get(key) != value)])


def make(name: str, overrides: dict[str, Any], seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return create_model(name, num_classes=2, **overrides)


def images(model: Any, *times: int, batch: int = 1) -> Tensor:
    """Of the model's channels, the axes so many times its divisor: height and width, or depth too."""
    divisors = model.divisor if isinstance(model.divisor, tuple) else (model.divisor, model.divisor)
    channels = model.in_channels if isinstance(model, LibraryNetwork) else 3
    return torch.randn(batch, channels, *(a * b for a, b in zip(divisors, times[-len(divisors) :], strict=True)))


def _marked(case: Case) -> Any:
    return pytest.param(case, marks=pytest.mark.slow if case in HEAVY else ())


@pytest.fixture(scope="module", params=map(_marked, CASES), ids=_label)
def case(request: pytest.FixtureRequest) -> Case:
    return request.param


@pytest.fixture(scope="module")
def model(case: Case) -> Any:
    """One network for all tests of a case, which run one after the other."""
    return make(*case)


def test_shapes_determinism_and_state(case: Case, model: Any) -> None:
    model, again = model.eval(), make(*case, seed=1).eval()
    with torch.no_grad():
        for x in (images(model, 2, 1, 3), images(model, 1, 2, 1, batch=2)):
            y = model(x)
            assert y.shape == (len(x), 2, *x.shape[2:])
            assert y.isfinite().all()
        assert torch.equal(model(x), y)
        again.load_state_dict(model.state_dict())
        assert torch.equal(again(x), y)


def test_every_parameter_gets_a_finite_gradient(model: Any) -> None:
    logits = model.train()(images(model, 1, 2, 1, batch=2))
    (logits * torch.randn_like(logits)).mean().backward()
    for key, x in model.named_parameters():
        assert (x.grad is not None) == x.requires_grad, key
        assert x.grad is None or x.grad.isfinite().all(), key
    model.zero_grad()


def test_sizes_that_do_not_fit_are_refused_with_one_that_does(model: Any) -> None:
    x = images(model, 1, 1, 1)
    with pytest.raises(ValueError, match=r"is not divisible by .*; the next that works is"):
        model(torch.cat([x, x[..., :1]], dim=-1))
    with pytest.raises(ValueError, match=f"channels, not {x.shape[1] + 2}"):
        model(torch.cat([x, x[:, :2]], dim=1))


def block(attention: str) -> GLSP:
    return GLSP(8, 8, expansion=2, norm="layer", attention=attention, channel_mix=True, residual=True).eval()


def kinds(cases: list[Any]) -> set[str]:
    """Our kinds of modules in networks, or in blocks with such attention."""
    with torch.device("meta"):
        models = [block(case) if isinstance(case, str) else make(*case) for case in cases]
    every = {type(module) for model in models for module in model.modules()}
    return {kind.__qualname__ for kind in every if kind.__module__.startswith("rwkv_unet")}


def test_every_kind_of_module_is_traced() -> None:
    """The networks and blocks of the two tests below are the smallest, and must not be smaller than that."""
    assert kinds(CASES) - kinds([*TRACED, *ATTENTIONS]) == {"LibraryNetwork"}  # which is only exported


@pytest.fixture
def traced(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """A short network, or one block."""
    if isinstance(request.param, str):
        return block(request.param)
    monkeypatch.setattr(fcbformer, "FULL_SIZE_DIMS", fcbformer.FULL_SIZE_DIMS[1:3])
    name, overrides = request.param
    model = make(name, overrides).eval()
    if name in EQUAL_BLOCKS:
        for module in model.encoder.modules():
            if isinstance(blocks := getattr(module, "blocks", None), nn.Sequential | nn.ModuleList):
                module.blocks = blocks[:1]
    return model


def example(model: nn.Module) -> Tensor:
    return torch.randn(1, 8, 4, 6) if isinstance(model, GLSP) else images(model, 1, 2, 1)


def _traced_label(case: str | Case) -> str:
    return case if isinstance(case, str) else _label(case)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
@pytest.mark.parametrize("traced", [*TRACED, *ATTENTIONS], indirect=True, ids=_traced_label)
def test_compiles_as_one_graph(traced: nn.Module) -> None:
    """What comes after the graph is the same for all, and tested with rwkv_unet_t in test_model.py."""
    x = example(traced)
    torch.compiler.reset()
    with torch.no_grad():
        compiled = torch.compile(traced, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x), traced(x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the tracer's own
@pytest.mark.parametrize("traced", [*TRACED, *EXPORTED, *ATTENTIONS], indirect=True, ids=_traced_label)
def test_exports(traced: nn.Module) -> None:
    x = example(traced)
    with torch.no_grad():
        program = torch.export.export(traced, (x,))
        torch.testing.assert_close(program.module()(x), traced(x), rtol=1e-4, atol=1e-5)


DEEP = {"deep_supervision": True}
ONNX: list[Case] = [
    *((name, SHORT[name]) for name in ("mt_unet", "vm_unet", "samed_b")),
    ("rwkv_unet_t", {**SMALL, "shift": "deformable", "scan": "quad"}),
    ("rwkv_unet_3d_t", {**SMALL, **UNEVEN, "norm": "group", **DEEP}),
    *((name, options | DEEP) for name, options in VOLUMES if name == "monai:DynUNet"),
    *(case for case in VOLUMES if case[0] in ("monai:AttentionUnet", "monai:SegResNet")),
]
"""Of every operator one network, since others take long: attention in windows or towards an image, a scan, a grid that
is sampled, orders of tokens, and over three axes WKV, every kind of convolution and resizing."""


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch and onnxscript, about themselves
@pytest.mark.parametrize("case", ONNX, ids=_label)
def test_onnxruntime_gives_the_logits(case: Case, tmp_path: Path) -> None:
    onnx = pytest.importorskip("onnx")
    export = pytest.importorskip("rwkvctl.models.export")
    model, path = make(*case).eval(), tmp_path / "model.onnx"
    x = images(model, 1, 2, 1)
    with torch.no_grad():
        expected = model(x)
        export.write_onnx(export.Graph(model, (x,), (None,), ("image",), ("logits",), {}), path)
    assert expected.std() > 1e-3
    assert {node.domain for node in onnx.load(path).graph.node} == {""}, "standard operators only"
    logits = export.open_onnx(path)(x)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
