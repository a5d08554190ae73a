"""Models as the Hugging Face hub keeps them, read and written by its own mixin too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import PyTorchModelHubMixin
from safetensors import safe_open

from rwkv_unet import ModelConfig, RWKVUNet, create_model

SMALL: dict[str, Any] = {"stem_dim": 8, "depths": (1, 1, 2, 1), "dims": (8, 12, 16, 24), "expansions": (2.0,) * 4}


class OursFirst(RWKVUNet, PyTorchModelHubMixin):
    pass


class MixinFirst(PyTorchModelHubMixin, RWKVUNet):
    pass


def config() -> ModelConfig:
    return ModelConfig(3, ccm_hidden_rate=3, in_channels=1, **SMALL)


def same(a: RWKVUNet, b: RWKVUNet) -> bool:
    x = torch.randn(1, 1, 32, 48)
    return a.config == b.config and torch.equal(a.eval()(x), b.eval()(x))


@pytest.mark.parametrize("kind", [RWKVUNet, OursFirst, MixinFirst])
def test_what_is_saved_is_loaded(tmp_path: Path, kind: type[RWKVUNet]):
    model = kind(config())
    model.save_pretrained(tmp_path / "model")
    again = kind.from_pretrained(tmp_path / "model")
    assert type(again) is kind
    assert same(model, again)
    assert not again.training
    if kind is MixinFirst:
        return  # the mixin writes no metadata
    with safe_open(tmp_path / "model" / "model.safetensors", "pt") as file:
        assert file.metadata()["format"] == "pt"


def test_ours_reads_what_the_mixin_writes(tmp_path: Path):
    model = MixinFirst(config())
    model.save_pretrained(tmp_path)
    assert same(RWKVUNet.from_pretrained(tmp_path), model)


def test_the_mixin_reads_what_ours_writes(tmp_path: Path):
    model = create_model("rwkv_unet_xt", num_classes=2, in_channels=1)
    assert isinstance(model, RWKVUNet)
    model.save_pretrained(tmp_path)
    assert same(MixinFirst.from_pretrained(tmp_path), model)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]


def test_what_is_not_there_or_does_not_fit_is_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match="no such folder"):
        RWKVUNet.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"config.json: no such file; the folder is not one of save_pretrained"):
        RWKVUNet.from_pretrained(tmp_path)
    RWKVUNet(config()).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"num_classes": 4}))
    with pytest.raises(ValueError, match=r"model.safetensors: Error\(s\) in loading .* size mismatch for head"):
        RWKVUNet.from_pretrained(tmp_path)
    path.write_text("{}")
    with pytest.raises(ValueError, match="is not the config of a segmentation model"):
        RWKVUNet.from_pretrained(tmp_path)
