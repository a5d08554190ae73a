"""The objects of one run in an S3-compatible store: files, small contents that are written on a condition, lists."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rwkvctl.base.files import atomic_path
from rwkvctl.base.object_store import StoreError, filesystem, key_of, plainly

T = TypeVar("T")
TRIES = 3
OPTIONS: dict[str, Any] = {
    "config_kwargs": {
        "retries": {"mode": "standard", "total_max_attempts": TRIES},
        "connect_timeout": 10,
        "read_timeout": 20,
    },
    "max_concurrency": 3,  # parts of a large file at once
}
"""A store that does not answer holds up its caller for a minute, not for ten: callers have a patience of their own."""
IN_ONE_PIECE = 32 << 20
"""Bytes up to which a file is sent as one request, whose answer has its ETag."""
PART = 50 << 20
"""Bytes of a part of a large file."""


class Taken(Exception):
    """A write on a condition found another object in its place than it was to replace."""


class Entry(NamedTuple):
    """An object in a list. `modified`: seconds since 1970, by the store's clock."""

    size: int
    etag: str
    modified: float


class Objects:
    """What lies below a URI `s3://bucket/prefix/run`; keys are paths from there.

    Every method raises StoreError where the store refuses, fails or does not answer.
    """

    def __init__(self, uri: str):
        self.uri = uri.rstrip("/")
        self.bucket, _, self.prefix = key_of(self.uri).partition("/")
        self._store = filesystem(uri, **OPTIONS)
        self._store.retries = 1  # of s3fs, on top of botocore's own

    def read(self, key: str, start: int = 0) -> tuple[bytes, str] | None:
        """Content, from byte `start` on, and ETag; None where there is no such object."""
        from fsspec.asyn import sync

        where: dict[str, Any] = {"Bucket": self.bucket, "Key": self._full(key)}
        if start:
            where["Range"] = f"bytes={start}-"

        async def get() -> tuple[bytes, str]:
            answer = await self._store._call_s3("get_object", **where)
            async with answer["Body"] as body:
                return await body.read(), answer["ETag"]

        try:
            return self._ask(key, lambda: sync(self._store.loop, get))
        except StoreError as error:
            if error.status != 404 or not self._bucket_exists():
                raise
            return None

    def write(self, key: str, content: bytes, **condition: str) -> str:
        """Write an object whole, and return its ETag. `IfNoneMatch="*"`: where there is none; `IfMatch=etag`: in place
        of that one. Raises Taken when that is not so."""
        where = {"Bucket": self.bucket, "Key": self._full(key)}
        try:
            answer = self._ask(key, lambda: self._store.call_s3("put_object", **where, Body=content, **condition))
        except StoreError as error:
            if condition and (error.status in (409, 412) or (error.status == 404 and self._bucket_exists())):
                raise Taken(f"{self.uri}/{key}") from None
            raise
        return answer["ETag"]

    def send(self, path: Path, key: str) -> str:
        """Copy a file into the store, and return the object's ETag."""
        if path.stat().st_size <= IN_ONE_PIECE:
            return self.write(key, path.read_bytes())
        where = f"{self.bucket}/{self._full(key)}"
        self._ask(key, lambda: self._store.put_file(os.fspath(path), where, chunksize=PART))
        return self._ask(key, lambda: self._store.info(where))["ETag"]

    def fetch(self, key: str, path: Path) -> None:
        """Copy an object into a file, which appears whole."""
        with atomic_path(path) as temporary:
            self._ask(key, lambda: self._store.get_file(f"{self.bucket}/{self._full(key)}", os.fspath(temporary)))

    def entries(self, below: str = "", *, deep: bool = True) -> dict[str, Entry]:
        """What lies below a key (`checkpoints/`) by key, in order; not `deep`: only what has no further `/`."""
        start = self._full("")
        request: dict[str, Any] = {"Bucket": self.bucket, "Prefix": start + below}
        if not deep:
            request["Delimiter"] = "/"
        found: dict[str, Entry] = {}
        while True:
            page = self._ask(below, lambda: self._store.call_s3("list_objects_v2", **request))
            for one in page.get("Contents", ()):
                entry = Entry(one["Size"], one["ETag"], one["LastModified"].timestamp())
                found[one["Key"].removeprefix(start)] = entry
            if not page.get("IsTruncated"):
                return found
            request["ContinuationToken"] = page["NextContinuationToken"]

    def folders(self) -> list[str]:
        """Names directly below that have something in them."""
        start = self._full("")
        request: dict[str, Any] = {"Bucket": self.bucket, "Prefix": start, "Delimiter": "/"}
        found: list[str] = []
        while True:
            page = self._ask("", lambda: self._store.call_s3("list_objects_v2", **request))
            found += [one["Prefix"].removeprefix(start).rstrip("/") for one in page.get("CommonPrefixes", ())]
            if not page.get("IsTruncated"):
                return found
            request["ContinuationToken"] = page["NextContinuationToken"]

    def delete(self, keys: Iterable[str]) -> None:
        """Delete objects, one after the other; those that are not there too."""
        for key in keys:
            where = {"Bucket": self.bucket, "Key": self._full(key)}
            self._ask(key, lambda where=where: self._store.call_s3("delete_object", **where))  # type: ignore[misc]

    def _full(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    def _bucket_exists(self) -> bool:
        """Tells a missing object from a missing bucket, both of which are a 404."""
        try:
            self._ask("", lambda: self._store.call_s3("list_objects_v2", Bucket=self.bucket, MaxKeys=1))
        except StoreError as error:
            if error.status == 404:
                return False
            raise
        return True

    def _ask(self, key: str, action: Callable[[], T]) -> T:
        return plainly(f"{self.uri}/{key}".rstrip("/"), action, TRIES)
