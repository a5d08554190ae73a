"""What a class is called in DICOM: codes of a terminology, and the colour that viewers are to show it in.

`segment_codes.yaml` beside this file has the classes of the data sets that we know; a user's own file has its form.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BeforeValidator, Field, StringConstraints, TypeAdapter, ValidationError

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.base import Spec, describe, listed

SHIPPED = Path(__file__).with_name("segment_codes.yaml")


def _as_text(value: Any) -> Any:
    """YAML reads a code without quotes as a number."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Scheme = Annotated[str, StringConstraints(pattern=r"^[\x20-\x5b\x5d-\x7e]{1,16}$")]
Value = Annotated[str, BeforeValidator(_as_text), StringConstraints(pattern=r"^[\x20-\x5b\x5d-\x7e]{1,16}$")]
Meaning = Annotated[str, StringConstraints(pattern=r"^[^\\\x00-\x1f]{1,64}$")]
Code = tuple[Scheme, Value, Meaning]
"""Scheme (SCT for SNOMED CT), code, and what it means: `[SCT, "10200004", Liver]`."""

ANATOMY: Code = ("SCT", "91723000", "Anatomical Structure")
TISSUE: Code = ("SCT", "85756007", "Tissue")


class SegmentCode(Spec):
    """One class of a segmentation."""

    category: Code = ANATOMY
    """The kind of thing: an anatomical structure, a morphologically abnormal structure, a tissue."""
    type: Code
    """The thing itself."""
    modifier: Code | None = None
    """What tells it from others of its type: left, right."""
    color: Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")] | None = None
    """As `#e69f00`; null is the class's colour in our overlays."""


UNKNOWN = SegmentCode(category=TISSUE, type=TISSUE)
"""Of a class that no table has: what 3D Slicer gives a new segment."""

_TABLE = TypeAdapter(dict[str, SegmentCode])


def code_of(name: str, own: Mapping[str, SegmentCode] | None = None) -> SegmentCode:
    """The codes of a class: the user's own, ours, or those of some tissue."""
    given = (own or {}).get(name)
    return given or shipped().get(_words(name)) or UNKNOWN


@functools.cache
def shipped() -> dict[tuple[str, ...], SegmentCode]:
    """Our table, by the words of a class's name in any order: `left kidney` is `kidney_left` too."""
    return {_words(name): code for name, code in _read(SHIPPED).items()}


def _words(name: str) -> tuple[str, ...]:
    return tuple(sorted(name.lower().replace("_", " ").replace("-", " ").split()))


def read_codes(path: Path) -> dict[str, SegmentCode]:
    """A user's own table, YAML or JSON, by the names of the model's classes; UserError for what is none."""
    try:
        return _read(path)
    except OSError as error:
        raise UserError(f"--segment-codes {path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"--segment-codes {path}: is no YAML or JSON ({reason})") from None
    except ValidationError as error:
        form = '; write CLASS: {type: [SCT, "10200004", Liver]}'
        raise UserError(
            f"--segment-codes {path}: {listed([describe(item, SegmentCode) for item in error.errors()])}{form}"
        ) from None


def _read(path: Path) -> dict[str, SegmentCode]:
    return _TABLE.validate_python(yaml.safe_load(path.read_text(encoding="utf-8")))
