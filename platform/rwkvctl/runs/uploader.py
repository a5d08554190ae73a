"""What a process writes into a run's folder, brought to the run's object store while it works.

Nobody waits for the store but the thread that writes checkpoints. A store that fails is said once and tried again; what
it does not take stays in the folder. At the end of the run what is missing there is the run's failure, for which trying
again is the remedy (NotStoredError).
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rwkvctl.base.errors import NotStoredError
from rwkvctl.base.object_store import StoreError
from rwkvctl.runs import mirror
from rwkvctl.runs.folder import read_spec, resume_command
from rwkvctl.runs.lease import LeaseLost, RunLease
from rwkvctl.runs.mirror import Mirror
from rwkvctl.runs.objects import Taken
from rwkvctl.runs.stored_checkpoints import StoredCheckpoints
from rwkvctl.runs.stored_journal import StoredJournal, size_of

EVERY = 5.0
"""Seconds between two looks at what is new; what a machine takes with it when it dies is younger."""
LAST_PATIENCE = 120.0
"""Seconds for which a store that fails is tried at the end of a run that has done its work."""
PAUSE, LONGEST_PAUSE = 2.0, 60.0
"""Seconds before a store that failed is tried again, the first time and after many."""


class Uploader:
    """Sends a run's journal and files in the background, and its checkpoints when it is told to.

    Args:
        store: the run.
        lease: asked before a checkpoint counts; LeaseLost is raised where the run is another process's.
        say: writes a line into the run's journal.
    """

    def __init__(self, store: Mirror, lease: RunLease, say: Callable[[str], None]):
        self.store, self.lease, self.say = store, lease, say
        self.journal, self.checkpoints = StoredJournal(store), StoredCheckpoints(store)
        self.trouble: StoreError | None = None
        """Why the store did not take what it was last sent."""
        self.owed = False
        """Whether the newest checkpoint is missing in the store."""
        self._lost: LeaseLost | None = None
        self._sending, self._stop, self._hurry = threading.Lock(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="run-upload", daemon=True)
        self._thread.start()

    def checkpoint(self) -> int:
        """Send what the pointers name, however often the store fails, until `hurry`: then the next one is sent
        instead. Returns the bytes. Called where nobody waits, by the thread that writes checkpoints.

        Raises:
            LeaseLost: the run is another process's.
        """
        self.owed, pause = True, PAUSE
        while (sent := self._try(self._send_checkpoints)) is None:
            if self._hurry.wait(pause):
                return 0
            pause = min(2 * pause, LONGEST_PAUSE)
        self.owed = False
        return sent

    @contextmanager
    def hurry(self) -> Iterator[None]:
        """While the block runs somebody waits for the checkpoint: a store that fails is not tried again."""
        self._hurry.set()
        try:
            yield
        finally:
            self._hurry.clear()

    def send_owed(self) -> None:
        """Send the newest checkpoint, if it is missing in the store; NotStoredError where that is not possible."""
        if self.owed:
            self._insist(self._send_owed, LAST_PATIENCE)

    def close(self, *, done: bool) -> None:
        """Send the rest and stop. With `done`, NotStoredError where the store does not take it; else as much as it
        takes at once."""
        self._stop.set()
        self._thread.join()
        with suppress(LeaseLost, *([] if done else [NotStoredError])):
            self.lease.check()
            self._insist(self._send_all, LAST_PATIENCE if done else 0.0)

    def _insist(self, action: Callable[[], int], patience: float) -> None:
        deadline = time.monotonic() + patience
        while self._try(action) is None:
            assert self.trouble is not None
            if not self.trouble.may_pass or time.monotonic() >= deadline:
                raise not_stored(self.store, self.trouble)
            time.sleep(PAUSE)

    def _run(self) -> None:
        pause = EVERY
        while not self._stop.wait(pause):
            try:
                self._try(self._send_rest)
            except LeaseLost:
                return
            pause = EVERY if self.trouble is None else min(2 * pause, LONGEST_PAUSE)

    def _send_rest(self) -> int:
        self.store.look()
        return self.store.push() + self.journal.push()  # a file before the line that names it

    def _send_checkpoints(self) -> int:
        return self.checkpoints.push(self._vouch)

    def _send_owed(self) -> int:
        sent = self._send_checkpoints() if self.owed else 0
        self.owed = False
        return sent

    def _send_all(self) -> int:
        return self._send_owed() + self._send_rest()

    def _vouch(self) -> None:
        """Before a checkpoint counts: the journal of its steps is there, and the run is ours."""
        self.journal.push()
        self.lease.confirm()

    def _try(self, action: Callable[[], int]) -> int | None:
        """What `action` returns; None where the store fails, which is told once."""
        if self._lost is not None:
            raise self._lost
        try:
            with self._sending:
                sent = action()
        except StoreError as error:
            self._tell(error)
            return None
        except Taken:
            self._lost = LeaseLost(f"{self.store.uri}: another process writes to it; this one stops")
            raise self._lost from None
        except LeaseLost as lost:
            self._lost = lost
            raise
        self._tell(None)
        return sent

    def _tell(self, trouble: StoreError | None) -> None:
        """Say, once, that the store fails, and that it works again."""
        before, self.trouble = self.trouble, trouble
        with suppress(OSError, LeaseLost, ValueError):  # a full disk, or a closed journal: told elsewhere
            if trouble is not None and before is None:
                self.say(f"{trouble}; the run goes on, keeps everything in {self.store.folder}, and tries again")
            elif trouble is None and before is not None:
                self.say(f"{self.store.uri}: the store takes the run's files again")


def not_stored(store: Mirror, trouble: StoreError) -> NotStoredError:
    """The end of a run of which the store has not got everything."""
    return NotStoredError(
        f"{trouble}. Nothing is lost: the run is in {store.folder} on {socket.gethostname()}; when the store is back, "
        f"send it from there: {resume_command(read_spec(store.folder).job, store.folder)}"
    )


@contextmanager
def followed(run_dir: Path) -> Iterator[None]:
    """While the block runs, whose run may be worked on elsewhere: its journal comes here. At its end what was written
    here is sent; NotStoredError where the block ended well and the store does not take it."""
    store = mirror.of(run_dir)
    if store is None:
        yield
        return
    over = threading.Event()
    thread = threading.Thread(target=_follow, args=(store, over), name="run-follow", daemon=True)
    thread.start()
    done, ours = False, True
    try:
        yield
        done = True
    except LeaseLost:
        ours = False
        raise
    finally:
        over.set()
        thread.join()
        if ours:
            _send_last(store, done)


def _follow(store: Mirror, over: threading.Event) -> None:
    journal, path, seen = StoredJournal(store), store.folder / "journal.jsonl", -1
    while not over.wait(EVERY / 2):
        here = size_of(path)
        if here == seen:  # nobody writes it on this machine
            with suppress(StoreError, Taken):
                store.look()
                journal.pull()
        seen = here


def _send_last(store: Mirror, done: bool) -> None:
    deadline = time.monotonic() + (LAST_PATIENCE if done else 0.0)
    while True:
        try:
            store.push()
            StoredJournal(store).push()
        except StoreError as error:
            if time.monotonic() < deadline and error.may_pass:
                time.sleep(PAUSE)
                continue
            if done:
                raise not_stored(store, error) from None
        except Taken:  # another driver's by now
            pass
        return
