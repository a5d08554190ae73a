"""The one range from which a data set's images of more than 8 bits are scaled: a first pass over them.

The range runs from the least to the greatest value that any of these images has, over all parts of the data set. It
is thus the same in whatever order and by however many threads the images are read, and nothing is clipped. 8-bit values
that were widened to 16 bits are taken back exactly, if all of the images are such. `--range` states another one.
It becomes the manifest's `intensity`, and the model's that is trained on the data, which predicts by it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain

from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.base.processes import available_cpus
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.pairs import PairReader
from rwkvctl.data.convert.formats.photos import PhotoReader
from rwkvctl.data.convert.sources import RawFile
from rwkvctl.data.images import deep, intensity
from rwkvctl.data.images.files import deep_values

_TOGETHER = 64
"""Files that a thread takes at a time: to hand over one takes longer than to look at its header."""


def settled(plan: Plan, dataset: Dataset, options: Options) -> Plan:
    """The plan with the range of its images of more than 8 bits; as it is where there are none.

    Formats of ImageNet's size, whose images have 8 bits by definition, are not gone through.
    """
    reader = plan.read
    if not isinstance(reader, PairReader) and not (isinstance(reader, PhotoReader) and "range" in dataset.options):
        return plan
    with ThreadPoolExecutor(available_cpus()) as pool:
        files = list(_images(plan))
        some = (files[start : start + _TOGETHER] for start in range(0, len(files), _TOGETHER))
        extents = list(chain.from_iterable(pool.map(_extents, some)))
    if not extents:
        if options.range is not None:
            raise UserError("--range: no image has more than 8 bits; leave it out")
        return plan
    window = options.range or _common(extents)
    return replace(plan, read=replace(reader, window=window), intensity=intensity.rule(*window))


def _images(plan: Plan) -> Iterator[RawFile]:
    return (item.files[0] for item in chain.from_iterable(plan.parts.values()))


def _extents(files: Sequence[RawFile]) -> list[tuple[RawFile, deep.Extent]]:
    return [(file, extent) for file in files if (extent := _extent(file))]


def _extent(file: RawFile) -> deep.Extent | None:
    """The extent of a deep image; None for any other, and for one that is damaged, which conversion will say."""
    try:
        if not deep.may_be_deep(file.head()):
            return None
        values = deep_values(file.read())
        return None if values is None else deep.extent(values)
    except (OSError, ValueError, BadFile):
        return None


def _common(extents: list[tuple[RawFile, deep.Extent]]) -> deep.Range:
    floats = [file for file, extent in extents if extent.is_float]
    if 0 < len(floats) < len(extents):
        whole = next(file for file, extent in extents if not extent.is_float)
        raise UserError(
            f"{len(floats)} images hold floats ({floats[0].name}), {len(extents) - len(floats)} hold whole numbers of "
            f"more than 8 bits ({whole.name}) and share no range; convert them to one kind, or give --range LOW,HIGH"
        )
    if all(extent.is_widened for _, extent in extents):
        return deep.BYTES_IN_WORDS
    low, high = min(extent.low for _, extent in extents), max(extent.high for _, extent in extents)
    return low, high if high > low else low + 1
