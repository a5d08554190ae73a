"""The manifest: what a prepared data set is, byte for byte, and how it is split.

A data set is a folder with `manifest.json`, shards `*.tar`, `index/*.idx` and `splits/*.json`. The manifest holds the
SHA-256 of all the others, and a fingerprint of itself: two data sets with one fingerprint give the same batches.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.config import settings
from rwkvctl.data.store import bucket, index, mapped, quarantine, shards
from rwkvctl.data.store.case_ids import case_of
from rwkvctl.data.store.index import Index
from rwkvctl.data.store.mapped import Kept
from rwkvctl.data.store.quarantine import Quarantine
from rwkvctl.data.store.remembered import Remembered
from rwkvctl.data.store.schema import (
    FILE_NAME,
    PREP_VERSION,
    SCHEMA,
    Content,
    Shard,
    SplitEntry,
    fingerprint,
    validated,
)
from rwkvctl.data.store.splits import PARTS

SplitLists = tuple[tuple[str, ...], ...]
"""The ids of every part, in the order of PARTS."""


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
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{root}: no prepared data set here ({FILE_NAME} is missing); "
                "make one with: rwkvctl data prepare FORMAT --source DIR --out DIR"
            ) from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error}); prepare the data set again") from error
        content = _content(path, text, "prepare")
        return cls(root, content, quarantine=None if whole else quarantine.load(root, content.fingerprint))

    @classmethod
    def _load_uri(cls, uri: str) -> Manifest:
        path = f"{uri}/{FILE_NAME}"
        content = _content(path, bucket.read(path), "upload")
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
    def identity(self) -> str:
        """What was prepared, wherever it lies and whatever name it was given: synapse. Images of one's own are known by
        the data set's name."""
        source = self.content.source
        return source.format if source.expected else self.content.dataset

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
    def channel_names(self) -> list[str]:
        """Empty where they have none."""
        return self.content.channel_names or []

    @property
    def regions(self) -> dict[str, tuple[int, ...]]:
        """The classes of each region that is scored in the place of classes; empty where classes are."""
        return {region.name: tuple(region.classes) for region in self.content.regions or ()}

    @property
    def scored(self) -> list[str]:
        """What scores are of, by their ids: the classes, or the background and the regions."""
        return [self.classes[0], *self.regions] if self.regions else self.classes

    @property
    def image_kind(self) -> Literal["rgb8", "float"]:
        return self.content.image_kind

    @property
    def has_volumes(self) -> bool:
        """Whether its samples are volumes and slices of them."""
        return "mask.npy" in self.index.members

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
        left_out = set(self.quarantine.samples) if self.quarantine else set()
        if left_out and self.has_volumes:  # also what would be read out of them
            cases = {case_of(key) for key in left_out}
            lists = zip(PARTS, self._split(split), strict=True)
            return {
                part: [key for key in keys if not {key, case_of(key)} & left_out and key not in cases]
                for part, keys in lists
            }
        lists = zip(PARTS, self._split(split), strict=True)
        return {part: [key for key in keys if key not in left_out] for part, keys in lists}

    def _split(self, split: str) -> SplitLists:
        """The id lists of a split, one a part, with what is in quarantine."""
        name, sha256 = f"splits/{split}.json", self.splits[split].sha256

        def read() -> SplitLists:
            lists = json.loads(self._read_hashed(name, sha256))
            return tuple(tuple(map(str, lists[part])) for part in PARTS)

        return _splits.value((self.location, name, sha256, mapped.identity_of(self.root / name)), read)

    @cached_property
    def index(self) -> Index:
        """Where every sample lies. Of a large data set it is a table in the cache, under the hashes of its index
        files, mapped into memory."""
        if sum(shard.n for shard in self.shards) < index.CACHED_FROM:
            return self.read_index()
        path = self._cache_file(index.TABLE)

        def read() -> Kept:
            return mapped.keep(path, lambda: index.table(self.read_index()))

        return index.of_table(_tables.value((path, mapped.identity_of(path)), read))

    def _cache_file(self, what: str) -> Path:
        """Where something is kept that hangs on the index files alone."""
        described = "".join(f"{shard.index_sha256} {shard.bytes}\n" for shard in self.shards)
        name = f"{hashlib.sha256(described.encode()).hexdigest()}.{what}.npy"
        return Path(settings.load().cache_dir) / "index" / name

    def kept_rows(self, rows: NDArray[np.int64]) -> Kept:
        """Rows of the index as processes are to share them: many in a file of the cache, few in memory."""
        found = rows.astype(np.int32)
        if len(found) < index.CACHED_FROM:
            return Kept(found)
        return mapped.keep(self._cache_file(f"rows-{hashlib.sha256(found.data).hexdigest()[:32]}"), lambda: found)

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


_contents = Remembered[Content](8)
_splits = Remembered[SplitLists](8)
_tables = Remembered[Kept](4)


def _content(path: Path | str, text: bytes, remedy: str) -> Content:
    """What a manifest says; one of the same bytes is parsed and checked once in a process. A copy of one's own, but for
    the shards and what was left out: long lists, of values that nobody can change."""

    def parse() -> Content:
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: is not valid JSON ({error}); {remedy} the data set again") from error
        return validated(path, raw)

    content = _contents.value((str(path), hashlib.sha256(text).digest()), parse)
    long = {"shards": list(content.shards), "excluded": list(content.excluded)}
    return content.model_copy(update={name: copy.deepcopy(value) for name, value in content if name not in long} | long)


def write(root: Path, content: dict[str, Any]) -> None:
    """Add schema and fingerprint, check, and write `manifest.json`: the last file of a data set."""
    content = {"schema": SCHEMA, "prep_version": PREP_VERSION, **content}
    content["fingerprint"] = fingerprint(content)
    Content.model_validate(content)
    files.write_json(root / FILE_NAME, content)
