"""What this process may use, and how child processes end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from rwkvctl.base.exit_codes import INTERRUPTED

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Ctrl-C, a scheduler's or a person's `kill`, a terminal that is closed: all of them end a job in the same way."""

GRACE = 5.0
"""Seconds that processes have to end by themselves once they were told to."""


def on_stop(handler: Callable[[int, FrameType | None], None]) -> dict[signal.Signals, Any]:
    """Handle the stop signals; returns the handlers before. What `nohup` or a script's `&` has switched off stays off,
    except SIGTERM, which is never sent by accident."""
    wanted = [n for n in STOP_SIGNALS if n == signal.SIGTERM or signal.getsignal(n) != signal.SIG_IGN]
    return {number: signal.signal(number, handler) for number in wanted}


def interrupt_on_stop() -> None:
    """Raise KeyboardInterrupt in the main thread at the first stop signal. Those that follow are ignored: whoever
    presses Ctrl-C twice must not leave half of the processes behind."""

    def interrupt(number: int, _: FrameType | None) -> None:
        for following in STOP_SIGNALS:
            signal.signal(following, signal.SIG_IGN)
        raise KeyboardInterrupt

    on_stop(interrupt)
    unblock_stop_signals()


def isolate_children() -> None:
    """Python processes that are started from here on do not import what happens to lie in the current folder: a
    `random.py` of the user's would take the place of the standard library's."""
    os.environ["PYTHONSAFEPATH"] = "1"


def run_group(command: list[str], *beside: list[str], leader_first: bool = False) -> int:
    """Run a command with all processes that it starts, and end them all when a stop signal comes; its exit code,
    130 when it was stopped. Commands `beside` it run as long as it does, or less. Nothing outlives this process, not
    even if it is killed. With `leader_first` a stop signal goes to the command's own process alone, which still needs
    the others to end in order."""
    stopped = threading.Event()
    children: list[subprocess.Popen[bytes]] = []

    def tell_all() -> None:
        for child in children:
            signal_group(child.pid, signal.SIGTERM)

    def stop(number: int, _: FrameType | None) -> None:
        stopped.set()
        if leader_first and children:
            children[0].send_signal(signal.SIGTERM)
        else:
            tell_all()

    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        for one in (command, *beside):
            children.append(subprocess.Popen(one, start_new_session=True, preexec_fn=unblock_stop_signals))
        previous = on_stop(stop)
        undertaker = bury_after_this_process([child.pid for child in children])
    finally:
        unblock_stop_signals()
    try:
        code = children[0].wait()
    finally:
        tell_all()
        deadline = time.monotonic() + GRACE
        for child in children:
            while (child.poll() is None or group_lives(child.pid)) and time.monotonic() < deadline:
                time.sleep(0.05)
            signal_group(child.pid, signal.SIGKILL)
            child.wait()
        undertaker.kill()
        undertaker.communicate()
        for number, handler in previous.items():
            signal.signal(number, handler)
    return INTERRUPTED if stopped.is_set() else code


def bury_after_this_process(groups: list[int]) -> subprocess.Popen[bytes]:
    """A shell that waits until this process is gone, which closes the pipe between them, and kills the groups."""
    script = ['read _; kill -9 "$@"', "sh", *(f"-{group}" for group in groups)]
    return subprocess.Popen(
        ["/bin/sh", "-c", *script], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )


def unblock_stop_signals() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def group_lives(leader: int) -> bool:
    """Whether any process of a group is left."""
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    return True


def signal_group(leader: int, number: signal.Signals) -> None:
    """Signal a process and all of its group that are left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)


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
