"""Kvasir-SEG (polyps): 1000 JPEG images with JPEG masks.

    Kvasir-SEG/images/<id>.jpg, Kvasir-SEG/masks/<id>.jpg, kavsir_bboxes.json (its spelling)

The masks' edges are grey, so they are cut at 127: `> 0` would inflate them. The table of boxes lists every id and
serves as a checksum. `train.txt` and `val.txt` in the source become the official split (880 / 120).
Dataset: Jha et al., MMM 2020.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.pairs import Above, Pair, pairs_plan
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.store.splits import Split, fixed, grouped_splits, random_splits

DATASET = Dataset(
    name="kvasir",
    title="Kvasir-SEG, polyps in colonoscopy",
    task="segmentation",
    classes=("background", "polyp"),
    expected={"images": 1000},
    forms={"jpg": "images/<25-character id>.jpg and masks/<id>.jpg, with kavsir_bboxes.json"},
    licence="research and education, cite",
    access="https://datasets.simula.no/kvasir-seg",
    citation="Jha et al., MMM 2020",
    options=("ratio", "seeds"),
    lesions=True,
)
BOXES = "kavsir_bboxes.json"

_ID = r"(?P<id>c[a-z0-9]{24})\.(?:jpe?g|png)"


def recognise(source: Source) -> str | None:
    return "jpg" if any(re.fullmatch(_ID, file.name, re.IGNORECASE) for file in source.files) else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Pair by id, and compare the ids with the table of boxes."""
    found = discover.by_pattern(source.files, re.compile(f"images/{_ID}"), problems)
    masks = discover.by_pattern(source.files, re.compile(f"masks/{_ID}"), problems)
    discover.refuse_empty(source, found, DATASET.name, DATASET.forms)
    names = discover.pair(found, masks, problems)
    warnings = discover.check_counts(source, {"images": len(found)}, DATASET.expected, options.allow_partial, problems)
    warnings += _check_boxes(source, found, options.allow_partial, problems)
    warnings += discover.unused_files(source, [*found.values(), *masks.values()])
    pairs = [Pair(f"kvasir_{name}", found[name], (masks[name],)) for name in names]
    lists = {part: _list(source, f"{part}.txt") for part in ("train", "val")}

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        splits = random_splits(ids["all"], options.ratio, options.seeds)
        splits |= grouped_splits(ids["all"], groups, options.ratio, options.seeds)
        official = {part: [key for key in ids["all"] if key in wanted] for part, wanted in lists.items()}
        if all(official.values()):
            splits["official"] = fixed("train.txt and val.txt of the source", **official)
        return splits

    return pairs_plan(DATASET, options, "jpg", {"all": pairs}, Above(), make_splits, warnings=warnings)


def _check_boxes(source: Source, found: Mapping[str, RawFile], allow_partial: bool, problems: Problems) -> list[str]:
    """Images that the table does not list are no part of Kvasir-SEG; without one that it does the source is partial."""
    table = next((file for file in source.files if file.name == BOXES), None)
    if table is None:
        return [f"no {BOXES} in the source: its ids could not be checked"]
    try:
        listed = set(json.loads(table.read()))
    except (ValueError, RecursionError, BadFile) as error:
        problems.add(f"{table}: cannot be read ({error}); download it again, or move it away")
        return []
    for name in sorted(found.keys() - listed):
        problems.add(f"{found[name]}: is not in {BOXES}; move files that do not belong to Kvasir-SEG elsewhere")
    missing = sorted(listed - found.keys())
    if missing and allow_partial:
        return [f"partial source: {len(missing)} of the {len(listed)} images in {BOXES} are missing"]
    if missing:
        problems.add(
            f"{table}: lists {len(missing)} images that are missing, first {missing[0]}; complete the source, "
            "or accept it with --allow-partial"
        )
    return []


def _list(source: Source, name: str) -> set[str]:
    """The keys that an official list names, one id a line."""
    file = next((file for file in source.files if file.name == name), None)
    return {f"kvasir_{line.strip().lower()}" for line in file.read().decode().splitlines()} if file else set()
