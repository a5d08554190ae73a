"""A model folder loads as what was saved, or says which file is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rwkv_unet import create_model
from rwkvctl.base.errors import UserError
from rwkvctl.models import bundle


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return create_model("rwkv_unet_t", num_classes=3, ccm_hidden_rate=1).eval()


def info(**changes) -> bundle.BundleInfo:
    fields = {
        "model": {"name": "rwkv_unet_t", "num_classes": 3, "ccm_hidden_rate": 1},
        "classes": ["background", "liver", "spleen"],
        "image_size": (32, 48),
        "image_kind": "rgb8",
        "channels": 3,
        "dataset": "phantom",
        "fingerprint": "f00",
        "extra": {"git": "1f3c"},
    }
    return bundle.BundleInfo(**(fields | changes))


@pytest.fixture
def folder(model: torch.nn.Module, tmp_path: Path) -> Path:
    bundle.save(tmp_path / "model", model.state_dict(), info())
    return tmp_path / "model"


def test_what_is_loaded_is_what_was_saved(model: torch.nn.Module, tmp_path: Path) -> None:
    saved = bundle.save(tmp_path / "model", model.state_dict(), info())
    loaded, found = bundle.load(tmp_path / "model")
    assert found == saved
    assert len(found.weights_sha256) == 64
    assert found.image_size == (32, 48)
    assert not loaded.training
    x = torch.randn(1, 3, 32, 48)
    with torch.inference_mode():
        assert torch.equal(loaded(x), model(x))
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == ["model.json", "weights.safetensors"]
    assert json.loads((tmp_path / "model" / "model.json").read_text())["schema"] == "rwkv-model/1"
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_saving_again_replaces_both_files(folder: Path, model: torch.nn.Module) -> None:
    before = bundle.read_info(folder)
    state = {name: tensor + 1 if tensor.is_floating_point() else tensor for name, tensor in model.state_dict().items()}
    after = bundle.save(folder, state, info())
    assert before.weights_sha256 != after.weights_sha256
    loaded, _ = bundle.load(folder)
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in state.items())


def test_failed_save_leaves_the_old_folder(folder: Path) -> None:
    before = bundle.read_info(folder)
    with pytest.raises(AttributeError):
        bundle.save(folder, {"w": "not a tensor"}, info())  # type: ignore[dict-item]
    assert bundle.load(folder)[1] == before
    assert [p.name for p in folder.parent.iterdir()] == [folder.name]


def test_encoder_folder_builds_through_timm(tmp_path: Path) -> None:
    import timm

    encoder = timm.create_model("rwkv_unet_enc_t", num_classes=5)
    described = info(model={"name": "rwkv_unet_enc_t", "num_classes": 5}, classes=list("abcde"))
    bundle.save(tmp_path / "enc", encoder.state_dict(), described)
    loaded, _ = bundle.load(tmp_path / "enc")
    assert loaded(torch.zeros(1, 3, 32, 32)).shape == (1, 5)


@pytest.mark.parametrize("name", ["rwkv_unet_enc_t", "resnet10t"])
@pytest.mark.parametrize("described", [{"kind": "classifier", "library": "timm"}, {"kind": "classifier"}, {}])
def test_any_timm_classifier_loads_again_also_of_a_folder_that_says_no_kind(
    tmp_path: Path, name: str, described: dict[str, str]
) -> None:
    import timm

    torch.manual_seed(1)
    classifier = timm.create_model(name, num_classes=3).eval()
    written = info(model={"name": name, "num_classes": 3}, classes=list("abc"), **described)
    bundle.save(tmp_path / "enc", classifier.state_dict(), written)
    content = json.loads((tmp_path / "enc" / "model.json").read_text())
    assert (content["kind"], content["library"]) == ("classifier", "timm")
    if not described:  # as it was written before there was the field
        del content["kind"], content["library"]
        (tmp_path / "enc" / "model.json").write_text(json.dumps(content))
    loaded, found = bundle.load(tmp_path / "enc", kind="classifier")
    assert (found.kind, found.library) == ("classifier", "timm")
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(loaded(x), classifier(x))
    with pytest.raises(UserError, match=r"is a pretrained classifier, which makes no masks; .* --encoder MODEL$"):
        bundle.load(tmp_path / "enc", kind="segmentation")


def test_a_segmentation_model_says_so(folder: Path) -> None:
    content = json.loads((folder / "model.json").read_text())
    assert (content["kind"], content["library"]) == ("segmentation", "rwkv_unet")
    for name in ("smp:unet-resnet50", "monai:UNETR", "unet", "no_such_model"):
        assert bundle.kind_of(name) == "segmentation"
    with pytest.raises(UserError, match="rwkv_unet_t is a segmentation model, not a classifier"):
        bundle.load(folder, kind="classifier")


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def change(path: Path, **fields) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: damage(f / "weights.safetensors"), r"weights\.safetensors: SHA-256 .* is damaged or was exchanged"),
        (lambda f: (f / "weights.safetensors").unlink(), r"weights\.safetensors: no such file"),
        (lambda f: (f / "model.json").unlink(), r"model\.json: no such file"),
        (lambda f: (f / "model.json").write_text("{"), r"model\.json: JSON: "),
        (lambda f: change(f / "model.json", schema="rwkv-model/2"), r"model\.json: schema: "),
        (lambda f: change(f / "model.json", surprise=1), r"model\.json: surprise: "),
        (lambda f: change(f / "model.json", kind="detector"), r"model\.json: kind: "),
        (lambda f: change(f / "model.json", model={"name": "rwkv_unet_x", "num_classes": 3}), r"model\.json: model: "),
        (
            lambda f: change(f / "model.json", model={"name": "rwkv_unet_t", "num_classes": 4}),
            r"does not fit the model",
        ),
    ],
)
def test_damage_is_named(folder: Path, spoil, message: str) -> None:
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        bundle.load(folder)
    assert "\n" not in str(caught.value)


def test_no_folder_at_all(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name a model folder"):
        bundle.load(tmp_path / "nothing")
