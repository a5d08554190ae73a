"""Images that are the same, or nearly so, and the groups that a split must not tear apart because of them.

Copies have equal bytes. Near-duplicates are the same picture scaled, re-encoded, or cut a little differently. They are
looked for by perceptual hashes that differ in few bits. Since those tell little more than the layout of a picture,
which all retinal photographs share, `same_picture` has to agree before two images bind.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

MOST_BITS = 4
"""Two 64-bit hashes that differ in at most so many bits may be near-duplicates."""
_BLOCKS = 6
"""A hash is cut into so many parts; of two that differ in 4 bits, two parts are equal."""
_COMPARED = 40
"""Of images with one hash (black ones, for example), each is compared with so many of the others."""
_AT_ONCE = 1 << 20

Same = Callable[[str, str], bool]


def clusters_of_copies(sha256_of: Mapping[str, str]) -> list[list[str]]:
    """The ids of images with equal bytes, two or more in a cluster, in order."""
    by_hash: dict[str, list[str]] = {}
    for key, digest in sha256_of.items():
        by_hash.setdefault(digest, []).append(key)
    return [keys for keys in by_hash.values() if len(keys) > 1]


def clusters_of_near(hash_of: Mapping[str, str], same: Same) -> list[list[str]]:
    """The ids of images that are connected by near-duplicate pairs, at any number of images.

    hash_of: 16 hex digits an id; same: whether two candidates, by their ids, really show the same picture.
    """
    keys = list(hash_of)
    together = _Joined(len(keys))
    for first, second in _candidates([int(digest, 16) for digest in hash_of.values()]):
        if not together.are(first, second) and same(keys[first], keys[second]):
            together.join(first, second)
    return [[keys[i] for i in members] for members in together.groups() if len(members) > 1]


def joined(keys: Sequence[str], pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """The ids that pairs connect, two or more in a cluster, in order."""
    number_of = {key: number for number, key in enumerate(keys)}
    together = _Joined(len(keys))
    for first, second in pairs:
        together.join(number_of[first], number_of[second])
    return [[keys[i] for i in members] for members in together.groups() if len(members) > 1]


def _candidates(hashes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Pairs of images (by number) whose hashes differ in at most MOST_BITS bits; of those with one hash, enough."""
    bits, image, count = np.unique(np.array(hashes, np.uint64), return_inverse=True, return_counts=True)
    order = np.argsort(image, kind="stable")
    starts = np.concatenate([[0], np.cumsum(count)])
    for number in np.flatnonzero(count > 1):
        own = order[starts[number] : starts[number + 1]].tolist()
        for i, first in enumerate(own):
            yield from ((first, second) for second in own[i + 1 : i + 1 + _COMPARED])
    for one, other in _near(bits):
        firsts = order[starts[one] : starts[one + 1]][:_COMPARED].tolist()
        seconds = order[starts[other] : starts[other + 1]][:_COMPARED].tolist()
        yield from itertools.product(firsts, seconds)


def _near(bits: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs (i < j) of different hashes that differ in at most MOST_BITS bits, each once.

    Multi-index hashing: of _BLOCKS parts at least two are equal, so only hashes that agree in two are compared.
    """
    edges = np.linspace(0, 64, _BLOCKS + 1).astype(int)
    masks = [np.uint64(((1 << int(b)) - 1) ^ ((1 << int(a)) - 1)) for a, b in itertools.pairwise(edges)]
    chosen = [np.uint64(a | b) for a, b in itertools.combinations(masks, 2)]
    for number, mask in enumerate(chosen):
        part = bits & mask
        order = np.argsort(part, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(part[order]) != 0, True)) + 1
        begins = np.concatenate([[0], ends[:-1]])
        for rows, columns in _pairs_in_buckets(begins, ends):
            i, j = order[rows], order[columns]
            near = np.bitwise_count(bits[i] ^ bits[j]) <= MOST_BITS
            for earlier in chosen[:number]:  # found there already
                near &= (bits[i] & earlier) != (bits[j] & earlier)
            yield from zip(np.minimum(i, j)[near].tolist(), np.maximum(i, j)[near].tolist(), strict=True)


def _pairs_in_buckets(
    begins: NDArray[np.int64], ends: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """All pairs (row < column) of positions within each bucket, some at a time."""
    sizes = ends - begins
    for step in range(1, int(sizes.max(initial=1))):  # each position with the one `step` behind it
        begins, ends = begins[sizes > step], ends[sizes > step]
        sizes = ends - begins
        counts = sizes - step
        rows = np.repeat(begins - np.concatenate([[0], np.cumsum(counts)[:-1]]), counts) + np.arange(counts.sum())
        for at in range(0, len(rows), _AT_ONCE):
            yield rows[at : at + _AT_ONCE], rows[at : at + _AT_ONCE] + step


def leak_groups(group_of: Mapping[str, str | None], clusters: Iterable[Sequence[str]]) -> dict[str, str]:
    """Id -> leak group: its own (patient, sequence, video), joined with those of its duplicates.

    A joined group is called like the first of its groups.
    """
    keys = list(group_of)
    number_of = {key: number for number, key in enumerate(keys)}
    first_of: dict[str, int] = {}
    together = _Joined(len(keys))
    for key, group in group_of.items():
        if group is not None:
            together.join(first_of.setdefault(group, number_of[key]), number_of[key])
    for own in clusters:
        for key in own[1:]:
            together.join(number_of[own[0]], number_of[key])
    names: dict[str, str] = {}
    for members in together.groups():
        groups = (group_of[keys[i]] for i in members)
        name = next((group for group in groups if group is not None), keys[members[0]])
        names |= {keys[i]: name for i in members}
    return names


class _Joined:
    """Which of `count` things are connected (union-find): each points to an earlier one, the first to itself."""

    def __init__(self, count: int):
        self._to = list(range(count))

    def _first(self, i: int) -> int:
        to = self._to
        while to[i] != i:
            to[i] = to[to[i]]
            i = to[i]
        return i

    def are(self, i: int, j: int) -> bool:
        return self._first(i) == self._first(j)

    def join(self, i: int, j: int) -> None:
        i, j = self._first(i), self._first(j)
        self._to[max(i, j)] = min(i, j)

    def groups(self) -> list[list[int]]:
        """Those that are connected, in the order of their first."""
        found: dict[int, list[int]] = {}
        for i in range(len(self._to)):
            found.setdefault(self._first(i), []).append(i)
        return list(found.values())
