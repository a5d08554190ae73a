"""Encoders start from every kind of weights, and never from weights that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from rwkv_unet import create_model
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.models import bundle
from rwkvctl.registry import encoder_weights, references

SMALL = {"name": "rwkv_unet_t", "encoder_weights": "x"}


def spec(tmp_path: Path, **model: Any) -> FinetuneSpec:
    fields = {"data": {}, "optimizer": {"lr": 1e-3}, "train": {"epochs": 1, "batch_size": 1}}
    tracking = {"uri": f"sqlite:///{tmp_path / 'mlflow.db'}"}
    return FinetuneSpec(**fields, model=SMALL | model, storage=str(tmp_path / "runs"), tracking=tracking)


def started(found: FinetuneSpec, tmp_path: Path) -> tuple[nn.Module, encoder_weights.Loaded]:
    """The encoder of a network that starts as a run's would, after the checks of a run."""
    references.check_encoder(found)
    loaded = encoder_weights.prepare_encoder_weights(found, tmp_path / "run")
    assert loaded is not None
    model = create_model(found.model.name, num_classes=1, **found.model.overrides())
    encoder_weights.load(model, tmp_path / "run")
    return model.get_submodule("encoder"), loaded


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("rwkv_unet_enc_t", num_classes=5)


def same(encoder: nn.Module, source: dict[str, torch.Tensor], prefix: str = "") -> bool:
    return all(torch.equal(x, source[prefix + name]) for name, x in encoder.state_dict().items())


def test_from_a_pretrained_classifier(classifier: nn.Module, tmp_path: Path):
    info = bundle.BundleInfo(
        model={"name": "rwkv_unet_enc_t", "num_classes": 5}, classes=list("abcde"), image_size=32, image_kind="rgb8",
        channels=3,
    )  # fmt: skip
    bundle.save(tmp_path / "enc", classifier.state_dict(), info)
    encoder, loaded = started(spec(tmp_path, encoder_weights=str(tmp_path / "enc")), tmp_path)
    assert same(encoder, classifier.state_dict())
    assert loaded.matched == len(encoder.state_dict())
    assert str(loaded).endswith("none missing; 4 tensors of the source not used (classifier head)")


@pytest.mark.parametrize("wrap", [lambda state: state, lambda state: {"state_dict": state}])
def test_from_a_file_of_a_whole_network(tmp_path: Path, wrap: Any):
    network = create_model("rwkv_unet_t", num_classes=3)
    torch.save(wrap(network.state_dict()), tmp_path / "net.pth")
    encoder, _ = started(spec(tmp_path, encoder_weights=str(tmp_path / "net.pth")), tmp_path)
    assert same(encoder, network.state_dict(), "encoder.")


WRAPPERS: list[Any] = [
    lambda state: {"model_state_dict": state, "epoch": 3, "optimizer": {"state": {0: {"step": 1}}, "param_groups": []}},
    lambda state: {"net": state},
    lambda state: {"network_weights": state, "init_args": {"patch": [64, 64]}},
    lambda state: {"model": {"state_dict": state}},
    lambda state: {"state_dict": {f"model.{name}": x for name, x in state.items()} | {"loss.weight": torch.ones(2)}},
    lambda state: {f"_orig_mod.module.{name}": x for name, x in state.items()},
    lambda state: {name.replace("encoder.", "encoder._orig_mod."): x for name, x in state.items()} | {"epoch": 1},
    lambda state: {"state_dict": {f"module.model.network.{name}": x for name, x in state.items()}},
]


@pytest.mark.parametrize("file", ["a.ckpt", "a.pth.tar", "A.PTH", "weights"])
def test_a_file_is_a_file_whatever_its_ending(classifier: nn.Module, tmp_path: Path, file: str):
    torch.save(classifier.state_dict(), tmp_path / file)
    encoder, _ = started(spec(tmp_path, encoder_weights=str(tmp_path / file)), tmp_path)
    assert same(encoder, classifier.state_dict())


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrappers_and_prefixes_are_found(tmp_path: Path, wrap: Any):
    torch.manual_seed(4)
    network = create_model("rwkv_unet_t", num_classes=1)
    torch.save(wrap(network.state_dict()), tmp_path / "net.ckpt")
    encoder, loaded = started(spec(tmp_path, encoder_weights=str(tmp_path / "net.ckpt")), tmp_path)
    assert same(encoder, network.state_dict(), "encoder.")
    assert "not part of the encoder" in str(loaded)


def test_timm_names_behind_a_prefix(tmp_path: Path):
    source = timm.create_model("resnet10t", num_classes=7)
    torch.save({"state_dict": {f"model.{k}": v for k, v in source.state_dict().items()}}, tmp_path / "r.ckpt")
    wanted = spec(tmp_path, encoder="resnet10t", encoder_weights=str(tmp_path / "r.ckpt"))
    encoder, _ = started(wanted, tmp_path)
    assert same(encoder, {f"features.{name}": x for name, x in source.state_dict().items()})


def saved(folder: Path, model: nn.Module, **described: Any) -> Path:
    fields = {"classes": list("abcde"), "image_size": 32, "image_kind": "rgb8", "channels": 3}
    bundle.save(folder, model.state_dict(), bundle.BundleInfo(model=described, **fields))
    return folder


def test_from_a_pretrained_timm_classifier_and_from_a_network_that_has_it(tmp_path: Path):
    torch.manual_seed(5)
    source = timm.create_model("resnet10t", num_classes=5)
    folder = saved(tmp_path / "enc", source, name="resnet10t", num_classes=5)
    encoder, loaded = started(spec(tmp_path, encoder="resnet10t", encoder_weights=str(folder)), tmp_path)
    assert same(encoder, {f"features.{name}": x for name, x in source.state_dict().items()})
    network = create_model("rwkv_unet_t", num_classes=1, encoder="resnet10t")
    folder = saved(tmp_path / "net", network, name="rwkv_unet_t", num_classes=1, encoder="resnet10t")
    other = tmp_path / "other"
    encoder, loaded = started(spec(tmp_path, encoder="resnet10t", encoder_weights=str(folder)), other)
    assert same(encoder, network.state_dict(), "encoder.")
    assert loaded.matched == len(encoder.state_dict())


@pytest.mark.parametrize(
    ("encoder", "held", "said"),
    [
        (
            None,
            "resnet10t",
            "contains resnet10t, but the network's encoder is RWKV-UNet's own: set model.encoder=resnet10t",
        ),
        (
            "resnet18",
            "resnet10t",
            "contains resnet10t, but the network's encoder is resnet18: set model.encoder=resnet10t",
        ),
        (
            "resnet18",
            "rwkv_unet_enc_t",
            "contains rwkv_unet_enc_t, but the network's encoder is resnet18: give weights of",
        ),
    ],
)
def test_another_encoders_weights_are_refused_before_a_run(tmp_path: Path, encoder: str, held: str, said: str):
    folder = saved(tmp_path / "enc", timm.create_model(held, num_classes=5), name=held, num_classes=5)
    with pytest.raises(UserError, match=f"encoder_weights {folder}: {said}"):
        references.check_encoder(spec(tmp_path, encoder=encoder, encoder_weights=str(folder)))


def refused(tmp_path: Path, content: Any, **model: Any) -> str:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(UserError) as caught:
        encoder_weights.prepare_encoder_weights(
            spec(tmp_path, encoder_weights=str(tmp_path / "x.pth"), **model), tmp_path / "run"
        )
    assert not (tmp_path / "run" / encoder_weights.FILE_NAME).exists()
    line = str(caught.value)
    assert len(line) < 300, line
    assert "\n" not in line
    return line.partition("x.pth: ")[2]


def test_a_refusal_is_short_and_names_what_is_there(classifier: nn.Module, tmp_path: Path):
    state = classifier.state_dict()
    assert refused(tmp_path, {"generator": state, "discriminator": state, "epoch": 1}).startswith(
        "is not a dictionary of tensors; it has the keys generator, discriminator, epoch:"
    )
    foreign = timm.create_model("resnet10t", num_classes=5).state_dict()
    assert refused(tmp_path, foreign).startswith(
        f"none of its {len(foreign)} tensor names belongs to this encoder "
        "(conv1.0.weight, conv1.1.weight, conv1.1.bias, ...)"
    )
    some = {name: x for name, x in state.items() if "stages.2" not in name}
    lacks = len(state) - len(some)
    names = [name for name in state if name not in some][:3]
    short = [name if len(name) <= 45 else f"...{name[-42:]}" for name in names]
    assert f"{lacks} missing ({', '.join(short)}, ...)" in refused(tmp_path, some)
    twice = {f"{part}.{name}": x for part in ("student", "teacher") for name, x in state.items()}
    assert refused(tmp_path, twice).startswith("contains the encoder twice, under `student.` and `teacher.`")
    larger = timm.create_model("rwkv_unet_enc_s").state_dict()
    assert "of another shape (" in refused(tmp_path, larger)


def test_weights_that_are_not_finite_are_refused(classifier: nn.Module, tmp_path: Path):
    bad = {k: torch.full_like(v, float("nan")) if v.ndim == 4 else v for k, v in classifier.state_dict().items()}
    count = sum(x.ndim == 4 for x in bad.values())
    assert refused(tmp_path, bad).startswith(f"{count} tensors contain NaN or infinite values (")
    head = classifier.state_dict() | {"head.fc.weight": torch.full((5, 128), float("nan"))}  # which is not used
    torch.save(head, tmp_path / "ok.pth")
    started(spec(tmp_path, encoder_weights=str(tmp_path / "ok.pth")), tmp_path)


def test_from_the_authors_file(tmp_path: Path):
    from rwkv_unet import official

    ours = create_model("rwkv_unet_t", num_classes=3)
    theirs = {
        official._official_name(name, in_net=True): x.reshape(official._official_shape(
            official._official_name(name, in_net=True), x)) for name, x in ours.state_dict().items()
    }  # fmt: skip
    torch.save({f"module.{name}": x for name, x in theirs.items()}, tmp_path / "authors.pth")
    encoder, _ = started(spec(tmp_path, encoder_weights=str(tmp_path / "authors.pth")), tmp_path)
    assert same(encoder, ours.state_dict(), "encoder.")


def test_timm_from_a_file(tmp_path: Path):
    torch.manual_seed(2)
    source = timm.create_model("resnet18", num_classes=7)
    save_file(source.state_dict(), tmp_path / "r18.safetensors")
    wanted = spec(tmp_path, encoder="resnet18", encoder_weights=str(tmp_path / "r18.safetensors"))
    encoder, _ = started(wanted, tmp_path)
    assert same(encoder, {f"features.{name}": x for name, x in source.state_dict().items()})
    image = torch.randn(1, 3, 64, 64)
    expected = source.eval().forward_features(image)
    torch.testing.assert_close(encoder.eval().forward_stages(image)[-1], expected)  # type: ignore[operator]


def test_a_baselines_timm_encoder(tmp_path: Path):
    source = timm.create_model("pvt_v2_b0", num_classes=7)
    save_file(source.state_dict(), tmp_path / "pvt.safetensors")
    weights = str(tmp_path / "pvt.safetensors")
    encoder, loaded = started(spec(tmp_path, name="emcad", encoder="pvt_v2_b0", encoder_weights=weights), tmp_path)
    assert same(encoder, {name.replace("stages.", "stages_"): x for name, x in source.state_dict().items()})
    assert loaded.matched == len(encoder.state_dict())
    with pytest.raises(UserError, match="does not fit this encoder"):  # the default is a larger one
        encoder_weights.prepare_encoder_weights(
            spec(tmp_path, name="emcad", encoder_weights=weights), tmp_path / "other"
        )


@pytest.mark.parametrize(
    ("name", "encoder"), [("vit_cup", "vit_tiny_patch16_224"), ("swin_unet", "swin_tiny_patch4_window7_224")]
)
def test_transformers_that_keep_a_part_of_the_classifier(name: str, encoder: str, tmp_path: Path):
    """A ViT without its class token, and a Swin Transformer with fewer blocks."""
    source = timm.create_model(encoder, num_classes=7).state_dict()
    save_file(source, tmp_path / "net.safetensors")
    weights = str(tmp_path / "net.safetensors")
    started_from, loaded = started(spec(tmp_path, name=name, encoder=encoder, encoder_weights=weights), tmp_path)
    assert loaded.matched == len(started_from.state_dict())
    if name == "vit_cup":
        source["pos_embed"] = source["pos_embed"][:, 1:]
    assert same(started_from, source)


@pytest.mark.slow
def test_a_checkpoint_of_sam_starts_the_encoder_and_what_no_class_has_of_the_decoder(tmp_path: Path):
    torch.manual_seed(3)
    sam = create_model("samed_b", num_classes=4)
    state = {
        name.replace("encoder.", "image_encoder.", 1).replace(".mlp.fc", ".mlp.lin") if name[0] == "e" else name: x
        for name, x in sam.state_dict().items()
        if not name.startswith(("adapters", "mask_decoder.output_hyper"))
    }
    of_masks = {f"mask_decoder.output_hypernetworks_mlps.{i}.layers.2.bias": torch.ones(32) for i in range(4)}
    assert "image_encoder.blocks.11.mlp.lin2.bias" in state  # as Meta's file has it
    assert "mask_decoder.transformer.layers.1.cross_attn_image_to_token.out_proj.weight" in state
    torch.save(state | of_masks, tmp_path / "sam_vit_b.pth")
    wanted = spec(tmp_path, name="samed_b", encoder_weights=str(tmp_path / "sam_vit_b.pth"))
    references.check_encoder(wanted)
    loaded = encoder_weights.prepare_encoder_weights(wanted, tmp_path / "run")
    torch.manual_seed(4)
    model = create_model("samed_b", num_classes=4)
    own = {name: x.clone() for name, x in model.state_dict().items()}
    encoder_weights.load(model, tmp_path / "run")
    assert same(model.get_submodule("encoder"), sam.state_dict(), "encoder.")
    kept = ("adapters.", "mask_decoder.output_hypernetworks_mlps.", "mask_decoder.mask_tokens.")
    for name, x in model.state_dict().items():
        assert torch.equal(x, (own if name.startswith(kept) else sam.state_dict())[name]), name
    assert str(loaded) == (
        "encoder initialised from 177 tensors, none missing; mask decoder from 91"
        "; 5 tensors of the source not used (not part of the encoder)"
    )


def test_what_does_not_fit_is_refused(classifier: nn.Module, tmp_path: Path):
    state = {k: v for k, v in classifier.state_dict().items() if k != "stem.project.weight"} | {"decay": torch.ones(1)}
    state["stem.expand.conv.weight"] = torch.ones(24, 4, 1, 1)
    save_file(state, tmp_path / "enc.safetensors")
    wanted = spec(tmp_path, encoder_weights=str(tmp_path / "enc.safetensors"))
    with pytest.raises(UserError, match=r"1 missing \(stem.project.weight\), 1 unexpected \(decay\), 1 of another"):
        encoder_weights.prepare_encoder_weights(wanted, tmp_path / "run")
    assert not (tmp_path / "run" / encoder_weights.FILE_NAME).exists()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not a checkpoint", "cannot be read|contains other objects"), (Evil(), "contains other objects than tensors"),
     ([1], "is not a dictionary of tensors")],
)  # fmt: skip
def test_bad_files_are_one_line(tmp_path: Path, content: Any, message: str, capsys: pytest.CaptureFixture[str]):
    path = tmp_path / "enc.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(UserError, match=rf"^model.encoder_weights {path}: ({message})[^\n]*$"):
        encoder_weights.prepare_encoder_weights(spec(tmp_path, encoder_weights=str(path)), tmp_path / "run")
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"encoder_weights": "pretrained"}, "means timm's weights, but the encoder is RWKV-UNet's own"),
        ({"encoder_weights": "gone.pth"}, "gone.pth: no such file"),
        ({"encoder_weights": "run-1"}, "run 'run-1' is not in"),
        (
            {"encoder_weights": "run-1", "encoder": "resnet18"},
            "run .run-1. is not in",
        ),
    ],
)
def test_what_cannot_be_had_is_known_before_a_run(tmp_path: Path, fields: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        references.check_encoder(spec(tmp_path, **fields))


def test_timms_weights_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    wanted = spec(tmp_path, encoder="resnet18", encoder_weights="pretrained")
    references.check_encoder(wanted)
    with pytest.raises(UserError, match=r"timm's weights of resnet18 are not in the cache and cannot be fetched"):
        encoder_weights.prepare_encoder_weights(wanted, tmp_path / "run")


def test_a_network_without_an_encoder(tmp_path: Path):
    with pytest.raises(UserError, match="unet has no encoder that can be initialised from weights"):
        encoder_weights.prepare_encoder_weights(spec(tmp_path, name="unet"), tmp_path / "run")


@pytest.mark.parametrize("channels", [2, 5])
def test_weights_for_colours_start_an_encoder_of_other_channels(classifier: nn.Module, tmp_path: Path, channels: int):
    """The first convolution as timm adapts it; all others as they are."""
    path = tmp_path / "encoder.safetensors"
    save_file(classifier.state_dict(), path)
    found = spec(tmp_path, encoder_weights=str(path))
    assert encoder_weights.prepare_encoder_weights(found, tmp_path / "run") is not None
    model = create_model("rwkv_unet_t", num_classes=1, in_channels=channels)
    encoder_weights.load(model, tmp_path / "run")
    own, given = model.get_submodule("encoder").state_dict(), classifier.state_dict()
    adapted = timm.models.adapt_input_conv(channels, given["stem.expand.conv.weight"])
    assert torch.equal(own["stem.expand.conv.weight"], adapted)
    assert all(torch.equal(own[name], given[name]) for name in own if name != "stem.expand.conv.weight")
    assert model(torch.rand(1, channels, 32, 32)).shape == (1, 1, 32, 32)
