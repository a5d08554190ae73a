"""FUGC 2025 (cervix in ultrasound): 50 labeled and 450 unlabeled images to train on, 90 to validate, 300 to test.

    dataset/train/labeled_data/{images,labels}/NNNN.png, dataset/train/unlabeled_data/images/NNNN.png
    dataset/{val,test}/{images,labels}/NNNN.png

Labels hold the class ids, so they look black. Every part counts from 0001: keys carry the part. The unlabeled images
are in no split. Dataset: FUGC 2025 (ISBI challenge), Zenodo 16893174.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.pairs import Levels, Pair, pairs_plan
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.store.splits import Split, fixed, random_splits

PARTS = {  # shard part: folder, letter in the key
    "labeled": ("labeled_data", "l"),
    "unlabeled": ("unlabeled_data", "u"),
    "val": ("val", "v"),
    "test": ("test", "t"),
}

DATASET = Dataset(
    name="fugc",
    title="FUGC 2025, lips of the cervix in ultrasound",
    task="segmentation",
    classes=("background", "anterior lip", "posterior lip"),
    expected={"labeled": 50, "unlabeled": 450, "val": 90, "test": 300},
    forms={
        "zenodo": "train/labeled_data/{images,labels}/NNNN.png, train/unlabeled_data/images/NNNN.png and "
        "{val,test}/{images,labels}/NNNN.png"
    },
    licence="CC-BY-4.0",
    access="https://zenodo.org/records/16893174",
    citation="Fetal Ultrasound Grand Challenge, ISBI 2025",
    options=("seeds",),
)


def recognise(source: Source) -> str | None:
    return "zenodo" if _files(source, "labeled", "labels", Problems("")) else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Pair every part but the unlabeled one."""
    parts: dict[str, list[Pair]] = {}
    known: list[RawFile] = []
    for part, (_, letter) in PARTS.items():
        found = _files(source, part, "images", problems)
        known += found.values()
        if part == "unlabeled":
            parts[part] = [Pair(f"fugc_{letter}_{name}", file) for name, file in found.items()]
            continue
        labels = _files(source, part, "labels", problems)
        known += labels.values()
        names = discover.pair(found, labels, problems)
        parts[part] = [Pair(f"fugc_{letter}_{name}", found[name], (labels[name],)) for name in names]
    discover.refuse_empty(source, known, DATASET.name, DATASET.forms)
    counts = {part: len(pairs) for part, pairs in parts.items()}
    warnings = discover.check_counts(source, counts, DATASET.expected, options.allow_partial, problems)
    warnings += discover.unused_files(source, known)

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        if ids["val"] and ids["test"]:
            rule = "the challenge's parts; train: the labeled images"
            return {"official": fixed(rule, train=ids["labeled"], val=ids["val"], test=ids["test"])}
        made = random_splits(ids["labeled"], None, options.seeds)  # the release of the challenge's time has no more
        note = "labeled training images alone, not comparable with the challenge; "
        return {name: Split(note + split.rule, split.ids, split.seed) for name, split in made.items()}

    levels = Levels(tuple((n, n) for n in range(3)))
    return pairs_plan(DATASET, options, "zenodo", parts, levels, make_splits, warnings=warnings)


def _files(source: Source, part: str, kind: str, problems: Problems) -> dict[str, RawFile]:
    """Files by their number in four digits."""
    pattern = re.compile(rf"{PARTS[part][0]}/{kind}/(?P<id>\d{{4}})\.png")
    return {name.zfill(4): file for name, file in discover.by_pattern(source.files, pattern, problems).items()}
