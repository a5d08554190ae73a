from __future__ import annotations

import hashlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rwkvctl.data.feed.order import SHARDS_A_GROUP, epoch_order, sample_generator
from rwkvctl.data.feed.schedule import Schedule

SHARDS = np.array([0] * 3 + [1] * 3 + [2] * 2 + [4] * 4 + [5] * 2 + [7] * 2, np.int32)

shard_lists = st.lists(st.integers(0, 12), min_size=1, max_size=60).map(lambda x: np.array(sorted(x), np.int32))


def test_golden():
    """A change here breaks every resumed run: raise ORDER_VERSION with it."""
    assert epoch_order(SHARDS, 41, 0).tolist() == [5, 15, 6, 7, 9, 11, 3, 4, 10, 14, 8, 2, 0, 12, 13, 1]
    assert epoch_order(SHARDS, 41, 1).tolist() == [4, 7, 5, 3, 1, 0, 6, 15, 2, 14, 9, 8, 13, 10, 12, 11]
    many = epoch_order(np.repeat(np.arange(9, dtype=np.int32), 50), 3, 2).astype("<i8")
    assert hashlib.sha256(many.tobytes()).hexdigest()[:16] == "e76e57b483c63c6e"
    assert sample_generator(41, 3, 7).random(2).tolist() == [0.6288283476860334, 0.9823919046654849]


@given(shard_of=shard_lists, seed=st.integers(0, 2**32), epoch=st.integers(0, 2**20))
def test_is_a_permutation_that_stays_in_groups_of_shards(shard_of, seed, epoch):
    order = epoch_order(shard_of, seed, epoch)
    assert sorted(order.tolist()) == list(range(len(shard_of)))
    visited = shard_of[order]
    open_shards: set[int] = set()
    finished: set[int] = set()
    for shard in visited.tolist():  # a new group starts only when all of the last one is used up
        if shard not in open_shards and len(open_shards) == SHARDS_A_GROUP:
            finished |= open_shards
            open_shards = set()
        open_shards.add(shard)
        assert shard not in finished


def test_epochs_and_seeds_differ():
    orders = {tuple(epoch_order(SHARDS, seed, epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def replay(shard_of, seed, tail, batch, plan, epoch):
    """The global sequence when the world size changes after every few steps: `plan` is a list of (world, steps)."""
    seen, consumed = [], 0
    for world, steps in plan:
        ranks = [
            list(Schedule(shard_of, seed, batch, rank, world, tail).steps(epoch, consumed)) for rank in range(world)
        ]
        assert len({len(own) for own in ranks}) == 1  # no rank waits for another in the last all-reduce
        for step in range(min(steps, len(ranks[0]))):
            for own in ranks:
                seen += own[step]
            consumed += batch
    return seen


@given(
    shard_of=shard_lists,
    seed=st.integers(0, 1000),
    epoch=st.integers(0, 50),
    own=st.integers(1, 3),
    plan=st.lists(st.tuples(st.sampled_from([1, 2, 3, 4, 6]), st.integers(0, 4)), max_size=6),
    tail=st.sampled_from(["drop", "wrap"]),
)
def test_any_world_size_and_any_resume_point_give_one_sequence(shard_of, seed, epoch, own, plan, tail):
    batch = 12 * own
    if tail == "drop" and len(shard_of) < batch:
        tail = "wrap"
    whole = replay(shard_of, seed, tail, batch, [(1, 10**6)], epoch)
    assert replay(shard_of, seed, tail, batch, [*plan, (1, 10**6)], epoch) == whole
    steps = Schedule(shard_of, seed, batch, 0, 1, tail).steps_per_epoch
    assert len(whole) == steps * batch
    positions = [position for e, position in whole if e == epoch]
    assert len(set(positions)) == len(positions)
    if tail == "wrap":
        assert len(positions) == len(shard_of)


def test_wrap_takes_the_head_of_the_next_epoch():
    schedule = Schedule(SHARDS, 41, 10, 0, 1, "wrap")
    last = list(schedule.steps(0))[-1]
    assert [place for place in last if place[0] == 1] == [(1, i) for i in epoch_order(SHARDS, 41, 1)[:4]]


def test_a_changed_global_batch_goes_on_from_the_same_sample():
    before = [p for step in list(Schedule(SHARDS, 1, 4, 0, 1, "wrap").steps(0))[:2] for p in step]
    after = [p for step in Schedule(SHARDS, 1, 3, 0, 1, "wrap").steps(0, consumed=8) for p in step]
    own_epoch = [position for epoch, position in before + after if epoch == 0]
    assert own_epoch == epoch_order(SHARDS, 1, 0).tolist()
