"""Images that are put together of several files, colours and depth for instance, with their masks: one sample each."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.base.processes import available_cpus
from rwkvctl.data.convert.discover import relative
from rwkvctl.data.convert.formats.base import Plan, Sample, count_pixels, encode_npy, sha256
from rwkvctl.data.convert.formats.pairs import Pair, PairReader
from rwkvctl.data.convert.formats.volumes import content_hash
from rwkvctl.data.convert.sources import RawFile
from rwkvctl.data.images import deep, normalise, picture_channels
from rwkvctl.data.images import files as image_files
from rwkvctl.data.images.normalise import Rule
from rwkvctl.data.images.picture_channels import COLOURS

BYTES: deep.Range = (0, 255)


@dataclass(frozen=True)
class ChannelReader:
    """`Plan.read`. counts: how many channels each file of an image has; rules: one a channel; masks: reads the rest."""

    masks: PairReader
    counts: tuple[int, ...]
    rules: tuple[Rule, ...]

    def __call__(self, part: str, pair: Pair) -> Sample:
        sources, planes = {}, list[NDArray[Any]]()
        for file, count in zip((pair.image, *pair.others), self.counts, strict=True):
            data = file.read()
            sources[relative(file, self.masks.root)] = sha256(data)
            planes += self._planes(file, data, count, planes, pair)
        try:
            image, rule = normalise.stacked(planes, self.rules)
        except ValueError as error:
            raise BadFile(f"{pair.image}: {error}; replace it") from error
        first, digest = next(iter(sources.items()))
        notes: list[str] = []
        height, width = image.shape[:2]
        meta = {
            "id": pair.key,
            "dataset": self.masks.dataset,
            "part": part,
            "case_id": pair.key,
            "group_id": pair.group or f"sha256:{digest[:16]}",
            "orig_path": first,
            "orig_sha256": digest,
            "orig_size": [height, width],
            "orig_mode": ", ".join(str(plane.dtype) for plane in planes),
            "spacing_mm": None,
            "labeled": True,
            "intensity": rule,
            "volume_sha256": content_hash(image),
            **pair.meta,
        }
        mask, _ = self.masks.mask_of(pair, (height, width), sources, notes)
        pixels = count_pixels(mask.ids, self.masks.num_classes)
        meta |= {"mask_rule": mask.rule, "classes_present": [int(c) for c in np.flatnonzero(pixels)]}
        meta["image_note"] = "; ".join(notes)
        members = {"image.npy": encode_npy(image), "mask.png": image_files.encode_png(mask.ids)}
        return Sample(pair.key, members, meta, sources, (height, width), pixels)

    def _planes(
        self, file: RawFile, data: bytes, count: int, before: Sequence[NDArray[Any]], pair: Pair
    ) -> list[NDArray[Any]]:
        """(H, W) each, of the size of those before."""
        try:
            channels = picture_channels.fitted(picture_channels.channels_of(data), count)
        except ValueError as error:
            raise BadFile(f"{file}: {error}") from error
        if before and channels.shape[:2] != before[0].shape:
            height, width = channels.shape[:2]
            first = f"{pair.image.name} is {before[0].shape[1]} x {before[0].shape[0]}"
            raise BadFile(f"{file}: is {width} x {height}, {first}; give the channels of an image one size")
        return list(np.moveaxis(channels, -1, 0))


@dataclass(frozen=True)
class Settle:
    """`Plan.settle`: looks at all files for how many channels each kind has, and its numbers.

    groups: what each kind of file is called; names: of all channels, or () to name them by their groups; with `nnunet`
    their names say how they are normalised, else it is by one range a kind of file: 0..255 of 8 bits, or from the least
    to the greatest number that the data set has.
    """

    groups: tuple[str, ...]
    names: tuple[str, ...] = ()
    nnunet: bool = False

    def __call__(self, plan: Plan) -> Plan:
        pairs = [item for item in chain.from_iterable(plan.parts.values()) if isinstance(item, Pair)]
        assert isinstance(plan.read, PairReader)
        counts, rules, names = [], list[Rule](), list[str]()
        with ThreadPoolExecutor(available_cpus()) as pool:
            for place, group in enumerate(self.groups):
                files = [(pair.image, *pair.others)[place] for pair in pairs]
                seen = [found for found in pool.map(_look, files) if found is not None]
                count = max((channels for channels, _ in seen), default=1)
                counts.append(count)
                rules += [Rule(clip=_range_of(group, [extent for _, extent in seen]))] * count
                names += [group] if count == 1 else [f"{group} {colour}" for colour in COLOURS]
        if self.names:
            if len(self.names) != len(names):
                raise UserError(
                    f"dataset.json: names {len(self.names)} channels ({', '.join(self.names)[:60]}), the files of a "
                    f"case have {len(names)} ({' + '.join(map(str, counts))}); name each"
                )
            names = list(self.names)
        if self.nnunet:
            rules = [normalise.nnunet_rule(name) for name in names]
        reader = ChannelReader(plan.read, tuple(counts), tuple(rules))
        return replace(
            plan,
            image_kind="float",
            channel_names=names,
            channel_files=counts,
            intensity=normalise.as_fields(rules),
            read=reader,
            settle=None,
        )


def _look(file: RawFile) -> tuple[int, deep.Range | None] | None:
    """How many channels a file has, and the extent of its numbers; None for a damaged one: conversion will say so."""
    try:
        channels = picture_channels.channels_of(file.read())
        return channels.shape[2], picture_channels.extent(channels)
    except (ValueError, BadFile):
        return None


def _range_of(group: str, extents: Sequence[deep.Range | None]) -> deep.Range:
    deep_ones = [extent for extent in extents if extent is not None]
    if not deep_ones:
        return BYTES
    if len(deep_ones) < len(extents):
        raise UserError(
            f"{group}: {len(deep_ones)} images have more than 8 bits, {len(extents) - len(deep_ones)} have 8, and "
            "share no range; convert them to one kind"
        )
    return min(low for low, _ in deep_ones), max(high for _, high in deep_ones)
