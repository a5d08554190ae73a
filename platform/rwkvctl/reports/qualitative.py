"""The same images segmented by several models, side by side (Fig. 5): image, truth, and a column for each model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.data.feed.cases import Case, read_case
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import volumes
from rwkvctl.models.ensemble import Member, Segmenter
from rwkvctl.pictures import figures
from rwkvctl.pictures.overlays import to_rgb
from rwkvctl.pictures.palette import palette
from rwkvctl.pictures.shown import foreground
from rwkvctl.training import metrics

INCHES = 2.0
"""Of a panel's side."""
OPACITY = 0.6
Ids = NDArray[np.uint8]


class Row(NamedTuple):
    """An image, or one slice of a volume."""

    key: str
    place: str
    """`slice 12 of 90`; empty for an image."""
    image: NDArray[np.uint8]
    """(H, W, 3)"""
    truth: Ids
    masks: list[Ids]
    """By model."""
    dsc: list[float | None]
    """By model, of this image or slice: the mean of the classes that are in it."""


def chosen(manifest: Manifest, split: str, part: str, keys: Sequence[str], count: int) -> list[str]:
    """The cases that are asked for, else so many of the part, evenly spread over it and so not by how they look."""
    ids = manifest.ids(split, part)
    for key in keys:
        if key not in ids:
            raise UserError(f"--case {key}: not in split {split}, part {part}; {did_you_mean(key, ids)}")
    if keys:
        return list(keys)
    return [ids[place] for place in np.unique(np.linspace(0, len(ids) - 1, min(count, len(ids))).round().astype(int))]


def rows(members: Sequence[Member], manifest: Manifest, keys: Sequence[str]) -> list[Row]:
    """Segment the cases with every model; of volumes the slice with the most classes, and of these the one with the
    most foreground in the truth."""
    reader = reader_for(manifest, list(keys))
    segmenters = [Segmenter([member]) for member in members]
    return [row(segmenters, manifest, read_case(reader, number)) for number in range(len(reader))]


def row(segmenters: Sequence[Segmenter], manifest: Manifest, case: Case) -> Row:
    image: NDArray[Any] = case.image
    truth, place, z = case.mask, "", 0
    if truth.ndim == 3:
        areas = foreground(truth).tolist()
        z = max(range(len(truth)), key=lambda z: (len(np.unique(truth[z])), areas[z]))
        image, truth, place = np.asarray(image[z]), truth[z], f"slice {z + 1} of {len(truth)}"
    masks = [
        whole(segmenter, case)[z] if segmenter.of_volumes else segmenter.segment(image).mask for segmenter in segmenters
    ]
    scores = [
        metrics.score_case(mask, truth, len(manifest.classes), hd95=False, ignore_index=manifest.ignore_index)
        for mask in masks
    ]
    return Row(case.key, place, to_rgb(image), truth, masks, [mean_dsc(each) for each in scores])


def whole(segmenter: Segmenter, case: Case) -> Ids:
    """The mask (D, H, W) of a network over three axes."""
    volumes.check_case(case, [info.volumes for info in segmenter.of_volumes if info.volumes is not None])
    return segmenter.segment(case.image, spacing=case.spacing_mm).mask


def mean_dsc(scores: Sequence[metrics.ClassScore]) -> float | None:
    known = [score.strict_dsc for score in scores if score.strict_dsc is not None]
    return sum(known) / len(known) if known else None


def draw(found: Sequence[Row], names: Sequence[str], classes: Sequence[str], out: Path) -> None:
    """A row for each case, a column for image, truth and every model, below them the colours of the classes."""
    from matplotlib.patches import Patch

    titles = ["image", "truth", *names]
    with figures.written(out, width=INCHES * len(titles), height=(INCHES + 0.25) * len(found) + 0.5) as figure:
        axes = figure.subplots(len(found), len(titles), squeeze=False)
        for line, one in zip(axes, found, strict=True):
            said = ["\n".join(filter(None, [one.key, one.place])), ""]
            said += ["in neither mask" if dsc is None else f"DSC {dsc:.3f}" for dsc in one.dsc]
            for axis, labels, text in zip(line, [None, one.truth, *one.masks], said, strict=True):
                axis.imshow(one.image if labels is None else filled(one.image, labels), interpolation="nearest")
                axis.set_xlabel(text, fontsize=7, parse_math=False)
                axis.set(xticks=[], yticks=[])
        for axis, title in zip(axes[0], titles, strict=True):
            axis.set_title(title, fontsize=8, parse_math=False)
        there = sorted({int(each) for one in found for labels in (one.truth, *one.masks) for each in np.unique(labels)})
        patches = [Patch(color=palette()[each] / 255, label=classes[each]) for each in there if 0 < each < len(classes)]
        if patches:
            legend = figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 5), fontsize=8)
            for text in legend.get_texts():
                text.set_parse_math(False)


def filled(image: NDArray[np.uint8], labels: Ids) -> NDArray[np.uint8]:
    """The image with its classes in their colours; 255 (ignored) is left out."""
    where = ((labels > 0) & (labels != 255))[..., None]
    mixed = (1 - OPACITY) * image + OPACITY * palette()[labels]
    return np.where(where, mixed, image).round().astype(np.uint8)
