"""ImageNet in files of many images: Hugging Face's parquet, and timm's WebDataset shards."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rwkvctl.base.errors import BadFile
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Plan, Sample
from rwkvctl.data.convert.formats.photos import LIMITS, PhotoReader, hash_of, official_splits
from rwkvctl.data.convert.sources import RawFile, Source, natural_key
from rwkvctl.data.store import index
from rwkvctl.data.store.writer import Limits

NAMES = {
    "timm": re.compile(r"imagenet1k-(train|validation)-\d+\.tar"),
    "parquet": re.compile(r"(train|validation|test)-\d{5}-of-\d{5}(?:-\w+)?\.parquet"),
}
PART = {"train": "train", "validation": "val"}

CheckCounts = Callable[[dict[str, int], Sequence[int]], list[str]]

_ORIGINAL = re.compile(r"(?:(n\d{8})_(\d+)|ILSVRC2012_val_(\d{8}))(?:_(n\d{8}))?\.jpe?g", re.IGNORECASE)


def _packed(source: Source, form: str) -> Iterator[tuple[str, RawFile]]:
    """(part, file) in natural order."""
    for file in sorted(source.top, key=lambda file: natural_key(file.path)):
        match = NAMES[form].fullmatch(file.name)
        if match and match[1] in PART:
            yield PART[match[1]], file


# Parquet ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a parquet file, by its row group, which is read as a whole."""

    key: str
    file: RawFile
    group: int
    row: int
    path: str
    label: int

    @property
    def files(self) -> tuple[RawFile]:
        return (self.file,)


def plan_parquet(source: Source, reader: PhotoReader, check_counts: CheckCounts, problems: Problems) -> Plan:
    """Row groups are shuffled, and the rows in each: to shuffle rows alone would read every group a hundred times."""
    parts: dict[str, list[Row]] = {"train": [], "val": []}
    uniform = groups = 0
    for part, file in _packed(source, "parquet"):
        try:
            for rows in _row_groups(file, part, reader.classes):
                groups += 1
                uniform += len(rows) > 1 and len({row.label for row in rows}) == 1
                parts[part] += rows
        except BadFile as error:
            problems.add(str(error))
    warnings = check_counts({part: len(rows) for part, rows in parts.items()}, [row.label for row in parts["val"]])
    if uniform > groups / 2:
        warnings.append(f"{uniform} of {groups} row groups hold one class only, so shards mix few classes")
    parts["train"].sort(key=lambda row: (hash_of(f"{row.file.name}/{row.group}"), hash_of(row.path)))
    return Plan(
        form="parquet",
        task="classification",
        classes=reader.classes,
        image_kind="rgb8",
        parts=parts,
        read=RowReader(reader),
        make_splits=official_splits,
        warnings=warnings,
        limits=dict.fromkeys(parts, Limits(LIMITS.samples, bytes=1 << 62)),
    )


def _row_groups(file: RawFile, part: str, classes: Sequence[str]) -> Iterator[list[Row]]:
    """The rows of a file, group by group, from the columns `image.path` and `label` alone."""
    import pyarrow
    import pyarrow.parquet

    number_of = {wnid: number for number, wnid in enumerate(classes)}
    try:
        with file.open() as stream, pyarrow.parquet.ParquetFile(stream) as opened:
            for group in range(opened.num_row_groups):
                table = opened.read_row_group(group, columns=["image.path", "label"], use_threads=False).to_pydict()
                rows = []
                for i, (image, label) in enumerate(zip(table["image"], table["label"], strict=True)):
                    path = image["path"] or ""
                    match = _ORIGINAL.fullmatch(path)
                    wnid = match and (match[4] or match[1])
                    if not 0 <= label < len(classes) or (wnid and number_of.get(wnid.lower()) != label):
                        raise BadFile(f"{file}: row {i} of group {group}: label {label} and file {path!r} disagree")
                    rows.append(Row(_key(match, part, file, group, i), file, group, i, f"{part}/{path}", label))
                yield rows
    except (OSError, KeyError, TypeError, pyarrow.ArrowException) as error:
        brief = str(error).split("\n")[0][:100]
        raise BadFile(f"{file}: not a parquet file with image and label ({brief}); download it again") from error


def _key(match: re.Match[str] | None, part: str, file: RawFile, group: int, row: int) -> str:
    """The same keys as from the other forms, if the files' names are kept."""
    if match is None:
        return f"in1k_{part}_{file.name.split('-')[1]}_{group:04d}_{row:04d}"
    return f"in1k_val_{match[3]}" if match[3] else f"in1k_{match[1].lower()}_{match[2]}"


class RowReader:
    """`Plan.read` for rows; keeps the last row group, because its rows are asked for one after the other."""

    def __init__(self, reader: PhotoReader):
        self._reader = reader
        self._last: tuple[str, int] | None = None
        self._images: Any = None

    def __call__(self, part: str, row: Row) -> Sample:
        if self._last != (str(row.file), row.group):
            self._images = None  # before the next one is in memory
            self._images, self._last = _images(row.file, row.group), (str(row.file), row.group)
        data = self._images[row.row]["bytes"].as_py()
        if data is None:
            raise BadFile(f"{row.file}: row {row.row} of group {row.group} has no image bytes; download it again")
        return self._reader.sample(part, row.key, row.path, row.label, data, f"{row.file}!/{row.path}")


def _images(file: RawFile, group: int) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        with file.open() as stream, pyarrow.parquet.ParquetFile(stream) as opened:
            return opened.read_row_group(group, columns=["image.bytes"], use_threads=False)["image"]
    except (OSError, pyarrow.ArrowException) as error:
        raise BadFile(f"{file}: row group {group} cannot be read ({str(error)[:100]}); download it again") from error


# timm's shards ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """A sample of a shard that is taken over: its image and the file with its class number."""

    key: str
    file: RawFile
    label: RawFile

    @property
    def files(self) -> tuple[RawFile, RawFile]:
        return self.file, self.label


def plan_timm(source: Source, reader: PhotoReader, check_counts: CheckCounts, problems: Problems) -> Plan:
    adopted: dict[str, list[tuple[RawFile, Sequence[Member]]]] = {"train": [], "val": []}
    for part, shard in _packed(source, "timm"):
        if shard.kind != "file":
            problems.add(f"{shard}: lies in an archive; unpack that, so that the shard can be taken over")
            continue
        members = _members(source, shard, problems)
        adopted[part].append((shard, members))
    counts = {part: sum(len(members) for _, members in shards) for part, shards in adopted.items()}
    labels: list[int] = []  # they are read with the images
    return Plan(
        form="timm",
        task="classification",
        classes=reader.classes,
        image_kind="rgb8",
        parts={"train": [], "val": []},
        adopted=adopted,
        read=MemberReader(reader),
        make_splits=official_splits,
        warnings=check_counts(counts, labels),
    )


def _members(source: Source, shard: RawFile, problems: Problems) -> list[Member]:
    by_key: dict[str, dict[str, RawFile]] = {}
    for file in source.shard(shard):
        key, _, extension = file.inner.partition(".")
        if not index.is_key(key) or extension not in index.MEMBERS:
            problems.add(f"{file}: does not belong in a shard of images; use another form of ImageNet")
        by_key.setdefault(key, {})[extension] = file
    broken = [key for key, own in by_key.items() if not {"jpg", "cls", "json"} <= own.keys()]
    if broken:
        problems.add(f"{shard}: sample {broken[0]} lacks its jpg, cls or json; download the shard again")
        return []
    return [Member(key, own["jpg"], own["cls"]) for key, own in by_key.items()]


@dataclass(frozen=True)
class MemberReader:
    """`Plan.read` for shards that are taken over: everything is checked, nothing is encoded again."""

    reader: PhotoReader

    def __call__(self, part: str, member: Member) -> Sample:
        label = member.label.read()
        if not label.isdigit() or int(label) >= len(self.reader.classes):
            raise BadFile(f"{member.label}: is not a class number; download the shard again")
        path = f"{member.file.home.rpartition('/')[2]}/{member.key}"
        return self.reader.sample(part, member.key, path, int(label), member.file.read(), member.file)
