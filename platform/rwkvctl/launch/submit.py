"""Start a job's process: on this machine, or through the job server of a Ray cluster."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from rwkvctl.base import identity
from rwkvctl.base.exit_codes import DONE, FAILED, INTERRUPTED
from rwkvctl.base.processes import STOP_SIGNALS, on_stop
from rwkvctl.config.specs.jobs import JobSpec
from rwkvctl.launch import cluster_job
from rwkvctl.launch.address import is_job_server
from rwkvctl.runs import job_record


def submit(spec: JobSpec, run_dir: Path, *, to_stderr: bool = False, detach: bool = False) -> int:
    """Run `python -m rwkv_jobs.<job> RUN_FOLDER` to its end, or `detach` from it at once; its exit code."""
    address = spec.cluster.address
    if not is_job_server(address):
        return start_here(spec.job, run_dir) if detach else run_here(spec.job, run_dir, to_stderr=to_stderr)
    assert address is not None
    stream = sys.stderr if to_stderr else sys.stdout
    submission_id = cluster_job.submit(spec, run_dir, address, detached=detach)
    print(f"job {submission_id} on {address}", file=stream, flush=True)
    return DONE if detach else cluster_job.follow(spec.job, run_dir, address, submission_id, stream)


def driver(job: str, run_dir: Path) -> list[str]:
    """The command of a job's own process."""
    return [sys.executable, "-P", "-m", f"rwkv_jobs.{job}", str(run_dir)]


def start_here(job: str, run_dir: Path) -> int:
    """As a process of a session of its own, which goes on when this one and its terminal are gone."""

    def record() -> None:
        """In the child, which cannot be overtaken by what it records itself later."""
        job_record.submitted(run_dir, parent=identity.of_process(), detached=True)

    with (run_dir / job_record.OUTPUT).open("ab") as output:
        child = subprocess.Popen(
            driver(job, run_dir),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            preexec_fn=record,
        )
    child.returncode = 0  # it is not waited for, which Python would warn of
    return DONE


def run_here(job: str, run_dir: Path, *, to_stderr: bool) -> int:
    """As a child process; what interrupts us interrupts it, and we wait until it has written its last line.

    The child starts with the stop signals blocked, since it can't answer them before it has imported its code. On a
    terminal it gets Ctrl-C twice, once from us; it ignores the second.
    """
    job_record.submitted(run_dir, parent=identity.of_process())
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        child = subprocess.Popen(driver(job, run_dir), stdout=sys.stderr if to_stderr else None)
        previous = on_stop(lambda number, _: child.send_signal(number))
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
    try:
        code = child.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code if code >= 0 else {-signal.SIGINT: INTERRUPTED, -signal.SIGTERM: INTERRUPTED}.get(code, FAILED)
