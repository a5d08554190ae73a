"""CVC-ColonDB (polyps): 380 frames of 15 colonoscopy sequences.

    images/N.png, masks/N.png       the copies in use (PraNet's test data, Kaggle)
    N.bmp, pN.bmp, cN.bmp           the first release: 300 frames, their masks, and contours, which are not used

Which frame is of which sequence is not published; the grouped splits keep near-duplicates together.
Dataset: Bernal et al., Pattern Recognition 2012.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.pairs import Above, Pair, numbered, pairs_plan
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.store.splits import Split, grouped_splits, random_splits

FRAMES = range(1, 381)

DATASET = Dataset(
    name="colondb",
    title="CVC-ColonDB, polyps in colonoscopy",
    task="segmentation",
    classes=("background", "polyp"),
    expected={"frames": len(FRAMES)},
    forms={"png": "images/N.png and masks/N.png", "bmp": "N.bmp and pN.bmp in one folder"},
    licence="research use",
    access="CVC Barcelona (http://vi.cvc.uab.es/colon-qa/cvccolondb), or Kaggle longvil/cvc-colondb",
    citation="Bernal et al., Pattern Recognition 45(9), 2012",
    options=("ratio", "seeds"),
    lesions=True,
)

_FORMS = {
    "png": (r"images/(?P<id>\d+)\.(?:png|jpe?g|tiff?)", r"masks/(?P<id>\d+)\.(?:png|jpe?g|tiff?)"),
    "bmp": (r"(?P<id>\d+)\.bmp", r"p(?P<id>\d+)\.bmp"),
}
_IGNORED = r"(^|/)c\d+\.bmp$"


def recognise(source: Source) -> str | None:
    """Numbered images in `images/` may be of any set: then the name of a folder must tell."""
    if _files(source, "bmp", 1, Problems("")):
        return "bmp"
    named = any("colon" in path.lower() for path in [str(source), *source.folders])
    return "png" if named and _files(source, "png", 0, Problems("")) else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Pair the frames by number."""
    form = "bmp" if _files(source, "bmp", 1, Problems("")) else "png"
    found, masks = (_files(source, form, which, problems) for which in (0, 1))
    discover.refuse_empty(source, found, DATASET.name, DATASET.forms)
    names = discover.pair(found, masks, problems)
    warnings = discover.check_numbers(source, "frames", found, FRAMES, options.allow_partial, problems)
    warnings += discover.unused_files(source, [*found.values(), *masks.values()], _IGNORED)
    pairs = [Pair(numbered("cvccolon", n), found[n], (masks[n],)) for n in names]

    def make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
        random = random_splits(ids["all"], options.ratio, options.seeds)
        return random | grouped_splits(ids["all"], groups, options.ratio, options.seeds)

    return pairs_plan(DATASET, options, form, {"all": pairs}, Above(), make_splits, warnings=warnings)


def _files(source: Source, form: str, which: int, problems: Problems) -> dict[str, RawFile]:
    return discover.by_pattern(source.files, re.compile(_FORMS[form][which]), problems)
