"""Intervals of means, and means over patients: by hand, and against scipy's bootstrap."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pytest

from rwkvctl.cli import show
from rwkvctl.training import metrics, paired
from rwkvctl.training.intervals import reliability
from rwkvctl.training.metrics import USUAL, ClassScore

CLASSES = ["background", "liver", "spleen"]


def scores(*dsc: float | None) -> list[ClassScore]:
    """One case, by class; None: in neither mask."""
    return [
        ClassScore(number, value or 0.0, 0.0, value, note="" if value is not None else "both empty")
        for number, value in enumerate(dsc, start=1)
    ]


def added(cases: Mapping[str, list[ClassScore]], **groups: str) -> dict:
    found = reliability(cases, CLASSES, USUAL, {key: groups.get(key) for key in cases})
    return json.loads(json.dumps(found))


def test_intervals_of_single_cases_are_scipys_bootstrap() -> None:
    rng = np.random.default_rng(2)
    values = rng.random((23, 2))
    found = added({f"c{i}": scores(*row) for i, row in enumerate(values.tolist())})["intervals"]
    for name, column in zip(CLASSES[1:], values.T, strict=True):
        assert found["classes"][name]["dsc_strict"] == pytest.approx(paired.interval(column), rel=1e-12)
    assert found["mean"]["dsc_strict"] == pytest.approx(paired.interval(values.mean(axis=1)), rel=1e-12)
    assert (found["level"], found["over"]) == (0.95, "23 cases")
    assert found["mean"]["assd_mm_strict"] is None, "nobody has one"


def test_frames_of_one_video_do_not_narrow_the_interval() -> None:
    """Four videos of 50 equal frames are four observations, and without knowing of them they would be 200."""
    cases = {
        f"v{video}f{frame}": scores(value, 1.0)
        for video, value in enumerate((0.2, 0.9, 0.5, 0.8))
        for frame in range(50)
    }
    known = added(cases, **{key: key[:2] for key in cases})
    unknown = added(cases)
    low, high = known["intervals"]["classes"]["liver"]["dsc_strict"]
    narrow = unknown["intervals"]["classes"]["liver"]["dsc_strict"]
    assert (known["intervals"]["over"], unknown["intervals"]["over"]) == ("4 groups", "200 cases")
    assert high - low > 5 * (narrow[1] - narrow[0])
    assert [low, high] == pytest.approx(paired.interval(np.array([0.2, 0.9, 0.5, 0.8])))
    assert "groups" not in unknown


def test_means_over_patients_by_hand() -> None:
    cases = {"a1": scores(0.5, 1.0), "a2": scores(1.0, None), "b1": scores(0.25, None), "c": scores(None, 0.5)}
    groups = added(cases, a1="ann", a2="ann", b1="bob")["groups"]
    assert groups["count"] == 3
    assert groups["each"]["ann"] == {"cases": 2} | groups["each"]["ann"]
    of_each = {name: one["dsc_strict"] for name, one in groups["each"].items()}
    assert of_each == {"ann": (0.75 + 1.0) / 2, "bob": 0.25, "case c": 0.5}
    liver, spleen = (0.75 + 0.25) / 2, (1.0 + 0.5) / 2
    assert groups["mean"]["dsc_strict"] == (liver + spleen) / 2
    summary = metrics.summarise(cases, CLASSES)
    assert summary["mean"]["dsc_strict"] == pytest.approx(((0.5 + 1 + 0.25) / 3 + (1 + 0.5) / 2) / 2)


def test_one_case_has_no_interval_and_draws_without_a_value_are_left_out() -> None:
    assert added({"a": scores(0.5, 0.5)})["intervals"]["mean"]["dsc_strict"] is None
    found = added({"a": scores(0.5, 0.5), "b": scores(0.7, None), "c": scores(0.9, None)})["intervals"]
    assert found["classes"]["spleen"]["dsc_strict"] is None
    low, high = found["classes"]["liver"]["dsc_strict"]
    assert 0.5 <= low < high <= 0.9


def test_what_is_printed_has_intervals_and_patients(capsys: pytest.CaptureFixture[str]) -> None:
    cases = {f"{name}{number}": scores(0.5 + number / 10, None) for name in "abc" for number in range(3)}
    summary = metrics.summarise(cases, CLASSES)
    show.show_scores(show.wide_console(), summary | added(cases, **{key: key[0] for key in cases}))
    lines = [" ".join(line.replace("│", " ").split()) for line in capsys.readouterr().out.splitlines()]
    assert "9 cases; below each mean its 95% interval, drawn over 3 groups" in lines
    assert any(line.startswith("liver 0.6000") for line in lines)
    assert any(line.startswith("over 3 patients or sequences 0.6000") for line in lines)
    assert "of all cases and classes: 9 in neither mask" in lines
    show.show_scores(show.wide_console(), summary)  # of a summary of before
    capsys.readouterr()
    show.show_scores(show.wide_console(), summary | added(cases, **dict.fromkeys(cases, "one")))
    printed = capsys.readouterr().out
    assert "over one patient or sequence" in printed
    assert "interval" not in printed
