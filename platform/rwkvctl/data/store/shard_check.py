"""Whether the shards are those of the manifest: in a moment when they were hashed before, once in full otherwise."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np

from rwkvctl.base import files, paths
from rwkvctl.base.errors import UserError
from rwkvctl.data.store import bucket
from rwkvctl.data.store.case_forms import stored_rows
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.schema import Shard


def check_shards(manifest: Manifest, ids: list[str] | None = None) -> None:
    """Compare size and SHA-256 of the shards that hold `ids` (default: of all) with the manifest.

    UserError names the first shard that differs. A shard that was found good is not read again until its size or
    time of change differs (remembered under the cache folder). In an object store only the sizes are
    compared: a shard from there is hashed whenever it is fetched.
    """
    numbers = range(len(manifest.shards))
    wanted = numbers if ids is None else np.unique(manifest.index.shard[stored_rows(manifest, ids)]).tolist()
    if manifest.uri:
        _check_sizes(manifest.uri, [manifest.shards[number] for number in wanted])
        return
    accepted = manifest.quarantine.shards if manifest.quarantine else {}
    for number in wanted:
        shard = manifest.shards[number]
        if shard.name in accepted:
            shard = shard.model_copy(update=accepted[shard.name].model_dump())
        problem = shard_problem(manifest.root, shard, remembered=True)
        if problem:
            raise UserError(f"{problem}; copy the shard again or prepare the data set again")


def _check_sizes(uri: str, shards: list[Shard]) -> None:
    there = bucket.sizes(uri)
    for shard in shards:
        if there.get(shard.name) != shard.bytes:
            found = f"has {there[shard.name]} bytes" if shard.name in there else "is not there"
            raise UserError(f"{uri}/{shard.name}: {found}, the manifest says {shard.bytes}; upload it again")


def shard_problem(root: Path, shard: Shard, remembered: bool) -> str:
    """What is wrong with a shard file, or "". With `remembered`, a hash computed earlier is trusted."""
    path = root / shard.name
    try:
        status = path.stat()
        if status.st_size != shard.bytes:
            return f"{path}: has {status.st_size} bytes, the manifest says {shard.bytes}"
        seen = [str(path.resolve()), status.st_size, status.st_mtime_ns, shard.sha256]
        note = _note(path)
        if remembered and _read_note(note) == seen:
            return ""
        if files.sha256_file(path) != shard.sha256:
            return f"{path}: its SHA-256 is not that of the manifest, the file is damaged"
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})"
    _remember(note, seen)
    return ""


def _note(shard: Path) -> Path:
    return paths.cache_dir() / "verified" / f"{hashlib.sha256(str(shard.resolve()).encode()).hexdigest()}.json"


def _read_note(note: Path) -> Any:
    try:
        return json.loads(note.read_bytes())
    except (OSError, ValueError):
        return None


def _remember(note: Path, seen: list[Any]) -> None:
    try:
        files.write_json(note, seen)
    except OSError:  # no cache, on a read-only machine for instance, only costs time
        return
