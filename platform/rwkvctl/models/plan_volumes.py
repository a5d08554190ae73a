"""What is left open of a training on volumes, settled from its training cases: spacing, patch, kernels and strides."""

from __future__ import annotations

import math
from typing import Any

import torch

from rwkv_unet import planned_options
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.config.specs.parts import VOLUMETRIC, ModelSpec
from rwkvctl.data.feed.resample import Spacing, shape_at
from rwkvctl.data.feed.volume_cache import native_shape, spacing_of
from rwkvctl.data.store.case_ids import cases_of
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import build
from rwkvctl.models.bundle import VolumeInput
from rwkvctl.training.volume_plan import (
    CaseSize,
    Levels,
    Triple,
    levels_for,
    median_shape,
    patch_for,
    rounded_up,
    spacing_for,
)

MOST_VOXELS = 2**31
"""Of a resampled case, and of a patch: four times those of 1,000 slices of 768 x 768 pixels."""
OUR_LEVELS = 5
"""Of RWKV-UNet: the stem and four stages."""
OUR_LEAST = (1, 16, 16)
"""What its patches are multiples of, however few voxels are left."""


def planned(spec: FinetuneSpec, manifest: Manifest) -> FinetuneSpec:
    """The spec with spacing, patch and the network's kernels and strides settled; one of images as it is.

    A function of the training cases and the spec alone, which is not changed by planning it again; what the spec says
    itself stays. UserError for data without volumes, and for cases without a spacing where one is asked for.
    """
    volumes = spec.volumes
    if volumes is None:
        return spec
    if not manifest.has_volumes:
        raise UserError(
            f"model.name {spec.model.name}: takes volumes, and data {manifest.location} holds images; "
            "choose a network for images, or other data"
        )
    sizes = case_sizes(spec, manifest)
    found = spacing_for(list(sizes.values()))
    spacing = volumes.spacing
    if spacing == "auto":
        spacing = "native" if found is None else found
    own = None if isinstance(spacing, str) else spacing
    if own is not None and (without := [case for case, size in sizes.items() if size.spacing is None]):
        raise UserError(
            f"volumes.spacing {list(own)}: {len(without)} of {len(sizes)} training cases have no spacing, as "
            f"{without[0]}; set it to native"
        )
    if own is not None:
        check_voxels(own, sizes)
    step = own or found or (volumes.thickness, 1.0, 1.0)
    ours = spec.model.name.startswith(VOLUMETRIC)
    most, least = (OUR_LEVELS, OUR_LEAST) if ours else (None, (1, 1, 1))
    patch = volumes.patch
    if patch == "auto":
        patch = patch_for(median_shape(list(sizes.values()), own), step, volumes.patch_voxels, most, least)
    elif math.prod(patch) > MOST_VOXELS:
        raise UserError(
            f"volumes.patch {list(patch)}: has {math.prod(patch):.1e} voxels; choose a smaller one, or auto"
        )
    levels = levels_for(patch, step, most)
    model = spec.model.model_copy(update={"options": options_for(spec.model, levels, patch)})
    if volumes.patch == "auto":
        patch = rounded_up(patch, divisor_of(model, manifest, levels))
    settled = volumes.model_copy(update={"patch": patch, "spacing": spacing})
    return spec.model_copy(update={"model": model, "volumes": settled})


def case_sizes(spec: FinetuneSpec, manifest: Manifest) -> dict[str, CaseSize]:
    """Of every training case, by the headers of its files."""
    cases = train_cases(spec, manifest)
    reader = reader_for(manifest, cases)
    return {case: CaseSize(native_shape(reader, row), spacing_of(reader, row)) for row, case in enumerate(cases)}


def train_cases(spec: FinetuneSpec, manifest: Manifest) -> list[str]:
    """The volumes that the training part's samples are of."""
    return cases_of(manifest.ids(spec.data.split, "train"))


def check_voxels(spacing: Spacing, sizes: dict[str, CaseSize]) -> None:
    """UserError for a spacing at which a case would have more voxels than anybody trains on."""
    for case, size in sizes.items():
        assert size.spacing is not None, "asked before"
        if (voxels := math.prod(shape_at(size.shape, size.spacing, spacing))) > MOST_VOXELS:
            raise UserError(
                f"volumes.spacing {list(spacing)}: {case} would have {voxels:.1e} voxels, and its own spacing is "
                f"{list(size.spacing)} mm (z, y, x)"
            )


def options_for(model: ModelSpec, levels: Levels, patch: Triple) -> dict[str, Any]:
    """The model's options, with those by which it goes down as it is planned."""
    try:
        return planned_options(model.name, levels.strides, levels.kernels, patch, model.options)
    except ValueError as error:
        raise UserError(f"model.name {model.name}: {error}") from None


def divisor_of(model: ModelSpec, manifest: Manifest, levels: Levels) -> Triple:
    """What the sides of a patch must be multiples of."""
    with torch.device("meta"):
        network = build.segmentation_network(model, manifest.classes, manifest.channels)
    found: Triple = getattr(network, "divisor", levels.divisor)
    return found


def volume_input(spec: FinetuneSpec) -> VolumeInput | None:
    """What a model folder says of a planned training on volumes; None of images."""
    volumes = spec.volumes
    if volumes is None:
        return None
    assert volumes.patch != "auto", "planned before"
    spacing = None if isinstance(volumes.spacing, str) else volumes.spacing
    return VolumeInput(patch=volumes.patch, spacing=spacing, overlap=volumes.overlap)
