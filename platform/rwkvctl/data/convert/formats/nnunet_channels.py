"""The files of a case in an nnU-Net folder: `CASE_0000.ENDING`, `CASE_0001.ENDING`, ... one a channel."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems, normal_id
from rwkvctl.data.convert.formats.nnunet_json import Description
from rwkvctl.data.convert.sources import RawFile, Source, natural_key

DIGITS = 4


def by_case(
    files: Iterable[RawFile], ending: str, names: Sequence[str], problems: Problems, *, one_each: bool
) -> tuple[dict[str, tuple[RawFile, ...]], set[str]]:
    """Id -> the files of its channels in their order, in natural order of the ids; and the ids that lack a channel.

    one_each: whether a file holds one channel, so that there are as many as names; of pictures, which may be in colour,
    every case has as many as any. A channel that is missing is a problem, and so is one without a name.
    """
    pattern = re.compile(rf"(?P<id>[^/]+)_(?P<channel>\d{{{DIGITS}}}){re.escape(ending)}", re.IGNORECASE)
    of_channel: dict[int, list[RawFile]] = {}
    for file in files:
        if match := pattern.fullmatch(file.name):
            of_channel.setdefault(int(match["channel"]), []).append(file)
    count = max(1, len(names)) if one_each else len(of_channel)
    for number in sorted(set(of_channel) - set(range(count))):
        file = of_channel.pop(number)[0]
        named = f"dataset.json names {count} ({', '.join(names)[:60]})" if names else "there is none before it"
        problems.add(f"{file}: is of channel {number:0{DIGITS}d}, and {named}; name it there, or move it elsewhere")
    found = [discover.by_pattern(of_channel.get(number, []), pattern, problems) for number in range(count)]
    cases, lacking = {}, set[str]()
    for key, first in found[0].items():
        missing = [number for number, own in enumerate(found) if key not in own]
        if missing:
            lacking.add(key)
            problems.leave_out(first, missing_channel(missing[0], names, one_each))
        else:
            cases[key] = tuple(own[key] for own in found)
    for number, own in enumerate(found[1:], 1):
        for key in sorted(own.keys() - found[0].keys()):
            lacking.add(key)
            problems.leave_out(own[key], f"is of channel {number:0{DIGITS}d}; {missing_channel(0, names, one_each)}")
    return cases, lacking


def listed(
    source: Source, told: Description, problems: Problems, *, one_each: bool
) -> tuple[dict[str, tuple[RawFile, ...]], dict[str, RawFile]]:
    """The same, and the labels by id, where dataset.json lists the files of each case."""
    by_path = {file.path: file for file in source.files}
    images, labels = dict[str, tuple[RawFile, ...]](), dict[str, RawFile]()
    count = max(1, len(told.channels)) if one_each else None
    for name, paths in sorted((told.listed or {}).items(), key=lambda item: natural_key(item[0])):
        missing = [path for path in (*paths.images, paths.label) if path not in by_path]
        if missing:
            problems.add(f"{source}/{missing[0]}: is not there, dataset.json lists it for case {name}; add the file")
        elif count is not None and len(paths.images) != count:
            names = ", ".join(told.channels)[:60]
            problems.add(f"{source}: case {name} has {len(paths.images)} images, dataset.json names {count} ({names})")
        else:
            images[normal_id(name)] = tuple(by_path[path] for path in paths.images)
            labels[normal_id(name)] = by_path[paths.label]
    return images, labels


def missing_channel(number: int, names: Sequence[str], one_each: bool) -> str:
    """What is wrong with a case that lacks a channel."""
    name = f" ({names[number]})" if one_each and number < len(names) else ""
    return f"its channel _{number:0{DIGITS}d}{name} is missing; add the file, or leave the case out"
