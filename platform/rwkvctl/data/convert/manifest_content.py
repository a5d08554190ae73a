"""What a manifest says of a data set that has been converted: where it is from, what is in it, and what is odd."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np

from rwkvctl.data.convert.conversion import Converted, Record
from rwkvctl.data.convert.discover import EXAMPLES, kind_of
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.images.masks import OUTLINE
from rwkvctl.data.store import schema

MOST_SIZES_SHOWN = 20


def content(
    plan: Plan,
    dataset: Dataset,
    options: Options,
    done: Converted,
    splits: dict[str, dict[str, Any]],
    found: schema.Duplicates,
) -> dict[str, Any]:
    """The whole manifest. splits: their entries by name, the default one first."""
    records = done.records
    sources = {path: digest for record in records for path, digest in record.sources.items()}
    segmentation = plan.task == "segmentation"
    stats = _stats(records)
    absent = [name for name, share in zip(plan.classes, stats.get("pixel_fraction", []), strict=False) if not share]
    return {
        "dataset": options.dataset,
        "created_by": f"rwkvctl {version('rwkvctl')}",
        "source": {
            "format": dataset.name,
            "form": plan.form,
            "files": len(sources),
            "tree_sha256": _hash_lines(sources.items()),
            "expected": dict(dataset.expected),
            "licence": dataset.licence,
            "access": dataset.access,
            "citation": dataset.citation or None,
        },
        "task": plan.task,
        "classes": list(plan.classes),
        "ignore_index": 255 if segmentation else None,
        "channels": plan.channels,
        "image_kind": plan.image_kind,
        "mask_rule": plan.mask_rule,
        "intensity": plan.intensity,
        "orientation": plan.orientation,
        **({"channel_names": list(plan.channel_names)} if plan.channel_names else {}),
        **({"channel_files": list(plan.channel_files)} if plan.channel_files else {}),
        **({"regions": [dict(region) for region in plan.regions]} if plan.regions else {}),
        "counts": {"samples": len(records), "labeled": sum(record.labeled for record in records)},
        "excluded": plan.excluded,
        "duplicates": found.model_dump(),
        "warnings": [
            *plan.warnings,
            *told_notes([(record.key, record.note) for record in records]),
            *_excluded_warnings(plan.excluded),
            *_duplicate_warnings(found),
            *(f"no mask has a pixel of class {name!r}" for name in absent),
        ],
        "shards": done.shards,
        "samples_sha256": _hash_lines((record.key, record.sha256) for record in records),
        "splits": splits,
        "default_split": next(iter(splits)),
        "stats": stats,
    }


def told_notes(notes: Sequence[tuple[str, str]]) -> list[str]:
    """How many images have each note, with the keys of three outlines. notes: key and notes of each image."""
    by_note: dict[str, list[str]] = {}
    for key, text in notes:
        for note in filter(None, text.split("; ")):
            by_note.setdefault(note, []).append(key)
    shown = {note: ": " + ", ".join(keys[:EXAMPLES]) if note == OUTLINE else "" for note, keys in by_note.items()}
    return [f"{len(by_note[note])} of {len(notes)} images: {note}{shown[note]}" for note in sorted(by_note)]


def _excluded_warnings(excluded: list[dict[str, str]]) -> list[str]:
    kinds = Counter(kind_of(own["why"] if ": " in own["why"] else f"{own['id']}: {own['why']}") for own in excluded)
    return [f"{n} left out: {kind}" for kind, n in kinds.items()]


def _duplicate_warnings(found: schema.Duplicates) -> list[str]:
    clusters = {"copies of one another": found.copies, "near-duplicates of one another": found.near or []}
    return [f"{sum(map(len, own))} images in {len(own)} clusters are {what}" for what, own in clusters.items() if own]


def _hash_lines(pairs: Any) -> str:
    """SHA-256 of the sorted lines `name TAB hash`."""
    digest = hashlib.sha256()
    for name, value in sorted(pairs):
        digest.update(f"{name}\t{value}\n".encode())
    return digest.hexdigest()


def _stats(records: list[Record]) -> dict[str, Any]:
    """Share of the pixels by class, and the most frequent image sizes."""
    sizes = Counter(f"{height}x{width}" for height, width in (record.size for record in records))
    stats: dict[str, Any] = {"size_hist": dict(sorted(sizes.most_common(MOST_SIZES_SHOWN)))}
    pixels = [record.pixels for record in records if record.pixels is not None]
    if pixels:
        total = np.sum(pixels, axis=0)
        stats["pixel_fraction"] = [round(float(share), 6) for share in total / total.sum()]
    return stats
