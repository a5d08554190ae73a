"""Start a job's process: on this machine, or through the job server of a Ray cluster."""

from __future__ import annotations

import asyncio
import logging
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from rwkvctl.base.errors import UserError
from rwkvctl.base.exit_codes import FAILED, INTERRUPTED
from rwkvctl.base.processes import STOP_SIGNALS, on_stop
from rwkvctl.launch.token import send_token_if_there_is_one
from rwkvctl.runs.folder import resume_command


def submit(job: str, run_dir: Path, address: str | None, *, to_stderr: bool = False) -> int:
    """Run `python -m rwkv_jobs.<job> RUN_FOLDER` to its end and return its exit code.

    An address that begins with http is a Ray job server; with any other, or none, the driver runs here.
    """
    if address is not None and address.startswith(("http://", "https://")):
        return submit_to_cluster(job, run_dir, address, to_stderr=to_stderr)
    return run_here(job, run_dir, to_stderr=to_stderr)


def run_here(job: str, run_dir: Path, *, to_stderr: bool) -> int:
    """As a child process; what interrupts us interrupts it, and we wait until it has written its last line.

    The child starts with the stop signals blocked, since it can't answer them before it has imported its code. On a
    terminal it gets Ctrl-C twice, once from us; it ignores the second.
    """
    command = [sys.executable, "-P", "-m", f"rwkv_jobs.{job}", str(run_dir)]
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        child = subprocess.Popen(command, stdout=sys.stderr if to_stderr else None)
        previous = on_stop(lambda number, _: child.send_signal(number))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        code = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code if code >= 0 else {-signal.SIGINT: INTERRUPTED, -signal.SIGTERM: INTERRUPTED}.get(code, FAILED)


def raise_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def submit_to_cluster(job: str, run_dir: Path, address: str, *, to_stderr: bool) -> int:
    """As a Ray job; its lines are shown as they come, and Ctrl-C stops it."""
    send_token_if_there_is_one()
    from ray.exceptions import RayError
    from ray.job_submission import JobStatus, JobSubmissionClient

    logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)
    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"cluster.address {address}: no Ray job server answers ({reason})") from None
    # The interpreter of the cluster's own nodes, which need not lie where ours does.
    command = f"python -P -m rwkv_jobs.{job} {shlex.quote(str(run_dir))}"
    job_id = client.submit_job(entrypoint=command, metadata={"rwkvctl_run": run_dir.name})
    stream = sys.stderr if to_stderr else sys.stdout
    print(f"job {job_id} on {address}", file=stream, flush=True)

    async def follow() -> None:
        async for lines in client.tail_job_logs(job_id):
            print(lines, end="", file=stream, flush=True)

    previous = on_stop(raise_interrupt)
    try:
        asyncio.run(follow())
    except KeyboardInterrupt:
        on_stop(lambda *_: None)  # a second Ctrl-C must not leave the job running
        client.stop_job(job_id)
        print(f"interrupted; continue with: {resume_command(job, run_dir)}", file=sys.stderr)
        return INTERRUPTED
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    info = client.get_job_info(job_id)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    return info.driver_exit_code or FAILED
