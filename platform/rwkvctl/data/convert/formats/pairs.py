"""What the simple 2-D formats share: an image with its mask, or several, or none, becomes one sample."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.discover import relative
from rwkvctl.data.convert.formats.base import Dataset, MakeSplits, Options, Plan, Sample, count_pixels, sha256
from rwkvctl.data.convert.sources import RawFile
from rwkvctl.data.images import deep, looks, masks
from rwkvctl.data.images import files as image_files

IGNORED = 255  # in masks, at any number of classes
OVERLAP = "masks of several classes overlap, the later class was taken"
SAME_ASPECT = 0.01
"""A mask whose sides are in the image's ratio, up to this share, is the same picture at another resolution."""

MOST_GREY = 0.2
"""No binary mask has a larger share of pixels from 32 to 223. JPEG leaves up to 8 % on ClinicDB at 256 px."""


@dataclass(frozen=True)
class Pair:
    """An image and its masks (their union is taken; none means unlabeled) that become the sample `key`.

    group: what must not be torn apart by a split (patient, sequence, video); meta: more for the sample's json; layers:
    where each mask is of one class, its class id, as many as there are masks; others: files with further channels of
    the image.
    """

    key: str
    image: RawFile
    masks: tuple[RawFile, ...] = ()
    group: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    others: tuple[RawFile, ...] = ()

    @property
    def files(self) -> tuple[RawFile, ...]:
        return self.image, *self.others, *self.masks


def numbered(prefix: str, name: str, digits: int = 4) -> str:
    """The key of a sample: numbers are padded, so that keys sort like their numbers."""
    return f"{prefix}_{name.zfill(digits) if name.isdigit() else name}"


# How a mask is read -------------------------------------------------------------------------------------------------


class Mask(NamedTuple):
    """Class ids (H, W), the rule that gave them, for single objects their numbers (H, W), and what is odd about it."""

    ids: NDArray[np.uint8]
    rule: str
    instances: NDArray[np.uint16] | None = None
    note: str = ""


ReadMask = Callable[[bytes], Mask]
"""A mask file's content -> ids; ValueError for what is not such a mask. It must be picklable."""


@dataclass(frozen=True)
class Above:
    """Two classes: what is brighter than `threshold` is foreground; masks of one bit are what they are.

    Class ids instead of black and white, or a grey picture, are an error: the threshold would make nothing of them.
    """

    threshold: int = 127

    def __call__(self, data: bytes) -> Mask:
        raw = masks.read_mask(data)
        values = raw.values
        if raw.mode == "1":
            return Mask(values.astype(np.uint8), "one bit")
        if values.dtype != np.uint8:
            raise ValueError("a 16-bit mask; an 8-bit one was expected")
        between = ((values >= 32) & (values < 224)).mean()
        if between > MOST_GREY or (not raw.lossy and 0 < values.max() < 32):
            raise ValueError(f"mask values {histogram(values)}; a binary mask has 0 and 255")
        return Mask((values > self.threshold).astype(np.uint8), self.rule)

    @property
    def rule(self) -> str:
        return f"value > {self.threshold}"


@dataclass(frozen=True)
class Levels:
    """Each class has one stored value; another value is an error (a resampled or foreign mask)."""

    ids: tuple[tuple[int, int], ...]  # (stored value, class id)

    def __call__(self, data: bytes) -> Mask:
        raw = masks.read_mask(data)
        table = np.full(1 << 16, 256, np.int32)
        for value, class_id in self.ids:
            table[value] = class_id
        found = table[raw.values]
        if (found == 256).any() and raw.indices is not None:
            found = table[raw.indices]
        if (found == 256).any():
            levels = ", ".join(str(value) for value, _ in self.ids)
            raise ValueError(f"mask values {histogram(raw.values)}; only {levels} are known")
        return Mask(found.astype(np.uint8), self.rule)

    @property
    def rule(self) -> str:
        return "value " + ", ".join(f"{value}: {class_id}" for value, class_id in self.ids)


def histogram(values: NDArray[Any]) -> str:
    """`{0: 93.1 %, 7: 5.2 %, 255: 1.7 %}`: the six most frequent values, in order."""
    counts = np.bincount(values.ravel())
    top = np.sort(np.argsort(-counts, kind="stable")[: min(6, np.count_nonzero(counts))])
    shares = ", ".join(f"{value}: {100 * counts[value] / counts.sum():.2g} %" for value in top)
    left = np.count_nonzero(counts) - len(top)
    return f"{{{shares}{f', {left} more' if left else ''}}}"


# From pairs to samples ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairReader:
    """`Plan.read` for pairs. Paths are recorded relative to `root`, a folder in the source.

    window: the range of the data set's images of more than 8 bits, see `convert.pixel_range`.
    """

    dataset: str
    num_classes: int
    read_mask: ReadMask
    root: str = ""
    max_side: int | None = None
    advice: str = ""
    """What else helps against a further mask of another size."""
    window: deep.Range | None = None

    def __call__(self, part: str, pair: Pair) -> Sample:
        image_bytes = pair.image.read()
        try:
            image = image_files.check_image(image_bytes, self.max_side, self.window)
        except ValueError as error:
            raise BadFile(f"{pair.image}: {error}; replace it") from error
        source_sha = sha256(image_bytes)
        sources = {relative(pair.image, self.root): source_sha}
        members: dict[str, bytes] = {image.kind: image.data}
        notes = [image.note] if image.note else []
        if looks.has_few_levels(image.grey):
            notes.append(looks.FEW_LEVELS)
        meta = {
            "id": pair.key,
            "dataset": self.dataset,
            "part": part,
            "case_id": pair.key,
            "group_id": pair.group or f"sha256:{source_sha[:16]}",  # equal only for images that are the same file
            "orig_path": relative(pair.image, self.root),
            "orig_sha256": source_sha,
            "orig_size": [image.height, image.width],
            "orig_mode": image.mode,
            "spacing_mm": None,
            "labeled": bool(pair.masks),
            "phash": looks.perceptual_hash(image.grey),
            **pair.meta,
        }
        pixels = None
        if pair.masks:
            mask, more = self.mask_of(pair, (image.height, image.width), sources, notes)
            members |= {"mask.png": image_files.encode_png(mask.ids)} | more
            pixels = count_pixels(mask.ids, self.num_classes)
            meta |= {"mask_rule": mask.rule, "classes_present": [int(c) for c in np.flatnonzero(pixels)]}
        meta["image_note"] = "; ".join(notes)
        return Sample(pair.key, members, meta, sources, (image.height, image.width), pixels)

    def mask_of(
        self, pair: Pair, size: image_files.Size, sources: dict[str, str], notes: list[str]
    ) -> tuple[Mask, dict[str, bytes]]:
        """The union of the pair's masks at the image's size, and the instances as a member of their own. `notes` has
        what was noted of the image, and gets what is to be noted of the masks."""
        found = []
        for number, file in enumerate(pair.masks):
            data = file.read()
            sources[relative(file, self.root)] = sha256(data)
            try:
                mask = self.read_mask(data)
            except ValueError as error:
                raise BadFile(f"{file}: {error}") from error
            if mask.note and mask.note not in notes:
                notes.append(mask.note)
            if pair.layers:
                mask = mask._replace(ids=np.where(mask.ids == 1, pair.layers[number], mask.ids).astype(np.uint8))
            above = looks.counts_of(mask.ids)[self.num_classes : IGNORED]
            if above.any():
                highest = self.num_classes + int(np.flatnonzero(above)[-1])
                raise BadFile(f"{file}: class {highest}, there are {self.num_classes} classes")
            found.append(self._fitted(mask, file, pair, size, notes))
        whole = found[0]
        if len(found) > 1:
            whole = whole._replace(ids=np.maximum.reduce([mask.ids for mask in found]))
        if pair.layers and np.any(np.sum([mask.ids > 0 for mask in found], axis=0) > 1):
            notes.append(OVERLAP)
        instances = found[0].instances if len(found) == 1 else None
        if odd := masks.oddity(whole.ids):
            notes.append(odd)
        return whole, {} if instances is None else {"inst.png": image_files.encode_png(instances)}

    def _fitted(self, mask: Mask, file: RawFile, pair: Pair, size: image_files.Size, notes: list[str]) -> Mask:
        """The mask at the image's size. Another size is accepted only if it shows the same picture."""
        if mask.ids.shape == size:
            return mask
        (height, width), own = size, mask.ids.shape
        if abs(own[1] / own[0] - width / height) > SAME_ASPECT * width / height:
            raise BadFile(
                f"{file}: is {own[1]} x {own[0]}, its image {pair.image.name} is {width} x {height}; "
                f"give them one size{self.advice if file is not pair.masks[0] else ''}"
            )
        if not any(note.startswith(image_files.SHRUNK) for note in notes):
            notes.append("mask resized to its image")
        instances = None if mask.instances is None else image_files.resize_nearest(mask.instances, *size)
        return Mask(image_files.resize_nearest(mask.ids, *size), mask.rule, instances)


def pairs_plan(
    dataset: Dataset,
    options: Options,
    form: str,
    parts: Mapping[str, Sequence[Pair]],
    read_mask: ReadMask,
    make_splits: MakeSplits,
    *,
    root: str | None = None,
    mask_rule: str | None = None,
    warnings: Sequence[str] = (),
    excluded: Sequence[dict[str, str]] = (),
    advice: str = "",
) -> Plan:
    """The plan of a 2-D segmentation data set, whose images are kept in 8 bits.

    root: the folder that recorded paths are relative to; by default the one that holds all files.
    """
    if root is None:
        folders = [file.parent for pairs in parts.values() for pair in pairs for file in pair.files]
        root = posixpath.commonpath(folders) if folders else ""
    classes = options.classes or dataset.classes
    return Plan(
        form=form,
        task="segmentation",
        classes=classes,
        image_kind="rgb8",
        parts=parts,
        read=PairReader(options.dataset, len(classes), read_mask, root, options.max_side, advice=advice),
        make_splits=make_splits,
        mask_rule=mask_rule or getattr(read_mask, "rule", None),
        warnings=list(warnings),
        excluded=list(excluded),
    )
