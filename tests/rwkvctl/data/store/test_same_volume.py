"""Small copies of volumes, and which of them are one scan."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from rwkvctl.data.store import same_volume
from rwkvctl.data.store.same_volume import SIDE, SLABS


def volume(seed: int, depth: int = 14) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found = sum(ndimage.gaussian_filter(rng.normal(size=(depth, 70, 60)), (2, s, s)) * s**1.3 for s in (1, 2, 5))
    return np.asarray(found, np.float32)


def test_looks_keep_their_slabs_and_survive_packing():
    for depth in (1, 14, 90):
        own = same_volume.look(volume(0, depth))
        assert own.shape == (min(depth, SLABS), SIDE, SIDE)
        assert own.dtype == np.uint8
        np.testing.assert_array_equal(same_volume.unpacked(same_volume.packed(own)), own)
    of_channels = np.stack([volume(0), volume(1)], axis=-1)
    np.testing.assert_array_equal(same_volume.look(of_channels), same_volume.look(volume(0)))


def test_all_pairs_are_compared_and_sorted_by_kind():
    scans = {f"v{seed}": volume(seed) for seed in range(5)}
    scans["mirrored"] = 3 * scans["v2"][:, :, ::-1] - 7
    body = scans["v3"].copy()
    body[:, 20:44, 20:44] = volume(50)[:, 20:44, 20:44]
    scans["phase"] = body
    found = same_volume.near({name: same_volume.packed(same_volume.look(own)) for name, own in scans.items()})
    assert (found.same, found.alike) == ([("v2", "mirrored")], [("v3", "phase")])


@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_volumes_without_anything_to_see_are_no_pair(fill: float):
    empty = same_volume.packed(same_volume.look(np.full((6, 40, 40), fill, np.float32)))
    found = same_volume.near({"a": empty, "b": empty, "c": same_volume.packed(same_volume.look(volume(0)))})
    assert found == ([], [])


def test_one_volume_and_none():
    own = same_volume.packed(same_volume.look(volume(0)))
    assert same_volume.near({"a": own}) == ([], [])
    assert same_volume.near({}) == ([], [])
