"""The job server of a Ray cluster by its REST interface: every call has a time limit, and none imports ray.

https://docs.ray.io/en/latest/cluster/running-applications/job-submission/rest.html
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from rwkvctl.base.errors import TransientError, UserError
from rwkvctl.launch import token

TIMEOUT = 5.0
"""Seconds that a call may take."""
TERMINAL = ("SUCCEEDED", "FAILED", "STOPPED")


class Unreachable(TransientError):
    """The server does not answer, or not as a job server: nothing is known of the job."""


class NoSuchJob(LookupError):
    """The cluster has no job of this id."""


@dataclass(frozen=True)
class JobInfo:
    """What the server says of a job."""

    status: str
    """PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED; UNKNOWN where the cluster has no such job (any more)."""
    message: str = ""
    exit_code: int | None = None

    @property
    def terminal(self) -> bool:
        return self.status in (*TERMINAL, "UNKNOWN")


class JobServer:
    """The server at an address that begins with http."""

    def __init__(self, address: str, timeout: float = TIMEOUT):
        self.address, self.timeout = address.rstrip("/"), timeout

    def version(self) -> str:
        """Ray's version on the cluster. Unreachable where nothing or something else answers."""
        found = self._json("GET", "/api/version")
        if not isinstance(found, dict) or "ray_version" not in found:
            raise Unreachable(f"{self.address}: answers, but is no Ray job server")
        return str(found["ray_version"])

    def info(self, submission_id: str) -> JobInfo:
        """The state of a job."""
        try:
            found = self._json("GET", f"/api/jobs/{submission_id}")
        except NoSuchJob:
            return JobInfo("UNKNOWN")
        return JobInfo(found["status"], " ".join((found.get("message") or "").split()), found.get("driver_exit_code"))

    def stop(self, submission_id: str) -> None:
        """Ask a job's driver to end; where there is no such job, nothing happens."""
        try:
            self._json("POST", f"/api/jobs/{submission_id}/stop")
        except NoSuchJob:
            return

    def logs(self, submission_id: str) -> str:
        """All that a job has printed."""
        try:
            found: str = self._json("GET", f"/api/jobs/{submission_id}/logs")["logs"]
        except NoSuchJob:
            return ""
        return found

    def _json(self, method: str, path: str) -> Any:
        """UserError for a wrong token, Unreachable where the server does not answer, NoSuchJob for a 404."""
        request = urllib.request.Request(self.address + path, method=method, headers=token.headers())
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            error.close()
            if error.code in (401, 403):
                raise UserError(f"cluster.address {self.address}: the cluster {token.advice()}") from None
            if error.code == 404 and path.startswith("/api/jobs"):
                raise NoSuchJob from None
            raise Unreachable(f"{self.address}: answers {error.code} {error.reason}") from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Unreachable(f"{self.address}: {why(error)}") from None


def why(error: BaseException) -> str:
    """The reason of a failed call, in a few words."""
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return "no answer in time"
    if isinstance(error, ValueError | http.client.HTTPException):
        return "answers, but is no Ray job server"
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return " ".join(str(text).split())[:120]
