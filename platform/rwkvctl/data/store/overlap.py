"""Which samples of a part were trained on: by their ids in one data set, by the bytes of their images in any two."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.store.manifest import Manifest

IMAGES = ("jpg", "png", "image.npy")


def trained_on(trained: Manifest, train_ids: list[str], scored: Manifest, scored_ids: list[str]) -> list[str]:
    """The ids among `scored_ids` that are among `train_ids`, or whose image is that of one of them.

    Ids mean the same sample only in one data set. Images are compared by size and CRC-32 from the byte indices, so
    no shard is read; an image that was encoded again is not recognised.
    """
    same = trained.fingerprint == scored.fingerprint
    ids = set(train_ids) if same else set()
    known = _contents(trained, train_ids)
    found = np.isin(_contents(scored, scored_ids), known[known >= 0])
    return [key for key, copy in zip(scored_ids, found.tolist(), strict=True) if copy or key in ids]


def _contents(manifest: Manifest, ids: list[str]) -> NDArray[np.int64]:
    """(N,) size and CRC-32 of every sample's image in one number, -1 for a sample without one."""
    index = manifest.index.take(manifest.rows(ids))
    contents = np.full(len(ids), -1, np.int64)
    for extension in IMAGES:
        places = index.members.get(extension)
        if places is not None:
            there = places[:, 0] >= 0
            contents[there] = places[there, 1] << 32 | places[there, 2]
    return contents
