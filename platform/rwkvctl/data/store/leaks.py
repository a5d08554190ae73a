"""What a split must not tear apart: samples of one patient, sequence or video, and duplicates."""

from __future__ import annotations

from rwkvctl.data.store import duplicates
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.reader import Reader


def leak_groups_of(manifest: Manifest) -> dict[str, str]:
    """Id -> leak group (patient, sequence, video, duplicates), from the json of every sample."""
    reader = Reader(manifest)
    return with_duplicates(manifest, {reader.key(row): reader.meta(row).get("group_id") for row in range(len(reader))})


def with_duplicates(manifest: Manifest, own: dict[str, str | None]) -> dict[str, str]:
    """The groups that samples name themselves, joined by the manifest's clusters of duplicates."""
    found = manifest.content.duplicates
    return duplicates.leak_groups(own, [*found.copies, *(found.near or [])])
