"""What a training run says of its model: sizes, costs, and what the model folder must know of the data."""

from __future__ import annotations

from typing import Any

from torch import nn

from rwkv_unet.flops import count_macs, count_parameters
from rwkvctl.config.specs.jobs import FinetuneSpec, PretrainSpec, TrainingSpec
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import bundle
from rwkvctl.models.plan_volumes import volume_input


def describe(model: nn.Module, manifest: Manifest, shape: tuple[int, ...]) -> dict[str, Any]:
    """Parameters and MACs of a model for what it is trained on, (C, H, W) or (C, D, H, W), and the data's
    fingerprint."""
    macs = count_macs(model, shape)
    return {
        "parameters": count_parameters(model),
        "macs_paper": macs.paper,
        "macs_true": macs.true,
        "data_fingerprint": manifest.fingerprint,
        "data_quarantined": manifest.quarantined,
    }


def model_info(
    spec: TrainingSpec, manifest: Manifest, model: dict[str, Any], extra: dict[str, Any]
) -> bundle.BundleInfo:
    """What a model folder says of the data that the model was made for."""
    classifier = isinstance(spec, PretrainSpec)
    volumes = volume_input(spec) if isinstance(spec, FinetuneSpec) else None
    return bundle.BundleInfo(
        kind="classifier" if classifier else "segmentation",
        library="timm" if classifier else "rwkv_unet",
        model=model,
        classes=manifest.classes,
        image_size=spec.data.image_size if volumes is None else volumes.patch[1:],
        volumes=volumes,
        image_kind=manifest.image_kind,
        channels=manifest.channels,
        intensity=manifest.content.intensity,
        channel_names=manifest.content.channel_names,
        channel_files=manifest.content.channel_files,
        orientation=manifest.content.orientation,
        dataset=manifest.dataset,
        fingerprint=manifest.fingerprint,
        extra=extra | {"precision": spec.train.precision},
    )
