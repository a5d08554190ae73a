"""The order of the samples in an epoch: a function of (shards, seed, epoch), of nothing else.

Rank, world size, loader workers and batch size do not enter, so a run can go on with any of them changed.
Shards are shuffled, then the samples within groups of a few shards: reading stays local to these few files, and
shards are themselves shuffled globally when a large set is prepared.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ORDER_VERSION = 1
"""Raised when the function changes; a run is not resumed under another version."""

SHARDS_A_GROUP = 4


def epoch_order(shard_of: NDArray[np.int32], seed: int, epoch: int) -> NDArray[np.int64]:
    """Positions into `shard_of` in the order of `epoch`.

    `shard_of` (N,) is the shard number of every sample of a split part; the result (N,) is a permutation.
    """
    draw = np.random.Philox(key=np.array([seed, epoch], np.uint64))
    shards = _shard_order(shard_of, draw)
    rank_of_shard = np.empty(int(shards.max(initial=-1)) + 1, np.int64)
    rank_of_shard[shards] = np.arange(len(shards))
    group_of = rank_of_shard[shard_of] // SHARDS_A_GROUP
    shuffled = _permutation(draw, len(shard_of))
    return shuffled[np.argsort(group_of[shuffled], kind="stable")]


def epoch_groups(shard_of: NDArray[np.int32], seed: int, epoch: int) -> list[tuple[int, list[int]]]:
    """The groups of shards that `epoch_order` goes through: (samples before the group, its shards)."""
    shards = _shard_order(shard_of, np.random.Philox(key=np.array([seed, epoch], np.uint64)))
    before = np.concatenate([[0], np.cumsum(np.bincount(shard_of)[shards])])
    return [(int(before[k]), shards[k : k + SHARDS_A_GROUP].tolist()) for k in range(0, len(shards), SHARDS_A_GROUP)]


def _shard_order(shard_of: NDArray[np.int32], draw: np.random.Philox) -> NDArray[np.int32]:
    shards = np.unique(shard_of)
    return shards[_permutation(draw, len(shards))]


def _permutation(draw: np.random.Philox, n: int) -> NDArray[np.int64]:
    """A permutation of n from raw Philox words, whose stream does not depend on numpy's version."""
    return np.argsort(draw.random_raw(n), kind="stable")


def sample_generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The random numbers of one sample's augmentation: a function of (seed, epoch, index in the split part)."""
    key = np.array([((seed << 20) ^ epoch) & (2**64 - 1), index], np.uint64)
    return np.random.Generator(np.random.Philox(key=key))
