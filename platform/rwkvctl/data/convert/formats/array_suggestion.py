"""What `data doctor` proposes for files with image and label inside: which arrays they are, axes, classes and range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert import array_pairs, array_roles, part_folders
from rwkvctl.data.convert.array_pairs import ArrayPair
from rwkvctl.data.convert.array_roles import Roles
from rwkvctl.data.convert.formats import scan_pairs
from rwkvctl.data.convert.raw_files import RawFile
from rwkvctl.data.convert.suggestion import Suggestion, classes_of, joined
from rwkvctl.data.images import arrays

_T = TypeVar("_T")
_READ = 3
"""Files of which a suggestion is made."""
_THIN, _WIDE, _COLOURS = 4, 16, 3
"""An axis of so few elements beside others of so many may be one of channels."""


def of(files: Sequence[RawFile]) -> Suggestion | None:
    """None where no file has an image and a label."""
    roles = next((one for file in spread(files) if (one := _roles(file))), None)
    if roles is None:
        return None
    parts = []
    if roles.question:
        parts.append(Suggestion({"inside": f"{roles.image},{roles.label}"}, roles.question))
    found = [own for file in files if (own := _header(file, roles))]
    volumes = [own for own in found if len(own.shape) == 3]
    if volumes and len(volumes) < len(found):
        slices = [own for own in found if len(own.shape) == 2]
        patterns = [f"{folder_of(some[0].file)}*" for some in (volumes, slices)]
        question = f"{len(volumes)} volumes are taken and not {len(slices)} slices, which are --images '{patterns[1]}'"
        parts.append(Suggestion({"images": patterns[0]}, question))
        found = volumes
    axes = _axes(volumes)
    if "c" in axes.choices.get("axes", ""):
        found = [own for file in files if (own := _header(file, roles, axes.choices["axes"]))]
    parts += [axes, _classes(found), _range(found)]
    if part_folders.are_parts(own.file.path for own in found):
        parts.append(Suggestion({"split_from": "folders"}))
    return joined(parts)


def _axes(volumes: Sequence[ArrayPair]) -> Suggestion:
    """`--axes` where shapes leave it open."""
    if not volumes:
        return Suggestion({})
    axes, told = array_roles.axes_of(own.shape for own in volumes)
    shape = volumes[0].shape
    if not told:
        question = f"z of --axes {axes} is taken to be across the slices of {shape}; it may be another"
        return Suggestion({"axes": axes}, question)
    thin = [axis for axis in (0, 2) if shape[axis] <= _THIN]
    if len(thin) != 1 or min(array_roles.without(shape, thin[0])) < _WIDE or volumes[0].counts != (1, 1):
        return Suggestion({})
    channels, count = "cyx" if thin[0] == 0 else "yxc", shape[thin[0]]
    if volumes[0].image.dtype == "uint8" and count >= _COLOURS:
        question = f"{count} of {shape} are taken for colours and classes; are they slices, --axes {axes}"
        return Suggestion({"axes": channels}, question)
    return Suggestion({}, f"{count} of {shape} are taken for slices; are they channels and classes, --axes {channels}")


def _classes(found: Sequence[ArrayPair]) -> Suggestion:
    """`--classes` by the labels, or by the planes of those that have one a class."""
    if layers := array_pairs.layers(spread(found)):
        return classes_of(range(max(layers) + 1))
    labels = set[float]()
    for own in spread(found):
        labels |= set(scan_pairs.label_values(own.file, arrays.read(own.file, own.label.name)))
    return classes_of(labels)


def _range(found: Sequence[ArrayPair]) -> Suggestion:
    """`--range` for values that lie in one that is usual."""
    span = {_span(own) for own in spread(found)}
    if len(span) != 1 or (bounds := span.pop()) == (0.0, 0.0):
        return Suggestion({})
    text = f"{bounds[0]:g},{bounds[1]:g}"
    return Suggestion({"range": text}, f"values lie in {text} already, and are kept by --range")


def _span(own: ArrayPair) -> tuple[float, float]:
    """0 to 1 of floats that fill it, 0 to 255 of bytes; (0, 0) of other values."""
    if own.image.dtype == "uint8":
        return 0.0, 255.0
    values = arrays.read(own.file, own.image.name)
    unit = own.image.dtype.kind == "f" and values.min() >= 0 and 0.5 < values.max() <= 1
    return (0.0, 1.0) if unit else (0.0, 0.0)


def _roles(file: RawFile) -> Roles | None:
    try:
        return array_roles.roles(arrays.listed(file))
    except BadFile:
        return None


def _header(file: RawFile, roles: Roles, axes: str | None = None) -> ArrayPair | None:
    try:
        return array_pairs.read_header(file, roles, axes)
    except BadFile:
        return None


def spread(files: Sequence[_T]) -> Sequence[_T]:
    return files[:: max(1, len(files) // _READ)][:_READ]


def folder_of(file: RawFile) -> str:
    return f"{file.parent}/".lstrip("/")
