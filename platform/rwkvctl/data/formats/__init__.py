"""The raw formats that can be prepared: one module each, all of one shape.

A module has `plan(sources, options, problems) -> Plan`: it lists the files, checks what their names and headers tell,
and returns what is to be written, in order, with a function that reads, checks and encodes one sample.
"""

from __future__ import annotations

import difflib
import importlib
from types import ModuleType

from rwkvctl.errors import UserError

FORMATS = {
    "folder": "images/ + masks/, paired by name; random splits (--split, --seed, --classes)",
    "acdc": "ACDC as h5 slices and volumes (ACDC_training_slices, ACDC_training_volumes)",
    "imagefolder": "classification: train/<class>/*, val|test/<class>/*",
}


def get(name: str) -> ModuleType:
    """The module of a format; UserError with near matches for an unknown one."""
    if name not in FORMATS:
        near = difflib.get_close_matches(name, FORMATS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(FORMATS)}"
        raise UserError(f"format {name!r} is unknown; {hint}")
    return importlib.import_module(f"{__name__}.{name}")
