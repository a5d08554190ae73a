"""Volumes of a data set that are one scan, told by their records: of equal voxels, or alike and confirmed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rwkvctl.data.convert.conversion import Record
from rwkvctl.data.store import duplicates, same_volume, schema

_SHOWN = 3
RULE = "copies: volumes of equal voxels, of each the first sample; near: "
LOOKED_FOR = (
    f"{same_volume.SIDE} x {same_volume.SIDE} x {same_volume.SLABS} copies in eight views, slabs that correlate by "
    f"{same_volume.LEAST_ALIKE} in the median, confirmed by at most {100 * same_volume.MOST_OTHER:g} % of other places"
)


def found(records: Sequence[Record]) -> tuple[schema.Duplicates, list[str]]:
    """What binds volumes, and notes of it: of those whose patients are not known to be one."""
    firsts = {record.case: record for record in reversed(records) if record.volume}  # one sample a volume
    own = {record.key: record for record in reversed(firsts.values())}
    copies = duplicates.clusters_of_copies({key: str(record.volume) for key, record in own.items()})
    looks = {key: record.look for key, record in own.items() if record.look}
    spare = {key for cluster in copies for key in cluster[1:]}
    looks = {key: text for key, text in looks.items() if key not in spare}
    if len(looks) < len(own) - len(spare) or len(looks) > same_volume.MOST_VOLUMES:
        why = f" among more than {same_volume.MOST_VOLUMES}" if looks else " in this form"
        return schema.Duplicates(copies=copies, near=None, rule=f"{RULE}not looked for{why}"), []
    pairs = same_volume.near(looks)
    near = duplicates.joined(list(looks), pairs.same)
    notes = []
    if torn := _of_others(near, own):
        notes.append(
            f"{len(torn)} pairs of volumes are one scan under two patients, saved otherwise ({_shown(torn, own)}): "
            "leave one of each away, or give --groups; data split --rule grouped:8:1:1 keeps them together"
        )
    if alike := _of_others(pairs.alike, own):
        notes.append(
            f"{len(alike)} pairs of volumes look like scans of one patient, whose names do not say so "
            f"({_shown(alike, own)}): are they, give --groups"
        )
    return schema.Duplicates(copies=copies, near=near, rule=RULE + LOOKED_FOR), notes


def _of_others(clusters: Sequence[Sequence[str]], own: Mapping[str, Record]) -> list[tuple[str, str]]:
    """The first and another of each cluster, where the source takes them for two patients'."""
    pairs = ((cluster[0], other) for cluster in clusters for other in cluster[1:])
    return [(first, other) for first, other in pairs if own[first].group != own[other].group]


def _shown(pairs: Sequence[tuple[str, str]], own: Mapping[str, Record]) -> str:
    told = "; ".join(f"{own[first].case} and {own[other].case}" for first, other in pairs[:_SHOWN])
    return told + ("; ..." if len(pairs) > _SHOWN else "")
