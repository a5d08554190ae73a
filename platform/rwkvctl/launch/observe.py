"""The states of runs, those on a cluster as its job server knows them."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from rwkvctl.base.errors import UserError
from rwkvctl.launch.cluster_job import exit_code
from rwkvctl.launch.job_server import JobInfo, JobServer, Unreachable
from rwkvctl.runs import state
from rwkvctl.runs.state import RunState
from rwkvctl.runs.stored_journal import refresh

SILENT = "cluster does not answer"


def observe(folders: Iterable[Path]) -> list[RunState]:
    """The state of each run. A cluster is asked about those that seem to be going on; one that does not answer is
    asked once, and what the folders tell stays."""
    silent: dict[str, str] = {}
    folders = list(folders)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(refresh, folders))
    return [asked(state.of(folder), silent) for folder in folders]


def one(folder: Path) -> RunState:
    """The state of one run."""
    return observe([folder])[0]


def asked(found: RunState, silent: dict[str, str]) -> RunState:
    """What its job server adds to the state of a run; `silent` are the addresses that have not answered."""
    if found.ended or found.address is None or found.submission_id is None:
        return found
    if found.address not in silent:
        try:
            return merged(found, JobServer(found.address).info(found.submission_id))
        except Unreachable:
            silent[found.address] = SILENT
        except UserError:  # a wrong token
            silent[found.address] = "cluster refuses the token"
    return replace(found, reason=silent[found.address])


def merged(found: RunState, info: JobInfo) -> RunState:
    """The folder may not be seen from here, or not be up to date: a job that has ended has ended."""
    match info.status:
        case "PENDING":
            return replace(found, reason=info.message[:80])
        case "RUNNING":
            return replace(found, state=state.RUNNING, reason=found.reason or ("" if found.step else "starting"))
        case "UNKNOWN":
            return replace(found, state=state.INTERRUPTED_RUN, reason="the cluster no longer knows the job")
    code = exit_code(info)
    ended = state.BY_CODE.get(code, state.FAILED_RUN)
    if info.exit_code is None and ended == state.FAILED_RUN:  # no driver: what the server says is all there is
        return replace(found, state=ended, reason=info.message[:200], exit_code=code)
    return replace(found, state=ended, reason=f"exit code {code}" if ended == state.FAILED_RUN else "", exit_code=code)
