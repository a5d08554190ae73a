"""BUSI (breast ultrasound): three classes of image in folders, one or several masks an image.

    Dataset_BUSI_with_GT/{benign,malignant,normal}/<class> (N).png, <class> (N)_mask.png, <class> (N)_mask_1.png ...

Papers use the 647 benign and malignant images; the normal ones, without a lesion, become a part of their own that is in
no split. Duplicates within the set, some of them in both classes, make random splits leak (PMC10293973).
Dataset: Al-Dhabyani et al., Data in Brief 2020.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.pairs import Above, Pair, pairs_plan
from rwkvctl.data.convert.sources import RawFile, Source, natural_key
from rwkvctl.data.store.splits import Split, grouped_splits, random_splits

KINDS = ("benign", "malignant", "normal")
MASKS = ("union", "first")
ADVICE = ", or take each image's first mask alone with --busi-masks first"

DATASET = Dataset(
    name="busi",
    title="BUSI, lesions in breast ultrasound",
    task="segmentation",
    classes=("background", "lesion"),
    expected={"benign": 437, "malignant": 210, "normal": 133},
    forms={"kaggle": "{benign,malignant,normal}/<class> (N).png with <class> (N)_mask.png, ..._mask_1.png"},
    licence="cite; the Kaggle mirror says CC0",
    access="Cairo University (https://scholar.cu.edu.eg/?q=afahmy/pages/dataset) or Kaggle aryashah2k",
    citation="Al-Dhabyani et al., Data in Brief 28, 2020",
    options=("ratio", "seeds", "busi_masks"),
    lesions=True,
)

_NAME = re.compile(r"(benign|malignant|normal) \((\d+)\)(?:_mask(?:_(\d+))?)?\.png", re.IGNORECASE)


def recognise(source: Source) -> str | None:
    return "kaggle" if any(_NAME.fullmatch(file.name) for file in source.files) else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Pair every image with its masks; lesions become part `all`, images without one part `normal`."""
    choice = options.busi_masks or "union"
    if choice not in MASKS:
        raise UserError(f"--busi-masks {choice}: choose one of {', '.join(MASKS)}")
    found, masks = _find(source, problems)
    discover.refuse_empty(source, found, DATASET.name, DATASET.forms)
    firsts = {name: files[0] for name, files in masks.items()}
    names = discover.pair(found, firsts, problems)
    counts = {kind: sum(name.startswith(kind) for name in found) for kind in KINDS}
    warnings = discover.check_counts(source, counts, DATASET.expected, options.allow_partial, problems)
    known = [*found.values(), *(file for files in masks.values() for file in files)]
    warnings += discover.unused_files(source, known)
    several = sum(len(masks[name]) > 1 for name in names)
    if several:
        warnings.append(f"{several} images have several masks: {'their union' if choice == 'union' else 'the first'}")
    pairs = {
        name: Pair(f"busi_{name}", found[name], tuple(masks[name][: None if choice == "union" else 1]))
        for name in names
    }
    parts = {
        "all": [pair for name, pair in pairs.items() if not name.startswith("normal")],
        "normal": [pair for name, pair in pairs.items() if name.startswith("normal")],
    }

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        random = random_splits(ids["all"], options.ratio, options.seeds)
        return random | grouped_splits(ids["all"], groups, options.ratio, options.seeds)

    return pairs_plan(DATASET, options, "kaggle", parts, Above(), make_splits, warnings=warnings, advice=ADVICE)


def _find(source: Source, problems: Problems) -> tuple[dict[str, RawFile], dict[str, list[RawFile]]]:
    """Images and masks, in natural order, by `benign_0012`."""
    found: dict[str, RawFile] = {}
    masks: dict[str, dict[str, RawFile]] = {}
    for file in source.files:
        match = _NAME.fullmatch(file.name)
        if not match:
            continue
        name = f"{match[1].lower()}_{int(match[2]):04d}"
        if "_mask" in file.name.lower():
            discover.add(masks.setdefault(name, {}), match[3] or "0", file, problems)
        else:
            discover.add(found, name, file, problems)
    ordered = {name: [files[n] for n in sorted(files, key=natural_key)] for name, files in masks.items()}
    return dict(sorted(found.items())), ordered
