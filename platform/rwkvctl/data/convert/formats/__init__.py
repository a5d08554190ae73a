"""The raw data sets that can be prepared: one module each, all of one shape.

    DATASET                              its entry in `rwkvctl data list`
    recognise(source) -> str | None      the form of it that a source holds, by names alone
    plan(source, options, problems)      lists the files, checks what names and headers tell, and returns what is to be
                                         written, in order, with a function that reads, checks and encodes one sample

Shared by them: `pairs` (2-D images with masks), `volumes` and `nifti`, `photos` (images with a class), and outside this
package `sources` (folders and archives) and `discover` (names, pairing, counts).
"""

from __future__ import annotations

import importlib
from typing import Protocol

from rwkvctl.base.errors import UserError
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.sources import Source

NAMES = (
    "synapse", "acdc", "busi", "clinicdb", "colondb", "fugc", "glas", "goals", "imagenet", "isic2017", "kvasir",
    "psvfm", "nnunet", "decathlon", "bids", "dicom", "folder", "pairs", "stacked", "stackedclasses", "arrays",
    "imagetable", "imagefolder",
)  # fmt: skip
"""The special ones first: `data doctor` names them in this order."""
_MODULES = {"pairs": "patterns"}
"""Those that are not called like their format: `pairs` is what all 2-D formats share."""


class Format(Protocol):
    """What a module of this package offers."""

    DATASET: Dataset

    def recognise(self, source: Source) -> str | None: ...

    def plan(self, source: Source, options: Options, problems: Problems) -> Plan: ...


def get(name: str) -> Format:
    """The module of a format; UserError with near matches for an unknown one."""
    if name not in NAMES:
        hint = did_you_mean(name, NAMES)
        if (dataset := name.partition(":")[0]) in NAMES:  # as `data synth` takes it
            hint = f"give {dataset}, its form is found by itself"
        raise UserError(f"format {name!r} is unknown; {hint}")
    module: Format = importlib.import_module(f"{__name__}.{_MODULES.get(name, name)}")
    return module


def has_lesions(name: str) -> bool:
    """Whether a prepared data set of this format is known to be one of lesions or polyps."""
    return name in NAMES and get(name).DATASET.lesions


def every() -> list[Format]:
    return [get(name) for name in NAMES]
