"""The options of `data prepare pairs` for a folder of volumes of unknown layout, from names and a few label files."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert import part_folders, voxel_files
from rwkvctl.data.convert.discover import common_beginning
from rwkvctl.data.convert.formats import scan_pairs
from rwkvctl.data.convert.sources import RawFile, Source, natural_key
from rwkvctl.data.convert.suggestion import Suggestion, classes_of, joined, listed
from rwkvctl.data.guess import numbered_layouts, volume_roles
from rwkvctl.data.guess.volume_roles import Role
from rwkvctl.data.images import grid

_ORIGINAL = re.compile(r"(?<![a-z])(?:orig|original|raw|unprocessed)(?![a-z])", re.IGNORECASE)
"""What lies beside images that were made of it."""
_MOST_LABELS = 8
_SHOWN = 6
_SAME_OBJECT = 0.5
"""DSC of two masks from which on they are of one thing, by two people."""


def suggest(source: Source) -> Suggestion | None:
    """None where the volumes of a source are no images with masks."""
    files = [file for file in source.files if voxel_files.is_volume(file)]
    found = volume_roles.found(files)
    if found is None:
        return None
    beside = voxel_files.Beside(source.files)
    images, masks = _on_one_grid(found[0], found[1][0], beside), found[1]
    if own := volume_roles.with_own_masks(*found):
        images, masks = own
        parts = [_patterns(_joined(_templates(images)), _joined(_templates(masks)))]
        parts.append(_each_of_its_own(images, masks))
    else:
        parts = [_patterns(images[0].template, _joined(_templates(masks)))]
    if len(images) > 1 and not own:
        others = " or ".join(f"--images {shlex.quote(role.template)}" for role in images[1:_SHOWN])
        told = f"one contrast is taken of {len(images)}; another is {others}; given as well, it is a further channel"
        parts.append(Suggestion({}, told))
    if len(masks) > 1 and not own:
        parts.append(_several(images[0], masks, beside))
    else:
        parts.append(classes_of(_values([file for role in masks for file in role.files.values()], beside)))
    if part_folders.are_parts(file.path for file in images[0].files.values()):
        parts.append(Suggestion({"split_from": "folders"}))
    return joined(parts)


def _templates(roles: Sequence[Role]) -> list[str]:
    return [role.template for role in roles]


def _patterns(images: str, masks: str) -> Suggestion:
    return Suggestion(dict(zip(("images", "masks"), numbered_layouts.starred(images, masks), strict=True)))


def _each_of_its_own(images: Sequence[Role], masks: Sequence[Role]) -> Suggestion:
    one = f"--images {shlex.quote(images[0].template)} --masks {shlex.quote(masks[0].template)}"
    question = f"all of {len(images)} images a case are taken, each with its own mask; is one kind wanted, {one}"
    return Suggestion({}, question)


def _on_one_grid(images: Sequence[Role], masks: Role, beside: voxel_files.Beside) -> list[Role]:
    """The images whose voxels are those of their masks, those last that are called original; all of them where none
    are."""
    own = [role for role in images if _fit(role, masks, beside)] or list(images)
    return sorted(own, key=lambda role: bool(_ORIGINAL.search(role.template)))


def _fit(images: Role, masks: Role, beside: voxel_files.Beside) -> bool:
    """As far as the headers of the first case say."""
    case = next((case for case in images.files if case in masks.files), None)
    if case is None:
        return False
    try:
        image, mask = beside.of(images.files[case]), beside.of(masks.files[case])
        grid.aligned(mask, voxel_files.read_grid(mask), image, voxel_files.read_grid(image))
    except BadFile:
        return False
    return True


def _joined(templates: Sequence[str]) -> str:
    """`*/liver` and `*/spleen` as `*/{liver,spleen}`."""
    if len(templates) == 1:
        return templates[0]
    front = _beginning(templates)
    back = _beginning([own[len(front) :][::-1] for own in templates])[::-1]
    words = sorted((own[len(front) : len(own) - len(back)] for own in templates), key=natural_key)
    if any(sign in word for word in words for sign in "*/,"):
        return f"{front}*{back}"
    return f"{front}{{{','.join(words)}}}{back}"


def _beginning(texts: Sequence[str]) -> str:
    """What all begin with, whole words of it."""
    same = common_beginning(texts)
    return re.sub(r"[^\W_]+$", "", same) if any(len(own) > len(same) for own in texts) else same


# What label files hold ----------------------------------------------------------------------------------------------


def _values(files: Sequence[RawFile], beside: voxel_files.Beside) -> set[float]:
    """The labels of some files, evenly spread; what cannot be read is told when they are prepared."""
    chosen = np.linspace(0, len(files) - 1, min(_MOST_LABELS, len(files))).round().astype(int)
    found: set[float] = set()
    for n in chosen:
        try:
            own = beside.of(files[n])
            found.update(scan_pairs.label_values(own, voxel_files.read(own).voxels))
        except BadFile:
            continue
    return found


def _several(images: Role, masks: Sequence[Role], beside: voxel_files.Beside) -> Suggestion:
    """What becomes of several masks an image: classes, where they lie apart, else those of one annotator."""
    templates = [role.template for role in masks]
    joined = _joined(templates)
    told = re.search(r"\{([^{}]*,[^{}]*)\}", joined)
    words = told[1].split(",") if told else sorted(templates, key=natural_key)
    classes = ",".join(["background", *words])
    if _of_one_thing(images, masks, beside):
        question = (
            f"masks of one thing are by several ({listed(words)}), --annotator says whose are taken; is each of a "
            f"class, --classes {shlex.quote(classes)} instead"
        )
        return Suggestion({"annotator": words[0]}, question)
    question = f"each of several masks an image is a class; is one wanted, --annotator {shlex.quote(words[0])} instead"
    return Suggestion({"classes": classes}, question)


def _of_one_thing(images: Role, masks: Sequence[Role], beside: voxel_files.Beside) -> bool:
    """Whether two masks of a case overlap by more than half."""
    of_case: dict[tuple[str, ...], list[RawFile]] = defaultdict(list)
    for role in masks:
        for case, file in role.files.items():
            of_case[case].append(file)
    for case in images.files:
        if len(of_case[case]) < 2:
            continue
        try:
            own = [voxel_files.read(beside.of(file)).voxels != 0 for file in of_case[case][:2]]
        except BadFile:
            continue
        if own[0].shape == own[1].shape and own[0].any() and own[1].any():
            return bool(2 * (own[0] & own[1]).sum() / (own[0].sum() + own[1].sum()) > _SAME_OBJECT)
    return False
