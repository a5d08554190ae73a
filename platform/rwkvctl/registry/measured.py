"""What scores were measured on, and which of a version's scores promotion gates may look at.

A gate compares what a model scores on the data, the split and the cases that it was meant to be judged by. So every
score of a version is kept with a note: the tag `metric.test/dsc_strict/mean` with `measured.test`. Scores on other
data or another split are kept under `elsewhere.<dataset>-<fingerprint>/<split>/test/dsc_strict/mean`, which gates
ignore.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.base import Spec
from rwkvctl.models.bundle import BundleInfo

METRIC_TAG = "metric."
MEASURED_TAG = "measured."
ELSEWHERE_TAG = "elsewhere."
LONGEST_KEY = 250


class Measured(Spec):
    """What scores were measured on."""

    dataset: str
    fingerprint: str
    """Of the manifest."""
    split: str
    part: str
    cases: int | None = None
    """How many; null where a training did not say."""
    trained_on: int | None = None
    """How many of them the model was trained on; null where that is not known."""
    code: str = ""
    """Version and git commit of the program."""


def own(measured: Measured, info: BundleInfo) -> bool:
    """Whether these are the model's own data and split."""
    return bool(info.fingerprint) and (measured.fingerprint, measured.split) == (info.fingerprint, split_of(info))


def split_of(info: BundleInfo) -> str:
    """The split that a model was trained on; empty where its folder does not say."""
    return str(info.extra.get("split") or "")


def tags(info: BundleInfo, measured: Measured, values: Mapping[str, float]) -> dict[str, str]:
    """Scores, named `<part>/...`, as tags of a version, with the note of what they were measured on."""
    note = measured.model_dump_json()
    if own(measured, info):
        return own_tags(measured.part, note, values)
    place = f"{measured.dataset[:60]}-{measured.fingerprint[:8]}/{measured.split[:40]}"
    found = {f"{ELSEWHERE_TAG}{place}/{key}": repr(float(value)) for key, value in values.items()}
    return {key[:LONGEST_KEY]: value for key, value in found.items()} | {
        f"{MEASURED_TAG}{place}/{measured.part}"[:LONGEST_KEY]: note
    }


def training_tags(info: BundleInfo, values: Mapping[str, float], code: str) -> dict[str, str]:
    """The same for what a training measured on its own data, such as `val/...`; no case of `val` is trained on."""
    found: dict[str, str] = {}
    for part in sorted({key.partition("/")[0] for key in values}):
        note = Measured(
            dataset=info.dataset,
            fingerprint=info.fingerprint,
            split=split_of(info),
            part=part,
            trained_on=0,
            code=code,
        )
        inside = {key: value for key, value in values.items() if key.partition("/")[0] == part}
        found |= own_tags(part, note.model_dump_json(), inside)
    return found


def own_tags(part: str, note: str, values: Mapping[str, float]) -> dict[str, str]:
    scores = {f"{METRIC_TAG}{key}"[:LONGEST_KEY]: repr(float(value)) for key, value in values.items()}
    return scores | {f"{MEASURED_TAG}{part}": note}


def note_of(tags: Mapping[str, str], metric: str) -> Measured | None:
    """The note beside a version's metric; None where there is none that can be read."""
    text = tags.get(f"{MEASURED_TAG}{metric.partition('/')[0]}")
    try:
        return None if text is None else Measured.model_validate_json(text)
    except ValidationError:
        return None


def check_for_gate(tags: Mapping[str, str], metric: str, where: str, remedy: str) -> Measured:
    """The note beside a version's metric; UserError, which names `where` and `remedy`, if no gate may rely on it."""
    note = note_of(tags, metric)
    if note is None:
        raise UserError(
            f"{where}: it is not recorded what {metric} was measured on, so no gate can use it; run: {remedy}"
        )
    if note.fingerprint != tags.get("fingerprint") or note.split != tags.get("split", note.split):
        raise UserError(
            f"{where}: {metric} was measured on other data ({note.dataset}, split {note.split}), but gates use only "
            f"scores on the model's own data and split; run: {remedy}"
        )
    if note.trained_on is None or note.trained_on > 0:
        count = "an unknown number" if note.trained_on is None else note.trained_on
        raise UserError(
            f"{where}: {metric} is not a valid test score: {count} of its {note.cases} cases were trained on; "
            "make a split without them (rwkvctl data split) and train on it"
        )
    return note


def elsewhere(tags: Mapping[str, str], metric: str) -> list[str]:
    """The places (`<dataset>-<fingerprint>/<split>`) in which a version has this metric of other data."""
    ending = re.compile(rf"{re.escape(ELSEWHERE_TAG)}(.+?)/{re.escape(metric)}")
    return sorted(match[1] for key in tags if (match := ending.fullmatch(key)))


def as_fields(measured: Measured) -> dict[str, Any]:
    """For `summary.json`."""
    found: dict[str, Any] = json.loads(measured.model_dump_json())
    return found
