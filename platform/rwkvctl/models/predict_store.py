"""Inputs from object stores and masks to them: `s3://bucket/folder/`, `gs://...`.

Inputs are copied to a scratch folder before the first is segmented; masks are made in one and sent as they are ready.
"""

from __future__ import annotations

import glob
import posixpath
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from rwkvctl.base import uris
from rwkvctl.base.errors import UserError
from rwkvctl.base.object_store import OPTIONS, StoreError, key_of, plain_errors
from rwkvctl.base.paths import as_text, from_text
from rwkvctl.data.images import files as image_files
from rwkvctl.data.images import itk
from rwkvctl.data.store import bucket
from rwkvctl.models import predict_record

SCANS = (".nii", ".nii.gz", *itk.FILES, ".npy", ".h5", ".zip")
DICOM = ("", ".dcm", ".ima", ".img")
"""Endings that slices have, besides numbers."""


def is_uri(text: str) -> bool:
    """Whether a text names something in an object store; UserError for addresses of other kinds."""
    scheme, separator, rest = text.partition("://")
    if not separator or scheme == "file":
        return False
    if scheme not in OPTIONS:
        raise UserError(
            f"{uris.mask(text)[:100]}: {scheme}:// is not supported; give a path, or a URI of s3:// or gs://"
        )
    uris.check(text, "predict")
    if not rest.strip("/") or ".." in rest.split("/"):
        raise UserError(f"{text}: give a bucket and a folder in it, for example {scheme}://bucket/scans/")
    return True


# Inputs ---------------------------------------------------------------------------------------------------------------


def fetched(uri: str, folder: Path) -> dict[str, Path]:
    """What a URI names, copied below `folder`: by its own URI each object that it names or that its pattern stands for,
    or a folder with the images, arrays and scans in it and the DICOM below it.

    UserError where there is nothing, and where the disk has no room for it.
    """
    uri = uri.rstrip("/")
    sizes = _named(uri)
    if not sizes:
        raise UserError(f"input {uri}: no object has a name of this pattern" if glob.has_magic(uri) else _absent(uri))
    _check_room(uri, sum(sizes.values()), folder)
    root = posixpath.dirname(key_of(uri)) if len(sizes) == 1 and key_of(uri) in sizes else _fixed_part(key_of(uri))
    places = {key: folder / PurePosixPath(key).relative_to(root) for key in sizes}
    for place in places.values():
        place.parent.mkdir(parents=True, exist_ok=True)
    plain_errors(uri, lambda store: store.get(list(places), [str(place) for place in places.values()]))
    scheme = uri.partition("://")[0]
    if key_of(uri) in sizes or glob.has_magic(uri):
        return {f"{scheme}://{key}": place for key, place in places.items()}
    whole = folder.rename(folder.with_name(f"{folder.name}.new"))
    named = folder / PurePosixPath(key_of(uri)).name  # which the masks of its series are named by
    folder.mkdir()
    whole.rename(named)
    return {uri: named}


def _absent(uri: str) -> str:
    return f"input {uri}: no such object, and no folder with images, arrays or scans in it"


def _named(uri: str) -> dict[str, int]:
    """Bytes by key of the objects that a URI names."""
    key = key_of(uri)
    if glob.has_magic(key):
        found = plain_errors(uri, lambda store: store.glob(uri, detail=True))
        return {
            each: int(about["size"])
            for each, about in found.items()
            if about.get("type") == "file" and not posixpath.basename(each).startswith(".")
        }
    try:
        found = plain_errors(uri, lambda store: store.find(uri, detail=True))
    except StoreError as error:
        if error.status != 404:
            raise
        return {}
    if key in found:
        return {key: int(found[key]["size"])}
    below = {name: int(about["size"]) for name, about in found.items()}
    return {name: size for name, size in below.items() if _is_wanted(name.removeprefix(f"{key}/"))}


def _is_wanted(place: str) -> bool:
    """By its name below the folder: an image or a scan directly in it, or what may be a slice, wherever it is."""
    name = posixpath.basename(place).lower()
    ending = PurePosixPath(name).suffix
    if not name or name.startswith("."):
        return False
    return ending in DICOM or ending[1:].isdigit() or ("/" not in place and name.endswith(_ENDINGS))


_ENDINGS = (*SCANS, *image_files.EXTENSIONS)


def _fixed_part(key: str) -> str:
    """The folder above the first part with a pattern in it."""
    parts = key.split("/")
    place = next((place for place, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    return "/".join(parts[:place])


def _check_room(uri: str, needed: int, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(f"input {uri}: has {needed >> 20} MB, and {folder} has {free >> 20} MB left; take less")


# Masks ----------------------------------------------------------------------------------------------------------------


@dataclass
class Outbox:
    """A folder whose files are sent to a URI, the record last; without a URI they stay where they are."""

    folder: Path
    uri: str | None = None
    sent: set[Path] = field(default_factory=set)

    def check(self, names: Iterable[str], *, overwrite: bool, resume: bool) -> None:
        """UserError where masks are not to be sent: some are there, or an earlier prediction is to go on."""
        if self.uri is None:
            return
        if resume:
            raise UserError(f"--out {self.uri}: --resume goes on in a folder, not in a store; give one of this machine")
        uri = self.uri
        there = bucket.sizes(uri)
        taken = next((name for name in [*names, predict_record.NAME] if name in there), None)
        if taken is not None and not overwrite:
            raise UserError(f"--out {uri}: {taken} exists; give another folder, or --overwrite to replace it")

    def send(self, *, last: bool = False) -> None:
        """Send the files that are whole and have not been sent, with `last` the record too."""
        if self.uri is None:
            return
        uri = self.uri
        ready = [
            path
            for path in sorted(self.folder.rglob("*"))
            if path.is_file()
            and path not in self.sent
            and not path.name.startswith(".")
            and (last or path.name != predict_record.NAME)
        ]
        for path in sorted(ready, key=lambda path: path.name == predict_record.NAME):
            target = f"{uri}/{path.relative_to(self.folder).as_posix()}"
            plain_errors(target, lambda store, path=path, target=target: store.put_file(str(path), target))  # type: ignore[misc]
            self.sent.add(path)

    def shown(self, path: Path) -> str:
        """How a file of the folder is called: where it is sent, or its path."""
        return as_text(path) if self.uri is None else f"{self.uri}/{path.relative_to(self.folder).as_posix()}"


def outbox_of(out: str, scratch: Path) -> Outbox:
    """Of a folder, or of a URI, whose masks are made in the folder `scratch`."""
    return Outbox(scratch, out.rstrip("/")) if is_uri(out) else Outbox(from_text(out))
