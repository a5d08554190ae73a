"""PSVFM (placental vessels in fetoscopy): 483 frames of six videos.

    Vessel_segmentation_annotations/videoNN/images/anonMMM_FFFFF.png, .../masks_gt/anonMMM_FFFFF_mask.png

The video's number is that of its folder: anonMMM is the code of a patient. `Vessel_registration_unannotated_clips`
holds predicted masks, which are no ground truth. Dataset: Bano et al., MICCAI 2020.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from rwkvctl.data.convert import discover
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.formats.pairs import Mask, Pair, pairs_plan
from rwkvctl.data.convert.sources import RawFile, Source
from rwkvctl.data.images import files as image_files
from rwkvctl.data.store.splits import Split, fixed

PARTS = {"train": (1, 2, 3), "val": (4,), "test": (5, 6)}
RULE = "max(channel) > 127"

DATASET = Dataset(
    name="psvfm",
    title="PSVFM, placental vessels in fetoscopy",
    task="segmentation",
    classes=("background", "vessel"),
    expected={"frames": 483, "videos": 6},
    forms={"png": "videoNN/images/anonMMM_FFFFF.png and videoNN/masks_gt/anonMMM_FFFFF_mask.png, NN = 01 to 06"},
    licence="as stated on UCL's page",
    access="https://www.ucl.ac.uk/interventional-surgical-sciences/fetoscopy-placenta-data, or the web archive",
    citation="Bano et al., MICCAI 2020",
)

_FRAME = r"video(?P<video>\d\d)/{folder}/(?P<code>anon\d{{3}})_(?P<frame>\d+){suffix}\.png"
_IGNORED = r"unannotated|masks_predicted|_binary\.tiff?$"


def recognise(source: Source) -> str | None:
    return "png" if _files(source, "masks_gt", "_mask", Problems("")) else None


def plan(source: Source, options: Options, problems: Problems) -> Plan:
    """Pair the frames of every video; a frame's leak group is its video."""
    found = _files(source, "images", "", problems)
    masks = _files(source, "masks_gt", "_mask", problems)
    discover.refuse_empty(source, found, DATASET.name, DATASET.forms)
    names = discover.pair(found, masks, problems)
    videos = sorted({name[:3] for name in found})
    for video in videos:
        if int(video[1:]) not in range(1, 7):
            problems.add(f"{source}: has a video{video[1:]}; PSVFM has 01 to 06, move other files elsewhere")
    counts = {"frames": len(found), "videos": len(videos)}
    warnings = discover.check_counts(source, counts, DATASET.expected, options.allow_partial, problems)
    warnings += discover.unused_files(source, [*found.values(), *masks.values()], _IGNORED)
    pairs = [Pair(f"psvfm_{name}", found[name], (masks[name],), group=f"video{name[1:3]}") for name in names]
    parts = {part: [p for p in pairs if int(p.key[7:9]) in own] for part, own in PARTS.items()}
    return pairs_plan(DATASET, options, "png", parts, read_vessels, _make_splits, mask_rule=RULE, warnings=warnings)


def _make_splits(ids: Mapping[str, Sequence[str]], groups: Mapping[str, str]) -> dict[str, Split]:
    return {"by_video": fixed("videos 1-3 train, 4 val, 5 and 6 test", **ids)}


def _files(source: Source, folder: str, suffix: str, problems: Problems) -> dict[str, RawFile]:
    """Frames by `v04_anon005_00231`, in order."""
    pattern = re.compile(r"(?:.*/)?" + _FRAME.format(folder=folder, suffix=suffix), re.IGNORECASE)
    found: dict[str, RawFile] = {}
    for file in source.files:
        match = pattern.fullmatch(file.path)
        if match and "unannotated" not in file.path.lower():
            name = f"v{match['video']}_{match['code'].lower()}_{int(match['frame']):05d}"
            discover.add(found, name, file, problems)
    return dict(sorted(found.items()))


def read_vessels(data: bytes) -> Mask:
    """Masks are stored in several channels. Other code takes `mean > 0`: a note says where that would differ."""
    channels = image_files.decode_rgb(data)
    ids = channels.max(axis=-1) > 127
    differs = float((ids != (channels.mean(axis=-1) > 0)).mean())
    note = "mean(channels) > 0 gives another mask" if differs > 0.001 else ""
    return Mask(ids.astype(np.uint8), RULE, note=note)
