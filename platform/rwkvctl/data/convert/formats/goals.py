"""GOALS 2022 (layers of the retina in OCT): 300 images, numbered by part.

    Train/Image/0001.png .. 0100.png, Train/Layer_Masks/0001.png ..; Validation/ 0101 .. 0200; Test/ 0201 .. 0300

Masks are grey values of which 0 is a layer: `mask > 0` would be wrong. Public copies have the first hundred masks only;
then the other images are kept as unlabeled, and the splits are five folds of the hundred, which compare with no paper.
Dataset: Fang et al., OMIA workshop, MICCAI 2022.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.pairs import Levels, Pair, numbered, pairs_plan
from rwkvctl.data.convert.sources import Source
from rwkvctl.data.store.splits import DEFAULT_SEEDS, Split, fixed, folds

NUMBERS = range(1, 301)
PARTS = {"train": range(1, 101), "val": range(101, 201), "test": range(201, 301)}
LEVELS = Levels(((255, 0), (0, 1), (80, 2), (160, 3)))

DATASET = Dataset(
    name="goals",
    title="GOALS 2022, layers of the retina in OCT",
    task="segmentation",
    classes=("other", "RNFL", "GCIPL", "choroid"),
    expected={"images": len(NUMBERS)},
    forms={"png": "Image/NNNN.png and Layer_Masks/NNNN.png (masks may lack beyond 0100)"},
    licence="the challenge's terms (License.pdf)",
    access="Baidu AI Studio, after registration (https://aistudio.baidu.com/aistudio/competition/detail/230)",
    citation="Fang et al., OMIA workshop at MICCAI 2022",
)

_IMAGE = re.compile(r"Images?/(?P<id>\d{4})\.png")
_MASK = re.compile(r"Layer_Masks?/(?P<id>\d{4})\.png")
_IGNORED = r"Layer_show/"


def recognise(source: Source) -> str | None:
    return "png" if discover.by_pattern(source.files, _MASK, Problems("")) else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Parts by number. A part of which no image has a mask is unlabeled."""
    found = discover.by_pattern(source.files, _IMAGE, problems)
    masks = discover.by_pattern(source.files, _MASK, problems)
    discover.refuse_empty(source, found, DATASET.name, DATASET.forms)
    warnings = discover.check_numbers(source, "images", found, NUMBERS, options.allow_partial, problems)
    warnings += discover.unused_files(source, [*found.values(), *masks.values()], _IGNORED)
    parts: dict[str, list[Pair]] = {}
    for part, numbers in PARTS.items():
        own, truth = ({n: file for n, file in files.items() if int(n) in numbers} for files in (found, masks))
        if truth or part == "train":
            names = discover.pair(own, truth, problems)
            parts[part] = [Pair(numbered("goals", n), own[n], (truth[n],)) for n in names]
        else:
            parts[part] = [Pair(numbered("goals", n), file) for n, file in own.items()]
            if own:
                warnings.append(f"no masks for the {part} images: they are unlabeled")
    labeled = {pair.key for pairs in parts.values() for pair in pairs if pair.masks}

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        if all(own and set(own) <= labeled for own in ids.values()):
            return {"official": fixed("by number: train 1-100, val 101-200, test 201-300", **ids)}
        seed = DEFAULT_SEEDS[0]
        made = folds(ids["train"], None, 5, seed)
        note = "images 1-100 alone, not comparable with the paper; "
        return {
            f"goals_train_5fold_f{n}": Split(note + fold.rule, fold.ids, seed)
            for n, fold in enumerate(made.values(), 1)
        }

    return pairs_plan(DATASET, options, "png", parts, LEVELS, make_splits, warnings=warnings)
