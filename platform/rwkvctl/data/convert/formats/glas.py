"""GlaS (glands in colon histology): 85 images to train on, 80 in two test parts, of 16 patients.

    Warwick QU Dataset (Released 2016_07_08)/{train,testA,testB}_N.bmp, ..._anno.bmp, Grade.csv

Annotations number the glands; everything above 0 is gland, and the numbers are kept as `inst.png`.
Dataset: Sirinukunwattana et al., Medical Image Analysis 2017.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence

import numpy as np

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.pairs import Mask, Pair, numbered, pairs_plan
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.images.masks import read_mask
from rwkvctl.data.store.splits import Split, grouped_splits, random_splits

PARTS = {"train": range(1, 86), "testA": range(1, 61), "testB": range(1, 21)}
TABLE = "Grade.csv"

DATASET = Dataset(
    name="glas",
    title="GlaS, glands in colon histology",
    task="segmentation",
    classes=("background", "gland"),
    expected={part: len(numbers) for part, numbers in PARTS.items()},
    forms={"bmp": "{train,testA,testB}_N.bmp with ..._N_anno.bmp and Grade.csv"},
    licence="research use only",
    access="the Warwick TIA lab, by a form (https://warwick.ac.uk/fac/cross_fac/tia/data/glascontest)",
    citation="Sirinukunwattana et al., Medical Image Analysis 35, 2017",
    options=("ratio", "seeds"),
)


def recognise(source: Source) -> str | None:
    return "bmp" if any(_files(source, part, Problems(""))[1] for part in PARTS) else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Pair the images of every part; the patient of each is in `Grade.csv`."""
    patients, warnings = _patients(source, options.allow_partial, problems)
    parts: dict[str, list[Pair]] = {}
    known: list[RawFile] = []
    for part, numbers in PARTS.items():
        found, masks = _files(source, part, problems)
        known += [*found.values(), *masks.values()]
        warnings += discover.check_numbers(source, f"{part} images", found, numbers, options.allow_partial, problems)
        parts[part.lower()] = []
        for name in discover.pair(found, masks, problems):
            patient = patients.get(f"{part}_{name}")
            if patients and patient is None:
                problems.add(f"{found[name]}: is not in {TABLE}; complete the table, or move the image elsewhere")
            key = numbered(f"glas_{part.lower()}", name, 3)
            meta = {"patient_id": patient} if patient else {}
            parts[part.lower()].append(Pair(key, found[name], (masks[name],), group=patient, meta=meta))
    discover.refuse_empty(source, known, DATASET.name, DATASET.forms)
    warnings += discover.unused_files(source, known)

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        """Train and val from the training images, 9 : 1; test is the official one."""
        random = random_splits(ids["train"], options.ratio, options.seeds, default="9:1")
        by_patient = grouped_splits(ids["train"], groups, options.ratio, options.seeds, "9:1", name="by_patient")
        test = [*ids["testa"], *ids["testb"]]
        return {
            name: Split(f"train_N: {split.rule}; test: testA and testB", {**split.ids, "test": test}, split.seed)
            for name, split in (random | by_patient).items()
        }

    return pairs_plan(
        DATASET, options, "bmp", parts, read_glands, make_splits, mask_rule="value > 0", warnings=warnings
    )


def read_glands(data: bytes) -> Mask:
    """Any numbered gland is foreground."""
    values = read_mask(data).values
    return Mask((values > 0).astype(np.uint8), "value > 0", instances=values.astype(np.uint16))


def _files(source: Source, part: str, problems: Problems) -> tuple[dict[str, RawFile], dict[str, RawFile]]:
    image, mask = (re.compile(rf"{part}_(?P<id>\d+){suffix}\.bmp") for suffix in ("", "_anno"))
    return discover.by_pattern(source.files, image, problems), discover.by_pattern(source.files, mask, problems)


def _patients(source: Source, allow_partial: bool, problems: Problems) -> tuple[dict[str, str], list[str]]:
    """`train_1` -> `patient_05`, and warnings. The table has spaces after its commas."""
    table = next((file for file in source.files if file.name.lower() == TABLE.lower()), None)
    if table is None:
        text = f"{source}: has no {TABLE}, so patients are not known"
        if not allow_partial:
            problems.add(f"{text}; add it, or accept that with --allow-partial")
        return {}, [text] if allow_partial else []
    try:
        rows = csv.DictReader(table.read().decode("utf-8-sig").splitlines(), skipinitialspace=True)
        return {row["name"].strip(): f"patient_{int(row['patient ID']):02d}" for row in rows}, []
    except (KeyError, ValueError, TypeError, AttributeError, csv.Error, BadFile):
        problems.add(f"{table}: has no columns name and patient ID with a number in each row; download it again")
        return {}, []
