"""The tags of a version. MLflow's page of a version shows ten, so there are no more.

Six can be searched by, such as `weights_sha256` and `dataset`; all else that is known of the model is JSON in
`rwkvctl.details`, and what it scored is in one tag for each part, see `registry.measured`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

WEIGHTS_TAG = "weights_sha256"
FINGERPRINT_TAG = "fingerprint"
PATH_TAG = "rwkvctl.bundle"
"""Where the model folder lies in the MLflow model."""
SPLIT_TAG = "split"
ENCODER = "encoder"
"""What the encoder's weights began with: `reference` and `sha256`."""
LOGGED = "logged_model"
"""Id of the logged model that has its files."""
PULLED_FROM, PULLED_REVISION = "pulled_from", "pulled_revision"
"""Where a model that was made elsewhere was fetched, and which state of that place."""
DETAILS_TAG = "rwkvctl.details"
SEARCHED = {WEIGHTS_TAG, FINGERPRINT_TAG, PATH_TAG, SPLIT_TAG, "dataset", "run"}


def packed(fields: Mapping[str, Any]) -> dict[str, str]:
    """Fields of a model as tags."""
    rest = {key: value for key, value in fields.items() if key not in SEARCHED}
    found = {key: text(value) for key, value in fields.items() if key in SEARCHED}
    return found | ({DETAILS_TAG: text(rest)} if rest else {})


def fields(tags: Mapping[str, str]) -> dict[str, str]:
    """Tags with what is in the details beside them, as text each; details that cannot be read are left out."""
    return {key: value for key, value in tags.items() if key != DETAILS_TAG} | {
        key: text(value) for key, value in mapping(tags.get(DETAILS_TAG, "")).items()
    }


def text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def mapping(text: str) -> dict[str, Any]:
    """A mapping from its JSON; empty where it is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
