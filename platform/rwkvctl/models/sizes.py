"""What the network of a training costs, before it is trained."""

from __future__ import annotations

from functools import cache

from rwkvctl.config.specs.jobs import FinetuneSpec, PretrainSpec
from rwkvctl.config.specs.parts import EncoderSpec, ModelSpec
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import build
from rwkvctl.models.plan_volumes import planned


def sizes_of(spec: FinetuneSpec | PretrainSpec) -> dict[str, float]:
    """`parameters`, `macs_paper` and `macs_true` of its network at the size of its images or patches."""
    manifest = Manifest.load(spec.data.path or "")
    if isinstance(spec, PretrainSpec):
        side = spec.data.image_size
        return _sizes(spec.model.model_dump_json(), (manifest.channels, side, side), spec.data.path or "")
    spec = planned(spec, manifest)
    shape = build.input_shape(spec, manifest.channels)
    return _sizes(build.trained(spec).model_dump_json(), shape, spec.data.path or "")


@cache
def _sizes(model: str, shape: tuple[int, ...], data: str) -> dict[str, float]:
    import torch

    from rwkv_unet.flops import count_parameters

    manifest = Manifest.load(data)
    with torch.device("meta"):
        if manifest.task == "classification":
            name = (encoder := EncoderSpec.model_validate_json(model)).name
            network = build.classifier(encoder, manifest.classes)
        else:
            name = (spec := ModelSpec.model_validate_json(model)).name
            network = build.segmentation_network(spec, manifest.classes, manifest.channels)
    macs = build.macs(network, name, shape)
    return {"parameters": count_parameters(network), "macs_paper": macs.paper, "macs_true": macs.true}
