"""`--source s3://bucket/folder`: raw files in an object store, read one by one as they are needed.

Archives are the exception: a member has no address of its own, so they are copied to this machine first.
"""

from __future__ import annotations

import posixpath
import shutil
from collections.abc import Iterator
from pathlib import Path

from rwkvctl.base import uris
from rwkvctl.base.errors import UserError
from rwkvctl.base.files import printable
from rwkvctl.data.convert import archives
from rwkvctl.data.convert.raw_files import RawFile
from rwkvctl.data.store import bucket


def is_uri(place: Path | str) -> bool:
    """Whether a source is in an object store; UserError for a URI of another kind, and for one with a secret."""
    text = str(place)
    if isinstance(place, Path) or "://" not in text:
        return False
    uris.check(text, "--source")
    return bucket.local_path(text) is None


def listed(uri: str, spool: Path) -> Iterator[RawFile]:
    """The objects below `uri`, or the archive that it names; `path` is their place below it. UserError without any."""
    home = uri.rstrip("/")
    found = {name: entry for name, entry in bucket.listing(home).items() if not name.endswith("/")}
    if not found:
        raise UserError(f"--source {uri}: no object has a name that begins so; check the bucket and the folder")
    if "" in found:  # the object itself
        if not archives.is_archive(home):
            endings = ", ".join(archives.EXTENSIONS)
            raise UserError(f"--source {uri}: is an object and no archive ({endings}); give the folder it is in")
        home, _, name = home.rpartition("/")
        found = {name: found[""]}
    for name, entry in found.items():
        place = f"{home}/{name}"
        shown = printable(name), entry.size, home, printable(name)
        if archives.is_archive(name):
            yield RawFile(*shown, "file", entry.stamp, str(_copied(place, entry.size, spool)))
        else:
            yield RawFile(*shown, "object", entry.stamp, place)


def _copied(uri: str, size: int, spool: Path) -> Path:
    free = shutil.disk_usage(spool).free
    if size > free:
        sizes = f"has {size / 1e9:.1f} GB, {spool} has {free / 1e9:.1f} GB free"
        raise UserError(f"{uri}: {sizes}; set TMPDIR to a larger disk")
    folder = spool / f"object{len(list(spool.iterdir()))}"
    folder.mkdir()
    path = folder / posixpath.basename(uri)
    bucket.download(uri, path)
    return path
