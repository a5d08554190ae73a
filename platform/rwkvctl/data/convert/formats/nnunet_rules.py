"""How the channels of an nnU-Net folder's volumes are normalised: as nnU-Net does by their names, or by percentiles.

A CT's numbers have one meaning in every file, so one window of the whole data set is taken, from the foreground of all
training cases. Other channels go by their own mean and deviation, case by case; within what is not zero, where that is
less than three quarters of most cases, as of skull-stripped brains. Both are nnU-Net's fingerprint and planner.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.base.processes import available_cpus
from rwkvctl.data.convert import voxel_files
from rwkvctl.data.convert.formats.base import Options, Plan
from rwkvctl.data.convert.formats.scan_pairs import ScanCase, ScanPairLoader, channels_of, on_image
from rwkvctl.data.convert.formats.volumes import Plane, VolumeReader
from rwkvctl.data.images import normalise
from rwkvctl.data.images.normalise import Rule

NNUNET, PERCENTILES = "nnunet", "percentiles"
WINDOW = ("p0.5", "p99.5")
CROPPED = 0.75
"""Median share of the voxels in the box around what is not zero, below which nnU-Net normalises within it alone."""
SEED, SAMPLES = 1234, 20_000_000
"""nnU-Net's seed; foreground voxels that are looked at in all, the same number of each case."""


def planned(plan: Plan, names: Sequence[str], options: Options) -> Plan:
    """The plan of volumes with channels of these names, by what `--intensity` says.

    Without it several channels and CT are normalised as nnU-Net does; one channel of another name by the percentiles of
    each volume, which is what a data set of one channel was always prepared by.
    """
    names = tuple(names) or ("scan",)
    kind = options.intensity or (NNUNET if len(names) > 1 or names[0].casefold() == normalise.CT else PERCENTILES)
    if kind not in (NNUNET, PERCENTILES):
        raise UserError(f"--intensity {kind}: give {NNUNET} or {PERCENTILES}")
    if options.range is not None and (len(names) > 1 or options.intensity == NNUNET):
        raise UserError("--range: is for one channel without nnU-Net's rules; leave it out, or --intensity nnunet")
    plan.channel_names = names
    if len(names) == 1 and (kind == PERCENTILES or options.range is not None):
        return plan
    if kind == PERCENTILES:
        return with_rules(plan, [Rule(clip=WINDOW)] * len(names))
    plan.settle = Settle(names)
    return plan


def with_rules(plan: Plan, rules: Sequence[Rule]) -> Plan:
    reader = plan.read
    assert isinstance(reader, VolumeReader)
    loader = reader.load
    assert isinstance(loader, ScanPairLoader)
    read = VolumeReader(reader.dataset, reader.num_classes, replace(loader, rules=tuple(rules)))
    return replace(plan, read=read, intensity=normalise.as_fields(rules), settle=None)


@dataclass(frozen=True)
class Settle:
    """`Plan.settle`: nnU-Net's rules for channels of these names, with what they need of the training cases, which are
    those of the parts train and val."""

    names: tuple[str, ...]

    def __call__(self, plan: Plan) -> Plan:
        cases = _cases(plan)
        scanned = [place for place, name in enumerate(self.names) if name.casefold() == normalise.CT]
        each = max(1, SAMPLES // max(1, len(cases)))
        with ThreadPoolExecutor(available_cpus()) as pool:
            seen = [found for found in pool.map(lambda case: look(case, scanned, each), cases) if found is not None]
        cropped = bool(seen) and float(np.median([found.share for found in seen])) < CROPPED
        rules = [normalise.nnunet_rule(name, over="nonzero" if cropped else "box") for name in self.names]
        for place in scanned:
            rules[place] = of_foreground(self.names[place], [found.foreground[place] for found in seen])
        return with_rules(plan, rules)


class Seen(NamedTuple):
    """Of a case: the share of its voxels in the box around what is not zero; by channel, numbers of its foreground."""

    share: float
    foreground: dict[int, NDArray[Any]]


def look(case: ScanCase, scanned: Sequence[int], samples: int) -> Seen | None:
    """None for a case that cannot be read, which conversion will say."""
    try:
        image = voxel_files.read(case.image)
        channels = channels_of(case, image)
        share = 1.0
        if len(scanned) < len(channels):
            box = normalise.box(normalise.nonzero(channels))
            share = float(np.prod([part.stop - part.start for part in box])) / channels[0].size
        labels = np.logical_or.reduce([on_image(mask, case.image, image.grid) > 0 for mask in case.masks])
    except BadFile:
        return None
    return Seen(share, sampled(channels, labels, scanned, samples))


def sampled(
    channels: Sequence[NDArray[Any]], labels: NDArray[np.bool_], scanned: Sequence[int], samples: int
) -> dict[int, NDArray[Any]]:
    """As nnU-Net's `collect_foreground_intensities` draws them, which reads [z, y, x]; every case as many."""
    random, found = np.random.RandomState(SEED), {}
    for place in scanned:
        foreground = channels[place].T[labels.T].astype(np.float32)
        found[place] = random.choice(foreground, samples, replace=True) if len(foreground) else foreground
    return found


def of_foreground(name: str, numbers: Iterable[NDArray[Any]]) -> Rule:
    """nnU-Net's CTNormalization: what becomes of 0.5 and 99.5 % of the foreground, its mean and its deviation."""
    every = np.concatenate(list(numbers) or [np.empty(0, np.float32)])
    if not len(every):
        raise UserError(f"channel {name}: no training case has foreground, from which its window is taken; add labels")
    low, high = (float(np.float32(value)) for value in np.percentile(every, [0.5, 99.5]))
    mean, deviation = float(np.float32(every.mean())), float(np.float32(every.std()))
    if low >= high:
        raise UserError(f"channel {name}: the foreground has one value ({low:g}); give --intensity {PERCENTILES}")
    return Rule(normalise.TO_DEVIATIONS, (low, high), mean, deviation)


def _cases(plan: Plan) -> list[ScanCase]:
    """Of the parts train and val, each once."""
    found: dict[str, ScanCase] = {}
    for part in ("train", "val"):
        for item in plan.parts.get(part, ()):
            case = item.case if isinstance(item, Plane) else item
            assert isinstance(case, ScanCase)
            found[case.key] = case
    return list(found.values())
