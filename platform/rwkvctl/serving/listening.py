"""The socket of a server, and HTTP on it."""

from __future__ import annotations

import socket

import uvicorn
from starlette.types import ASGIApp

from rwkvctl.base.errors import UserError

LISTEN_BACKLOG, CONNECTIONS = 256, 1000
IDLE = 10
"""Seconds that a connection is kept for another request."""
DRAINED_WITHIN = 20
"""Seconds that requests have to end when the server is stopped."""


def bound(host: str, port: int) -> socket.socket:
    """A socket that nobody can connect to yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise UserError(
            f"--host {host} --port {port}: cannot be listened on ({error.strerror}); give another"
        ) from None
    return found


def http_server(app: ASGIApp) -> uvicorn.Server:
    """Answers by `app` once `serve` is called with a socket; what its callers send is written into no log."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http="h11",
            ws="none",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=LISTEN_BACKLOG,
            limit_concurrency=CONNECTIONS,
            timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=DRAINED_WITHIN,
        )
    )
