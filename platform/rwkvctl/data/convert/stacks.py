"""Stacks in a source: arrays that hold all images of a data set, or of a part of it, and those of their labels.

    data_train.npy  mask_train.npy          images.npy  masks.npy          X_train.npy  y_train.npy
    set.npz: train_images, train_labels     set.h5: images, masks          train.h5: images, masks

What an array is, and of which part, its name says, and where it does not, that of its file or folder.
"""

from __future__ import annotations

import posixpath
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.base.unpacking import refuse_bomb, refuse_lfs_pointer
from rwkvctl.data.convert import array_roles, part_folders
from rwkvctl.data.convert.array_elements import Stack
from rwkvctl.data.convert.discover import relative
from rwkvctl.data.convert.raw_files import RawFile
from rwkvctl.data.convert.sources import Source
from rwkvctl.data.images import arrays

MOST_FILES = 32
"""More files of arrays have one sample each."""
_GROUP = re.compile(r"(?:patient|subject|case|person|group|stud(?:y|ie)|video|sequence|slide|pid|id)s?", re.IGNORECASE)
_GLUED = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])|(?<=^[xyXY])(?=tr|val|te)")
"""Where two words meet: `imgsTrain`, `Xtrain`."""
_NPZ_LOCAL_HEADER = 30


@dataclass(frozen=True)
class Named:
    """An array and what its name says: role is image, label or group; rest: the words that say nothing of the
    kind."""

    stack: Stack
    own: str
    role: str
    part: str | None
    rest: str


@dataclass(frozen=True)
class Stacked:
    """The images of a part, None where names say none, with their labels; groups: an array that says whose they are."""

    part: str | None
    rest: str
    image: Stack
    label: Stack
    groups: Stack | None = None

    @property
    def words(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.part, self.rest)))


@dataclass(frozen=True)
class Found:
    """Stacks with labels, and notes of what lies beside them."""

    sets: Sequence[Stacked]
    notes: Sequence[str]

    @property
    def parts(self) -> set[str]:
        return {own.part for own in self.sets if own.part}

    @property
    def has_split(self) -> bool:
        """Whether names tell training from other parts."""
        return "train" in self.parts and len(self.parts) > 1

    @property
    def has_faults(self) -> bool:
        return any(stack.fault for own in self.sets for stack in (own.image, own.label))

    @property
    def largest(self) -> Stacked:
        """The one whose shape tells most."""
        return max(self.sets, key=lambda own: own.image.shape[0])


def recognised(source: Source) -> Found | None:
    """None where arrays are not stacked, as far as names and headers say: files of several cases have one each."""
    files = _files(source)
    if not 0 < len(files) <= MOST_FILES:
        return None
    try:
        found = in_source(source)
    except UserError:
        return None
    rests = {own.rest for own in found.sets}
    return found if len(rests) == 1 and len(found.sets) <= len(part_folders.SPELLINGS) else None


def in_source(source: Source, inside: str | None = None) -> Found:
    """inside: `IMAGE,LABEL`, the names of the arrays, without what says the part. UserError where there are none."""
    wanted = _wanted(inside)
    named = [_as_wanted(own, wanted) for own in _named(source, _files(source))]
    by_set: dict[tuple[str | None, str], dict[str, list[Named]]] = defaultdict(lambda: defaultdict(list))
    for own in named:
        if own.role:
            by_set[own.part, own.rest][own.role].append(own)
    sets, notes = [], []
    for (part, rest), roles in by_set.items():
        images, labels = roles["image"], _spatial(roles["label"])
        if not images or not labels:
            notes += [
                f"{own.stack} has no {'labels' if images else 'images'} and was left out" for own in images + labels
            ]
            continue
        groups = roles["group"]
        sets.append(Stacked(part, rest, _one(images), _one(labels), groups[0].stack if len(groups) == 1 else None))
        notes += [f"{own.stack} was left out" for own in roles["label"] if own not in labels]
    if not sets:
        there = ", ".join(f"{own.own} {own.stack.shape}" for own in named[:6]) or "none"
        raise UserError(
            f"{source}: no stack of images with one of labels (arrays: {there}); name them: --inside IMAGE,LABEL"
        )
    if len({own.part is None for own in sets}) > 1:
        alone = next(own for own in sets if own.part is None)
        raise UserError(f"{alone.image}: says no part, others do ({sets[0].image}); move one of them elsewhere")
    if len({own.rest for own in sets}) == 1:  # as the name of the only file
        sets = [replace(own, rest="") for own in sets]
    return Found(sets, notes)


def _files(source: Source) -> list[RawFile]:
    return [file for file in source.files if file.name.lower().endswith(arrays.ENDINGS)]


def _wanted(inside: str | None) -> dict[str, str]:
    """Role by the words of a name."""
    if inside is None:
        return {}
    names = [name.strip() for name in inside.split(",")]
    if len(names) != 2 or not all(names) or names[0] == names[1]:
        raise UserError(f"--inside {inside}: give the names of two arrays, the image's first: images,masks")
    return {" ".join(_words(name)): role for name, role in zip(names, ("image", "label"), strict=True)}


def _as_wanted(own: Named, wanted: dict[str, str]) -> Named:
    """With the role that `--inside` gives, if it does, and none of another; ids of groups keep theirs."""
    if not wanted:
        return own
    words = _words(own.own)
    plain = [word for word in words if part_folders.part_of(word) is None]
    role = wanted.get(" ".join(words)) or wanted.get(" ".join(plain), "")
    return replace(own, role=role or (own.role if own.role == "group" else ""), rest="")


def _spatial(labels: list[Named]) -> list[Named]:
    """Masks where there are some beside labels of whole images."""
    return [own for own in labels if len(own.stack.shape) > 2] or labels


def _one(found: Sequence[Named]) -> Stack:
    if len(found) > 1:
        names = ", ".join(own.own for own in found)
        raise UserError(f"{found[0].stack}: which of {names} is meant is yours to say: --inside IMAGE,LABEL")
    return found[0].stack


# Arrays and their names ---------------------------------------------------------------------------------------------


def _named(source: Source, files: Sequence[RawFile]) -> Iterator[Named]:
    root = posixpath.commonpath([file.parent for file in files]) if files else ""
    for file in files:
        *folders, _ = relative(file, root).split("/")
        around = [" ".join(_words(text)) for text in (*folders, file.stem)]
        if file.suffix == ".npy":
            yield _told(_stack(file), [*around[-1:], *reversed(around[:-1])], has_role_around=True)
            continue
        place = source.on_disk(file)
        try:
            if file.suffix == ".npz":
                found = [_stack(own) for own in _members(place)]
            else:
                found = [Stack(place, own.name, own.shape, own.dtype.str) for own in arrays.listed(place, texts=True)]
        except BadFile as error:
            raise UserError(str(error)) from error
        for own in found:
            name = own.array or own.file.stem
            yield _told(own, [" ".join(_words(name)), *reversed(around)], has_role_around=False)


def _told(stack: Stack, texts: Sequence[str], has_role_around: bool) -> Named:
    """texts: the words of its name, then of its file and folders from the inside out."""
    role = _role(texts[0], stack)
    around = texts[1:]
    if not role and has_role_around:
        role = next(filter(None, (_role(text, stack) for text in around)), "")
        texts, around = [" ".join(texts)], []
    part = next(filter(None, (part_folders.part_of(text) for text in (*texts[:1], *around))), None)
    words = [word for word in texts[0].split() if not _says_role(word)] + " ".join(around).split()
    rest = " ".join(word for word in words if part_folders.part_of(word) is None)
    own = stack.array or stack.file.stem
    return Named(stack, own, role, part, rest)


def _words(name: str) -> list[str]:
    return re.findall(r"[^\W\d_]+|\d+", _GLUED.sub(" ", name))


def _role(text: str, stack: Stack) -> str:
    """image, label, or group; "" of arrays that are none of them by their words or shape."""
    words, few = text.split(), len(stack.shape) < 3
    if few and any(map(_GROUP.fullmatch, words)):
        return "group"
    if not stack.shape or not (np.dtype(stack.dtype).kind in "biuf" or stack.fault):
        return ""
    if any(map(array_roles.LABEL.search, words)):
        return "label"
    return "image" if any(map(array_roles.IMAGE.search, words)) and not few else ""


def _says_role(word: str) -> bool:
    return bool(array_roles.LABEL.search(word) or array_roles.IMAGE.search(word) or _GROUP.fullmatch(word))


# Where arrays lie ---------------------------------------------------------------------------------------------------


def _stack(file: RawFile) -> Stack:
    """Of an `.npy`, by its header."""
    nothing = Stack(file, "", (0, 0, 0), "O")
    try:
        with file.open() as stream:
            refuse_lfs_pointer(file, stream.read(64))
            stream.seek(0)
            header = arrays.npy_header(file, stream)
            start = stream.tell()
    except BadFile as error:
        return replace(nothing, fault=str(error))
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        return replace(nothing, fault=f"{file}: is damaged, or no NumPy file ({str(error)[:80]}); replace it")
    missing = start + int(np.prod(header.shape)) * header.dtype.itemsize - file.size
    fault = f"{file}: is cut off, {missing} bytes are missing; copy it again" if missing > 0 else ""
    return Stack(file, "", header.shape, header.dtype.str, fault=fault)


def _members(npz: RawFile) -> list[RawFile]:
    """The arrays of an npz on disk; those that are not compressed lie in it as in a tar."""
    try:
        with zipfile.ZipFile(npz.data) as opened, Path(npz.data).open("rb") as stream:
            members = [own for own in opened.infolist() if own.filename.endswith(".npy")]
            refuse_bomb(npz, sum(own.file_size for own in members), npz.size)
            return [_member(npz, own, stream) for own in members]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BadFile(f"{npz}: is damaged, or no NumPy file ({str(error)[:80]}); replace it") from error


def _member(npz: RawFile, own: zipfile.ZipInfo, stream: BinaryIO) -> RawFile:
    place = f"{npz.path}/{own.filename}", own.file_size, str(npz), own.filename
    if own.compress_type != zipfile.ZIP_STORED:
        return RawFile(*place, "zip", npz.stamp, npz.data)
    stream.seek(own.header_offset)
    head = stream.read(_NPZ_LOCAL_HEADER)
    start = (
        own.header_offset + len(head) + int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
    )
    return RawFile(*place, "tar", npz.stamp, npz.data, start)


def placed(source: Source, stack: Stack) -> Stack:
    """With its array where parts of it can be read: one that is compressed is unpacked to a file first. UserError for
    one that cannot be read."""
    if stack.fault:
        raise UserError(stack.fault)
    file = stack.file
    return stack if file.kind in ("file", "tar") else replace(stack, file=source.on_disk(file))
