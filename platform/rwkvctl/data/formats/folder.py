"""Any two folders `images/` and `masks/` whose files pair by name (Kvasir-SEG, ClinicDB, ColonDB, one's own)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rwkvctl.data import discover, images
from rwkvctl.data.discover import Problems
from rwkvctl.data.formats.base import BadFile, Options, Plan, Sample, count_pixels, read_bytes, sha256
from rwkvctl.data.splits import Split, parse_ratio, random_split, split_name
from rwkvctl.errors import UserError

MASK_SUFFIXES = ("_mask", "_segmentation", "_gt", "_label", "-mask")


@dataclass(frozen=True)
class Pair:
    """An image, its mask, and the key of the sample that they become."""

    key: str
    image: Path
    mask: Path


def plan(sources: Sequence[Path], options: Options, problems: Problems) -> Plan:
    """Pair the files below `images/` and `masks/`; everything without a partner is a problem."""
    if len(sources) != 1:
        raise UserError(f"format folder takes one --source, {len(sources)} were given")
    root = discover.find_root(sources[0], ("images", "masks"), "images/ and masks/ folders")
    pairs = _pair(root, options.dataset, problems)
    classes = list(options.classes or ("background", "foreground"))
    if len(classes) < 2:
        raise UserError("--classes: name at least two, the background first")
    ratio = parse_ratio(options.split)
    binary = len(classes) == 2

    def read(part: str, pair: Pair) -> Sample:
        return _read(root, part, pair, options.dataset, classes)

    def make_splits(ids: Mapping[str, Sequence[str]]) -> dict[str, Split]:
        return {split_name(ratio, seed): random_split(ids["all"], ratio, seed) for seed in options.seeds}

    return Plan(
        form="images+masks",
        task="segmentation",
        classes=classes,
        image_kind="rgb8",
        parts={"all": pairs},
        read=read,
        make_splits=make_splits,
        mask_rule="{0,1}: value, else value > 127" if binary else f"value = class id 0..{len(classes) - 1}",
    )


def _pair(root: Path, dataset: str, problems: Problems) -> list[Pair]:
    """Pairs in natural order of their ids, with keys padded so that keys sort in the same order."""
    found = _by_id(discover.child(root, "images"), problems)
    masks = _without_suffixes(_by_id(discover.child(root, "masks"), problems), found)
    for name in sorted(found.keys() - masks.keys(), key=discover.natural_key):
        problems.add(f"{found[name]}: has no mask in masks/; add it, or move the image away")
    for name in sorted(masks.keys() - found.keys(), key=discover.natural_key):
        problems.add(f"{masks[name]}: has no image in images/; add it, or move the mask away")
    both = sorted(found.keys() & masks.keys(), key=discover.natural_key)
    if not both and not problems.found:
        problems.add(f"{root}: images/ and masks/ hold no images")
    digits = max([4, *(len(name) for name in both if name.isdigit())])
    prefix = discover.slug(dataset)
    return [
        Pair(f"{prefix}_{name.zfill(digits) if name.isdigit() else name}", found[name], masks[name]) for name in both
    ]


def _by_id(folder: Path, problems: Problems) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in discover.walk(folder):
        if path.suffix.lower() not in images.EXTENSIONS:
            continue
        name = discover.slug(path.stem)
        name = name.lstrip("0") or "0" if name.isdigit() else name
        if not name:
            problems.add(f"{path}: its name has no letter or digit of ASCII; rename it")
        elif name in found:
            problems.add(f"{path}: has the same id as {found[name]} ({name}); keep one of them")
        else:
            found[name] = path
    return found


def _without_suffixes(masks: dict[str, Path], wanted: Iterable[str]) -> dict[str, Path]:
    """Masks by the id of their image: `7_mask.png` is the mask of `7.png` unless there is an image `7_mask`."""
    wanted = set(wanted)
    plain = {}
    for name, path in masks.items():
        cut = next((name.removesuffix(s) for s in MASK_SUFFIXES if name.endswith(s)), name)
        cut = cut.lstrip("0") or "0" if cut.isdigit() else cut
        plain[name if name in wanted or cut not in wanted or cut in masks else cut] = path
    return plain


def _read(root: Path, part: str, pair: Pair, dataset: str, classes: list[str]) -> Sample:
    image_bytes, mask_bytes = read_bytes(pair.image), read_bytes(pair.mask)
    try:
        image = images.check_image(image_bytes)
    except ValueError as error:
        raise BadFile(f"{pair.image}: {error}; replace it") from error
    try:
        raw = images.read_mask(mask_bytes)
        mask, rule = class_ids(raw, len(classes))
    except ValueError as error:
        raise BadFile(f"{pair.mask}: {error}") from error
    height, width = mask.shape
    if (image.height, image.width) != (height, width):
        raise BadFile(
            f"{pair.mask}: is {width} x {height}, its image {pair.image.name} is {image.width} x {image.height}; "
            "give them one size"
        )
    pixels = count_pixels(mask, len(classes))
    relative = {path: path.relative_to(root).as_posix() for path in (pair.image, pair.mask)}
    source_sha = sha256(image_bytes)
    meta = {
        "id": pair.key,
        "dataset": dataset,
        "part": part,
        "case_id": pair.key,
        "group_id": f"sha256:{source_sha[:16]}",  # equal only for images that are the same file
        "orig_path": relative[pair.image],
        "orig_sha256": source_sha,
        "orig_size": [height, width],
        "orig_mode": image.mode,
        "image_note": image.note,
        "mask_rule": rule,
        "classes_present": [int(c) for c in np.flatnonzero(pixels)],
        "spacing_mm": None,
        "labeled": True,
    }
    members = {image.kind: image.data, "mask.png": images.encode_png(mask)}
    sources = {relative[pair.image]: source_sha, relative[pair.mask]: sha256(mask_bytes)}
    return Sample(pair.key, members, meta, sources, (height, width), pixels)


def class_ids(raw: images.RawMask, num_classes: int) -> tuple[NDArray[np.uint8], str]:
    """Class ids (H, W) from stored values, with the rule that was used; ValueError for values of no known meaning.

    Two classes: {0, 1}, {0, 255}, or the grey of a JPEG (or of a resampled JPEG stored in a PNG), cut at 127.
    More classes: the values must be the ids.
    """
    values = raw.values
    histogram = np.bincount(values.ravel(), minlength=256)
    present = np.flatnonzero(histogram)
    if num_classes > 2:
        if present[-1] >= num_classes:
            raise ValueError(f"mask values {_show(histogram)}; with these --classes they must be 0..{num_classes - 1}")
        return values.astype(np.uint8), "value"
    if not raw.lossy and present[-1] <= 1:
        return values.astype(np.uint8), "value"
    if not (set(present.tolist()) <= {0, 255} or _is_blurred_binary(histogram, raw.lossy)):
        raise ValueError(
            f"mask values {_show(histogram)}; a binary mask has 0 and 255 (or 0 and 1); for more classes give --classes"
        )
    return (values > 127).astype(np.uint8), "value > 127"


def _is_blurred_binary(histogram: NDArray[np.int64], lossy: bool) -> bool:
    """Whether nearly all pixels lie at the ends, with the spread of values that JPEG compression leaves.

    The sure sign of class ids instead: few distinct values. On ClinicDB at 256 px at most 8 % of a mask lie between.
    """
    if len(histogram) > 256:
        return False
    between = histogram[32:224].sum() / histogram.sum()
    if lossy:
        return bool(between <= 0.2)
    spread = np.count_nonzero(histogram) >= 32
    return bool(spread and between <= 0.1 and histogram[248:].sum() > histogram[8:248].sum())


def _show(histogram: NDArray[np.int64]) -> str:
    """`{0: 93.1 %, 7: 5.2 %, 255: 1.7 %}`: the six most frequent values, in order."""
    top = np.sort(np.argsort(-histogram, kind="stable")[: min(6, np.count_nonzero(histogram))])
    shares = ", ".join(f"{value}: {100 * histogram[value] / histogram.sum():.2g} %" for value in top)
    left = np.count_nonzero(histogram) - len(top)
    return f"{{{shares}{f', {left} more' if left else ''}}}"
