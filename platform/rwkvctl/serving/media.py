"""In which form an answer is given: what `Accept` asks for, of what there is for this kind of upload."""

from __future__ import annotations

from rwkvctl.serving.contents import Kind
from rwkvctl.serving.refusals import Refused

PNG, GZIP, NIFTI, DICOM, JSON = (
    "image/png",
    "application/gzip",
    "application/x-nifti",
    "application/dicom",
    "application/json",
)
SLICES = "application/vnd.rwkvctl.slices"
"""Image and mask as the page draws them, see `serving.slices`."""
OF_PICTURES = (PNG, JSON, SLICES)
OF_SCANS = (GZIP, NIFTI, JSON, SLICES)
OF_SERIES = (GZIP, NIFTI, DICOM, JSON, SLICES)
OFFERED = tuple(dict.fromkeys((*OF_PICTURES, *OF_SERIES)))
ANY = "*/*"
"""Whatever form `rwkvctl predict` would give."""


def wanted(accept: str) -> list[str]:
    """The types that an `Accept` takes, the most wanted first; Refused, with 406, where it takes none that is known."""
    ranges = []
    for place, part in enumerate(accept.split(",") if accept.strip() else [ANY]):
        name, *parameters = (text.strip().lower() for text in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            ranges.append((-float(quality), place, name))
        except ValueError:
            raise Refused(406, "Accept: has a quality that is no number") from None
    found = [
        kind for quality, _, name in sorted(ranges) if quality < 0 for kind in (ANY, *OFFERED) if is_meant(kind, name)
    ]
    if not found:
        raise Refused(406, f"Accept: give one of {', '.join(OFFERED)}")
    return list(dict.fromkeys(found))


def is_meant(kind: str, name: str) -> bool:
    """Whether a type is meant by a type or a range of types of an `Accept`."""
    return name == kind or name == f"{kind.partition('/')[0]}/*"


def possible(kind: Kind) -> tuple[str, ...]:
    """What an upload of a kind can be answered with; the first is the default."""
    return {"picture": OF_PICTURES, "dicom": OF_SERIES}.get(kind, OF_SCANS)


def chosen(wishes: list[str], kind: Kind) -> str:
    """What an upload of a kind is answered with; Refused, with 406, where nothing that is wanted can be."""
    forms = possible(kind)
    for wish in wishes:
        if wish == ANY:
            return NIFTI if kind == ".nii" else forms[0]
        if wish in forms:
            return wish
    what = {"picture": "an image", "dicom": "a DICOM series"}.get(kind, "a scan that is no DICOM series")
    raise Refused(406, f"Accept: {what} is answered with one of {', '.join(forms)}")
