"""Figures of classifiers, against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    precision_score,
    recall_score,
    roc_auc_score,
    top_k_accuracy_score,
)

from rwkvctl.training import classification, metrics
from rwkvctl.training.classification import Answers


def answers(n: int, classes: int, *, seed: int = 0, ties: bool = False, groups: int = 0) -> Answers:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % classes)
    logits = rng.normal(0, 1, (n, classes)) + 1.2 * np.eye(classes)[labels]
    logits = np.round(logits) if ties else logits
    odds = np.exp(logits)
    names = [f"p{i % groups}" if groups else None for i in range(n)]
    return Answers([f"i{i}" for i in range(n)], labels, odds / odds.sum(axis=1, keepdims=True), names)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_figures_are_those_of_scikit_learn(classes: int, ties: bool):
    own = answers(150, classes, ties=ties)
    names = [f"class {c}" for c in range(classes)]
    found = classification.summarise(own, names)
    true, p, chosen = own.labels, own.probabilities, own.chosen
    assert found["mean"]["accuracy"] == pytest.approx(accuracy_score(true, chosen))
    assert found["mean"]["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(true, chosen))
    each = [roc_auc_score(true == c, p[:, c]) for c in range(classes)]
    assert [found["by_class"][name]["auroc"] for name in names] == pytest.approx(each)
    assert found["mean"]["auroc"] == pytest.approx(np.mean(each))
    assert found["confusion"] == confusion_matrix(true, chosen).tolist()
    recall, precision = (
        score(true, chosen, average=None, zero_division=np.nan) for score in (recall_score, precision_score)
    )
    assert [found["by_class"][name]["sensitivity"] for name in names] == pytest.approx(list(recall))
    assert [found["by_class"][name]["precision"] for name in names] == pytest.approx(list(precision))
    if classes == 7 and not ties:
        assert found["top5"] == pytest.approx(100 * top_k_accuracy_score(true, p, k=5))
    for name in ("accuracy", "balanced_accuracy", "auroc"):
        low, high = found["intervals"]["mean"][name]
        assert low <= found["mean"][name] <= high


def test_the_calibration_error_by_hand():
    p = np.array([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])
    own = Answers(list("abcdef"), np.array([0, 0, 0, 1, 1, 1]), p, [None] * 6)
    assert classification.summarise(own, ["a", "b"])["mean"]["ece"] == pytest.approx((4 * 0.15 + 2 * 0.6) / 6)


def test_intervals_draw_patients():
    """Six patients with twenty equal images each: as wide as for six images."""
    few, rng = answers(6, 2, seed=3), np.random.default_rng(0)
    order = rng.permutation(np.repeat(np.arange(6), 20))
    many = Answers([f"i{i}" for i in range(120)], few.labels[order], few.probabilities[order], [f"p{i}" for i in order])
    wide, narrow = (
        classification.intervals(Answers(many.keys, many.labels, many.probabilities, groups), ["a", "b"])
        for groups in (many.groups, [None] * 120)
    )
    assert (wide["over"], narrow["over"]) == ("6 groups", "120 cases")
    widths = [one["mean"]["accuracy"][1] - one["mean"]["accuracy"][0] for one in (wide, narrow)]
    assert widths[0] > 2 * widths[1]


def test_a_class_without_images_has_no_figures():
    own = answers(40, 2)
    p = np.concatenate([own.probabilities, np.zeros((40, 1))], axis=1)
    found = classification.summarise(Answers(own.keys, own.labels, p, own.groups), ["a", "b", "c"])
    assert found["by_class"]["c"] == {"images": 0, "sensitivity": None, "precision": None, "auroc": None}
    assert found["mean"]["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(own.labels, own.chosen))
    sent = metrics.tracked(found, "test")
    assert sent["test/auroc/mean"] == found["mean"]["auroc"]
    assert sent["test/sensitivity/a"] == found["by_class"]["a"]["sensitivity"]
    assert "test/auroc/c" not in sent
    assert sent["test/top1"] == pytest.approx(100 * found["mean"]["accuracy"])
