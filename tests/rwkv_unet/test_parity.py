"""The same numbers as the authors' code, whose weights are filled by rule (tests/goldens/RWKV_UNET.md)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from biwkv import bi_wkv
from biwkv.op import BACKENDS
from rwkv_unet import RWKVUNetEncoder, create_model, fuse_for_inference, load_official_state_dict, spatial_mix
from rwkv_unet.blocks import GLSP
from rwkv_unet.ccm import CrossChannelMix
from rwkv_unet.config import SIZES
from rwkv_unet.decoder import UpBlock
from rwkv_unet.layers import ConvNormAct, q_shift
from rwkv_unet.official import CCM_NAMES, GLSP_NAMES, UP_NAMES, _official_name, _translate

TOLERANCE = 2e-5  # of the largest value; the CUDA kernel's departure from the formula is ten times that


def image(channels: int = 3) -> Tensor:
    return torch.from_numpy(np.random.default_rng(7).standard_normal((2, channels, 64, 64)).astype(np.float32))


def assert_close(ours: Tensor, theirs: np.ndarray) -> None:
    expected = torch.from_numpy(theirs).to(ours.dtype)
    assert ours.shape == expected.shape
    assert (ours.detach() - expected).abs().max() <= TOLERANCE * expected.abs().max()


def statistics(x: Tensor) -> Tensor:
    x = x.detach()
    return torch.cat([x.mean()[None], x.std(correction=0)[None], x.flatten()[:64]])


FORMS = ["eager", "channels_last", *(f"backend {name}" for name in ("reference", *BACKENDS))]
COMPILED = pytest.param("compiled", marks=pytest.mark.slow)


@pytest.fixture
def net(request, official_names, fill, monkeypatch) -> nn.Module:
    """The model in every form that must stay the same function."""
    model = create_model("rwkv_unet_t", num_classes=9).eval()
    load_official_state_dict(model, fill(official_names["t"]))
    if request.param == "channels_last":
        return model.to(memory_format=torch.channels_last)
    if request.param == "compiled":
        torch.compiler.reset()
        model.compile(fullgraph=True, backend="aot_eager")
    if request.param.startswith("backend"):
        name = request.param.removeprefix("backend ")
        if name in BACKENDS and (reason := BACKENDS[name].why_not(torch.empty(1))):
            pytest.skip(reason)
        monkeypatch.setattr(spatial_mix, "bi_wkv", partial(bi_wkv, backend=name))
    return model


@pytest.mark.parametrize("net", FORMS, indirect=True)
def test_logits_and_every_stage(net, net_goldens) -> None:
    seen: dict[str, Tensor] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda module, inputs, output: seen.update({name: output})

    for i, stage in enumerate([net.encoder.stem, *net.encoder.stages]):
        stage.register_forward_hook(record(f"enc.stage{i}"))
    for i, block in enumerate(net.decoder.blocks):
        block.register_forward_hook(record(f"decoder{i + 1}"))
    net.ccm.register_forward_hook(
        lambda module, inputs, output: seen.update({f"ccm.out{i}": x for i, x in enumerate(output)})
    )
    assert_close(net(image())[:, :, ::2, ::2], net_goldens["g1/logits"])
    assert len(seen) == 12
    for name, x in seen.items():
        assert_close(statistics(x), net_goldens[f"g1/stat/{name}"])


@pytest.mark.parametrize("net", [*FORMS, COMPILED], indirect=True)
def test_gradients(net, net_goldens) -> None:
    logits = net(image())
    assert_close(logits[:, :, ::2, ::2], net_goldens["g1/logits"])
    loss = logits.square().mean()
    loss.backward()
    assert loss.item() == pytest.approx(float(net_goldens["g1/loss"]), rel=1e-5)
    theirs = dict(zip(net_goldens["gradnorm_names"].tolist(), net_goldens["g1/gradnorm"].tolist(), strict=True))
    for name, x in net.named_parameters():
        assert x.grad is not None, name
        assert x.grad is not None
        assert x.grad.norm().item() == pytest.approx(theirs.pop(_official_name(name, True)), rel=1e-4), name
    assert all(np.isnan(value) for value in theirs.values())  # what is left are their dead parameters


def test_fused_for_inference(official_names, fill, net_goldens) -> None:
    model = create_model("rwkv_unet_t", num_classes=9)
    load_official_state_dict(model, fill(official_names["t"]))
    with pytest.raises(ValueError, match="call model"):
        fuse_for_inference(model)
    fused = fuse_for_inference(model.eval())
    assert not any(
        isinstance(layer.norm, nn.BatchNorm2d) for layer in fused.modules() if isinstance(layer, ConvNormAct)
    )
    assert_close(fused(image())[:, :, ::2, ::2], net_goldens["g1/logits"])


def test_encoder_and_classifier(official_names, fill, net_goldens) -> None:
    encoder = RWKVUNetEncoder(**SIZES["t"]).eval()
    names = [(name.removeprefix("encoder."), s) for name, s in official_names["t"] if name.startswith("encoder.")]
    load_official_state_dict(encoder, fill(names, gain=0.5))
    features = encoder.forward_features(image())
    assert_close(features, net_goldens["enc/out"])
    assert_close(encoder.forward_head(features)[:, :64], net_goldens["enc/cls_logits_first64"])


@pytest.mark.parametrize("size", ["s", "b"])
def test_larger_nets_take_official_names_and_grey_images(size: str, official_names, fill) -> None:
    model = create_model(f"rwkv_unet_{size}", num_classes=9).eval()
    load_official_state_dict(model, fill(official_names[size]))
    grey = image(1)
    with torch.no_grad():
        logits = model(grey)
        assert torch.equal(logits, model(grey.repeat(1, 3, 1, 1)))
    assert 0.05 < logits.std() < 1


def filled(module: nn.Module, names: Mapping[str, str], case: str, goldens, fill) -> nn.Module:
    """The module with weights by rule under the authors' local names."""
    ours = module.state_dict()
    assert {_translate(name, names) for name in ours} <= set(goldens[f"{case}/names"].tolist())
    weights = {}
    for name, x in ours.items():
        theirs = _translate(name, names)
        weights[name] = fill([(theirs, x.shape)], gain=0.5)[theirs]
    module.load_state_dict(weights)
    return module.eval()


MODULES: dict[str, tuple[Callable[[], nn.Module], Mapping[str, str], list[tuple[int, ...]]]] = {
    "ccmix": (
        lambda: CrossChannelMix((96, 48, 32), hidden_rate=2, drop_path=0.05, num_outputs=3),
        CCM_NAMES,
        [(2, 96, 4, 4), (2, 48, 8, 8), (2, 32, 16, 16)],
    ),
    "glsp_attn": (
        lambda: GLSP(48, 48, expansion=3, norm="layer", attention="spatial_mix", residual=True),
        GLSP_NAMES,
        [(2, 48, 8, 8)],
    ),
    "glsp_lp": (lambda: GLSP(32, 32, expansion=2, norm="batch", residual=True), GLSP_NAMES, [(2, 32, 8, 8)]),
    "glsp_down": (lambda: GLSP(32, 48, expansion=5, norm="batch", stride=2), GLSP_NAMES, [(2, 32, 8, 8)]),
    "stem": (lambda: GLSP(3, 24, expansion=1, norm="none", squeeze_excite=True), GLSP_NAMES, [(2, 3, 16, 16)]),
    "upblock": (lambda: UpBlock(32, 24, 9), UP_NAMES, [(2, 32, 8, 8)]),
}


@pytest.mark.parametrize("case", MODULES)
def test_module(case: str, module_goldens, fill) -> None:
    make, names, shapes = MODULES[case]
    module = filled(make(), names, case, module_goldens, fill)
    rng = np.random.default_rng(7)
    inputs = [torch.from_numpy(rng.standard_normal(s).astype(np.float32)).requires_grad_() for s in shapes]
    outputs = module(inputs) if len(inputs) > 1 else [module(inputs[0])]
    for i, output in enumerate(outputs):
        assert_close(output, module_goldens[f"{case}/out{i}"])
    sum(output.square().mean() for output in outputs).backward()
    for x, norm in zip(inputs, module_goldens[f"{case}/in_gradnorm"], strict=True):
        assert x.grad is not None
        assert x.grad.norm().item() == pytest.approx(float(norm), rel=1e-4)


def test_q_shift(module_goldens) -> None:
    *_, channels, height, width = [int(n) for n in module_goldens["qshift/in_shape"]]
    tokens = np.random.default_rng(7).standard_normal((1, height * width, channels)).astype(np.float32)
    shifted = q_shift(torch.from_numpy(tokens).unflatten(1, (height, width)))
    assert_close(shifted.flatten(1, 2), module_goldens["qshift/out"])
