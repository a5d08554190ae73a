"""An S3 server on loopback, and a door in front of it that sees every request and can answer in its place."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote

import pytest

CUT = 0
"""Half of the answer, and then the connection ends."""


def no_rule(_: str) -> int | None:
    return None


class Door(ThreadingHTTPServer):
    """Passes every request on to `port` and keeps it in `seen`; `answers` are statuses to give instead, the next
    first, or CUT. `rule` may wait, and may give a status, for `PUT /bucket/key`."""

    def __init__(self, port: int):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behind, self.answers, self.seen = port, list[int](), list[str]()
        self.rule: Callable[[str], int | None] = no_rule

    def fetched(self, suffix: str) -> int:
        """How often an object was asked for."""
        return sum(line.startswith("GET ") and line.endswith(suffix) for line in self.seen)

    def handle_error(self, *_: object) -> None:
        """A worker that ended leaves its connection."""


class Handler(BaseHTTPRequestHandler):
    server: Door
    protocol_version = "HTTP/1.1"

    def pass_on(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        line = f"{self.command} {unquote(self.path)}"
        self.server.seen.append(line)
        instead = self.server.answers.pop(0) if self.server.answers else self.server.rule(line)
        if instead:
            self.answer(instead, {}, b"")
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.server.behind)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        self.answer(response.status, dict(response.getheaders()), response.read(), cut=instead == CUT)
        connection.close()

    def answer(self, status: int, headers: dict[str, str], content: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        if self.command != "HEAD":
            headers = {**headers, "Content-Length": str(len(content))}
        for name, value in headers.items():
            if name not in ("Transfer-Encoding", "Connection"):
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if cut else content)
        self.close_connection |= cut

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = pass_on

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def open_door() -> Iterator[Door]:
    """The environment is set so that s3:// goes through the door, and there is an empty bucket, `bucket`."""
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    door = Door(server.get_host_and_port()[1])
    thread = Thread(target=door.serve_forever, daemon=True)
    thread.start()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{door.server_port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "not-to-be-printed")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        s3fs.S3FileSystem.clear_instance_cache()  # of another environment
        s3fs.S3FileSystem().mkdir("bucket")
        yield door
    door.shutdown()
    door.server_close()
    server.stop()
