"""The authors' checkpoints: their dead parameters are ignored, everything else is strict."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rwkv_unet import RWKVUNetEncoder, create_model, load_official_state_dict
from rwkv_unet.config import SIZES


@pytest.fixture(scope="module")
def checkpoint(official_names, fill) -> dict[str, torch.Tensor]:
    return fill(official_names["t"])


@pytest.fixture
def net() -> torch.nn.Module:
    return create_model("rwkv_unet_t", num_classes=9)


def encoder(**overrides: Any) -> Any:
    return RWKVUNetEncoder(**{**SIZES["t"], **overrides})


def of_encoder(checkpoint: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: x for name, x in checkpoint.items() if name.startswith("encoder.")}


def test_wrappings(net, checkpoint) -> None:
    load_official_state_dict(net, checkpoint)
    expected = net.state_dict()
    for wrapped in (
        {"state_dict": checkpoint, "epoch": 3},
        {f"module.{name}": x for name, x in checkpoint.items()},
        {"state_dict": {f"module.{name}": x for name, x in checkpoint.items()}},
    ):
        other = create_model("rwkv_unet_t", num_classes=9)
        load_official_state_dict(other, wrapped)
        assert all(torch.equal(x, expected[name]) for name, x in other.state_dict().items())


def test_encoder_with_and_without_prefix(checkpoint) -> None:
    prefixed = of_encoder(checkpoint)
    bare = {name.removeprefix("encoder."): x for name, x in prefixed.items()}
    one, two = encoder(), encoder()
    load_official_state_dict(one, prefixed)
    load_official_state_dict(two, bare)
    assert all(torch.equal(x, two.state_dict()[name]) for name, x in one.state_dict().items())
    assert torch.equal(one.head.fc.weight, bare["head.weight"])


def test_encoder_of_a_net_or_without_classifier(net, checkpoint) -> None:
    load_official_state_dict(net.encoder, of_encoder(checkpoint))
    load_official_state_dict(encoder(num_classes=0), of_encoder(checkpoint))
    load_official_state_dict(encoder(with_head=False), of_encoder(checkpoint))
    with pytest.raises(
        ValueError, match=r"wrong shape: head\.weight is \(1000, 160\), not \(5, 160\); head|head\.bias"
    ):
        load_official_state_dict(encoder(num_classes=5), of_encoder(checkpoint))


def test_dead_parameters_need_not_be_there(net, checkpoint) -> None:
    dead = [name for name in checkpoint if ".ln2." in name or name.startswith(("encoder.head.", "encoder.norm."))]
    load_official_state_dict(net, {name: x for name, x in checkpoint.items() if name not in dead})


def test_all_problems_at_once_and_the_model_unchanged(net, checkpoint) -> None:
    before = {name: x.clone() for name, x in net.state_dict().items()}
    broken = dict(checkpoint)
    del broken["final_conv.bias"], broken["encoder.stage3.1.att.key.weight"]
    broken["encoder.stage1.9.ln2.weight"] = broken["decoder1.ln2.weight"] = torch.zeros(3)
    broken["encoder.stage1.0.att.bogus"] = torch.zeros(3)
    broken["encoder.stage3.1.att.spatial_mix_k"] = torch.zeros(288)
    with pytest.raises(ValueError, match=r"^not the official weights of this model: ") as error:
        load_official_state_dict(net, broken)
    message = str(error.value)
    assert "missing: encoder.stage3.1.att.key.weight, final_conv.bias;" in message
    assert "unexpected: decoder1.ln2.weight, encoder.stage1.0.att.bogus, encoder.stage1.9.ln2.weight;" in message
    assert "wrong shape: encoder.stage3.1.att.spatial_mix_k is (288,), not (1, 1, 288)" in message
    assert "\n" not in message
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


def test_attention_is_not_dead_where_there_is_attention(net, checkpoint) -> None:
    for name in ("encoder.stage4.1.ln1.weight", "encoder.stage3.2.att.spatial_decay"):
        with pytest.raises(ValueError, match=f"missing: {name}$"):
            load_official_state_dict(net, {key: x for key, x in checkpoint.items() if key != name})


def test_other_checkpoints_are_refused(net, checkpoint, official_names, fill) -> None:
    with pytest.raises(ValueError, match="missing"):
        load_official_state_dict(net, of_encoder(checkpoint))
    with pytest.raises(ValueError, match=r"unexpected: .*ccm\."):
        load_official_state_dict(encoder(), checkpoint)
    with pytest.raises(ValueError, match="wrong shape"):
        load_official_state_dict(net, fill(official_names["s"]))
    with pytest.raises(ValueError, match="not Linear"):
        load_official_state_dict(torch.nn.Linear(1, 1), checkpoint)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"encoder": "resnet18"}, "official weights have no encoder resnet18"),
        (
            {"attention": "mhsa"},
            r"have no attention\.attention\.in_proj_weight: the authors published no model with it",
        ),
        ({"glsp_channel_mix": True}, r"have no channel_mix\."),
    ],
)
def test_ablations_have_no_official_weights(checkpoint, overrides, message) -> None:
    with pytest.raises(ValueError, match=message):
        load_official_state_dict(create_model("rwkv_unet_t", num_classes=9, **overrides), checkpoint)
