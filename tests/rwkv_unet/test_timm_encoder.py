"""Encoders of timm in the place of ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rwkv_unet import create_model


def with_encoder(name: str, **overrides: Any) -> Any:
    return create_model("rwkv_unet_t", num_classes=2, encoder=name, **overrides)


@pytest.mark.parametrize("name", ["resnet18", "pvt_v2_b0", "convnext_atto", "efficientnet_lite0", "rwkv_unet_enc_t"])
@pytest.mark.parametrize("num_skips", [1, 3])
def test_logits_and_a_gradient_for_every_parameter(name: str, num_skips: int) -> None:
    model = with_encoder(name, num_skips=num_skips, drop_path=0.0)
    logits = model(torch.randn(2, 3, 64, 96))
    assert logits.shape == (2, 2, 64, 96)
    logits.square().mean().backward()
    assert not [key for key, x in model.named_parameters() if x.requires_grad and x.grad is None]


@pytest.mark.parametrize(("name", "extra"), [("resnet18", 1), ("rwkv_unet_enc_t", 0)])
def test_the_decoder_goes_to_full_size_from_any_first_stage(name: str, extra: int) -> None:
    model = with_encoder(name, in_channels=1)
    assert len(model.decoder.blocks) == 4 + extra
    assert model.ccm.project_in[-1].in_channels == model.encoder.dims[0]
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 2, 32, 32)


def test_our_encoder_by_its_timm_name_is_the_same_net() -> None:
    ours, theirs = create_model("rwkv_unet_t", num_classes=2).eval(), with_encoder("rwkv_unet_enc_t").eval()
    names = {
        name: name.replace("encoder.", "encoder.features.").replace("stages.", "stages_") for name in ours.state_dict()
    }
    theirs.load_state_dict({names[name]: x for name, x in ours.state_dict().items()})
    x = torch.randn(1, 3, 32, 48)
    assert torch.equal(ours(x), theirs(x))


@pytest.mark.parametrize("name", ["maxvit_tiny_tf_224", "swin_tiny_patch4_window7_224"])
def test_fixed_windows_take_the_size_that_they_were_made_for(name: str) -> None:
    with torch.device("meta"):
        model = with_encoder(name)
        assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 2, 224, 224)
        with pytest.raises(ValueError, match=r"256 x 256 is not divisible by 224; the next that works is 448 x 448"):
            model(torch.zeros(1, 3, 256, 256))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5", r"^model.encoder 'resnet5' is no model of timm; did you mean resnet50"),
        ("unknown", r"^model.encoder 'unknown' is no model of timm; none of \d+ is near it$"),
        ("vit_tiny_patch16_224", r"^model.encoder vit_tiny_patch16_224 reduces images 16, 16, 16, 16 times: a U-Net"),
        ("resnet18.nothing", r"^model.encoder resnet18.nothing has no 4 feature maps to give: Invalid pretrained tag"),
    ],
)  # fmt: skip
def test_names_that_give_no_pyramid(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_encoder(name)


@pytest.mark.parametrize(
    ("field", "value"), [("attention", "mhsa"), ("shallow_attention", True), ("glsp_channel_mix", True)]
)
def test_fields_of_our_blocks_do_not_go_with_it(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"^model\.{field}={value!r} .* model\.encoder='resnet18' "):
        with_encoder("resnet18", **{field: value})
