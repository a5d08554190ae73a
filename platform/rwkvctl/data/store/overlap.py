"""Which samples of a part were trained on: by their ids in one data set, by the bytes of their images in any two."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rwkvctl.data.store.case_ids import case_of
from rwkvctl.data.store.case_reader import reader_for
from rwkvctl.data.store.manifest import Manifest

IMAGES = ("jpg", "png", "image.npy")


def trained_on(trained: Manifest, train_ids: list[str], scored: Manifest, scored_ids: list[str]) -> list[str]:
    """The ids among `scored_ids` that are among `train_ids`, or whose image is that of one of them.

    Ids mean the same sample only in one data set. Images are compared by size and CRC-32 from the byte indices, so
    no shard is read; an image that was encoded again is not recognised. A volume was trained on if a slice of it was:
    in one data set that is told by the case, in two by the hash of the volume's voxels, which every slice knows.
    """
    if scored.has_volumes and trained.has_volumes:
        return _volumes_trained_on(trained, train_ids, scored, scored_ids)
    same = trained.fingerprint == scored.fingerprint
    ids = set(train_ids) if same else set()
    known = _contents(trained, train_ids)
    found = np.isin(_contents(scored, scored_ids), known[known >= 0])
    return [key for key, copy in zip(scored_ids, found.tolist(), strict=True) if copy or key in ids]


def _volumes_trained_on(trained: Manifest, train_ids: list[str], scored: Manifest, scored_ids: list[str]) -> list[str]:
    cases = set(map(case_of, train_ids)) if trained.fingerprint == scored.fingerprint else set()
    seen = set(_volume_hashes(trained, train_ids).values())
    hashes = _volume_hashes(scored, scored_ids)
    return [key for key in scored_ids if case_of(key) in cases or hashes.get(case_of(key)) in seen]


def _volume_hashes(manifest: Manifest, ids: list[str]) -> dict[str, str]:
    """Case -> the hash of its voxels, from the json of one of its samples; without those that have none."""
    firsts = {case_of(key): key for key in reversed(ids)}
    reader = reader_for(manifest, list(firsts.values()))
    metas = {case: reader.meta(row) for row, case in enumerate(firsts)}
    return {case: str(meta["volume_sha256"]) for case, meta in metas.items() if meta.get("volume_sha256")}


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
