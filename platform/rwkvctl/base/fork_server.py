"""The fork server that loader processes come from, forked from this process instead of started anew."""

from __future__ import annotations

import os
import socket
import sys
from multiprocessing import connection, forkserver
from pathlib import Path
from typing import Any


def fork_server_from_here() -> None:
    """Let multiprocessing take a fork of this process for its fork server: what is imported here need not be imported
    there, which takes seconds. To be called while this process has no threads, and no CUDA context.

    multiprocessing itself always starts its server as a new interpreter. Where it keeps what it knows of a server is
    not documented, but the same in Python 3.11 to 3.13; in others its own way is left alone.
    """
    if sys.version_info >= (3, 14):
        return
    address = connection.arbitrary_address("AF_UNIX")  # type: ignore[attr-defined]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    Path(address).chmod(0o600)
    listener.listen()
    alive_read, alive_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(alive_write)
        try:
            forkserver.main(listener.detach(), alive_read, [])
        finally:
            os._exit(0)
    listener.close()
    os.close(alive_read)
    server: Any = forkserver._forkserver
    server._forkserver_address = address
    server._forkserver_alive_fd = alive_write
    server._forkserver_pid = pid
