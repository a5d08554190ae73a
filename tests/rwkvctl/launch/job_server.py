"""A stand-in for the job server of a Ray cluster, whose answers a test decides."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Answer = tuple[int, Any]
"""HTTP status, and what is sent as JSON; status 0 hangs up without a word."""


class Server:
    """`answers(path)` decides; `calls` is what was asked for."""

    def __init__(self, answers: Callable[[str], Answer]):
        self.answers, self.calls, self.headers = answers, [], []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.calls.append(f"{self.command} {self.path}")
                outer.headers.append(dict(self.headers))
                status, content = outer.answers(self.path)
                if not status:
                    self.close_connection = True
                    return
                body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

            def log_message(self, *args: object) -> None:
                pass

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.http.server_port}"


@contextmanager
def serving(answers: Callable[[str], Answer]) -> Iterator[Server]:
    server = Server(answers)
    thread = threading.Thread(target=server.http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.http.shutdown()
        thread.join()
        server.http.server_close()
