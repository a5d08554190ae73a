"""Images of a data set that are one picture: of equal bytes, or alike and confirmed."""

from __future__ import annotations

import functools
from pathlib import Path

from rwkvctl.data.convert.conversion import Converted
from rwkvctl.data.store import duplicates, schema
from rwkvctl.data.store.index import Index
from rwkvctl.data.store.index import load as load_index
from rwkvctl.data.store.same_picture import LEAST, Thumbnail, same_picture, thumbnail


def found(done: Converted, folder: Path) -> schema.Duplicates:
    """What binds images. folder: that of the finished shards."""
    records = done.records
    return schema.Duplicates(
        copies=duplicates.clusters_of_copies({r.key: r.sha256 for r in records}),
        near=duplicates.clusters_of_near({r.key: r.phash for r in records if r.phash}, _Pictures(folder, done).same),
        rule=f"copies: equal bytes; near: pHash, at most {duplicates.MOST_BITS} of 64 bits differ, and the fine "
        f"structure correlates by {LEAST}",
    )


class _Pictures:
    """The images in the finished shards, by key, for those that may be near-duplicates."""

    def __init__(self, folder: Path, done: Converted):
        self._folder, self._shards = folder, done.shards
        self._thumbnail = functools.lru_cache(maxsize=4096)(self._read)

    def same(self, first: str, second: str) -> bool:
        return same_picture(self._thumbnail(first), self._thumbnail(second))

    @functools.cached_property
    def _index(self) -> tuple[Index, dict[str, int]]:
        names = [(shard["name"].removesuffix(".tar"), shard["bytes"]) for shard in self._shards]
        files = [(stem, (self._folder / "index" / f"{stem}.idx").read_bytes(), size) for stem, size in names]
        index = load_index(files)
        return index, {key.decode(): row for row, key in enumerate(index.keys)}

    def _read(self, key: str) -> Thumbnail:
        index, rows = self._index
        row = rows[key]
        offset, size, _ = next(
            map(int, index.members[kind][row])
            for kind in ("jpg", "png")
            if kind in index.members and index.members[kind][row, 0] >= 0
        )
        with (self._folder / self._shards[int(index.shard[row])]["name"]).open("rb") as shard:
            shard.seek(offset)
            return thumbnail(shard.read(size))
