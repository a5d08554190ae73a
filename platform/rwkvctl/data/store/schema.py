"""`manifest.json`, schema rwkv-data/2: its fields, its fingerprint, and what makes one valid."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.base import Spec

SCHEMA = "rwkv-data/2"
PREP_VERSION = "2.0.0"
FILE_NAME = "manifest.json"

MOST_CHANNELS = 64

VOLATILE = frozenset({"fingerprint", "created_by", "added_splits"})
"""Left out of the fingerprint: they may differ between two preparations of the same samples. A split that was added
later is named by its rule and seed, which give the same ids on the same samples everywhere."""

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
FileStem = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,120}$")]
Count = Annotated[int, Field(ge=0)]


class Source(Spec):
    """The raw files that the data set was made from."""

    format: str
    form: str
    files: Count
    tree_sha256: Sha256
    expected: dict[str, Count]
    licence: str
    access: str
    citation: str | None = None


class Excluded(Spec):
    """A sample of the source that was left out."""

    id: str
    why: str


class Shard(Spec):
    """One tar and its index `index/<stem>.idx`."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_-]{1,120}\.tar$")]
    bytes: Count
    sha256: Sha256
    index_sha256: Sha256
    n: Count
    first: str
    last: str

    @property
    def index_name(self) -> str:
        return f"index/{self.name.removesuffix('.tar')}.idx"


class Duplicates(Spec):
    """Images that are the same (copies) or nearly so (perceptual hashes a few bits apart): clusters of ids."""

    copies: list[list[str]] = Field(default_factory=list)
    near: list[list[str]] | None = None
    """None: near-duplicates were not looked for; the rule says why."""
    rule: str = ""


class SplitEntry(Spec):
    """A split, whose id lists lie in `splits/<name>.json`."""

    rule: str
    seed: int | None
    sha256: Sha256
    counts: dict[str, Count]
    leak_groups_shared: Count
    """Groups (patients, sequences, duplicates) that are in train and in val or test."""


class Region(Spec):
    """What nnU-Net calls a region: several classes that are scored as one. value: what it is written as in masks."""

    name: str
    classes: Annotated[list[int], Field(min_length=1)]
    value: int


class Content(Spec):
    """`manifest.json`, schema rwkv-data/2."""

    schema_: Annotated[Literal["rwkv-data/2"], Field(alias="schema")]
    fingerprint: Sha256
    dataset: FileStem
    prep_version: str
    created_by: str
    source: Source
    task: Literal["segmentation", "classification"]
    classes: Annotated[list[str], Field(min_length=2, max_length=100_000)]
    ignore_index: int | None
    channels: Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
    image_kind: Literal["rgb8", "float"]
    mask_rule: str | None
    intensity: dict[str, Any] | None
    """The rule of one channel, or those of several, see `data.images.normalise`."""
    orientation: str | None
    channel_names: list[str] | None = None
    """Null for photographs, and where the source names none."""
    channel_files: list[int] | None = None
    """How many channels each file of an image has, in order; null for one each."""
    regions: list[Region] | None = None
    counts: dict[str, Count]
    excluded: list[Excluded]
    duplicates: Duplicates = Duplicates()
    warnings: list[str]
    shards: list[Shard]
    samples_sha256: Sha256
    splits: dict[FileStem, SplitEntry]
    default_split: FileStem
    stats: dict[str, Any]
    added_splits: dict[FileStem, SplitEntry] = Field(default_factory=dict)


def fingerprint(content: dict[str, Any]) -> str:
    """SHA-256 over everything in the manifest but the volatile fields."""
    stable = {key: value for key, value in content.items() if key not in VOLATILE}
    text = json.dumps(stable, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def validated(path: Path | str, raw: Any) -> Content:
    if not isinstance(raw, dict) or not re.fullmatch(r"rwkv-data/\d+", str(raw.get("schema"))):
        raise UserError(f"{path}: is not the manifest of a data set; prepare it with: rwkvctl data prepare")
    if raw["schema"] != SCHEMA:
        raise UserError(f"{path}: schema {raw['schema']}, this version reads {SCHEMA}; prepare the data set again")
    if raw.get("fingerprint") != fingerprint(raw):
        raise UserError(
            f"{path}: was changed after it was written (its fingerprint differs); prepare the data set again"
        )
    try:
        return Content.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise UserError(f"{path}: {where}: {first['msg']}; prepare the data set again") from error
