"""A run as a job of a Ray cluster: submitted through its job server, and followed until it has ended."""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from rwkvctl.base.errors import TransientError, UserError
from rwkvctl.base.exit_codes import DONE, FAILED, INTERRUPTED, STOPPED
from rwkvctl.base.processes import on_stop
from rwkvctl.config.specs.jobs import JobSpec
from rwkvctl.launch import ship
from rwkvctl.launch.job_server import JobInfo, JobServer, Unreachable
from rwkvctl.launch.token import send_token_if_there_is_one
from rwkvctl.runs import job_record, mirror, provenance
from rwkvctl.runs.folder import command, resume_command

LOST_AFTER = 600.0
"""Seconds without an answer after which a cluster counts as gone; the run may still be going on there."""
POLL = 2.0
"""Seconds between two looks at a job."""
CHATTY = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
)
"""Ray's loggers that tell of every file that is uploaded."""
OPENING = re.compile(r"(.*INFO job_manager\.py:\d+ -- Runtime env is setting up\.\n)?Running entrypoint for job .*\n")
"""The lines with which the job server opens a log."""


def submit(spec: JobSpec, run_dir: Path, address: str, *, detached: bool) -> str:
    """Send the code and the spec, and start the job; its submission id. UserError where the server does not take it."""
    send_token_if_there_is_one()
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    submission_id = f"{run_dir.name}-{secrets.token_hex(3)}"
    environment = ship.runtime_env(spec, submission_id)
    provenance.note_diff(run_dir)
    mirror.send(run_dir, provenance.DIFF)
    job_record.submitted(run_dir, address=address, submission_id=submission_id, detached=detached)
    try:
        JobSubmissionClient(address).submit_job(
            submission_id=submission_id,
            entrypoint=ship.entrypoint(spec.job, run_dir),
            runtime_env=environment,
            metadata=ship.metadata(spec, run_dir.name),
        )
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise UserError(f"cluster.address {address}: the job was not accepted ({short(error)})") from None
    return submission_id


def short(error: Exception) -> str:
    """An error of Ray's client in one line; servers quote what they were sent, so secrets are cut out."""
    text = " ".join(str(error).split())
    for value in ship.secrets().values():
        text = text.replace(value, "***")
    return text[:200]


def follow(job: str, run_dir: Path, address: str, submission_id: str, stream: TextIO) -> int:
    """Show a job's lines as they come, to its end; its exit code. A stop signal leaves the job running: 130."""
    try:
        with raised():
            info = until_ended(JobServer(address), submission_id, stream, lambda: command("logs -f", run_dir))
    except KeyboardInterrupt:
        print(f"\nno longer following; run {run_dir.name} goes on", file=sys.stderr)
        print(useful(run_dir), file=sys.stderr)
        return INTERRUPTED
    if info.status == "STOPPED":
        print(f"stopped; continue with: {resume_command(job, run_dir)}", file=sys.stderr)
    elif info.exit_code is None and info.status != "SUCCEEDED":
        print(f"failed: {info.message or 'the cluster no longer knows the job'}", file=sys.stderr)
    return exit_code(info)


def exit_code(info: JobInfo) -> int:
    """What a job that has ended ended with: its driver's own exit code, unless the cluster ended it."""
    if info.status in ("SUCCEEDED", "STOPPED"):
        return DONE if info.status == "SUCCEEDED" else STOPPED
    return FAILED if not info.exit_code or info.exit_code < 0 else info.exit_code


def until_ended(server: JobServer, submission_id: str, stream: TextIO, again: Callable[[], str]) -> JobInfo:
    """Follow a job until the server says that it has ended. A stream of lines that breaks off says nothing about the
    job: it is taken up again where it was, for as long as the server can be asked.

    Raises:
        TransientError: the server has not answered for LOST_AFTER seconds.
    """
    shown, lost = Shown(stream), Patience(server.address, again)
    while True:
        try:
            info = server.info(submission_id)
            lost.answered()
        except Unreachable as error:
            lost.wait(error)
            continue
        if info.terminal:
            with_rest(server, submission_id, shown)
            return info
        if info.status == "RUNNING":
            stream_lines(server.address, submission_id, shown)
        time.sleep(POLL / 4 if shown.new else POLL)


class Patience:
    """With a server that does not answer: it is said once, and asked again."""

    def __init__(self, address: str, again: Callable[[], str]):
        self.address, self.again = address, again
        self.since: float | None = None

    def answered(self) -> None:
        if self.since is not None:
            print(f"the cluster at {self.address} answers again", file=sys.stderr, flush=True)
        self.since = None

    def wait(self, error: Unreachable) -> None:
        """Before the next try; TransientError when there have been enough."""
        now = time.monotonic()
        if self.since is None:
            self.since = now
            print(f"the cluster does not answer ({error}); asking again", file=sys.stderr, flush=True)
        if now - self.since >= LOST_AFTER:
            raise TransientError(
                f"{error}, for {LOST_AFTER / 60:.0f} minutes; the run may go on there: come back with {self.again()}"
            )
        time.sleep(POLL)


class Shown:
    """What has been printed of a log, so that a stream that is opened again goes on where the last one broke off."""

    def __init__(self, stream: TextIO):
        self.stream, self.count, self.skip, self.new, self.done = stream, 0, 0, False, False
        self.opening: str | None = ""

    def restart(self) -> None:
        self.skip, self.new = self.count, False

    def add(self, text: str) -> None:
        known = min(self.skip, len(text))
        self.skip -= known
        text = text[known:]
        self.new |= bool(text)
        self.count += len(text)
        if self.opening is not None:  # it may come in pieces
            self.opening += text
            opened = OPENING.match(self.opening) is not None
            if not opened and len(self.opening) < 4096 and not self.done:
                return
            text, self.opening = without_entrypoint(self.opening), None
        print(text, end="", file=self.stream, flush=True)


def without_entrypoint(log: str) -> str:
    """A log without what the job server opens it with."""
    return OPENING.sub("", log, count=1)


def stream_lines(address: str, submission_id: str, shown: Shown) -> None:
    """Print the lines of a job while they come; returns when there are no more, for whatever reason."""
    import aiohttp
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    async def tail() -> None:
        async for text in JobSubmissionClient(address).tail_job_logs(submission_id):
            shown.add(text)

    shown.restart()
    try:
        asyncio.run(tail())
    except (OSError, RuntimeError, ValueError, RayError, aiohttp.ClientError):
        return


def with_rest(server: JobServer, submission_id: str, shown: Shown) -> None:
    """Print what the stream has not brought."""
    shown.restart()
    shown.done = True
    try:
        shown.add(server.logs(submission_id))
    except Unreachable:
        return


@contextmanager
def raised() -> Iterator[None]:
    """The stop signals as KeyboardInterrupt."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    previous = on_stop(interrupt)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def useful(run_dir: Path) -> str:
    """What can be done with a run that nobody follows."""
    lines = {"follow": "logs -f", "wait": "wait", "see": "show", "stop": "stop"}
    rows = [f"  {what:<8}{command(verb, run_dir)}" for what, verb in lines.items()]
    return "\n".join(["Useful commands", *rows])
