from __future__ import annotations

import hashlib
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvctl.base.errors import UserError
from rwkvctl.data.store.splits import (
    folds,
    folds_of,
    grouped_split,
    grouped_splits,
    parse_ratio,
    random_split,
    rotated_folds,
    split_name,
)

# Recorded from scikit-learn 1.9.1's train_test_split, called twice: parts' sizes, SHA-256 of "train val test" joined.
GOLDEN = {
    (612, (8, 1, 1), 41): ((489, 61, 62), "350b6c2eb939714d"),
    (612, (8, 1, 1), 1029): ((489, 61, 62), "d981e6ef81e771ab"),
    (612, (8, 1, 1), 3407): ((489, 61, 62), "413bb539b59667c6"),
    (380, (8, 1, 1), 41): ((304, 38, 38), "cf5d616e7c2d8c49"),
    (1000, (8, 1, 1), 1029): ((800, 100, 100), "9e5ec5941edf4cb7"),
    (647, (8, 1, 1), 3407): ((517, 65, 65), "bc7965a585fdb600"),
    (85, (9, 1, 0), 41): ((76, 9, 0), "c67f60fdf522a109"),
    (385, (8, 1, 1), 41): ((308, 38, 39), "d047fb5ca150feae"),
    (100, (7, 1, 2), 41): ((70, 10, 20), "5c18db50b0e46120"),
}


@pytest.mark.parametrize(("case", "expected"), GOLDEN.items(), ids=str)
def test_equals_scikit_learn(case, expected):
    n, ratio, seed = case
    split = random_split([str(i) for i in range(1, n + 1)], ratio, seed)
    parts = [split.ids[part] for part in ("train", "val", "test")]
    digest = hashlib.sha256(" ".join(chain(*parts)).encode()).hexdigest()[:16]
    assert (tuple(map(len, parts)), digest) == expected


def test_twenty_ids_in_full():
    split = random_split([str(i) for i in range(1, 21)], (8, 1, 1), 41)
    train = [5, 16, 17, 18, 14, 9, 6, 8, 10, 19, 2, 20, 3, 13, 4, 1]
    assert split.ids["train"] == [str(i) for i in train]
    assert (split.ids["val"], split.ids["test"]) == (["7", "11"], ["12", "15"])
    assert split.seed == 41


@given(n=st.integers(20, 300), seed=st.integers(0, 2**32 - 1))
def test_parts_are_disjoint_and_whole(n, seed):
    ids = [str(i) for i in range(n)]
    parts = random_split(ids, (8, 1, 1), seed).ids
    assert sorted(chain(*parts.values())) == sorted(ids)


def test_names_and_ratios():
    assert split_name(parse_ratio("8:1:1"), 41) == "random811_s41"
    assert split_name(parse_ratio("80:10:10"), 7) == "random80-10-10_s7"
    assert parse_ratio("9:1") == (9, 1, 0)


@pytest.mark.parametrize("text", ["", "8", "8:1:1:1", "8:0:2", "0:1:1", "a:b:c", "-8:1:1"])
def test_bad_ratio(text):
    with pytest.raises(UserError, match="8:1:1"):
        parse_ratio(text)


@pytest.mark.parametrize(("n", "ratio", "needed"), [(0, "8:1:1", 3), (2, "98:1:1", 3), (1, "9:1", 2)])
def test_too_few_samples(n: int, ratio: str, needed: int):
    with pytest.raises(UserError, match=f"a split by {ratio} needs at least {needed} samples"):
        random_split(list("abc")[:n], parse_ratio(ratio), 41)


@given(n=st.integers(3, 40), ratio=st.tuples(*[st.integers(1, 99)] * 3))
def test_no_part_is_empty(n: int, ratio: tuple[int, int, int]):
    parts = random_split([str(i) for i in range(n)], ratio, 41).ids
    assert all(parts.values())
    assert sorted(chain(*parts.values())) == sorted(str(i) for i in range(n))


@given(sizes=st.lists(st.integers(1, 12), min_size=10, max_size=40), seed=st.integers(0, 2**32 - 1))
def test_groups_stay_whole(sizes, seed):
    group_of = {f"{group}_{i}": str(group) for group, size in enumerate(sizes) for i in range(size)}
    parts = grouped_split(list(group_of), group_of, (8, 1, 1), seed).ids
    assert sorted(chain(*parts.values())) == sorted(group_of)
    assert sum(len({group_of[key] for key in ids}) for ids in parts.values()) == len(sizes)
    for part in ("val", "test"):
        assert 0.1 * len(group_of) <= len(parts[part]) < 0.1 * len(group_of) + max(sizes)


def test_three_groups_are_enough_for_a_grouped_split():
    group_of = {str(i): str(i % 3) for i in range(12)}
    made = grouped_splits(list(group_of), group_of, None, None)
    assert list(made) == ["grouped811_s41", "grouped811_s1029", "grouped811_s3407"]
    assert {len(ids) for split in made.values() for ids in split.ids.values()} == {4}
    assert grouped_splits(["0", "1", "3"], group_of, None, None) == {}


def test_folds_cover_everything_once():
    ids = [str(i) for i in range(23)]
    made = folds(ids, None, 5, 41)
    assert list(made) == [f"kfold5_s41_f{n}" for n in range(1, 6)]
    assert sorted(chain(*(split.ids["test"] for split in made.values()))) == sorted(ids)
    assert made["kfold5_s41_f1"].ids["val"] == made["kfold5_s41_f2"].ids["test"]
    with pytest.raises(UserError, match="give 3 to 23"):
        folds(ids, None, 24, 41)


@given(sizes=st.lists(st.integers(1, 9), min_size=5, max_size=30), seed=st.integers(0, 2**32 - 1))
def test_rotated_folds_validate_each_sample_once(sizes: list[int], seed: int):
    group_of = {f"{group}_{i}": str(group) for group, size in enumerate(sizes) for i in range(size)}
    made = rotated_folds(list(group_of), group_of, 5, seed, test=["t"])
    assert made == rotated_folds(list(group_of), group_of, 5, seed, test=["t"])
    assert folds_of(f"folds5_s{seed}", made) == list(made)
    assert sorted(chain(*(split.ids["val"] for split in made.values()))) == sorted(group_of)
    for split in made.values():
        assert sorted([*split.ids["train"], *split.ids["val"]]) == sorted(group_of)
        assert not {group_of[key] for key in split.ids["train"]} & {group_of[key] for key in split.ids["val"]}
        assert (split.ids["test"], split.seed) == (["t"], seed)
        assert 0 < len(split.ids["val"]) <= len(group_of) / 5 + max(sizes)


@given(labels=st.lists(st.integers(0, 3), min_size=12, max_size=60), seed=st.integers(0, 2**32 - 1))
def test_folds_of_classes_hold_them_in_equal_shares(labels: list[int], seed: int):
    label_of = {f"i{n}": label for n, label in enumerate(labels)}
    made = rotated_folds(list(label_of), {}, 3, seed, label_of=label_of)
    assert sorted(chain(*(split.ids["val"] for split in made.values()))) == sorted(label_of)
    for label in set(labels):
        counts = [sum(label_of[key] == label for key in split.ids["val"]) for split in made.values()]
        assert max(counts) - min(counts) <= 1
    sizes = [len(split.ids["val"]) for split in made.values()]
    assert max(sizes) - min(sizes) <= len(set(labels))


def test_patients_of_several_classes_stay_whole_and_spread():
    """30 patients with three images each, of a rare class in a third of them."""
    group_of = {f"p{p}_{i}": f"p{p}" for p in range(30) for i in range(3)}
    label_of = {key: int(p % 3 == 0 and key.endswith("0")) for key in group_of for p in [int(key[1:].split("_")[0])]}
    made = rotated_folds(list(group_of), group_of, 5, 41, label_of=label_of)
    assert [sum(label_of[key] for key in split.ids["val"]) for split in made.values()] == [2] * 5
    assert [len(split.ids["val"]) for split in made.values()] == [18] * 5
    for split in made.values():
        assert not {group_of[key] for key in split.ids["train"]} & {group_of[key] for key in split.ids["val"]}
        assert "classes spread evenly" in split.rule


def test_rotated_folds_need_groups_enough():
    with pytest.raises(UserError, match="--folds 4: give 2 to 3, the number of groups"):
        rotated_folds(["a", "b", "c", "d"], {"c": "x", "d": "x"}, 4, 41)


def test_folds_are_found_by_their_name_in_the_order_of_their_numbers():
    assert folds_of("a", ["a_fold10", "a_fold2", "a", "ab_fold1", "a_foldx"]) == ["a_fold2", "a_fold10"]
