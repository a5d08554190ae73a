"""All images of a data set, or of each of its parts, in one array, and their masks in another: `.npy`, `.npz`, HDF5.

Each image becomes a sample as if it were a file of its own; see `convert.stacks` for the names that are understood.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.data.convert import discover, grouping, part_folders, stack_axes, stack_labels, stacks
from rwkvctl.data.convert.array_elements import Stack, chunks
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.channel_pairs import Settle
from rwkvctl.data.convert.formats.folder import ClassIds, mask_reader
from rwkvctl.data.convert.formats.pairs import Pair, pairs_plan
from rwkvctl.data.convert.sources import Source
from rwkvctl.data.convert.stacks import Found, Stacked
from rwkvctl.data.convert.suggestion import Suggestion, classes_of, joined
from rwkvctl.data.store.splits import DEFAULT_SEEDS, Split, grouped_splits, parse_ratio, random_splits

DATASET = Dataset(
    name="stacked",
    title="any images stacked in one array, with their masks in another",
    task="segmentation",
    classes=("background", "foreground"),
    expected={},
    forms={
        "npy": "data_train.npy (N, H, W[, 3]) and mask_train.npy (N, H, W); images.npy and masks.npy; X.npy and y.npy",
        "npz": "one .npz with images and masks, or train_images, train_masks, val_images, ...",
        "hdf5": "one .h5 with images and masks, or a file a part",
    },
    licence="your own",
    access="your own files",
    options=("ratio", "groups", "seeds", "classes", "class_table", "range", "inside", "axes"),
)
ENDING = 6
"""Digits of a sample's number, whatever the length of the stack."""


def recognise(source: Source) -> str | None:
    found = stacks.recognised(source)
    if found is None or not _are_masks(found):
        return None
    own = found.largest
    is_stack = own.image.shape[0] > 1 and (own.image.shape[0] != own.label.shape[0] or bool(_told(own)))
    return form_of(own) if is_stack or found.has_faults else None


def form_of(own: Stacked) -> str:
    if own.image.array:
        return "hdf5"
    return "npz" if own.image.file.parent.lower().endswith(".npz") else "npy"


def _are_masks(found: Found) -> bool:
    return all(len(own.label.shape) > 2 for own in found.sets)


def _told(own: Stacked) -> list[stack_axes.Axes]:
    return stack_axes.of_pair(own.image.shape, own.label.shape)


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Every image is a sample of the part that the name of its array says."""
    parse_ratio(options.ratio or "8:1:1")  # said before anything is read
    found = stacks.in_source(source, options.inside)
    if not _are_masks(found):
        raise UserError(f"{found.sets[0].label}: has labels, not masks; data prepare stackedclasses takes them")
    sets = [_with_axes(source, own, options.axes, len(found.parts) > 1) for own in found.sets]
    channels = {own.image.size("c") for own in sets}
    if len(channels) > 1:
        raise UserError(f"{sets[0].image}: has {sets[0].image.size('c')} channels, others have other numbers; give one")
    classes = _classes(sets, options)
    pairs = {own.words: list(_pairs(own, options)) for own in sets}
    every = [pair for own in pairs.values() for pair in own]
    part_of = {pair.key: own.part or "all" for own in sets for pair in pairs[own.words]}
    if not found.has_split:
        part_of = dict.fromkeys(part_of, "all")
    groups = _groups(every, options.groups)

    def make_splits(ids: Mapping[str, Sequence[str]], of: Mapping[str, str]) -> dict[str, Split]:
        if found.has_split:
            return {
                "given": part_folders.published(ids, of, (options.seeds or DEFAULT_SEEDS)[0], "the source's arrays")
            }
        random = random_splits(ids["all"], options.ratio, options.seeds)
        return (grouped_splits(ids["all"], of, options.ratio, options.seeds) if groups else {}) | random

    made = pairs_plan(
        DATASET,
        options,
        form_of(sets[0]),
        {part: [pair for pair in every if part_of[pair.key] == part] for part in dict.fromkeys(part_of.values())},
        ClassIds(len(classes)) if sets[0].label.planes else mask_reader(options, len(classes)),
        make_splits,
        root="",
        mask_rule="a plane a class" if sets[0].label.planes else None,
        warnings=[*found.notes, *([groups.note(splits=not found.has_split)] if groups else [])],
    )
    if (count := channels.pop()) not in (1, stack_axes.COLOURS):
        made.settle = Settle(tuple(f"channel {number}" for number in range(1, count + 1)))
    return made


def _with_axes(source: Source, own: Stacked, given: str | None, has_parts: bool) -> Stacked:
    """UserError where shapes do not fit, or leave open what they mean and the user does not say it."""
    image, label = (stacks.placed(source, stack) for stack in (own.image, own.label))
    if image.shape[0] != label.shape[0] and given is None:
        raise UserError(f"{image}: has {image.shape[0]} images {image.shape}, {label} {label.shape[0]}; give as many")
    if given is not None:
        axes = stack_axes.as_told(given, image.shape, label.shape)
        if axes is None:
            raise UserError(
                f"--axes {given}: does not fit {image} {image.shape} with {label} {label.shape}; n counts the images, "
                "y are rows, x columns, c channels, for example nyxc"
            )
    else:
        ways = _told(own)
        if not ways:
            raise UserError(
                f"{image}: has shape {image.shape}, {label} {label.shape}, which do not fit; give --axes nyxc"
            )
        axes = ways[0]
        if axes.question and not (has_parts and axes.image == "nyx"):
            raise UserError(f"{image}: {axes.question}; are they {axes.image}, say --axes {axes.image}")
    if "z" in axes.image:
        raise UserError(f"{image}: holds volumes {axes.image}; save each in a file, for data prepare arrays or pairs")
    image, label = replace(image, axes=axes.image), replace(label, axes=axes.label)
    groups = own.groups and stacks.placed(source, own.groups)
    try:
        return replace(own, image=image, label=stack_labels.described(label), groups=groups)
    except BadFile as error:
        raise UserError(str(error)) from error


def _classes(sets: Sequence[Stacked], options: Options) -> Sequence[str]:
    classes = options.classes or DATASET.classes
    if len(classes) < 2:
        raise UserError("--classes: name at least two, the background first")
    planes = {own.label.planes for own in sets}
    if len(planes) > 1:
        raise UserError(f"{sets[0].label}: has planes of other kinds than {sets[-1].label}; give both the same")
    highest = max(planes.pop(), default=0)
    if highest and len(classes) != highest + 1:
        raise UserError(
            f"--classes: {sets[0].label} has {sets[0].label.size('c')} planes; name {highest + 1} with the background"
        )
    return classes


def _pairs(own: Stacked, options: Options) -> Iterator[Pair]:
    names = ["_".join((*own.words, f"{number:0{ENDING}d}")) for number in range(own.image.count)]
    keys = discover.sample_keys(options.dataset, names, ENDING)
    groups = groups_in(own, options)
    count = own.image.size("c")
    channels = [None] if count in (1, stack_axes.COLOURS) else list(range(count))
    for number, name in enumerate(names):
        first, *others = (own.image.element(number, "picture", channel) for channel in channels)
        mask = own.label.element(number, "labels")
        yield Pair(keys[name], first, (mask,), groups[number] if groups else None, others=tuple(others))


def groups_in(own: Stacked, options: Options) -> list[str] | None:
    """Whose each image is, by an array beside it; None without one, and with `--groups`."""
    return stack_labels.texts(own.groups, own.image.count) if own.groups and options.groups is None else None


def _groups(pairs: Sequence[Pair], choice: str | None) -> grouping.Groups | None:
    """As an array of the source tells."""
    if choice not in (None, grouping.NONE):
        raise UserError(
            f"--groups {choice}: images of a stack have no names; an array called patient_ids with an entry an image "
            "tells whose each is, and none says that there are none"
        )
    named = {pair.key: pair.group for pair in pairs if pair.group}
    return grouping.Groups(named, "an array of the source") if named else None


# What doctor proposes -----------------------------------------------------------------------------------------------


def suggest(source: Source) -> Suggestion | None:
    """Axes, classes of planes, and the range of floats; None where they leave nothing to be planned."""
    found = stacks.recognised(source)
    if found is None:
        return None
    own = found.largest
    ways = _told(own)
    if not ways or own.image.shape[0] != own.label.shape[0] or "z" in ways[0].image:
        return Suggestion({})
    parts = []
    if ways[0].question and not (len(found.parts) > 1 and ways[0].image == "nyx"):
        parts.append(Suggestion({"axes": ways[0].image}, ways[0].question))
    try:
        laid = [_with_axes(source, each, ways[0].image, has_parts=True) for each in found.sets]
    except UserError:  # which the plan will say
        return joined(parts)
    if laid[0].label.planes:
        parts.append(classes_of(range(max(laid[0].label.planes) + 1)))
    return joined([*parts, range_of([each.image for each in laid])])


def range_of(images: Sequence[Stack]) -> Suggestion:
    """`--range` of images that are not of 8 bits: 0 to 1, 0 to 255, or from the least to the greatest value."""
    if any(np.dtype(own.dtype).kind != "f" for own in images) or images[0].size("c") not in (1, stack_axes.COLOURS):
        return Suggestion({})
    extents = [(np.nanmin(values), np.nanmax(values)) for own in images for values in chunks(own)]
    low, high = float(min(own[0] for own in extents)), float(max(own[1] for own in extents))
    for top in (1.0, 255.0):
        if low >= 0 and top / 2 < high <= top:
            return Suggestion({"range": f"0,{top:g}"}, f"values lie in 0,{top:g}, which --range makes black and white")
    return Suggestion({}, f"values lie in {low:g},{high:g}, which become black and white; --range gives others")
