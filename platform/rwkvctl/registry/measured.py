"""What scores were measured on, and which of a version's scores promotion gates may look at.

A gate compares what a model scores on the data, the split and the cases that it was meant to be judged by. So the
scores of a part are kept with a note, in one tag `scores.test`; those on other data or another split in a tag
`elsewhere.<dataset>-<fingerprint>/<split>/test`, which gates ignore.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field, ValidationError

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.base import Spec
from rwkvctl.models.bundle import BundleInfo
from rwkvctl.runs.data_inputs import DataInput

SCORES_TAG = "scores."
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

    @property
    def data(self) -> DataInput:
        """As MLflow knows it."""
        return DataInput(self.dataset, self.fingerprint, self.split, self.part)


class Scores(Spec):
    """The content of a tag."""

    measured: Measured
    values: dict[str, float]
    """By the name that tracking has them by, `test/dsc_strict/mean`."""
    run_id: str | None = None
    """The MLflow run that keeps the scores of every case."""
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """95 %, of the means for which there is one; over patients where the data set knows them."""


Intervals = Mapping[str, tuple[float, float]]


def own(measured: Measured, info: BundleInfo) -> bool:
    """Whether these are the model's own data and split."""
    return bool(info.fingerprint) and (measured.fingerprint, measured.split) == (info.fingerprint, split_of(info))


def split_of(info: BundleInfo) -> str:
    """The split that a model was trained on; empty where its folder does not say."""
    return str(info.extra.get("split") or "")


def data_of(info: BundleInfo, part: str) -> DataInput:
    """A part of the data that a model was trained on, as MLflow knows it."""
    return DataInput(info.dataset, info.fingerprint, split_of(info), part)


def tags(
    info: BundleInfo,
    measured: Measured,
    values: Mapping[str, float],
    run_id: str | None = None,
    intervals: Intervals | None = None,
) -> dict[str, str]:
    """Scores, named `<part>/...`, as a tag of a version, with the note of what they were measured on."""
    if own(measured, info):
        return {f"{SCORES_TAG}{measured.part}": as_text(measured, values, run_id, intervals)}
    place = f"{measured.dataset[:60]}-{measured.fingerprint[:8]}/{measured.split[:40]}"
    return {f"{ELSEWHERE_TAG}{place}/{measured.part}"[:LONGEST_KEY]: as_text(measured, values, run_id, intervals)}


def training_tags(
    info: BundleInfo, values: Mapping[str, float], run_id: str, code: str, intervals: Intervals | None = None
) -> dict[str, str]:
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
        found[f"{SCORES_TAG}{part}"] = as_text(note, inside, run_id, intervals)
    return found


def as_text(
    measured: Measured,
    values: Mapping[str, float],
    run_id: str | None = None,
    intervals: Intervals | None = None,
) -> str:
    """Strict JSON, which has no NaN: pydantic reads its name as the number."""
    plain = {key: float(value) if math.isfinite(value) else str(value) for key, value in values.items()}
    found: dict[str, Any] = {"measured": as_fields(measured), "values": plain}
    found |= {"run_id": run_id} if run_id else {}
    if known := {key: list(ends) for key, ends in (intervals or {}).items() if key in plain}:
        found["intervals"] = known
    return json.dumps(found)


def scores(tags: Mapping[str, str], metric: str) -> Scores | None:
    """The scores of the part that a metric is of; None where there are none that can be read."""
    text = tags.get(tag_of(metric))
    try:
        return None if text is None else Scores.model_validate_json(text)
    except ValidationError:
        return None


def tag_of(metric: str) -> str:
    return f"{SCORES_TAG}{metric.partition('/')[0]}"


def metrics_of(tags: Mapping[str, str]) -> tuple[dict[str, float], list[str]]:
    """The metrics of a version on its own data, and a line for each tag that was edited to what cannot be read."""
    metrics: dict[str, float] = {}
    notes: list[str] = []
    for key in sorted(key for key in tags if key.startswith(SCORES_TAG)):
        if (found := scores(tags, key.removeprefix(SCORES_TAG))) is not None:
            metrics |= found.values
        else:
            notes.append(f"tag {key} is {tags[key][:40]!r}, no scores: ignored; rwkvctl evaluate writes it again")
    return metrics, notes


def note_of(tags: Mapping[str, str], metric: str) -> Measured | None:
    """The note beside a version's metric; None where there is none that can be read."""
    found = scores(tags, metric)
    return None if found is None else found.measured


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
    return sorted(place for place, found in of_other_data(tags) if metric in found.values)


def of_other_data(tags: Mapping[str, str]) -> Iterator[tuple[str, Scores]]:
    """Scores on other data or another split, by place."""
    for key in sorted(key for key in tags if key.startswith(ELSEWHERE_TAG)):
        with contextlib.suppress(ValidationError):
            yield key.removeprefix(ELSEWHERE_TAG).rpartition("/")[0], Scores.model_validate_json(tags[key])


def as_fields(measured: Measured) -> dict[str, Any]:
    """As JSON has it."""
    found: dict[str, Any] = json.loads(measured.model_dump_json())
    return found
