"""Start a job's process: on this machine, or through the job server of a Ray cluster."""

from __future__ import annotations

import asyncio
import logging
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from rwkvctl.base.errors import UserError
from rwkvctl.base.exit_codes import FAILED, INTERRUPTED
from rwkvctl.launch.token import send_token_if_there_is_one


def submit(job: str, run_dir: Path, address: str | None, *, to_stderr: bool = False) -> int:
    """Run `python -m rwkv_jobs.<job> RUN_FOLDER` to its end and return its exit code.

    An address that begins with http is a Ray job server; with any other, or none, the driver runs here.
    """
    if address is not None and address.startswith(("http://", "https://")):
        return submit_to_cluster(job, run_dir, address, to_stderr=to_stderr)
    return run_here(job, run_dir, to_stderr=to_stderr)


def run_here(job: str, run_dir: Path, *, to_stderr: bool) -> int:
    """As a child process; what interrupts us interrupts it, and we wait until it has written its last line."""
    command = [sys.executable, "-m", f"rwkv_jobs.{job}", str(run_dir)]
    child = subprocess.Popen(command, stdout=sys.stderr if to_stderr else None)

    def forward(number: int, _: FrameType | None) -> None:
        child.send_signal(number)

    # Ctrl-C reaches the child from the terminal itself; a termination is passed on.
    previous = signal.signal(signal.SIGTERM, forward), signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code = child.wait()
    finally:
        signal.signal(signal.SIGTERM, previous[0])
        signal.signal(signal.SIGINT, previous[1])
    return code if code >= 0 else {-signal.SIGINT: INTERRUPTED, -signal.SIGTERM: INTERRUPTED}.get(code, FAILED)


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
    command = f"python -m rwkv_jobs.{job} {shlex.quote(str(run_dir))}"
    job_id = client.submit_job(entrypoint=command, metadata={"rwkvctl_run": run_dir.name})
    stream = sys.stderr if to_stderr else sys.stdout
    print(f"job {job_id} on {address}", file=stream, flush=True)

    async def follow() -> None:
        async for lines in client.tail_job_logs(job_id):
            print(lines, end="", file=stream, flush=True)

    try:
        asyncio.run(follow())
    except KeyboardInterrupt:
        client.stop_job(job_id)
        return INTERRUPTED
    info = client.get_job_info(job_id)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    return info.driver_exit_code or FAILED
