"""What a server answers over HTTP: who may ask, how much at once, for how long; the masks come from `Backend`."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import sys
import time
from collections.abc import AsyncIterator
from importlib import resources
from typing import Any, Protocol

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from rwkvctl.config.specs.jobs import ServeSpec
from rwkvctl.serving import figures, media, uploads
from rwkvctl.serving.refusals import Late, Refused
from rwkvctl.serving.replica import Reply

OPEN = ("/healthz", "/")
"""What is answered without the token: whether the server lives, and a page without anything in it."""
SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src blob: data:; "
        "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
}
DESCRIBED_EVERY = 2.0
"""Seconds between two questions to a replica about itself."""
LOST_AFTER = 30.0
"""Seconds without an answer after which `/healthz` says that the model is away."""


class Lost(Exception):
    """The replica that had a request is gone; another one can be asked."""


class Backend(Protocol):
    """The replicas."""

    async def predict(self, data: bytes, accept: str, seconds: float) -> Reply:
        """Cancelled when nobody waits any longer. Lost: it can be asked again."""
        ...

    async def described(self) -> dict[str, Any]: ...


class Front:
    """The routes of one server.

    Args:
        token: what a caller must bring; None lets everybody in.
    """

    def __init__(self, spec: ServeSpec, backend: Backend, token: str | None):
        self.spec, self.backend, self.token = spec, backend, token
        self.figures = figures.Figures()
        self.about: dict[str, Any] = {}
        self.answered = 0.0
        self.going_on = 0
        at_once = spec.replicas * spec.at_once
        self.most = at_once + spec.limits.waiting
        self.turns = asyncio.Semaphore(at_once)  # those that wait do so here, and no replica is kept from its health

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/", self.page, methods=["GET"]),
                Route("/predict", self.predict, methods=["POST"]),
                Route("/healthz", self.healthz, methods=["GET"]),
                Route("/metrics", self.metrics, methods=["GET"]),
                Route("/model", self.model, methods=["GET"]),
            ],
            exception_handlers={HTTPException: refuse_http, Refused: refuse, Exception: fail},
            middleware=[Middleware(Guard, token=self.token)],
            lifespan=self.lifespan,
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self.describe()
        asking = asyncio.create_task(self.keep_describing())
        yield
        asking.cancel()

    async def keep_describing(self) -> None:
        while True:
            await asyncio.sleep(DESCRIBED_EVERY)
            with contextlib.suppress(Exception):  # a replica that was lost; the next question goes to another one
                await asyncio.wait_for(self.describe(), LOST_AFTER)

    async def describe(self) -> None:
        found = await self.backend.described()
        self.about, self.answered = found["model"], time.monotonic()
        self.figures.describe(found)

    # The routes -----------------------------------------------------------------------------------------------------

    async def page(self, request: Request) -> Response:
        return HTMLResponse(resources.files("rwkvctl.serving").joinpath("page.html").read_text())

    async def healthz(self, request: Request) -> Response:
        if time.monotonic() - self.answered > LOST_AFTER:
            raise Refused(503, "no replica has answered lately")
        return as_json({"status": "ok", "version": self.about["version"]})

    async def metrics(self, request: Request) -> Response:
        return Response(self.figures.text(), media_type=figures.CONTENT_TYPE)

    async def model(self, request: Request) -> Response:
        limits = self.spec.limits.model_dump()
        return as_json(self.about | {"limits": limits, "answers": list(media.OFFERED)})

    async def predict(self, request: Request) -> Response:
        """A mask for one upload, or a line that says why not."""
        started = time.monotonic()
        status, kind = 500, ""
        try:
            reply = await self.reply(request, started)
            status, kind = reply.status, reply.kind
            if reply.log:
                print(reply.log, file=sys.stderr, flush=True)
            if status != 200:
                return told(status, reply.body.decode(), reply.headers)
            name = {"Content-Disposition": f'attachment; filename="mask{ending(reply.media)}"'}
            return Response(reply.body, 200, reply.headers | name, reply.media)
        except Refused as refusal:
            status = refusal.status
            raise
        except asyncio.CancelledError:
            status = 499
            raise
        finally:
            self.figures.requests.labels(status).inc()
            if status == 200:
                self.figures.seconds.labels(kind).observe(time.monotonic() - started)

    async def reply(self, request: Request, started: float) -> Reply:
        accept = request.headers.get("accept", "")
        media.wanted(accept)
        with self.place():
            seconds = self.spec.limits.seconds
            try:
                async with asyncio.timeout(seconds):
                    data = await uploads.one_file(request, self.spec.limits.upload_mb << 20)
            except TimeoutError:
                raise Refused(408, f"was not sent within {seconds:g} s") from None
            self.figures.bytes.inc(len(data))
            return await self.until_gone(request, self.tried(data, accept, started + seconds))

    @contextlib.contextmanager
    def place(self) -> Any:
        """One of the requests at once; Refused, with 503, where there are too many."""
        if self.going_on >= self.most:
            raise Refused(503, "too many requests at the moment; try again")
        self.going_on += 1
        self.figures.going_on.set(self.going_on)
        try:
            yield
        finally:
            self.going_on -= 1
            self.figures.going_on.set(self.going_on)

    async def tried(self, data: bytes, accept: str, deadline: float) -> Reply:
        """Ask the replicas until one answers: one that dies with a request has done nothing that cannot be done
        again."""
        while (left := deadline - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left), self.turns:
                    reply = await self.backend.predict(data, accept, deadline - time.monotonic())
                self.answered = time.monotonic()
                return reply
            except Lost:
                self.figures.retries.inc()
                await asyncio.sleep(0.2)
            except TimeoutError:
                break
        raise Late(self.spec.limits.seconds)

    async def until_gone(self, request: Request, work: Any) -> Reply:
        """Do the work while the caller is there."""
        task, gone = asyncio.ensure_future(work), asyncio.ensure_future(hung_up(request))
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Refused(499, "the caller has hung up")
            return task.result()
        finally:
            for each in (task, gone):
                each.cancel()
            await asyncio.gather(task, gone, return_exceptions=True)


async def hung_up(request: Request) -> None:
    """Returns when the caller is gone; what it sends after its form is not looked at."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Guard:
    """Lets nobody in without the token, before anything of a request is read, and says so to all in the same way."""

    def __init__(self, app: ASGIApp, token: str | None):
        self.app, self.token = app, None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if self.token is not None and scope["path"] not in OPEN and not self.is_allowed(scope):
            reply = told(401, "give the token of this server: Authorization: Bearer TOKEN")
            reply.headers["WWW-Authenticate"] = "Bearer"
            await reply(scope, receive, with_headers(send))
            return
        await self.app(scope, receive, with_headers(send))

    def is_allowed(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = (given[0] if len(given) == 1 else b"").partition(b" ")
        assert self.token is not None
        return hmac.compare_digest(token.strip(), self.token) and scheme.lower() == b"bearer"


def with_headers(send: Send) -> Send:
    async def sent(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"] += [(name.lower().encode(), value.encode()) for name, value in SAFE.items()]
        await send(message)

    return sent


def as_json(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content).encode() + b"\n", status, headers, media.JSON)


def told(status: int, line: str, headers: dict[str, str] | None = None) -> Response:
    """A refusal. The rest of a request that was not read is not waited for."""
    headers = dict(headers or {}) | {"Connection": "close"}
    if status == 503:
        headers["Retry-After"] = "1"
    return as_json({"error": line}, status, headers)


async def refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return told(error.status, error.line)


async def refuse_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    lines = {404: "no such page; POST a file to /predict", 405: "wrong method; POST a file to /predict"}
    return told(error.status_code, lines.get(error.status_code, "wrong request"), dict(error.headers or {}))


async def fail(request: Request, error: Exception) -> Response:
    return told(500, "the server failed at this request; its log says more")


def ending(kind: str) -> str:
    return {media.PNG: ".png", media.GZIP: ".nii.gz", media.NIFTI: ".nii", media.DICOM: ".dcm"}.get(kind, ".json")
