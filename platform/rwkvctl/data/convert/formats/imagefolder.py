"""Classification: `train/<class>/*` and `val/<class>/*` or `test/<class>/*` (torchvision's ImageFolder); or `<class>/*`
without parts, which are drawn.

A class's number is the rank of its name among the sorted names in `train/`, for ImageNet's wnids as for any other.
"""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import discover, grouping
from rwkvctl.data.convert.discover import Problems, relative
from rwkvctl.data.convert.formats import class_folders, class_masks
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.photos import LIMITS, Photo, PhotoReader, official_splits, shuffled
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.images import files as image_files
from rwkvctl.data.store.splits import Split

DATASET = Dataset(
    name="imagefolder",
    title="any classes as folders of images",
    task="classification",
    classes=(),
    expected={},
    forms={
        "imagefolder": "train/CLASS/* and val/CLASS/* or test/CLASS/*",
        "classes": "CLASS/* for every class, or train/CLASS/* alone; the parts are drawn",
    },
    licence="your own",
    access="your own files",
    options=("groups", "range", "ratio", "seeds"),
)


def recognise(source: Source) -> str | None:
    try:
        root = discover.find_root(source, ("train",), "train/ folder")
    except UserError:
        return "classes" if class_folders.are_classes(source) else None
    parts = _parts(source, root)
    classes = source.subfolders(parts["train"])
    images_inside = (
        any(file.suffix in image_files.EXTENSIONS for file in source.below(classes[0])) if classes else False
    )
    return "imagefolder" if len(parts) > 1 and len(classes) > 1 and images_inside else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """List the images of every part by class; classes must be the same everywhere."""
    root, folders = _layout(source)
    first = next(iter(folders))
    if first == "train" and (options.ratio or options.seeds):
        raise UserError(f"{source}: has parts of its own ({', '.join(folders)}); leave out --ratio and --seed")
    classes = sorted(_name(path) for path in source.subfolders(folders[first]))
    if len(classes) < 2:
        raise UserError(f"{source}: {len(classes)} class folders in {folders[first]}/; at least two are needed")
    parts: dict[str, Sequence[Photo]] = {
        name: shuffled(_list(source, root, name, folders[name], classes, problems)) for name in folders
    }
    notes: list[str] = []
    every = {photo.key: photo for photos in parts.values() for photo in photos}
    masks = class_masks.found((classes[photo.label], photo.file) for photo in every.values())
    if masks:
        line = f"rwkvctl data doctor {shlex.quote(str(source))} prints the line of data prepare pairs that pairs them"
        if masks.sure:
            raise UserError(f"{source}: holds images and their masks, not classes ({masks.example}); {line}")
        notes = [
            f"two classes have files of the same names, as images and masks do ({masks.example}); are they, {line}"
        ]
    stems = {key: photo.path.rpartition("/")[2].rpartition(".")[0] for key, photo in every.items()}
    found = grouping.proposed(stems, options.groups)
    if found and len(set(found.of.values())) > len(classes):  # else the names tell the class
        parts = {
            part: [replace(photo, group=found.of.get(photo.key)) for photo in photos] for part, photos in parts.items()
        }
    else:
        found = None

    def drawn(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        label_of = {key: every[key].label for key in ids["all"]}
        return class_folders.splits(ids["all"], label_of, groups, options.ratio, options.seeds)

    return Plan(
        form="imagefolder" if first == "train" else "classes",
        task="classification",
        classes=classes,
        image_kind="rgb8",
        parts=parts,
        read=PhotoReader(options.dataset, tuple(classes)),
        make_splits=official_splits if first == "train" else drawn,
        warnings=[*notes, *([found.note(splits=first != "train")] if found else [])],
        limits=dict.fromkeys(parts, LIMITS),
    )


def _layout(source: Source) -> tuple[str, dict[str, str]]:
    """The top, and the folders of the parts; of classes without parts the folder that has them, as `all`."""
    try:
        root = discover.find_root(source, ("train",), "train/ folder")
    except UserError:
        root = class_folders.root_of(source)
        return root, {"all": root}
    folders = _parts(source, root)
    return root, folders if len(folders) > 1 else {"all": folders["train"]}


def _parts(source: Source, root: str) -> dict[str, str]:
    found = {_name(path).lower(): path for path in source.subfolders(root)}
    return {name: found[name] for name in ("train", "val", "test") if name in found}


def _name(path: str) -> str:
    return path.rpartition("/")[2]


def _list(source: Source, root: str, part: str, folder: str, classes: list[str], problems: Problems) -> list[Photo]:
    own = {_name(path): path for path in source.subfolders(folder)}
    for name in sorted(own.keys() - set(classes)):
        problems.add(f"{source}: {own[name]}: train/ has no class {name!r}; add it there or remove this folder")
    number_of = {name: number for number, name in enumerate(classes)}
    items: list[Photo] = []
    for file in source.below(folder):
        name = relative(file, folder).partition("/")[0]
        if file.suffix in image_files.EXTENSIONS and name in number_of:
            items.append(photo(file, relative(file, root), part, number_of[name]))
    if part in ("train", "all"):
        for label in sorted(set(range(len(classes))) - {item.label for item in items}):
            problems.add(f"{source}: {folder}/{classes[label]}: holds no images; add some or remove the class")
    if not items:
        problems.add(f"{source}: {folder}: holds no images of the classes in train/")
    return items


def photo(file: RawFile, path: str, part: str, label: int) -> Photo:
    path_hash = hashlib.sha256(path.encode()).hexdigest()[:10]  # equal names in two folders, odd characters
    return Photo(f"{part}_c{label:04d}_{discover.slug(file.stem)[:40]}_{path_hash}", file, path, label)
