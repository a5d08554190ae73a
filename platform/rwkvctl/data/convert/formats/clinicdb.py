"""CVC-ClinicDB (polyps): 612 frames of 29 colonoscopy sequences.

    Original/N.tif, Ground Truth/N.tif        the release; PNG/ and TIF/ with these inside is Kaggle's copy of it
    images/N.(png|jpg), masks/N.(png|jpg)     other copies

Neighbouring frames of a sequence are nearly the same picture, so the random splits of the papers leak: their test
frames have frames of the same sequence in the training part. Dataset: Bernal et al., CMIG 2015.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Mapping, Sequence

from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.pairs import Above, Pair, numbered, pairs_plan
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.store.splits import Split, grouped_splits, random_splits

FRAMES = range(1, 613)
SEQUENCE_STARTS = (
    1, 26, 51, 68, 79, 104, 127, 152, 178, 200, 206, 228, 253, 278, 298, 318, 343, 364, 384, 409, 429, 448, 467, 479,
    504, 529, 547, 572, 592,
)  # fmt: skip
"""The first frame of each sequence, from the data set's readme."""

DATASET = Dataset(
    name="clinicdb",
    title="CVC-ClinicDB, polyps in colonoscopy",
    task="segmentation",
    classes=("background", "polyp"),
    expected={"frames": len(FRAMES)},
    forms={
        "tif": "Original/N.tif and Ground Truth/N.tif",
        "png": "PNG/Original/N.png and PNG/Ground Truth/N.png",
        "copy": "images/N.(png|jpg) and masks/N.(png|jpg)",
    },
    licence="research use; images Hospital Clinic Barcelona, masks CVC",
    access="https://polyp.grand-challenge.org/CVCClinicDB, or Kaggle balraj98/cvcclinicdb",
    citation="Bernal et al., Computerized Medical Imaging and Graphics 43, 2015",
    options=("ratio", "seeds"),
    lesions=True,
)

_FORMS = {  # the first one that a source has is taken: Kaggle's copy has two
    "png": ("Original", "Ground[ _]?Truth", "png"),
    "tif": ("Original", "Ground[ _]?Truth", "tiff?"),
    "copy": ("images", "masks", "png|jpe?g|tiff?"),
}
_IGNORED = r"(Original|Ground[ _]?Truth)/\d+\.tiff?$"


def recognise(source: Source) -> str | None:
    """Numbered images in `images/` may be of any set: then the name of a folder must tell."""
    form = next((form for form in _FORMS if _files(source, form, 0, Problems(""))), None)
    named = any("clinic" in path.lower() for path in [str(source), *source.folders])
    return form if form != "copy" or named else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Pair the frames by number; a frame's leak group is its sequence."""
    form = next((form for form in _FORMS if _files(source, form, 0, Problems(""))), "copy")
    found, masks = (_files(source, form, folder, problems) for folder in (0, 1))
    discover.refuse_empty(source, found, DATASET.name, DATASET.forms)
    names = discover.pair(found, masks, problems)
    warnings = discover.check_numbers(source, "frames", found, FRAMES, options.allow_partial, problems)
    warnings += discover.unused_files(source, [*found.values(), *masks.values()], _IGNORED)
    pairs = [Pair(numbered("cvcclinic", n), found[n], (masks[n],), group=sequence_of(int(n))) for n in names]

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        random = random_splits(ids["all"], options.ratio, options.seeds)
        return random | grouped_splits(ids["all"], groups, options.ratio, options.seeds, name="by_sequence")

    return pairs_plan(DATASET, options, form, {"all": pairs}, Above(), make_splits, warnings=warnings)


def sequence_of(frame: int) -> str:
    """`sequence_01` ... `sequence_29`."""
    return f"sequence_{bisect.bisect_right(SEQUENCE_STARTS, frame):02d}"


def _files(source: Source, form: str, folder: int, problems: Problems) -> dict[str, RawFile]:
    extension = _FORMS[form][2]
    pattern = re.compile(rf"(?:{_FORMS[form][folder]})/(?P<id>\d+)\.(?:{extension})")
    return discover.by_pattern(source.files, pattern, problems)
