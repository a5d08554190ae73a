"""Folders of images that are called by their class, without parts: `<class>/*`, or `train/` alone; and their splits."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import part_folders
from rwkvctl.data.convert.sources import Source
from rwkvctl.data.images import files as image_files
from rwkvctl.data.store.splits import (
    DEFAULT_SEEDS,
    PARTS,
    Split,
    grouped_splits,
    parse_ratio,
    random_split,
    split_name,
)

_NO_CLASS = re.compile(
    r"mask|label|(?<![a-z])gt(?![a-z])|ground.?truth|annot|segment|image|photo|picture|scan|slice|unlabell?ed",
    re.IGNORECASE,
)
"""In the names of folders that say what a file is, not what it shows."""
DEEPEST = 4
LEAST_FOR_PARTS = 3
"""Images of a class from which each of the three parts has one."""


def root_of(source: Source) -> str:
    """The folder whose subfolders are the classes: the topmost that has two or more folders with images in them.

    UserError where there is none.
    """
    with_images = Counter(file.parent for file in source.files if file.suffix in image_files.EXTENSIONS)
    level = [""]
    for _ in range(DEEPEST):
        for folder in level:
            if sum(bool(with_images[own]) for own in source.subfolders(folder)) > 1:
                return folder
        level = [inner for folder in level for inner in source.subfolders(folder)][:1000]
    raise UserError(
        f"{source}: no class folders here; give the folder that has one folder of images for each class, or train/ and "
        "val/ with such folders"
    )


def are_classes(source: Source) -> bool:
    """Whether a source looks like classes and nothing else: no folder that is called by what its files are."""
    try:
        root = root_of(source)
    except UserError:
        return False
    names = [path.rpartition("/")[2] for path in source.subfolders(root)]
    if any(_NO_CLASS.search(name) or part_folders.part_of(name) for name in names):
        return False
    images = [file for file in source.below(root) if file.suffix in image_files.EXTENSIONS]
    return not any(_NO_CLASS.search(file.stem) and "mask" in file.stem.lower() for file in images)


def splits(
    ids: Sequence[str],
    label_of: Mapping[str, int],
    groups: Mapping[str, str],
    ratio_text: str | None,
    seeds: Sequence[int] | None,
) -> dict[str, Split]:
    """One split a seed. `stratified811_s41` has the ratio within each class; where several images are of one patient,
    `grouped811_s41` stands first, which keeps them together and counts on chance for the classes."""
    ratio = parse_ratio(ratio_text or "8:1:1")
    found: dict[str, Split] = {}
    if len({groups.get(key, key) for key in ids}) < len(ids):
        found = grouped_splits(ids, groups, ratio_text, seeds)
    for seed in seeds or DEFAULT_SEEDS:
        found[split_name(ratio, seed).replace("random", "stratified")] = stratified(ids, label_of, ratio, seed)
    return found


def stratified(ids: Sequence[str], label_of: Mapping[str, int], ratio: tuple[int, int, int], seed: int) -> Split:
    """A random split of each class by itself; a class of fewer images than parts is for training alone."""
    parts: dict[str, list[str]] = {part: [] for part in PARTS}
    for label in sorted(set(label_of.values())):
        own = [key for key in ids if label_of[key] == label]
        made = random_split(own, ratio, seed).ids if len(own) >= LEAST_FOR_PARTS else {"train": own}
        for part, keys in made.items():
            parts[part] += keys
    where = {key: place for place, key in enumerate(ids)}
    parts = {part: sorted(keys, key=where.__getitem__) for part, keys in parts.items()}
    if not parts["val"] or (ratio[2] and not parts["test"]):
        raise UserError(f"no class has {LEAST_FOR_PARTS} images, so there is nothing to validate on; add some")
    return Split(f"each class by itself, {':'.join(map(str, ratio))} of its images, seeded", parts, seed)
