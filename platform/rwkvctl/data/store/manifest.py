"""The manifest: what a prepared data set is, byte for byte, and how it is split.

A data set is a folder with `manifest.json`, shards `*.tar`, `index/*.idx` and `splits/*.json`. The manifest holds the
SHA-256 of all the others, and a fingerprint of itself: two data sets with one fingerprint give the same batches.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.config import settings
from rwkvctl.data.store import bucket, index, quarantine, shards
from rwkvctl.data.store.index import Index
from rwkvctl.data.store.quarantine import Quarantine
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
        content = validated(path, raw)
        return cls(root, content, quarantine=None if whole else quarantine.load(root, content.fingerprint))

    @classmethod
    def _load_uri(cls, uri: str) -> Manifest:
        path = f"{uri}/{FILE_NAME}"
        text = bucket.read(path)
        try:
            raw = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}: is not valid JSON ({error}); upload the data set again") from error
        content = validated(path, raw)
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


def write(root: Path, content: dict[str, Any]) -> None:
    """Add schema and fingerprint, check, and write `manifest.json`: the last file of a data set."""
    content = {"schema": SCHEMA, "prep_version": PREP_VERSION, **content}
    content["fingerprint"] = fingerprint(content)
    Content.model_validate(content)
    files.write_json(root / FILE_NAME, content)
