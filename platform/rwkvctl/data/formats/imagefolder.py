"""Classification: `train/<class>/*` and `val/<class>/*` or `test/<class>/*` (torchvision's ImageFolder).

A class's number is the rank of its name among the sorted names in `train/`, for ImageNet's wnids as for any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rwkvctl.data import discover, images
from rwkvctl.data.discover import Problems, relative
from rwkvctl.data.formats.base import BadFile, Dataset, Options, Plan, Sample, sha256
from rwkvctl.data.sources import RawFile, Source
from rwkvctl.data.splits import Split, fixed
from rwkvctl.data.writer import Limits
from rwkvctl.errors import UserError

DATASET = Dataset(
    name="imagefolder",
    title="any classes as folders of images",
    task="classification",
    classes=(),
    expected={},
    forms={"imagefolder": "train/CLASS/* and val/CLASS/* or test/CLASS/*"},
    licence="your own",
    access="your own files",
)
SPLIT = "official"
SHUFFLE = "rwkv-data/1 shuffle"
"""Fixes the one global shuffle of every part: class-ordered shards would destroy the mixing of SGD."""
LIMITS = Limits(samples=1251, bytes=140 << 20)


@dataclass(frozen=True)
class Item:
    """An image file and its class number; `path` is its place below the root, `part` its shards'."""

    file: RawFile
    path: str
    part: str
    label: int

    @property
    def key(self) -> str:
        path_hash = hashlib.sha256(self.path.encode()).hexdigest()[:10]  # equal names in two folders, odd characters
        stem = discover.slug(self.file.stem)[:60]
        return f"{self.part}_c{self.label:04d}_{stem}_{path_hash}"

    @property
    def files(self) -> tuple[RawFile]:
        return (self.file,)


def recognise(source: Source) -> str | None:
    try:
        root = discover.find_root(source, ("train",), "train/ folder")
    except UserError:
        return None
    parts = _parts(source, root)
    classes = source.subfolders(parts["train"])
    images_inside = any(file.suffix in images.EXTENSIONS for file in source.below(classes[0])) if classes else False
    return "imagefolder" if len(parts) > 1 and len(classes) > 1 and images_inside else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """List the images of every part by class; classes must be the same everywhere."""
    root = discover.find_root(source, ("train",), "train/ folder")
    folders = _parts(source, root)
    if len(folders) < 2:
        raise UserError(f"{source}: has train/ but neither val/ nor test/; add one, with the same class folders")
    classes = sorted(_name(path) for path in source.subfolders(folders["train"]))
    if len(classes) < 2:
        raise UserError(f"{source}: {len(classes)} class folders in train/; at least two are needed")
    parts: dict[str, Sequence[Item]] = {
        name: sorted(_list(source, root, name, folders[name], classes, problems), key=_shuffle_key)
        for name in ("train", "val", "test")
        if name in folders
    }
    return Plan(
        form="imagefolder",
        task="classification",
        classes=classes,
        image_kind="rgb8",
        parts=parts,
        read=ImageReader(options.dataset, tuple(classes)),
        make_splits=_make_splits,
        limits=dict.fromkeys(parts, LIMITS),
    )


def _parts(source: Source, root: str) -> dict[str, str]:
    found = {_name(path).lower(): path for path in source.subfolders(root)}
    return {name: found[name] for name in ("train", "val", "test") if name in found}


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
    """One held-out part serves as val and test both; it says so in its rule."""
    held_out = {part: ids[part] for part in ("val", "test") if part in ids}
    only = next(iter(held_out))
    rule = "the source's folders" if len(held_out) == 2 else f"the source's folders; {only}/ is both val and test"
    val, test = held_out.get("val", held_out[only]), held_out.get("test", held_out[only])
    return {SPLIT: fixed(rule, train=ids["train"], val=val, test=test)}


def _list(source: Source, root: str, part: str, folder: str, classes: list[str], problems: Problems) -> list[Item]:
    own = {_name(path): path for path in source.subfolders(folder)}
    for name in sorted(own.keys() - set(classes)):
        problems.add(f"{source}: {own[name]}: train/ has no class {name!r}; add it there or remove this folder")
    number_of = {name: number for number, name in enumerate(classes)}
    items: list[Item] = []
    for file in source.below(folder):
        name = file.path[len(folder) + 1 :].partition("/")[0]
        if file.suffix in images.EXTENSIONS and name in number_of:
            items.append(Item(file, relative(file, root), part, number_of[name]))
    if part == "train":
        for label in sorted(set(range(len(classes))) - {item.label for item in items}):
            problems.add(f"{source}: {folder}/{classes[label]}: holds no images; add some or remove the class")
    if not items:
        problems.add(f"{source}: {folder}: holds no images of the classes in train/")
    return items


def _shuffle_key(item: Item) -> bytes:
    """Sorting by a hash of the path is a shuffle that adding a file does not disturb."""
    return hashlib.sha256(f"{SHUFFLE}\0{item.path}".encode()).digest()


@dataclass(frozen=True)
class ImageReader:
    """`Plan.read` for images with a class."""

    dataset: str
    classes: tuple[str, ...]

    def __call__(self, part: str, item: Item) -> Sample:
        data = item.file.read()
        try:
            image = images.check_image(data)
        except ValueError as error:
            raise BadFile(f"{item.file}: {error}; replace it") from error
        digest = sha256(data)
        meta = {
            "id": item.key,
            "dataset": self.dataset,
            "part": part,
            "group_id": f"sha256:{digest[:16]}",
            "orig_path": item.path,
            "orig_sha256": digest,
            "orig_size": [image.height, image.width],
            "orig_mode": image.mode,
            "image_note": image.note,
            "class": self.classes[item.label],
            "labeled": True,
        }
        members = {"cls": str(item.label).encode(), image.kind: image.data}
        return Sample(item.key, members, meta, {item.path: digest}, (image.height, image.width))
