"""A data set's files in an object store, under a URI `s3://bucket/...` or `gs://bucket/...`."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rwkvctl.base.errors import UserError
from rwkvctl.base.object_store import OPTIONS, key_of, plain_errors
from rwkvctl.data.store.schema import FILE_NAME


def local_path(location: str | Path) -> Path | None:
    """The folder that `location` names, made absolute; None when it is the URI of an object store.

    UserError for every other kind of URI: nothing that a shell or another protocol would have to open.
    """
    text = str(location)
    scheme, separator, rest = text.partition("://")
    if not separator and not text.startswith("pipe:"):
        return Path(location).expanduser().absolute()
    if scheme == "file" and rest.startswith("/"):
        return Path(rest)
    if scheme not in OPTIONS:
        raise UserError(
            f"data: {scheme.partition(':')[0]}: is not supported; give a folder, or a URI of s3://, gs:// or file:///"
        )
    bucket, _, key = rest.strip("/").partition("/")
    if "@" in bucket:
        raise UserError(
            f"data {scheme}://...: do not put credentials in the URI; set AWS_PROFILE or what the store's tools read"
        )
    if not bucket or not key or ".." in key.split("/"):
        raise UserError(f"data {text}: give a bucket and a folder in it, for example {scheme}://bucket/acdc")
    return None


def read(uri: str) -> bytes:
    """The content of one object."""
    return plain_errors(uri, lambda store: store.cat_file(uri))


def download(uri: str, path: Path) -> None:
    """Copy an object to the file `path`."""
    plain_errors(uri, lambda store: store.get_file(uri, str(path)))


class Entry(NamedTuple):
    """size: bytes; stamp: a number that another content of the object does not have."""

    size: int
    stamp: int


def listing(uri: str) -> dict[str, Entry]:
    """Every object below `uri`, by its path from there; "" is `uri` itself, where that is an object."""
    found = plain_errors(uri, lambda store: store.find(uri, detail=True))
    return {
        name.partition(key_of(uri) + "/")[2]: Entry(int(entry["size"]), _stamp(entry)) for name, entry in found.items()
    }


def _stamp(entry: dict[str, Any]) -> int:
    told = next((str(entry[name]) for name in ("ETag", "etag", "md5Hash", "LastModified") if entry.get(name)), "")
    return zlib.crc32(told.encode())


def sizes(uri: str) -> dict[str, int]:
    """Bytes of every object below `uri`, by its path from there."""
    return {name: entry.size for name, entry in listing(uri).items()}


def upload(folder: Path, uri: str, overwrite: bool = False) -> None:
    """Copy the data set in `folder` to `uri`: shards, index, splits, and the manifest last, so that a data set is
    there whole or not at all. UserError when there is one already and it is not to be overwritten."""
    there = sizes(uri)
    if there and FILE_NAME not in there:
        raise UserError(f"--out {uri}: exists but is not a prepared data set; give another --out")
    if there and not overwrite:
        raise UserError(f"--out {uri}: exists; give another --out or --overwrite")
    if there:
        plain_errors(uri, lambda store: store.rm_file(f"{uri}/{FILE_NAME}"))
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    for name in sorted(names, key=lambda name: name == FILE_NAME):
        target, path = f"{uri}/{name}", str(folder / name)
        plain_errors(target, lambda store, path=path, target=target: store.put_file(path, target))  # type: ignore[misc]
    for name in there.keys() - set(names):
        plain_errors(uri, lambda store, name=name: store.rm_file(f"{uri}/{name}"))  # type: ignore[misc]


@contextmanager
def prepared(location: str, scratch: Path, overwrite: bool) -> Iterator[Path]:
    """The folder to prepare a data set in: `location` itself, or, for a URI, one below `scratch` that is uploaded when
    the block ends well. An interrupted preparation goes on there when it is run again."""
    folder = local_path(location)
    if folder is not None:
        yield folder
        return
    import shutil

    uri = location.rstrip("/")
    if not overwrite and sizes(uri):
        raise UserError(f"--out {uri}: exists; give another --out or --overwrite")
    folder = scratch / "prepare" / hashlib.sha256(uri.encode()).hexdigest()[:16] / uri.rpartition("/")[2]
    shutil.rmtree(folder, ignore_errors=True)  # whole, but its upload failed
    yield folder
    upload(folder, uri, overwrite)
    shutil.rmtree(folder.parent)
