"""Classification: `train/<class>/*` and `val/<class>/*` or `test/<class>/*` (torchvision's ImageFolder).

A class's number is the rank of its name among the sorted names in `train/`, for ImageNet's wnids as for any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rwkvctl.data import discover, images
from rwkvctl.data.discover import Problems
from rwkvctl.data.formats.base import BadFile, Options, Plan, Sample, read_bytes, sha256
from rwkvctl.data.splits import Split
from rwkvctl.data.writer import Limits
from rwkvctl.errors import UserError

SPLIT = "official"
SHUFFLE = "rwkv-data/1 shuffle"
"""Fixes the one global shuffle of every part: class-ordered shards would destroy the mixing of SGD."""


@dataclass(frozen=True)
class Item:
    """An image file and its class number."""

    path: Path
    label: int


def plan(sources: Sequence[Path], options: Options, problems: Problems) -> Plan:
    """List the images of every part by class; classes must be the same everywhere."""
    if len(sources) != 1:
        raise UserError(f"format imagefolder takes one --source, {len(sources)} were given")
    if options.classes:
        raise UserError("--classes: imagefolder takes its classes from the folders of train/; leave it out")
    root = discover.find_root(sources[0], ("train",), "train/ folder")
    folders = {p.name.lower(): p for p in discover.subfolders(root) if p.name.lower() in ("train", "val", "test")}
    if len(folders) < 2:
        raise UserError(f"{root}: has train/ but neither val/ nor test/; add one, with the same class folders")
    classes = sorted(p.name for p in discover.subfolders(folders["train"]))
    if len(classes) < 2:
        raise UserError(f"{folders['train']}: {len(classes)} class folders; at least two are needed")
    parts = {name: _list(folders[name], classes, problems) for name in ("train", "val", "test") if name in folders}
    shuffled = {name: sorted(items, key=lambda item: _shuffle_key(root, item)) for name, items in parts.items()}

    def read(part: str, item: Item) -> Sample:
        return _read(root, part, item, options.dataset, classes)

    return Plan(
        form="imagefolder",
        task="classification",
        classes=classes,
        image_kind="rgb8",
        parts=shuffled,  # type: ignore[arg-type]
        read=read,
        make_splits=_make_splits,
        limits=Limits(samples=1251, bytes=140 << 20),
    )


def _make_splits(ids: Mapping[str, Sequence[str]]) -> dict[str, Split]:
    """One held-out part serves as val and test both; it says so in its rule."""
    held_out = {part: list(ids[part]) for part in ("val", "test") if part in ids}
    only = next(iter(held_out))
    rule = "the source's folders" if len(held_out) == 2 else f"the source's folders; {only}/ is both val and test"
    val, test = held_out.get("val", held_out[only]), held_out.get("test", held_out[only])
    return {SPLIT: Split(rule, {"train": list(ids["train"]), "val": val, "test": test})}


def _list(folder: Path, classes: list[str], problems: Problems) -> list[Item]:
    items: list[Item] = []
    own = {p.name: p for p in discover.subfolders(folder)}
    for name in sorted(own.keys() - set(classes)):
        problems.add(f"{own[name]}: train/ has no class {name!r}; add it there or remove this folder")
    for label, name in enumerate(classes):
        found = [p for p in discover.walk(own[name]) if p.suffix.lower() in images.EXTENSIONS] if name in own else []
        items += [Item(path, label) for path in found]
        if not found and folder.name.lower() == "train":
            problems.add(f"{folder / name}: holds no images; add some or remove the class")
    if not items:
        problems.add(f"{folder}: holds no images of the classes in train/")
    return items


def _shuffle_key(root: Path, item: Item) -> bytes:
    """Sorting by a hash of the path is a shuffle that adding a file does not disturb."""
    path = item.path.relative_to(root).as_posix()
    return hashlib.sha256(f"{SHUFFLE}\0{path}".encode()).digest()


def _read(root: Path, part: str, item: Item, dataset: str, classes: list[str]) -> Sample:
    data = read_bytes(item.path)
    try:
        image = images.check_image(data)
    except ValueError as error:
        raise BadFile(f"{item.path}: {error}; replace it") from error
    relative = item.path.relative_to(root).as_posix()
    digest = sha256(data)
    path_hash = hashlib.sha256(relative.encode()).hexdigest()[:10]  # equal names in two folders, odd characters
    stem = discover.slug(item.path.stem)[:60]
    key = f"{part}_c{item.label:04d}_{stem}_{path_hash}"
    meta = {
        "id": key,
        "dataset": dataset,
        "part": part,
        "group_id": f"sha256:{digest[:16]}",
        "orig_path": relative,
        "orig_sha256": digest,
        "orig_size": [image.height, image.width],
        "orig_mode": image.mode,
        "image_note": image.note,
        "class": classes[item.label],
        "labeled": True,
    }
    members = {"cls": str(item.label).encode(), image.kind: image.data}
    return Sample(key, members, meta, {relative: digest}, (image.height, image.width))
