"""What the formats of classification share: an image file and its class become one sample."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.formats.base import Sample, sha256
from rwkvctl.data.convert.sources import RawFile
from rwkvctl.data.images import deep, looks
from rwkvctl.data.images import files as image_files
from rwkvctl.data.store.splits import Split, fixed
from rwkvctl.data.store.writer import Limits

SPLIT = "official"
SHUFFLE = "rwkv-data/1 shuffle"
"""Fixes the one global shuffle of every part: class-ordered shards would destroy the mixing of SGD."""
LIMITS = Limits(samples=1251, bytes=140 << 20)


@dataclass(frozen=True, slots=True)
class Photo:
    """An image file and its class number; `path` is its place in the data set, whatever the source is packed in."""

    key: str
    file: RawFile
    path: str
    label: int
    group: str | None = None

    @property
    def files(self) -> tuple[RawFile]:
        return (self.file,)


def shuffled(photos: Iterable[Photo]) -> list[Photo]:
    """Sorting by a hash of the path is a shuffle that adding a file does not disturb."""
    return sorted(photos, key=lambda photo: hash_of(photo.path))


def hash_of(text: str) -> bytes:
    return hashlib.sha256(f"{SHUFFLE}\0{text}".encode()).digest()


@dataclass(frozen=True)
class PhotoReader:
    """`Plan.read` for photos; `window` as in `pairs.PairReader`."""

    dataset: str
    classes: tuple[str, ...]
    window: deep.Range | None = None

    def __call__(self, part: str, photo: Photo) -> Sample:
        return self.sample(part, photo.key, photo.path, photo.label, photo.file.read(), photo.file, photo.group)

    def sample(
        self, part: str, key: str, path: str, label: int, data: bytes, shown: object, group: str | None = None
    ) -> Sample:
        """The sample of an image's bytes; `shown` names them in messages, `group` is its patient or the like."""
        try:
            image = image_files.check_image(data, window=self.window)
        except ValueError as error:
            raise BadFile(f"{shown}: {error}; replace it") from error
        notes = [image.note] if image.note else []
        if image_files.TO_8_BITS in image.note and looks.has_few_levels(image.grey):
            notes.append(looks.FEW_LEVELS)
        digest = sha256(data)
        meta = {
            "id": key,
            "dataset": self.dataset,
            "part": part,
            "group_id": group or f"sha256:{digest[:16]}",
            "orig_path": path,
            "orig_sha256": digest,
            "orig_size": [image.height, image.width],
            "orig_mode": image.mode,
            "image_note": "; ".join(notes),
            "class": self.classes[label],
            "labeled": True,
            "phash": looks.perceptual_hash(image.grey),
        }
        members = {"cls": str(label).encode(), image.kind: image.data}
        return Sample(key, members, meta, {path: digest}, (image.height, image.width))


def official_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
    """The source's own parts. One held-out part serves as val and test both; the rule says so."""
    held_out = {part: ids[part] for part in ("val", "test") if part in ids}
    only = next(iter(held_out))
    rule = "the source's parts" if len(held_out) == 2 else f"the source's parts; {only} is both val and test"
    val, test = held_out.get("val", held_out[only]), held_out.get("test", held_out[only])
    return {SPLIT: fixed(rule, train=ids["train"], val=val, test=test)}
