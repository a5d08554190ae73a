"""Random splits, equal to those that the published code of this field makes with scikit-learn."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rwkvctl.errors import UserError

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class Split:
    """Which samples are for what. `ids` has the keys train, val and test, each a list in its order of use."""

    rule: str
    ids: dict[str, list[str]]
    seed: int | None = None


def parse_ratio(text: str) -> tuple[int, int, int]:
    """`"8:1:1"` -> (8, 1, 1); two numbers mean no test part."""
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})(?::(\d{1,4}))?", text.strip())
    ratio = (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)
    if not ratio[0] or not ratio[1]:
        raise UserError(f"--split {text!r}: give train:val:test as whole numbers, for example 8:1:1")
    return ratio


def split_name(ratio: tuple[int, int, int], seed: int) -> str:
    """`random811_s41`; ratios with larger numbers keep their separators: `random80-10-10_s41`."""
    separator = "" if max(ratio) < 10 else "-"
    return f"random{separator.join(map(str, ratio))}_s{seed}"


def random_split(ids: Sequence[str], ratio: tuple[int, int, int], seed: int) -> Split:
    """Split naturally sorted `ids` as two calls of `sklearn.model_selection.train_test_split` would.

    First train against the rest, then the rest into val and test, both with `random_state=seed`.
    """
    train_share, val_share, test_share = ratio
    rest_share = val_share + test_share
    train, rest = _train_test_split(ids, rest_share / (train_share + rest_share), seed)
    val, test = (rest, []) if not test_share else _train_test_split(rest, test_share / rest_share, seed)
    if not train or not val or (test_share and not test):
        raise UserError(
            f"--split {':'.join(map(str, ratio))}: {len(ids)} samples leave a part empty; "
            "add samples or change the ratio"
        )
    rule = f"natsorted ids; train_test_split({rest_share / (train_share + rest_share):g}, seed)" + (
        f"; rest train_test_split({test_share / rest_share:g}, seed)" if test_share else ""
    )
    return Split(rule, {"train": train, "val": val, "test": test}, seed)


def _train_test_split(ids: Sequence[str], test_size: float, seed: int) -> tuple[list[str], list[str]]:
    """scikit-learn's ShuffleSplit with one iteration: the permutation's head is the test part.

    RandomState is frozen by numpy's policy (NEP 19), so this stays equal for ever. Its rounding is kept too.
    """
    if len(ids) < 2:
        return list(ids), []
    n_test = math.ceil(test_size * len(ids))
    order = np.random.RandomState(seed).permutation(len(ids))
    return [ids[i] for i in order[n_test:]], [ids[i] for i in order[:n_test]]
