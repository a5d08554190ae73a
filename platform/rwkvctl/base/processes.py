"""What this process may use, and how child processes end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def available_cpus() -> int:
    """CPUs that this process may use, which a container or a scheduler can limit to fewer than the machine has."""
    return len(os.sched_getaffinity(0))


def end_with_parent() -> None:
    """Called in a child of `multiprocessing`: it dies with its parent, which alone answers to Ctrl-C.

    A parent that was killed can't stop its children, and a fork server outlives it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()
