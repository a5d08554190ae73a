"""Random splits, equal to those that the published code of this field makes with scikit-learn."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rwkvctl.base.errors import UserError

PARTS = ("train", "val", "test")
DEFAULT_SEEDS = (41, 1029, 3407)
MIN_GROUPS = 3
FOLD = "_fold"


@dataclass(frozen=True)
class Split:
    """Which samples are for what. `ids` has the keys train, val and test, each a list in its order of use."""

    rule: str
    ids: dict[str, list[str]]
    seed: int | None = None


def parse_ratio(text: str, option: str = "--ratio") -> tuple[int, int, int]:
    """`"8:1:1"` -> (8, 1, 1); two numbers mean no test part. `option` is what the user gave it with."""
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})(?::(\d{1,4}))?", text.strip())
    ratio = (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)
    if not ratio[0] or not ratio[1]:
        raise UserError(f"{option} {text!r}: give train:val:test as whole numbers, for example 8:1:1")
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
    needed = 3 if test_share else 2
    if len(ids) < needed:
        raise UserError(
            f"a split by {':'.join(map(str, ratio[:needed]))} needs at least {needed} samples, there "
            f"{'is' if len(ids) == 1 else 'are'} {len(ids)}; add samples or give another --ratio"
        )
    train, rest = _train_test_split(ids, rest_share / (train_share + rest_share), seed, least=needed - 1)
    val, test = (rest, []) if not test_share else _train_test_split(rest, test_share / rest_share, seed)
    rule = f"natsorted ids; train_test_split({rest_share / (train_share + rest_share):g}, seed)" + (
        f"; rest train_test_split({test_share / rest_share:g}, seed)" if test_share else ""
    )
    return Split(rule, {"train": train, "val": val, "test": test}, seed)


def _train_test_split(ids: Sequence[str], test_size: float, seed: int, least: int = 1) -> tuple[list[str], list[str]]:
    """scikit-learn's ShuffleSplit with one iteration: the permutation's head is the test part.

    RandomState is frozen by numpy's policy (NEP 19), so this stays equal for ever. Its rounding is kept too, but where
    it would leave the test part with fewer than `least` samples, or the other with none: there scikit-learn refuses.
    """
    n_test = min(max(least, math.ceil(test_size * len(ids))), len(ids) - 1)
    order = np.random.RandomState(seed).permutation(len(ids))
    return [ids[i] for i in order[n_test:]], [ids[i] for i in order[:n_test]]


def random_splits(
    ids: Sequence[str], ratio_text: str | None, seeds: Sequence[int] | None, default: str = "8:1:1"
) -> dict[str, Split]:
    """One random split a seed, by name, as the 2-D papers make them."""
    ratio = parse_ratio(ratio_text or default)
    return {split_name(ratio, seed): random_split(ids, ratio, seed) for seed in seeds or DEFAULT_SEEDS}


def fixed(rule: str, **parts: Sequence[str]) -> Split:
    """A split that somebody else laid down; `fixed("...", train=..., val=..., test=...)`, absent parts are empty."""
    return Split(rule, {part: list(parts.get(part, ())) for part in PARTS})


def grouped_split(ids: Sequence[str], group_of: Mapping[str, str], ratio: tuple[int, int, int], seed: int) -> Split:
    """A random split that tears no group (patient, sequence, duplicates) apart.

    Groups are taken in the order of a seeded permutation: into test until it has its share of the samples, then into
    val, and the rest into train. Three groups are enough for no part to be empty, unless one holds nearly everything.
    """
    members: dict[str, list[str]] = {}
    for key in ids:
        members.setdefault(group_of.get(key, key), []).append(key)
    names = list(members)
    _, val_share, test_share = (len(ids) * share / sum(ratio) for share in ratio)
    sizes = dict.fromkeys(PARTS, 0)
    part_of: dict[str, str] = {}
    for i in np.random.RandomState(seed).permutation(len(names)):
        part = "test" if sizes["test"] < test_share else "val" if sizes["val"] < val_share else "train"
        sizes[part] += len(members[names[i]])
        part_of |= dict.fromkeys(members[names[i]], part)
    parts = {part: [key for key in ids if part_of[key] == part] for part in PARTS}
    if not parts["train"] or not parts["val"] or (ratio[2] and not parts["test"]):
        raise UserError(
            f"{len(names)} groups leave a part of {':'.join(map(str, ratio))} empty; add groups or give another --ratio"
        )
    return Split(f"whole groups, {':'.join(map(str, ratio))} of the samples, seeded", parts, seed)


def grouped_splits(
    ids: Sequence[str],
    group_of: Mapping[str, str],
    ratio_text: str | None,
    seeds: Sequence[int] | None,
    default: str = "8:1:1",
    name: str = "grouped",
) -> dict[str, Split]:
    """One split a seed that tears no group apart: `grouped811_s41`. No split when there are too few groups for one."""
    ratio = parse_ratio(ratio_text or default)
    if len({group_of.get(key, key) for key in ids}) < MIN_GROUPS:
        return {}
    names = {seed: split_name(ratio, seed).replace("random", name) for seed in seeds or DEFAULT_SEEDS}
    return {name: grouped_split(ids, group_of, ratio, seed) for seed, name in names.items()}


def folds(ids: Sequence[str], group_of: Mapping[str, str] | None, k: int, seed: int) -> dict[str, Split]:
    """k splits: each fold is the test part once, and the one after it the validation part.

    With `group_of` no group is torn apart. Names: `kfold5_s41_f1` ... `kfold5_s41_f5`.
    """
    unit_of = group_of or {}
    units = list(dict.fromkeys(unit_of.get(key, key) for key in ids))
    if not 3 <= k <= len(units):
        raise UserError(f"kfold:{k}: give 3 to {len(units)}, the number of {'groups' if group_of else 'samples'}")
    fold_of = {units[i]: n % k for n, i in enumerate(np.random.RandomState(seed).permutation(len(units)))}
    own = [[key for key in ids if fold_of[unit_of.get(key, key)] == fold] for fold in range(k)]
    kind = "grouped_kfold" if group_of else "kfold"
    made = {}
    for fold in range(k):
        val, test = own[(fold + 1) % k], own[fold]
        held_out = {*val, *test}
        train = [key for key in ids if key not in held_out]
        rule = f"fold {fold + 1} of {k} is the test part, the next one val; {'groups' if group_of else 'ids'} permuted"
        made[f"{kind}{k}_s{seed}_f{fold + 1}"] = Split(rule, {"train": train, "val": val, "test": test}, seed)
    return made


def rotated_folds(
    ids: Sequence[str],
    group_of: Mapping[str, str],
    k: int,
    seed: int,
    test: Sequence[str] = (),
    label_of: Mapping[str, int] | None = None,
) -> dict[str, Split]:
    """k splits that differ in their validation part alone, each sample being in one: for an ensemble, or a figure over
    all samples. `test` is set aside and stays the same; no group is torn apart.

    Names: `folds5_s41_fold0` ... `folds5_s41_fold4`, counted as nnU-Net does. Groups are dealt out in the order of a
    seeded permutation, the largest first, each to the fold with the fewest samples; with `label_of`, to that with the
    fewest of its classes first, so that the classes are spread evenly too.
    """
    members: dict[str, list[str]] = {}
    for key in ids:
        members.setdefault(group_of.get(key, key), []).append(key)
    if not 2 <= k <= len(members):
        raise UserError(f"--folds {k}: give 2 to {len(members)}, the number of groups of samples")
    names = list(members)
    order = [names[i] for i in np.random.RandomState(seed).permutation(len(names))]
    sizes, fold_of = [0] * k, dict[str, int]()
    labels = label_of or {}
    in_all, in_fold = Counter(labels.get(key) for key in ids), [Counter[int | None]() for _ in range(k)]
    for name in sorted(order, key=lambda name: -len(members[name])):
        own = Counter(labels.get(key) for key in members[name])

        def fullness(fold: int, own: Counter[int | None] = own) -> tuple[float, int]:
            """Of the classes of the group, what shares of them the fold has already; and its size."""
            shares = sum(n * in_fold[fold][label] / in_all[label] for label, n in own.items())
            return (shares if label_of else 0.0), sizes[fold]

        fold = min(range(k), key=fullness)
        sizes[fold] += len(members[name])
        in_fold[fold] += own
        fold_of |= dict.fromkeys(members[name], fold)
    made = {}
    for fold in range(k):
        parts = {
            "train": [key for key in ids if fold_of[key] != fold],
            "val": [key for key in ids if fold_of[key] == fold],
        }
        spread = ", classes spread evenly" if label_of else ""
        rule = f"fold {fold} of {k} is val; whole groups, permuted{spread}{'; test is set aside' if test else ''}"
        made[f"{folds_name(k, seed)}{FOLD}{fold}"] = Split(rule, {**parts, "test": list(test)}, seed)
    return made


def folds_name(k: int, seed: int) -> str:
    """What k folds are called, without `_foldN`."""
    return f"folds{k}_s{seed}"


def folds_of(name: str, splits: Iterable[str]) -> list[str]:
    """The splits `NAME_fold0`, `NAME_fold1` ... among `splits`, in the order of their numbers."""
    numbers = {split: split.removeprefix(f"{name}{FOLD}") for split in splits if split.startswith(f"{name}{FOLD}")}
    return sorted((split for split, number in numbers.items() if number.isdigit()), key=lambda own: int(numbers[own]))
