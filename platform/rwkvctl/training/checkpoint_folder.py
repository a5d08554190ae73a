"""A run's checkpoints on disk: their names, what points at them, whether they are sound, which are kept.

    checkpoints/
      step-00000120/   model.safetensors  [ema.safetensors]  optimizer.safetensors  state.json
      latest.json      {"checkpoint": "step-00000120"}
      best.json        the same, with the best validation score

A folder gets its name when all of it is on the disk. `state.json` has the hashes of the other files and its own.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import sha256_file, write_json
from rwkvctl.config.specs.changes import few

SCHEMA = "rwkv-checkpoint/1"
POINTERS = ("latest", "best")
NAME = re.compile(r"step-(\d{8,})")
FIELDS = {"sha256": dict, "position": dict, "fingerprint": str, "spec": dict, "param_groups": list}


class DamagedCheckpoint(UserError):
    """A checkpoint or a pointer that is not what was written: `step-00000120/model.safetensors is missing`."""


@dataclass(frozen=True)
class Found:
    """A sound checkpoint, and why those that should have been taken before it were not."""

    path: Path
    content: dict[str, Any]
    """Its `state.json`."""
    damage: list[str]
    passed_over: list[Path]


def name_of(step: int) -> str:
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    match = NAME.fullmatch(checkpoint.name)
    assert match is not None, checkpoint
    return int(match[1])


def checkpoints(folder: Path) -> list[Path]:
    """All that have their names, damaged ones too, newest first."""
    found = [path for path in folder.glob("step-*") if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def leftovers(folder: Path) -> list[Path]:
    """What a killed writer left under its temporary names."""
    return sorted([*folder.glob(".step-*.tmp"), *(folder.glob(".*.json.*.tmp"))])


def pointed_at(folder: Path, pointer: str) -> Path | None:
    """The checkpoint that `latest` or `best` points at; None when there is no such pointer.

    Raises:
        DamagedCheckpoint: it does not name a checkpoint.
    """
    try:
        name = json.loads((folder / f"{pointer}.json").read_text())["checkpoint"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        name = None
    if not isinstance(name, str) or NAME.fullmatch(name) is None:
        raise DamagedCheckpoint(f"{pointer}.json does not name a checkpoint")
    return folder / name


def all_pointed_at(folder: Path) -> dict[str, Path]:
    """What every pointer that can be read points at."""
    found = {}
    for pointer in POINTERS:
        try:
            target = pointed_at(folder, pointer)
        except DamagedCheckpoint:
            continue
        if target is not None:
            found[pointer] = target
    return found


def point(folder: Path, pointer: str, checkpoint: Path) -> None:
    write_json(folder / f"{pointer}.json", {"checkpoint": checkpoint.name})


def read_state(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint, whose other files are not looked at.

    Raises:
        DamagedCheckpoint: it is missing, or not what was written.
        UserError: another version of rwkvctl wrote it.
    """
    name = f"{checkpoint.name}/state.json"
    try:
        content = json.loads((checkpoint / "state.json").read_text())
    except (FileNotFoundError, NotADirectoryError):
        what = name if checkpoint.is_dir() else checkpoint.name
        raise DamagedCheckpoint(f"{what} is missing") from None
    except ValueError:
        raise DamagedCheckpoint(f"{name} is not JSON") from None
    if not isinstance(content, dict):
        raise DamagedCheckpoint(f"{name} is not the state of a checkpoint")
    if "checksum" in content and content["checksum"] != checksum(content):  # earlier versions wrote none
        raise DamagedCheckpoint(f"{name} does not match its own checksum")
    schema = content.get("schema")
    if schema != SCHEMA and str(schema).startswith("rwkv-checkpoint/"):
        raise UserError(
            f"{checkpoint}: has the format {schema}, and this rwkvctl reads {SCHEMA}; use the rwkvctl that wrote it"
        )
    if schema != SCHEMA or not all(isinstance(content.get(key), kind) for key, kind in FIELDS.items()):
        raise DamagedCheckpoint(f"{name} is not the state of a checkpoint")
    return content


def checksum(content: dict[str, Any]) -> str:
    """SHA-256 of what `state.json` says beside this."""
    rest = {key: value for key, value in content.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def read_checked(checkpoint: Path) -> dict[str, Any]:
    """`state.json` of a checkpoint whose files all have the hashes that it names; raises as `read_state` does."""
    content = read_state(checkpoint)
    for name, expected in content["sha256"].items():
        try:
            found = sha256_file(checkpoint / name)
        except FileNotFoundError:
            raise DamagedCheckpoint(f"{checkpoint.name}/{name} is missing") from None
        if found != expected:
            raise DamagedCheckpoint(f"{checkpoint.name}/{name} does not match its hash in state.json")
    return content


def damage_of(checkpoint: Path) -> str | None:
    """What is wrong with a checkpoint; None if it is sound."""
    try:
        read_checked(checkpoint)
    except DamagedCheckpoint as error:
        return str(error)
    return None


def find_checkpoint(folder: Path, pointer: str = "latest") -> Found | None:
    """What a pointer names, or where that is damaged the newest sound checkpoint; None where none was ever written.

    Raises:
        UserError: there are checkpoints, but no sound one; or one cannot be read for another reason than damage.
    """
    damage: list[str] = []
    passed_over: list[Path] = []
    named = None
    try:
        named = pointed_at(folder, pointer)
        if named is None:
            damage.append(f"{pointer}.json is missing")
    except DamagedCheckpoint as error:
        damage.append(str(error))
    rest = checkpoints(folder)
    if named is None and not rest and not any((folder / f"{name}.json").exists() for name in POINTERS):
        return None
    for candidate in dict.fromkeys([*([named] if named else []), *rest]):
        try:
            return Found(candidate, read_checked(candidate), damage, passed_over)
        except DamagedCheckpoint as error:
            damage.append(str(error))
            passed_over.append(candidate)
    raise UserError(
        f"{folder}: no checkpoint is sound ({few(damage)}); restore this folder from a backup, or delete it to train "
        "from the beginning"
    )


def settle_on(folder: Path, found: Found) -> None:
    """Let `latest` name what was found, and take the names of the damaged ones before it: the next checkpoint that is
    written removes them, and keeps this one."""
    if found.damage:
        point(folder, "latest", found.path)
    for path in found.passed_over:
        aside = path.with_name(f".{path.name}.damaged.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        if path.exists():
            path.replace(aside)


def written_at(checkpoint: Path, content: dict[str, Any]) -> str:
    """When a checkpoint was written, in UTC; of earlier versions, which did not note it, when the file was."""
    modified = datetime.fromtimestamp((checkpoint / "state.json").stat().st_mtime, UTC)
    return str(content.get("written", modified.isoformat(timespec="seconds")))


def delete(path: Path) -> None:
    """Delete a checkpoint or what is left of one; a checkpoint loses its name first."""
    if path.is_file():
        path.unlink()
        return
    if NAME.fullmatch(path.name):
        path = path.rename(path.with_name(f".{path.name}.deleted.tmp"))
    shutil.rmtree(path)


def prune(folder: Path) -> None:
    """Keep the latest checkpoint, the one before it, and the best; remove the others and what a killed writer left."""
    kept = needed(folder)
    for path in [*checkpoints(folder), *folder.glob(".step-*.tmp")]:
        if path not in kept:
            shutil.rmtree(path, ignore_errors=True)


def needed(folder: Path) -> set[Path]:
    """The checkpoints that pointers name, and the one before the latest."""
    pointed = all_pointed_at(folder)
    latest = step_of(pointed["latest"]) if "latest" in pointed else 0
    before = [path for path in checkpoints(folder) if step_of(path) < latest]
    return {*pointed.values(), *before[:1]}


def unneeded(folder: Path) -> list[Path]:
    """What a person may delete: leftovers, and checkpoints that nothing points at beside the two newest sound ones."""
    pointed = set(all_pointed_at(folder).values())
    sound: list[Path] = []
    spare: list[Path] = []
    for path in checkpoints(folder):
        if len(sound) < 2 and damage_of(path) is None:
            sound.append(path)
        elif path not in pointed:
            spare.append(path)
    return [*leftovers(folder), *(spare if sound else [])]
