"""`data prepare --dry-run`: what a preparation would make, by names and by some of its samples, before anything is
written."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert import formats, pixel_range
from rwkvctl.data.convert.choices import options_of
from rwkvctl.data.convert.discover import EXAMPLES, Problems, by_kind
from rwkvctl.data.convert.formats.base import Item, Plan, Sample
from rwkvctl.data.convert.manifest_content import told_notes
from rwkvctl.data.convert.prepare import planned_splits
from rwkvctl.data.convert.sources import open_sources
from rwkvctl.data.images.files import decode_rgb
from rwkvctl.data.store.contact_sheet import sheet_of, tile
from rwkvctl.pictures.overlays import shown_channel

MOST_READ = 60
"""Samples that are read, evenly spread over the data set."""
SHOWN = 6
"""Of these, on the sheet."""


@dataclass
class Rehearsal:
    """What would be made.

    counts: samples by part; examples: the files of three samples; read: how many samples sizes, shares and notes are
    of; sizes: `HxW` -> samples; shares: of the pixels, by class; groups: patients or sequences, 0 where none are known;
    splits: sizes of their parts; excluded: what `--allow-partial` leaves out; sheet: a PNG of image and overlay.
    """

    dataset: str
    form: str
    classes: list[str]
    counts: dict[str, int]
    examples: list[list[str]]
    read: int = 0
    sizes: dict[str, int] = field(default_factory=dict)
    shares: list[float] = field(default_factory=list)
    groups: int = 0
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    excluded: list[dict[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    sheet: bytes = b""


def rehearse(format_name: str, sources: Sequence[Path | str], out: Path | str, **choices: Any) -> Rehearsal:
    """What `prepare` would do with the same arguments. Nothing is written; what it would refuse is in `problems`."""
    form = formats.get(format_name)
    options = options_of(form.DATASET, out, **choices)
    with open_sources(sources) as source:
        problems = Problems(str(source), lenient=options.allow_partial)
        plan = form.plan(source, options, problems)
        plan = pixel_range.settled(plan, form.DATASET, options)
        plan = plan.settle(plan) if plan.settle and not problems.found else plan
        items = [(part, item) for part, own in plan.parts.items() for item in own]
        samples = _samples(plan, items, problems)
        splits = {} if problems.found else planned_splits(plan)
    notes = [(sample.key, sample.meta.get("image_note", "")) for sample in samples]
    groups = {group for _, item in items if (group := getattr(item, "group", None))}
    return Rehearsal(
        dataset=options.dataset,
        form=plan.form,
        classes=list(plan.classes),
        counts=_counts(plan),
        examples=[[file.path for file in item.files] for _, item in _spread(items, EXAMPLES)],
        read=len(samples),
        sizes=dict(Counter("x".join(map(str, sample.size)) for sample in samples).most_common()),
        shares=_shares(samples),
        groups=len(groups),
        splits={name: {part: len(ids) for part, ids in split.ids.items()} for name, split in splits.items()},
        warnings=[*plan.warnings, *told_notes(notes)],
        excluded=[*plan.excluded, *problems.excluded],
        problems=by_kind(dict.fromkeys(problems.found)),
        sheet=sheet_of([own for sample in _spread(samples, SHOWN) for own in _tiles(sample, plan.channels)])
        if samples
        else b"",
    )


T = TypeVar("T")


def _samples(plan: Plan, items: Sequence[tuple[str, Item]], problems: Problems) -> list[Sample]:
    """Some of the samples, read and checked as they would be."""
    samples = []
    for part, item in _spread(items, MOST_READ):
        try:
            samples.append(plan.read(part, item))
        except BadFile as error:
            if problems.lenient:
                problems.excluded.append({"id": item.key, "why": str(error)})
            else:
                problems.add(str(error))
    return samples


def _spread(items: Sequence[T], most: int) -> list[T]:
    chosen = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[n] for n in chosen]


def _counts(plan: Plan) -> dict[str, int]:
    counts = {part: len(items) for part, items in plan.parts.items()}
    for part, shards in plan.adopted.items():
        counts[part] = counts.get(part, 0) + sum(len(items) for _, items in shards)
    return counts


def _shares(samples: Sequence[Sample]) -> list[float]:
    pixels = [sample.pixels for sample in samples if sample.pixels is not None]
    if not pixels:
        return []
    total = np.sum(pixels, axis=0)
    return [round(float(share), 6) for share in total / max(1, total.sum())]


def _tiles(sample: Sample, channels: int) -> list[NDArray[np.uint8]]:
    """The image, and the image with the outlines of its classes."""
    image = next(_decoded(kind, sample.members[kind]) for kind in ("jpg", "png", "image.npy") if kind in sample.members)
    mask = next((_decoded(k, sample.members[k]) for k in ("mask.png", "mask.npy") if k in sample.members), None)
    image = shown_channel(image, channels)
    return [tile(image, None), tile(image, mask)]


def _decoded(kind: str, data: bytes) -> NDArray[Any]:
    if kind.endswith("npy"):
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))
    pixels = decode_rgb(data)
    return pixels[..., 0] if kind == "mask.png" else pixels
