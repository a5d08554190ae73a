"""What timm's own models can do, and libraries that take any of them rely on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import Tensor
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import rwkv_unet

NAMES = [f"rwkv_unet_enc_{size}" for size in ("xt", "t", "s", "b")]
CHANNELS = [8, 12, 24, 48, 96]  # of the smallest one: stem and stages
every_name = pytest.mark.parametrize("name", NAMES)
scripted = pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning", "ignore:`torch.jit:DeprecationWarning")
traced = pytest.mark.filterwarnings("ignore:NOTE. The nodes obtained by tracing")


def encoder(name: str = NAMES[0], **arguments: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(name, **arguments).eval()


def image(height: int = 32, width: int = 48, channels: int = 3) -> Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(1))


def test_timm_knows_them_by_the_name_of_their_file():
    assert sorted(timm.list_models(module="rwkv_unet_enc")) == sorted(NAMES)


@every_name
def test_the_configuration_is_true(name: str):
    with torch.device("meta"):
        model: Any = timm.create_model(name)
        features = model.forward_features(torch.zeros(1, *model.default_cfg["input_size"]))
        head = model.forward_head(features, pre_logits=True)
    assert tuple(features.shape) == (1, model.num_features, *model.default_cfg["pool_size"])
    assert tuple(head.shape) == (1, model.head_hidden_size)
    for part in ("first_conv", "classifier"):
        assert f"{model.default_cfg[part]}.weight" in model.state_dict()


@traced
def test_fx_traces_the_same_network():
    model, x = encoder(), image()
    assert torch.equal(run_traced(model, x), model(x))


def trace(model: Any) -> Any:
    settings = {
        "leaf_modules": get_notrace_modules(),
        "autowrap_functions": get_notrace_functions(),
        "param_shapes_constant": True,
    }
    train, evaluation = get_graph_node_names(model, tracer_kwargs=settings)
    return create_feature_extractor(
        model, train_return_nodes=train[-1:], eval_return_nodes=evaluation[-1:], tracer_kwargs=settings
    )


def run_traced(model: Any, x: Tensor) -> Tensor:
    [y] = trace(model)(x).values()
    return y


@traced
def test_what_fx_traced_can_be_trained():
    model = trace(encoder().train())
    [y] = model(image()).values()
    y.square().mean().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@scripted
def test_torchscript_saves_the_same_network(tmp_path: Path):
    model, x = encoder(), image()
    torch.jit.script(model).save(str(tmp_path / "model.pt"))
    assert torch.equal(torch.jit.load(str(tmp_path / "model.pt"))(x), model(x))


@scripted
@traced
def test_torchscript_takes_what_fx_traced():
    model, x = encoder(), image()
    [y] = torch.jit.script(trace(model))(x).values()
    assert torch.equal(y, model(x))


# Features -----------------------------------------------------------------------------------------------------------


def test_intermediates_are_the_maps_of_the_stem_and_the_stages():
    model, x = encoder(), image()
    last, maps = model.forward_intermediates(x)
    assert [tuple(y.shape) for y in maps] == [(2, c, 32 >> i, 48 >> i) for i, c in enumerate(CHANNELS)]
    assert [info["num_chs"] for info in model.feature_info] == CHANNELS
    assert torch.equal(last, model.forward_features(x))
    assert all(torch.equal(a, b) for a, b in zip(maps[1:], model.forward_stages(x), strict=True))
    assert torch.equal(maps[0], model.stem(x))


@pytest.mark.parametrize(("indices", "wanted"), [(None, [0, 1, 2, 3, 4]), (2, [3, 4]), ([1, -2], [1, 3]), ([0], [0])])
def test_some_intermediates(indices: Any, wanted: list[int]):
    model, x = encoder(), image()
    _, every = model.forward_intermediates(x)
    for stop_early in (False, True):
        some = model.forward_intermediates(x, indices=indices, intermediates_only=True, stop_early=stop_early)
        assert all(torch.equal(a, every[i]) for a, i in zip(some, wanted, strict=True))
    last, _ = model.forward_intermediates(x, indices=indices, stop_early=True)
    assert torch.equal(last, every[wanted[-1]])


def test_the_norm_of_the_classifier_is_put_on_the_last_map_alone():
    model, x = encoder(), image()
    _, plain = model.forward_intermediates(x)
    _, normed = model.forward_intermediates(x, norm=True)
    assert [torch.equal(a, b) for a, b in zip(plain, normed, strict=True)] == [True] * 4 + [False]
    assert torch.equal(normed[-1], model.head.norm(plain[-1]))


def test_maps_come_as_nchw_alone():
    with pytest.raises(ValueError, match="output_fmt must be 'NCHW', not 'NLC'"):
        encoder().forward_intermediates(image(), output_fmt="NLC")


@pytest.mark.parametrize(
    ("indices", "stages", "kept"), [(1, 4, [4]), ([1, 2], 2, [1, 2]), ([0], 0, [0]), (-1, 0, None)]
)
def test_layers_behind_the_last_map_are_pruned(indices: Any, stages: int, kept: list[int] | None):
    model, x = encoder(), image()
    if kept is None:
        with pytest.raises(AssertionError, match="out of range"):
            model.prune_intermediate_layers(indices)
        return
    _, before = model.forward_intermediates(x, indices=indices)
    assert model.prune_intermediate_layers(indices) == kept
    assert len(model.stages) == stages
    assert torch.equal(model(x), model.head(before[-1]))
    assert model.num_features == CHANNELS[kept[-1]] == model(x).shape[1]
    after = model.forward_intermediates(x, indices=kept, intermediates_only=True)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@traced
@pytest.mark.parametrize("kind", ["list", "dict", "hook", "fx", "getter"])
def test_every_way_to_take_features(kind: str):
    model: Any = encoder(features_only=True, feature_cls=kind, out_indices=(1, 3))
    _, expected = encoder().forward_intermediates(image(), indices=[1, 3])
    found = model(image())
    found = list(found.values()) if isinstance(found, dict) else found
    assert model.feature_info.channels() == [CHANNELS[1], CHANNELS[3]]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# Options ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True])
def test_checkpointing_changes_nothing_but_memory(training: bool):
    def gradients(checkpointing: bool) -> tuple[Tensor, list[Tensor | None]]:
        model = encoder(drop_path_rate=0.0).train(training)
        model.set_grad_checkpointing(checkpointing)
        y = model(image())
        y.square().mean().backward()
        return y, [parameter.grad for parameter in model.parameters()]

    (y, own), (again, theirs) = gradients(False), gradients(True)
    torch.testing.assert_close(again, y, rtol=0, atol=0)
    torch.testing.assert_close(theirs, own, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("pool", "shape"),
    [("avg", (2, 96)), ("max", (2, 96)), ("avgmax", (2, 96)), ("catavgmax", (2, 192)), ("", (2, 96, 2, 3))],
)
def test_pooling(pool: str, shape: tuple[int, ...]):
    x, model = image(), encoder()
    made = encoder(num_classes=0, global_pool=pool)
    model.reset_classifier(0, pool)
    for found in (made, model):
        maps = found.head.norm(found.forward_features(x))
        mean, largest = maps.mean((2, 3)), maps.amax((2, 3))
        both = {"avgmax": (mean + largest) / 2, "catavgmax": torch.cat([mean, largest], 1)}
        assert found(x).shape == shape
        torch.testing.assert_close(found(x), {"avg": mean, "max": largest, "": maps, **both}[pool])
        assert found.head_hidden_size == shape[1]
    if pool:
        assert encoder(num_classes=7, global_pool=pool)(x).shape == (2, 7)
        model.reset_classifier(5)
        assert model(x).shape == (2, 5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"global_pool": "token"}, "global_pool must be one of 'avg', 'max', 'avgmax', 'catavgmax', '', not 'token'"),
        ({"global_pool": "", "num_classes": 3}, "global_pool='' leaves the maps as they are, so num_classes must be 0"),
        ({"output_stride": 8}, "output_stride 8: the encoder reduces images 16 times; leave it out"),
        ({"output_stride": 32}, "output_stride 32: the encoder reduces images 16 times; leave it out"),
    ],
)
def test_options_that_it_does_not_have_are_refused(arguments: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        encoder(**arguments)


def test_the_output_stride_that_it_has_may_be_named():
    assert encoder(output_stride=16, features_only=True)(image())[-1].shape == (2, 96, 2, 3)


def test_device_and_dtype():
    on_meta = encoder(device="meta")
    assert {x.device.type for x in on_meta.state_dict().values()} == {"meta"}
    half, full = encoder(dtype=torch.bfloat16), encoder()
    assert {x.dtype for x in half.parameters()} == {torch.bfloat16}
    y = half(image().bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), full(image()), rtol=0.1, atol=0.1)


# Weights ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained-looking encoder as timm saves one for the Hugging Face hub."""
    folder = tmp_path_factory.mktemp("encoder")
    timm.models.save_for_hf(encoder(), str(folder), safe_serialization=True)
    return folder


def test_a_folder_is_loaded_by_timms_schema(folder: Path):
    again: Any = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    assert torch.equal(again(image()), encoder()(image()))
    features: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, features_only=True).eval()
    assert torch.equal(features(image())[-1], encoder().forward_features(image()))


def test_pretrained_weights_for_grey_images_see_what_those_for_colour_see(folder: Path):
    grey: Any = timm.create_model(f"local-dir:{folder}", pretrained=True, in_chans=1).eval()
    x = image(channels=1)
    torch.testing.assert_close(grey(x), encoder()(x.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("channels", "classes"), [(1, 5), (2, 0), (4, 1000), (8, 2)])
def test_pretrained_weights_for_other_channels_and_classes(folder: Path, channels: int, classes: int):
    model: Any = timm.create_model(
        f"local-dir:{folder}", pretrained=True, in_chans=channels, num_classes=classes
    ).eval()
    assert model(image(channels=channels)).shape == (2, classes or 96)
    own = encoder().state_dict()
    same = [key for key, value in model.state_dict().items() if value.shape == own[key].shape and key in own]
    assert all(torch.equal(model.state_dict()[key], own[key]) for key in same if not key.startswith("head.fc"))
    assert len(own) - len(same) <= 3


def test_a_segmentation_model_takes_the_same_channels():
    assert rwkv_unet.create_model("rwkv_unet_xt", num_classes=2, in_channels=5)(image(channels=5)).shape == (
        2,
        2,
        32,
        48,
    )
