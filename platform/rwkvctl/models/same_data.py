"""Whether a model can be scored on a data set: what it was trained to see must be what the data holds."""

from __future__ import annotations

import json
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models.bundle import BundleInfo

COMPARED = {
    "classes": "the classes",
    "image_kind": "images of kind",
    "channels": "channels:",
    "channel_names": "channels called",
    "intensity": "the intensity rule",
    "orientation": "the orientation",
}
"""Fields that `manifest.json` and `model.json` both have and that must be equal, and how a message calls them."""


def check(manifest: Manifest, info: BundleInfo) -> None:
    """UserError naming the first field in which a data set is not what the model was trained on.

    The very data that it was trained on fits also where an old model folder lacks a field.
    """
    same = bool(info.fingerprint) and manifest.fingerprint == info.fingerprint
    for field, words in COMPARED.items():
        theirs, ours = getattr(manifest.content, field), getattr(info, field)
        if ours is None and (same or field == "channel_names"):
            continue
        if theirs is None and field == "channel_names":
            continue
        if _plain(theirs) != _plain(ours):
            raise UserError(
                f"data {manifest.location}: has {words} {_shown(theirs)}, the model has {_shown(ours)}; "
                "give other --data, or prepare the data as the model's was"
            )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value, default=str))


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    text = ", ".join(map(str, value)) if isinstance(value, list) else json.dumps(value).strip('"')
    return text if len(text) <= 70 else f"{text[:67]}..."
