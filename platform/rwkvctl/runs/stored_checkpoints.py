"""A run's checkpoints in a store: the same files under the same names, and the same rule of what counts.

A checkpoint is sent file by file, `state.json` last, then what points at it; one without `state.json` is what a killed
process left, and nothing reads it. Only then are those deleted that nothing needs.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.runs.mirror import Mirror
from rwkvctl.runs.objects import Entry
from rwkvctl.training import checkpoint_folder as kept

FOLDER = "checkpoints/"
STATE = "state.json"


class StoredCheckpoints:
    """The checkpoints in a run's folder, and those of the store."""

    def __init__(self, mirror: Mirror):
        self.mirror, self.folder = mirror, mirror.folder / "checkpoints"

    def push(self, before: Callable[[], object]) -> int:
        """Send what the pointers name here, then the pointers; delete in the store what nothing needs. Returns bytes.

        before: called when all is there, before it counts: sends the journal, and sees to it that the run is ours.
        """
        sent = 0
        pointed = kept.all_pointed_at(self.folder)
        if "latest" not in pointed:
            return 0
        for checkpoint in sorted(set(pointed.values())):
            if checkpoint.is_dir():
                sent += self._send(checkpoint.name, before)
        before()
        for pointer in sorted(pointed):  # best before latest, as they are written
            sent += self.mirror.send([f"{FOLDER}{pointer}.json"])
        self._prune()
        return sent

    def whole(self, found: dict[str, Entry] | None = None) -> dict[str, dict[str, Entry]]:
        """The objects of every checkpoint of the store that has its `state.json`, by its name."""
        found = self.mirror.objects.entries(FOLDER) if found is None else found
        names = dict.fromkeys(key.split("/")[1] for key in found if key.count("/") > 1)
        groups = {name: {key: entry for key, entry in found.items() if key.split("/")[1] == name} for name in names}
        return {name: group for name, group in groups.items() if f"{FOLDER}{name}/{STATE}" in group}

    def pull(self, *names: str) -> None:
        """Fetch the pointers, and the checkpoints of these names, by default all; of the store's, as far as they
        were not changed here."""
        found = self.mirror.objects.entries(FOLDER)
        known = self.mirror.known()
        groups = self.whole(found)
        for name, group in groups.items():
            if not names or name in names:
                self._fetch(group, known)
        pointers = {f"{FOLDER}{pointer}.json" for pointer in kept.POINTERS}
        self._fetch({key: entry for key, entry in found.items() if key in pointers}, known)

    def find(self, pointer: str = "latest") -> kept.Found | None:
        """As `checkpoint_folder.find_checkpoint`: of what the pointers name, and only where that is damaged, of all
        that the store has; a copy here that is damaged is fetched again."""
        self.pull("")
        self.pull("", *(path.name for path in kept.all_pointed_at(self.folder).values()))
        with contextlib.suppress(UserError):
            found = kept.find_checkpoint(self.folder, pointer)
            if found is None or not found.damage:
                return found
        for name in self.whole():
            if kept.damage_of(self.folder / name) is not None:
                shutil.rmtree(self.folder / name, ignore_errors=True)
        self.pull()
        return kept.find_checkpoint(self.folder, pointer)

    def _send(self, name: str, before: Callable[[], object]) -> int:
        key = f"{FOLDER}{name}"
        names = sorted(path.name for path in (self.folder / name).iterdir() if path.name != STATE)
        known = self.mirror.known()
        if all(self.mirror.unchanged(f"{key}/{file}", known) for file in [*names, STATE]):
            return 0
        if f"{key}/{STATE}" in known:  # of an earlier write of this step, by other workers perhaps
            self.mirror.delete([f"{key}/{STATE}"])
        sent = self.mirror.send([f"{key}/{file}" for file in names])
        before()
        return sent + self.mirror.send([f"{key}/{STATE}"])

    def _fetch(self, group: dict[str, Entry], known: dict[str, list[Any]]) -> None:
        for key, entry in sorted(group.items(), key=lambda item: item[0].endswith(STATE)):
            if self.mirror.fetch_wanted(key, entry, known):
                self.mirror.fetch(key, entry)

    def _prune(self) -> None:
        """As `checkpoint_folder.prune`, by the store's own pointers: theirs and the one before the latest stay."""
        found = self.mirror.objects.entries(FOLDER)
        pointed = self._pointed_at()
        if "latest" not in pointed:
            return
        whole = [name for name in self.whole(found) if kept.NAME.fullmatch(name)]
        before = [name for name in whole if int(name[5:]) < int(pointed["latest"][5:])]
        keep = {*pointed.values(), *sorted(before, key=lambda name: int(name[5:]))[-1:]}
        self.delete([key for key in found if key.count("/") > 1 and key.split("/")[1] not in keep])

    def _pointed_at(self) -> dict[str, str]:
        """What the store's pointers name."""
        found = {}
        for pointer in kept.POINTERS:
            content = self.mirror.objects.read(f"{FOLDER}{pointer}.json")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                name = json.loads(content[0] if content else b"")["checkpoint"]
                if kept.NAME.fullmatch(name):
                    found[pointer] = name
        return found

    def delete(self, keys: list[str]) -> None:
        """Delete objects of checkpoints; each loses its `state.json` first."""
        self.mirror.delete(sorted(keys, key=lambda key: not key.endswith(STATE)))
