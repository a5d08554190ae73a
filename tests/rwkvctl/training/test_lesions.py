"""Lesions counted and matched, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rwkvctl.training import metrics
from rwkvctl.training.lesions import Lesions, match_lesions


def row(text: str) -> np.ndarray:
    """A picture of one row; `#` is lesion."""
    return np.array([[letter == "#" for letter in text]])


@pytest.mark.parametrize(
    ("truth", "pred", "expected"),
    [
        ("##..##..", "##..##..", (2, 2, 2)),
        ("##......", "....##..", (1, 1, 0)),  # side by side
        ("##########", "#.........", (1, 1, 1)),  # IoU 0.1
        ("###########", "#..........", (1, 1, 0)),  # 1 / 11
        ("#####.....", "##.##.....", (1, 2, 1)),  # in two pieces: one of them is false
        ("##.##.....", "#####.....", (2, 1, 1)),  # run together: one is missed
        ("....", "....", (0, 0, 0)),
        ("##.#", "....", (2, 0, 0)),
        ("....", "#..#", (0, 2, 0)),
    ],
)
def test_lesions_by_hand(truth: str, pred: str, expected: tuple[int, int, int]) -> None:
    assert match_lesions(row(pred), row(truth)) == Lesions(*expected)


def test_as_many_as_possible_match() -> None:
    """The second predicted lesion fits the first true one best, but then the second true one would go without."""
    truth, pred = row("########.####.."), row("##.########....")
    assert match_lesions(pred, truth) == Lesions(true=2, predicted=2, found=2)


def test_corners_join_lesions() -> None:
    mask = np.eye(3, dtype=bool)
    cube = np.zeros((3, 3, 3), bool)
    cube[[0, 1, 2], [0, 1, 2], [0, 1, 2]] = True
    assert match_lesions(mask, mask) == match_lesions(cube, cube) == Lesions(1, 1, 1)


def test_shares_exist_only_where_there_is_something_to_count() -> None:
    assert (Lesions(4, 2, 1).f1, Lesions(4, 2, 1).precision, Lesions(4, 2, 1).recall) == (1 / 3, 1 / 2, 1 / 4)
    assert (Lesions(0, 2, 0).f1, Lesions(0, 2, 0).precision, Lesions(0, 2, 0).recall) == (0, 0, None)
    assert (Lesions(2, 0, 0).f1, Lesions(2, 0, 0).precision, Lesions(2, 0, 0).recall) == (0, None, 0)
    assert (Lesions(0, 0, 0).f1, Lesions(0, 0, 0).precision, Lesions(0, 0, 0).recall) == (None, None, None)


@settings(deadline=None, max_examples=50)
@given(
    hnp.array_shapes(min_dims=2, max_dims=3, max_side=8).flatmap(
        lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape))
    )
)
def test_either_mask_may_be_the_truth(pair: tuple[np.ndarray, np.ndarray]) -> None:
    there, back = match_lesions(*pair), match_lesions(*pair[::-1])
    assert (there.true, there.predicted, there.found) == (back.predicted, back.true, back.found)
    assert there.found <= min(there.true, there.predicted)


def test_summary_and_table_have_counts_and_shares_where_asked_for() -> None:
    choices = metrics.Choices(lesions=True)
    masks = {"a": (row("#.#.#..."), row("#.#....#")), "b": (row("........"), row("........"))}
    cases = {
        key: metrics.score_case(*(mask.astype(np.uint8) for mask in pair), 2, choices=choices)
        for key, pair in masks.items()
    }
    summary = metrics.summarise(cases, ["background", "polyp"], choices)
    polyp = summary["classes"]["polyp"]
    assert (polyp["lesions"], polyp["lesions_predicted"], polyp["lesions_found"]) == (3, 3, 2)
    assert polyp["lesion_f1_strict"] == polyp["lesion_recall_strict"] == pytest.approx(2 / 3), "b is not counted"
    first, second = metrics.case_rows(cases, ["background", "polyp"], choices)
    assert (first["lesions"], first["lesions_found"], second["lesions"], second["lesion_f1_strict"]) == (3, 2, 0, None)
    flat = metrics.flat_metrics(summary)
    assert flat["test/lesion_f1_strict/mean"] == polyp["lesion_f1_strict"]
    assert not [name for name in flat if name.startswith("test/lesions")]
    assert "lesion_f1_strict" not in metrics.summarise(cases, ["background", "polyp"])["mean"]
