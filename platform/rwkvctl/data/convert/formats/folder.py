"""Any two folders `images/` and `masks/` whose files pair by name: one's own data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import discover, field_of_view, grouping
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.by_table import ByTable
from rwkvctl.data.convert.formats.pairs import Mask, Pair, histogram, pairs_plan
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.images import files as image_files
from rwkvctl.data.images import masks
from rwkvctl.data.images.looks import counts_of
from rwkvctl.data.images.masks import RawMask
from rwkvctl.data.store.splits import Split, grouped_splits, parse_ratio, random_splits

DATASET = Dataset(
    name="folder",
    title="any images/ + masks/, paired by name",
    task="segmentation",
    classes=("background", "foreground"),
    expected={},
    forms={"images+masks": "images/NAME.(jpg|png|bmp|tif) and masks/NAME[_mask].(png|jpg|bmp|tif)"},
    licence="your own",
    access="your own files",
    options=("ratio", "groups", "seeds", "classes", "class_table", "range"),
)
FOLDERS = ("images", "masks")
_EVEN, _MOST_EVEN = 16, 5e-4
"""How far values of an even area may lie apart, and the share of pixels in such areas that is no accident."""
MASK_SUFFIXES = ("_mask", "_segmentation", "_gt", "_label", "-mask")


def recognise(source: Source) -> str | None:
    try:
        root = discover.find_root(source, FOLDERS, "images/ and masks/ folders")
    except UserError:
        return None
    images = source.below(discover.child(source, root, FOLDERS[0]))
    return "images+masks" if any(file.suffix in image_files.EXTENSIONS for file in images) else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Pair the files below `images/` and `masks/`; everything without a partner is a problem."""
    try:
        root = discover.find_root(source, FOLDERS, "images/ and masks/ folders")
    except UserError as error:
        raise UserError(str(error) + _what_is_there(source)) from error
    fields = field_of_view.found(source.below(discover.child(source, root, FOLDERS[1])))
    if fields:
        problems.add(
            f"{source}: {discover.child(source, root, FOLDERS[1])}/ shows {fields}, not labels; give the folder that "
            "holds the labels (1st_manual/ or labels/, for example) the name masks/ instead"
        )
    pairs = _pair(source, root, options.dataset, problems)
    num_classes = len(options.classes or DATASET.classes)
    if num_classes < 2:
        raise UserError("--classes: name at least two, the background first")
    parse_ratio(options.ratio or "8:1:1")  # said before anything is read

    top = discover.child(source, root, FOLDERS[0])
    paths = {pair.key: discover.relative(pair.image, top).rpartition(".")[0] for pair in pairs}
    found = grouping.proposed(paths, options.groups)
    if found:
        pairs = [replace(pair, group=found.of.get(pair.key)) for pair in pairs]

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        random = random_splits(ids["all"], options.ratio, options.seeds)
        return (grouped_splits(ids["all"], groups, options.ratio, options.seeds) if found else {}) | random

    read_mask = mask_reader(options, num_classes)
    return pairs_plan(
        DATASET,
        options,
        "images+masks",
        {"all": pairs},
        read_mask,
        make_splits,
        root=root,
        warnings=[*([found.note()] if found else []), *discover.left_aside(source)],
    )


def _what_is_there(source: Source) -> str:
    """The folders of images beside one called `images`, to be told from one another by what their files show."""
    tops = [path.rpartition("/")[0] for path in sorted(source.folders) if path.rpartition("/")[2].lower() == FOLDERS[0]]
    beside = [path for path in source.subfolders(tops[0]) if path != f"{tops[0]}/images".lstrip("/")] if tops else []
    shown = []
    for path in beside[:5]:
        files = [file for file in source.below(path) if file.suffix in image_files.EXTENSIONS]
        fields = field_of_view.found(files)
        shown += [f"{path}/ ({fields}, not labels)" if fields else f"{path}/"] if files else []
    return f"; beside images/ there is {', '.join(shown)}: call the folder of labels masks/" if shown else ""


def _pair(source: Source, root: str, dataset: str, problems: Problems) -> list[Pair]:
    """Pairs in natural order of their ids, with keys padded so that keys sort in the same order.

    With subfolders on both sides the whole path below `images/` and `masks/` must agree: equal names in the folders of
    two patients are no pair.
    """
    folders = [discover.child(source, root, name) for name in FOLDERS]
    listed = [[f for f in source.below(top) if f.suffix in image_files.EXTENSIONS] for top in folders]
    nested = all(any(f.parent != top for f in files) for top, files in zip(folders, listed, strict=True))
    found, every = (
        _by_id(files, top if nested else None, problems) for top, files in zip(folders, listed, strict=True)
    )
    masks = _without_suffixes(every, found, problems)
    rule = f"a mask is called like its image or with {', '.join(MASK_SUFFIXES)} behind"
    both = discover.pair(found, masks, problems, rule + (", in a subfolder of the same name" if nested else ""))
    if not both and not problems.found:
        problems.add(f"{source}: images/ and masks/ hold no images" + (" that are pairs" if found or masks else ""))
    digits = max([4, *(len(name) for name in both if name.isdigit())])
    keys = discover.sample_keys(dataset, both, digits)
    return [Pair(keys[name], found[name], (masks[name],)) for name in both]


def _by_id(files: Iterable[RawFile], top: str | None, problems: Problems) -> dict[str, RawFile]:
    """Files by their name's id, or by those of all parts of their path below the folder `top`."""
    found: dict[str, RawFile] = {}
    for file in files:
        parents = [] if top is None else discover.relative(file, top).split("/")[:-1]
        discover.add(found, "/".join(map(discover.normal_id, [*parents, file.stem])), file, problems)
    return found


def _without_suffixes(masks: dict[str, RawFile], wanted: Iterable[str], problems: Problems) -> dict[str, RawFile]:
    """Masks by the id of their image: `7_mask.png` is the mask of `7.png` unless there is an image `7_mask`. Two that
    would be the mask of one image are a problem."""
    wanted = set(wanted)
    plain: dict[str, RawFile] = {}
    for name, file in masks.items():
        bare = next((name.removesuffix(s) for s in MASK_SUFFIXES if name.endswith(s)), name)
        folder, slash, last = bare.rpartition("/")
        cut = folder + slash + discover.normal_id(last)
        discover.add(plain, name if name in wanted or cut not in wanted else cut, file, problems)
    return plain


def mask_reader(options: Options, num_classes: int) -> ClassIds | ByTable:
    """By the values or colours that `--classes` names, or else by what the masks look like."""
    table = options.class_table
    return ByTable(table) if table and (table.values or table.colours) else ClassIds(num_classes)


@dataclass(frozen=True)
class ClassIds:
    """Reads a mask of unknown making: binary in one of its usual encodings, or class ids."""

    num_classes: int

    @property
    def rule(self) -> str:
        two = self.num_classes == 2
        return "{0,1}: value, else value > 127" if two else f"value = class id 0..{self.num_classes - 1}"

    def __call__(self, data: bytes) -> Mask:
        return Mask(*class_ids(masks.read_mask(data), self.num_classes))


def class_ids(raw: RawMask, num_classes: int) -> tuple[NDArray[np.uint8], str]:
    """Class ids (H, W) from stored values, with the rule that was used; ValueError for values of no known meaning.

    Two classes: {0, 1}, {0, 255}, or the grey of a JPEG (or of a resampled JPEG stored in a PNG), cut at 127.
    More classes: the values must be the ids.
    """
    values = raw.values
    counts = counts_of(values)
    present = np.flatnonzero(counts)
    if num_classes > 2:
        found = [ids for ids in (values, raw.indices) if ids is not None and ids.max() < num_classes]
        if not found:
            raise ValueError(f"mask values {histogram(values)}; with these --classes they must be 0..{num_classes - 1}")
        if not np.array_equal(found[0], found[-1]):
            raise ValueError("palette mask whose indices and greys could both be class ids; save it as plain grey")
        return found[0].astype(np.uint8), "value"
    if not raw.lossy and present[-1] <= 1:
        return values.astype(np.uint8), "value"
    if present[-1] < 255 and raw.indices is not None and raw.indices.max() <= 1:  # black and some grey
        return raw.indices, "value"
    if not (set(present.tolist()) <= {0, 255} or _is_blurred_binary(values, counts, raw.lossy)):
        raise ValueError(
            f"mask values {histogram(values)}; a binary mask has 0 and 255 (or 0 and 1); else give --classes"
        )
    return (values > 127).astype(np.uint8), "value > 127"


def _is_blurred_binary(values: NDArray[Any], counts: NDArray[np.int64], lossy: bool) -> bool:
    """Whether nearly all pixels lie at the ends, with the spread of values that JPEG compression leaves.

    The sure signs of class ids instead: few distinct values, or even areas of a grey in between. On ClinicDB at 256 px
    at most 8 % of a mask lie between, and none of it in an even area.
    """
    if len(counts) > 256 or _has_even_grey(values):
        return False
    between = counts[32:224].sum() / counts.sum()
    if lossy:
        return bool(between <= 0.2)
    spread = np.count_nonzero(counts) >= 32
    return bool(spread and between <= 0.1 and counts[248:].sum() > counts[8:248].sum())


def _has_even_grey(values: NDArray[Any]) -> bool:
    """Whether a part of the mask is a grey in between, not the slope from black to white."""
    square = np.ones((3, 3), np.uint8)
    spread = cv2.dilate(values, square).astype(np.int16) - cv2.erode(values, square)
    return bool(((spread <= _EVEN) & (values >= 32) & (values < 224)).mean() > _MOST_EVEN)
