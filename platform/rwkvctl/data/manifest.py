"""The manifest: what a prepared data set is, byte for byte, and how it is split.

A data set is a folder with `manifest.json`, shards `*.tar`, `index/*.idx` and `splits/*.json`. The manifest holds the
SHA-256 of all the others, and a fingerprint of itself: two data sets with one fingerprint give the same batches.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError

from rwkvctl import files, settings
from rwkvctl.data import bucket, index, quarantine, shards
from rwkvctl.data.index import Index
from rwkvctl.data.quarantine import Quarantine
from rwkvctl.data.splits import PARTS
from rwkvctl.errors import UserError
from rwkvctl.specs.base import Spec

SCHEMA = "rwkv-data/1"
PREP_VERSION = "1.0.0"
FILE_NAME = "manifest.json"

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
    near: list[list[str]] = Field(default_factory=list)
    rule: str = ""


class SplitEntry(Spec):
    """A split, whose id lists lie in `splits/<name>.json`."""

    rule: str
    seed: int | None
    sha256: Sha256
    counts: dict[str, Count]
    leak_groups_shared: Count
    """Groups (patients, sequences, duplicates) that are in train and in val or test."""


class Content(Spec):
    """`manifest.json`, schema rwkv-data/1."""

    schema_: Annotated[Literal["rwkv-data/1"], Field(alias="schema")]
    fingerprint: Sha256
    dataset: FileStem
    prep_version: str
    created_by: str
    source: Source
    task: Literal["segmentation", "classification"]
    classes: Annotated[list[str], Field(min_length=2, max_length=100_000)]
    ignore_index: int | None
    channels: Annotated[int, Field(ge=1, le=3)]
    image_kind: Literal["rgb8", "float"]
    mask_rule: str | None
    intensity: dict[str, Any] | None
    orientation: str | None
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


@dataclass(frozen=True)
class Manifest:
    """A prepared data set. Index and id lists are read when they are first asked for."""

    root: Path
    """The folder of the data set; of one in an object store, that of the files which were fetched so far."""
    content: Content
    uri: str | None = None
    """Its place in an object store."""
    quarantine: Quarantine | None = None
    """What is left out of it on this disk."""

    @classmethod
    def load(cls, location: str | Path, *, whole: bool = False) -> Manifest:
        """Read the manifest of the data set in a folder or at a URI s3://, gs:// or file://.

        whole: with the samples in quarantine, too.
        UserError when it is absent, broken, or not as `prepare` wrote it.
        """
        root = bucket.local_path(location)
        if root is None:
            return cls._load_uri(str(location).rstrip("/").removesuffix(f"/{FILE_NAME}"))
        root = root.parent if root.name == FILE_NAME else root
        path = root / FILE_NAME
        try:
            raw = json.loads(path.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{root}: no prepared data set here ({FILE_NAME} is missing); "
                "make one with: rwkvctl data prepare FORMAT --source DIR --out DIR"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"{path}: cannot be read ({error}); prepare the data set again") from error
        content = _validated(path, raw)
        return cls(root, content, quarantine=None if whole else quarantine.load(root, content.fingerprint))

    @classmethod
    def _load_uri(cls, uri: str) -> Manifest:
        path = f"{uri}/{FILE_NAME}"
        text = bucket.read(path)
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: is no JSON ({error}); upload the data set again") from error
        content = _validated(path, raw)
        return cls(shards.cache_root() / content.fingerprint, content, uri)

    @property
    def location(self) -> str:
        """The folder or URI, as a message or a person names it."""
        return self.uri or str(self.root)

    @cached_property
    def shard_files(self) -> shards.ShardFiles:
        """The shards as files of this machine."""
        return shards.ShardFiles(self.root, self.content.shards, self.uri, int(settings.load().cache_gb * 1e9))

    @property
    def dataset(self) -> str:
        return self.content.dataset

    @property
    def task(self) -> Literal["segmentation", "classification"]:
        return self.content.task

    @property
    def classes(self) -> list[str]:
        return self.content.classes

    @property
    def channels(self) -> int:
        return self.content.channels

    @property
    def image_kind(self) -> Literal["rgb8", "float"]:
        return self.content.image_kind

    @property
    def ignore_index(self) -> int | None:
        return self.content.ignore_index

    @property
    def fingerprint(self) -> str:
        """That of the manifest, or of what quarantine leaves of it."""
        return self.quarantine.fingerprint_without() if self.quarantine else self.content.fingerprint

    @property
    def quarantined(self) -> int:
        """How many samples are left out."""
        return len(self.quarantine.samples) if self.quarantine else 0

    @property
    def splits(self) -> dict[str, SplitEntry]:
        return {**self.content.splits, **self.content.added_splits}

    @property
    def default_split(self) -> str:
        return self.content.default_split

    @property
    def shards(self) -> list[Shard]:
        return self.content.shards

    def ids(self, split: str | None, part: str) -> list[str]:
        """The ids of a part (train, val, test) of a split, in order; split None is the default split.

        UserError for an unknown split or part (the choices are listed) and for a part without samples.
        """
        split = split or self.default_split
        if part not in PARTS:
            raise UserError(f"part {part!r}: choose one of {', '.join(PARTS)}")
        ids = self.split_ids(split)[part]
        if not ids:
            filled = [f"{name} ({len(found)})" for name, found in self.split_ids(split).items() if found]
            raise UserError(
                f"{self.location}: split {split} has no {part} samples, only {', '.join(filled)}; "
                "prepare the data set from a source that has them"
            )
        return ids

    def unlabeled_ids(self) -> list[str]:
        """The samples that have an image and no mask, which are in no split."""
        masked = [places[:, 0] >= 0 for name, places in self.index.members.items() if name.startswith("mask.")]
        labeled = np.logical_or.reduce(masked) if masked else np.zeros(len(self.index), bool)
        return [key.decode() for key in self.index.keys[~labeled]]

    def split_ids(self, split: str) -> dict[str, list[str]]:
        """All three parts of a split, some perhaps empty; without the samples in quarantine."""
        if split not in self.splits:
            raise UserError(f"split {split!r}: {self.dataset} has {', '.join(self.splits)}")
        if split not in self._split_cache:
            self._split_cache[split] = self._read_split(split)
        return self._split_cache[split]

    @cached_property
    def _split_cache(self) -> dict[str, dict[str, list[str]]]:
        return {}

    def _read_split(self, split: str) -> dict[str, list[str]]:
        name = f"splits/{split}.json"
        lists = json.loads(self._read_hashed(name, self.splits[split].sha256))
        left_out = self.quarantine.samples if self.quarantine else {}
        return {part: [str(key) for key in lists[part] if key not in left_out] for part in PARTS}

    @cached_property
    def index(self) -> Index:
        """Where every sample lies. Of a large data set the arrays are kept in the cache, under the hashes of its
        index files; one process of a machine makes them, the others wait."""
        if sum(shard.n for shard in self.shards) < index.CACHED_FROM:
            return self.read_index()
        described = "".join(f"{shard.index_sha256} {shard.bytes}\n" for shard in self.shards)
        kept = Path(settings.load().cache_dir) / "index" / f"{hashlib.sha256(described.encode()).hexdigest()}.npz"
        with files.locked(kept):
            found = index.restore(kept)
            if found is None:
                found = self.read_index()
                index.store(kept, found)
        return found

    def read_index(self) -> Index:
        """The same from the index files themselves, each compared with its hash."""
        return index.load(
            [
                (
                    f"{self.location}/{shard.index_name}",
                    self._read_hashed(shard.index_name, shard.index_sha256),
                    shard.bytes,
                )
                for shard in self.shards
            ]
        )

    def rows(self, ids: list[str]) -> Any:
        """The rows of `ids` in the index; UserError when the split names a sample that no shard has."""
        try:
            return self.index.rows(ids)
        except KeyError as error:
            raise UserError(
                f"{self.location}: the split names {error.args[0]!r}, which is in no shard; prepare the data set again"
            ) from None

    def _read_hashed(self, name: str, sha256: str) -> bytes:
        path = f"{self.location}/{name}"
        try:
            content = (self.root / name).read_bytes() if self.uri is None else self._fetched(name, sha256)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); prepare the data set again") from error
        if hashlib.sha256(content).hexdigest() != sha256:
            raise UserError(f"{path}: is not the file that the manifest describes; prepare the data set again")
        return content

    def _fetched(self, name: str, sha256: str) -> bytes:
        """An index or split file of an object store, kept beside its shards when it is the right one."""
        kept = self.root / name
        with files.locked(kept):
            if kept.exists() and files.sha256_file(kept) == sha256:
                return kept.read_bytes()
            content = bucket.read(f"{self.uri}/{name}")
            if hashlib.sha256(content).hexdigest() == sha256:
                with contextlib.suppress(OSError):  # kept or not, it is what was asked for
                    files.write_bytes(kept, content)
        return content


def _validated(path: Path | str, raw: Any) -> Content:
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


def write(root: Path, content: dict[str, Any]) -> None:
    """Add schema and fingerprint, check, and write `manifest.json`: the last file of a data set."""
    content = {"schema": SCHEMA, "prep_version": PREP_VERSION, **content}
    content["fingerprint"] = fingerprint(content)
    Content.model_validate(content)
    files.write_json(root / FILE_NAME, content)
