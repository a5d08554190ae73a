"""When a run in an object store goes on: what this machine has of it, and what the store has, become one again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rwkvctl.runs import mirror
from rwkvctl.runs.journal import JOURNAL_NAME, cut_torn_line, say
from rwkvctl.runs.lease import RunLease
from rwkvctl.runs.stored_checkpoints import StoredCheckpoints
from rwkvctl.runs.stored_journal import StoredJournal


def reconcile(run_dir: Path) -> str | None:
    """Called by the holder of the lease, before it reads anything; does nothing to a run in a folder of its own.

    Where the run went on elsewhere, the store is right. Work of this machine that the store never got belongs to
    another course of the run then; it is set aside, and the line that is returned says where. Where it did not, what a
    process of this machine could no longer send is sent now.
    """
    store = mirror.of(run_dir)
    if store is None:
        return None
    journal, said = StoredJournal(store), None
    cut_torn_line(run_dir / JOURNAL_NAME)
    store.recognise()
    ahead = journal.relation()
    if ahead is None or (ahead < 0 and store.changed_here()):
        where = store.set_aside()
        said = f"the run went on from another machine: what this one had not sent is in {where}, and is not used"
    else:
        store.push()
        StoredCheckpoints(store).push(journal.push)
    store.pull()
    journal.pull()
    return said


@contextmanager
def reconciled(run_dir: Path) -> Iterator[None]:
    """Before a driver reads a run of a store: waits for whoever writes it."""
    if mirror.of(run_dir) is not None:
        with RunLease(run_dir):
            said = reconcile(run_dir)
        if said is not None:
            say(run_dir, said)
    yield
