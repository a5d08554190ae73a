"""From a spec to a network: every kind of model, and specs that no network fits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.config.specs.load import build, merge, read_recipe
from rwkvctl.config.specs.parts import ModelSpec
from rwkvctl.models import build as networks
from rwkvctl.models import bundle

CLASSES = ["background", "polyp"]


@pytest.mark.parametrize(
    "fields",
    [
        {"name": "unet", "options": {"dims": [8, 16]}},
        {"name": "emcad", "encoder": "pvt_v2_b0", "drop_path": 0.0},
        {"name": "smp:unet-resnet18"},
        {"name": "smp:fpn-tu-rwkv_unet_enc_xt"},
        {"name": "monai:UNETR", "options": {"img_size": 32, "hidden_size": 48, "num_heads": 2}},
    ],
)
def test_a_model_folder_names_all_that_the_spec_does(fields: dict[str, Any]):
    spec = ModelSpec(**fields)
    networks.check(spec, CLASSES, (3, 32, 32))
    model = networks.segmentation_network(spec, CLASSES)
    assert model.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32)
    description = {"name": spec.name, "num_classes": 1, **spec.overrides()}
    info = bundle.BundleInfo(model=description, classes=CLASSES, image_size=32, image_kind="rgb8", channels=3)
    again = bundle.build(bundle.BundleInfo.model_validate_json(info.model_dump_json(by_alias=True)))
    again.load_state_dict(model.state_dict())


@pytest.mark.parametrize(
    ("fields", "side", "message"),
    [
        ({"name": "unett"}, 64, "model.name unett: unknown model 'unett'; did you mean unet or unext"),
        ({"name": "unet", "attention": "mhsa"}, 64, "model.name unet: model.attention does not apply to unet"),
        ({"name": "unet", "options": {"widths": 3}}, 64, "model.widths does not apply to unet, which has dims"),
        ({"name": "emcad"}, 80, "data.image_size 80: model emcad: image size 80 x 80 is not divisible by 32"),
        ({"name": "monai:UNETR"}, 64, "data.image_size 64: model monai:UNETR: the model is built for images of 256"),
        ({"name": "smp:fpn-resnet18", "options": {"encoder_depth": 4}}, 64,
         "model smp:fpn-resnet18: its logits are 128 x 128 for images of 64 x 64, and must be of the same size"),
        ({"name": "smp:pan-tu-rwkv_unet_enc_xt"}, 64, "data.image_size 64: model smp:pan-tu-rwkv_unet_enc_xt: Given"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_said_before_the_job_begins(fields: dict[str, Any], side: int, message: str):
    with pytest.raises(UserError) as error:
        networks.check(ModelSpec(**fields), CLASSES, (3, side, side))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def run_of(model: dict[str, Any], how: str) -> FinetuneSpec:
    fields = {"data": {}, "optimizer": {"lr": 1e-3}, "train": {"epochs": 1, "batch_size": 4}}
    return FinetuneSpec.model_validate(fields | {"model": model, "deep_supervision": how})


@pytest.mark.parametrize(
    ("model", "how", "message"),
    [
        ({"name": "unet"}, "sum", 
         "deep_supervision: unet has logits at one scale only; set it to none, or model.name to pvt_cascade"),
        ({"name": "rwkv_unet_b"}, "mutation", "deep_supervision: rwkv_unet_b has logits at one scale only"),
        ({"name": "smp:unet-resnet18"}, "sum", "deep_supervision: smp:unet-resnet18 has logits at one scale only"),
        ({"name": "emcad", "options": {"deep_supervision": True}}, "none",
         "model.options.deep_supervision: leave it out, and set deep_supervision to sum or mutation"),
    ],
)  # fmt: skip
def test_deep_supervision_that_a_network_cannot_have_is_one_line(model: dict[str, Any], how: str, message: str):
    with pytest.raises(UserError) as error:
        networks.trained(run_of(model, how))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_the_network_of_a_run_has_the_heads_that_deep_supervision_needs():
    model = {"name": "emcad", "encoder": "pvt_v2_b0"}
    assert networks.trained(run_of(model, "none")) == ModelSpec.model_validate(model)
    assert networks.trained(run_of(model, "sum")).overrides() == {"encoder": "pvt_v2_b0", "deep_supervision": True}


@pytest.mark.parametrize("name", ["rwkv_unet_3d_t", "monai:DynUNet"])
def test_networks_for_volumes_are_supervised_at_their_scales(name: str):
    fields = {"model": {"name": name, "options": {"spatial_dims": 3} if ":" in name else {}}}
    spec = build(FinetuneSpec, merge(read_recipe("volumes"), fields | {"data": {"path": "x"}}), "volumes")
    assert networks.trained(spec).options["deep_supervision"] is True


def test_others_are_not():
    fields = {"model": {"name": "monai:SegResNet", "options": {"spatial_dims": 3}}, "data": {"path": "x"}}
    spec = build(FinetuneSpec, merge(read_recipe("volumes"), fields), "volumes")
    with pytest.raises(
        UserError, match="deep_supervision: monai:SegResNet has logits at one scale only; set it to none"
    ):
        networks.trained(spec)
