"""Paired comparison: by hand where that is possible, and what holds for any scores."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from rwkvctl.base.errors import UserError
from rwkvctl.training.paired import case_scores, paired

Scores = dict[str, float | None]


def scores(*values: float | None) -> Scores:
    return {f"case{number}": value for number, value in enumerate(values)}


def test_a_constant_lead_is_certain():
    found = paired("dsc_strict", scores(0.5, 0.75, 0.25, 1.0), scores(0.25, 0.5, 0.0, 0.75))
    assert (found.difference, found.low, found.high) == (0.25, 0.25, 0.25)
    assert (found.cases, found.better, found.worse) == (4, 4, 0)
    assert found.p == stats.wilcoxon([0.25] * 4).pvalue == 0.125, "four cases cannot be more certain than that"
    assert found.verdict() == "undecided"
    six = paired("dsc_strict", scores(*[0.5] * 6), scores(*[0.25] * 6))
    assert (six.p, six.verdict()) == (0.03125, "better")


def test_the_same_scores_decide_nothing():
    found = paired("dsc_strict", scores(0.5, 0.75), scores(0.5, 0.75))
    assert (found.difference, found.p, found.verdict()) == (0.0, 1.0, "undecided")


def test_a_smaller_distance_is_better_and_a_case_without_one_is_left_out():
    ours, theirs = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, None, 4.0], [3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 5.0, None]
    found = paired("hd95_mm_strict", scores(*ours), scores(*theirs))
    assert (found.cases, found.left_out, found.difference, found.verdict()) == (6, 2, -2.0, "better")
    assert (found.better, found.worse) == (6, 0)


def test_cases_must_be_the_same():
    with pytest.raises(UserError, match=r"2 and 3 cases, 1 of them in one only \(case2\): evaluate both on the same"):
        paired("dsc_strict", scores(0.1, 0.2), scores(0.1, 0.2, 0.3))
    with pytest.raises(UserError, match="1 cases have a dsc_strict of both: too few"):
        paired("dsc_strict", scores(0.1, None), scores(0.1, 0.2))


@settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=30))
def test_sides_can_be_exchanged_and_the_interval_holds_the_mean(pairs: list[tuple[float, float]]):
    first, second = scores(*(a for a, _ in pairs)), scores(*(b for _, b in pairs))
    one, other = paired("dsc_strict", first, second), paired("dsc_strict", second, first)
    assert one.difference == pytest.approx(-other.difference)
    assert one.p == pytest.approx(other.p)
    assert (one.better, one.worse) == (other.worse, other.better)
    assert one.low <= one.difference + 1e-12
    assert one.difference <= one.high + 1e-12
    assert math.isclose(one.difference, one.first - one.second, abs_tol=1e-12)


def test_a_case_counts_by_the_mean_of_its_classes():
    table = (
        "case,class,dsc_strict,note\na,liver,0.5,\na,spleen,1.0,\nb,liver,,absent\nb,spleen,0.25,\nc,liver,,absent\n"
    )
    assert case_scores(table, "dsc_strict", "here") == {"a": 0.75, "b": 0.25, "c": None}
    with pytest.raises(UserError, match="here: its cases have no dice; they have dsc_strict"):
        case_scores(table, "dice", "here")
