"""All images of a data set, or of each of its parts, in one array, and a class for each in another, as MedMNIST's
`.npz` has `train_images` (N, H, W[, 3]) and `train_labels` (N, 1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import grouping, stack_axes, stack_labels, stacks
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats import class_folders, stacked
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.imagefolder import photo
from rwkvctl.data.convert.formats.photos import LIMITS, Photo, PhotoReader, official_splits, shuffled
from rwkvctl.data.convert.sources import Source
from rwkvctl.data.convert.stacks import Found, Stacked
from rwkvctl.data.convert.suggestion import Suggestion
from rwkvctl.data.store.splits import Split, parse_ratio

DATASET = Dataset(
    name="stackedclasses",
    title="any images stacked in one array, with their classes in another",
    task="classification",
    classes=(),
    expected={},
    forms={
        "npz": "train_images (N, H, W[, 3]) and train_labels (N,), (N, 1) or (N, K), val_images, ... (MedMNIST)",
        "npy": "X_train.npy and y_train.npy; images.npy and labels.npy",
        "hdf5": "one .h5 with images and labels, or a file a part",
    },
    licence="your own",
    access="your own files",
    options=("ratio", "groups", "seeds", "classes", "range", "inside", "axes"),
)
_MOST_CLASSES = 0.5
"""More classes than this share of the images are no classes."""


def recognise(source: Source) -> str | None:
    found = stacks.recognised(source)
    if found is None or not _are_labels(found):
        return None
    own = found.largest
    return stacked.form_of(own) if len(own.image.shape) > 3 or own.image.shape[0] == own.label.shape[0] else None


def _are_labels(found: Found) -> bool:
    return all(len(own.label.shape) in (1, 2) for own in found.sets)


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Every image is a sample of the part that the name of its array says."""
    parse_ratio(options.ratio or "8:1:1")  # said before anything is read
    found = stacks.in_source(source, options.inside)
    if not _are_labels(found):
        raise UserError(f"{found.sets[0].label}: has masks, not classes; data prepare stacked takes them")
    if options.groups not in (None, grouping.NONE):
        raise UserError(f"--groups {options.groups}: images of a stack have no names; leave it out")
    sets = [_with_axes(source, own, options.axes) for own in found.sets]
    labels = {own.words: stack_labels.numbers(own.label, own.image.count) for own in sets}
    classes, id_of = _classes(sets[0], [one for own in labels.values() for one in own], options)
    parts: dict[str, list[Photo]] = {}
    for own in sets:
        part = own.part if own.part and found.has_split else "all"
        of_group = stacked.groups_in(own, options)
        for number, label in enumerate(labels[own.words]):
            file = own.image.element(number, "picture")
            made = photo(file, file.path, part, id_of[label])
            parts.setdefault(part, []).append(replace(made, group=of_group[number]) if of_group else made)
    label_of = {own.key: own.label for photos in parts.values() for own in photos}

    def drawn(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        return class_folders.splits(ids["all"], label_of, groups, options.ratio, options.seeds)

    return Plan(
        form=stacked.form_of(sets[0]),
        task="classification",
        classes=classes,
        image_kind="rgb8",
        parts={part: shuffled(photos) for part, photos in parts.items()},
        read=PhotoReader(options.dataset, tuple(classes)),
        make_splits=official_splits if found.has_split else drawn,
        warnings=list(found.notes),
        limits=dict.fromkeys(parts, LIMITS),
    )


def _with_axes(source: Source, own: Stacked, given: str | None) -> Stacked:
    image, label = (stacks.placed(source, stack) for stack in (own.image, own.label))
    ways = [given] if given else stack_axes.of_images(image.shape)
    if not ways or (given and (sorted(given) not in (sorted("nyx"), sorted("nyxc")) or len(given) != len(image.shape))):
        raise UserError(
            f"{image}: has shape {image.shape}; images with a class each are (N, H, W), or have 1 or 3 channels, which "
            "--axes nyxc or ncyx says; volumes with a class each are not taken"
        )
    if len(ways) > 1:
        raise UserError(f"{image}: which axis of {image.shape} is of channels is yours to say: --axes nyxc or ncyx")
    image = replace(image, axes=ways[0])
    if image.size("c") not in (1, stack_axes.COLOURS):
        raise UserError(f"{image}: has {image.size('c')} channels; images with a class each have 1 or 3")
    groups = own.groups and stacks.placed(source, own.groups)
    return replace(own, image=image, label=label, groups=groups)


def _classes(own: Stacked, labels: Sequence[int], options: Options) -> tuple[list[str], dict[int, int]]:
    """Names by class id, which is the rank of a label, and class id by label; `--classes` names 0, 1, 2, ..."""
    there = sorted(set(labels))
    if len(there) > max(2, _MOST_CLASSES * len(labels)):
        raise UserError(f"{own.label}: has {len(there)} different labels of {len(labels)} images, which are no classes")
    if options.classes:
        names = list(options.classes)
        if there[0] < 0 or there[-1] >= len(names):
            raise UserError(
                f"--classes: names {len(names)}, {own.label} has labels {there[0]} to {there[-1]}; name all"
            )
        return names, {label: label for label in there}
    if len(there) < 2:
        raise UserError(f"{own.label}: has one label alone, {there[0]}; at least two classes are needed")
    return [str(label) for label in there], {label: number for number, label in enumerate(there)}


def suggest(source: Source) -> Suggestion | None:
    """The range of images of floats, and that classes are called by their numbers."""
    found = stacks.recognised(source)
    if found is None:
        return None
    try:
        images = [_with_axes(source, own, None).image for own in found.sets]
    except UserError:
        return Suggestion({})
    own = stacked.range_of(images)
    named = "classes are called by their numbers; --classes a,b,c names them, 0 first"
    return Suggestion(own.choices, "; ".join(filter(None, (named, own.question))))
