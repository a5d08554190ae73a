"""ISIC 2017 (skin lesions): three official parts, photographs of many sizes up to 20 million pixels.

    ISIC-2017_<Part>_Data/ISIC_NNNNNNN.jpg                                  Part: Training, Validation, Test_v2
    ISIC-2017_<Part>_Part1_GroundTruth/ISIC_NNNNNNN_segmentation.png

`ISIC_NNNNNNN_superpixels.png` beside the images are no images of the set. `--max-side 1024` stores smaller pictures.
Dataset: Codella et al., ISBI 2018.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.pairs import Above, Pair, pairs_plan
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.store.splits import Split, fixed

PARTS = {"train": "Training", "val": "Validation", "test": "Test_v2"}

DATASET = Dataset(
    name="isic2017",
    title="ISIC 2017, skin lesions in dermoscopy",
    task="segmentation",
    classes=("background", "lesion"),
    expected={"train": 2000, "val": 150, "test": 600},
    forms={
        "official": "ISIC-2017_{Training,Validation,Test_v2}_Data/ISIC_NNNNNNN.jpg and "
        "ISIC-2017_{...}_Part1_GroundTruth/ISIC_NNNNNNN_segmentation.png"
    },
    licence="CC-0",
    access="https://challenge.isic-archive.com/data/#2017",
    citation="Codella et al., ISBI 2018",
    options=("max_side",),
    lesions=True,
)

_IGNORED = r"ISIC_\d{7}_superpixels\.png$"


def recognise(source: Source) -> str | None:
    return "official" if any(_files(source, part, Problems(""))[0] for part in PARTS) else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Pair every official part by id; an id that is in two parts is a problem."""
    parts: dict[str, list[Pair]] = {}
    known: list[RawFile] = []
    place: dict[str, RawFile] = {}
    for part in PARTS:
        found, masks = _files(source, part, problems)
        names = discover.pair(found, masks, problems)
        for name, file in found.items():
            discover.add(place, name, file, problems)
        own = [name for name in names if place[name] is found[name]]
        parts[part] = [Pair(f"isic2017_{name}", found[name], (masks[name],)) for name in own]
        known += [*found.values(), *masks.values()]
    discover.refuse_empty(source, known, DATASET.name, DATASET.forms)
    counts = {part: len(pairs) for part, pairs in parts.items()}
    warnings = discover.check_counts(source, counts, DATASET.expected, options.allow_partial, problems)
    warnings += discover.unused_files(source, known, _IGNORED)
    return pairs_plan(DATASET, options, "official", parts, Above(), _make_splits, warnings=warnings)


def _make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
    return {"official": fixed("the challenge's parts: Training, Validation, Test_v2", **ids)}


def _files(source: Source, part: str, problems: Problems) -> tuple[dict[str, RawFile], dict[str, RawFile]]:
    """Images and masks of a part by their seven digits."""
    folder = f"ISIC-2017_{PARTS[part]}"
    image = re.compile(rf"{folder}_Data/(?:.*/)?ISIC_(?P<id>\d{{7}})\.jpe?g")
    mask = re.compile(rf"{folder}_Part1_GroundTruth/(?:.*/)?ISIC_(?P<id>\d{{7}})_segmentation\.png")
    return tuple(_padded(discover.by_pattern(source.files, pattern, problems)) for pattern in (image, mask))  # type: ignore[return-value]


def _padded(found: dict[str, RawFile]) -> dict[str, RawFile]:
    return {name.zfill(7): file for name, file in found.items()}
