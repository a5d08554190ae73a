"""Images that are the same, or nearly so, and the groups that a split must not tear apart because of them.

Copies have equal bytes. Near-duplicates have perceptual hashes that differ in few bits: the same picture scaled,
re-encoded or cut a little differently, and neighbouring frames of a video.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

MOST_BITS = 4
"""Two 64-bit hashes that differ in at most so many bits are near-duplicates."""
MOST_COMPARED = 50_000
"""All pairs are compared; beyond this many images only copies are looked for."""
_BLOCK = 1024


def clusters_of_copies(sha256_of: Mapping[str, str]) -> list[list[str]]:
    """The ids of images with equal bytes, two or more in a cluster, in order."""
    by_hash: dict[str, list[str]] = {}
    for key, digest in sha256_of.items():
        by_hash.setdefault(digest, []).append(key)
    return [keys for keys in by_hash.values() if len(keys) > 1]


def clusters_of_near(hash_of: Mapping[str, str]) -> list[list[str]]:
    """The ids of images that are connected by near-duplicate pairs; `hash_of` gives 16 hex digits an id."""
    if not 2 <= len(hash_of) <= MOST_COMPARED:
        return []
    keys = list(hash_of)
    bits = np.array([int(digest, 16) for digest in hash_of.values()], np.uint64)
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(bits), _BLOCK):
        distance = np.bitwise_count(bits[start : start + _BLOCK, None] ^ bits[None, :])
        rows, columns = np.nonzero(distance <= MOST_BITS)
        pairs += zip((rows + start).tolist(), columns.tolist(), strict=True)
    return [[keys[i] for i in members] for members in _connected(len(keys), pairs) if len(members) > 1]


def leak_groups(group_of: Mapping[str, str | None], clusters: Iterable[Sequence[str]]) -> dict[str, str]:
    """Id -> leak group: its own (patient, sequence, video), joined with those of its duplicates.

    A joined group is called like the first of its groups.
    """
    keys = list(group_of)
    number_of = {key: number for number, key in enumerate(keys)}
    first_of: dict[str, int] = {}
    pairs = [(first_of.setdefault(g, number_of[key]), number_of[key]) for key, g in group_of.items() if g is not None]
    pairs += [(number_of[own[0]], number_of[key]) for own in clusters for key in own[1:]]
    names: dict[str, str] = {}
    for members in _connected(len(keys), pairs):
        own = [group_of[keys[i]] for i in members]
        name = next((group for group in own if group is not None), keys[members[0]])
        names |= {keys[i]: name for i in members}
    return names


def _connected(count: int, pairs: Sequence[tuple[int, int]]) -> list[list[int]]:
    """The connected components of a graph of `count` nodes, in the order of their first node."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
    graph = coo_array((np.ones(len(rows), bool), (rows, columns)), shape=(count, count))
    label_of = connected_components(graph, directed=False)[1]
    found: dict[int, list[int]] = {}
    for node, label in enumerate(label_of.tolist()):
        found.setdefault(label, []).append(node)
    return list(found.values())
