"""An sbatch script that starts a Ray cluster on the nodes of its allocation, runs one job there, and takes it down.

It starts Ray itself: `ray symmetric-run` waits for 30 seconds only, and workers and a failed start end with 0. Its own
part is written here; what is the same for every job is in `slurm.sh`.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from rwkvctl.launch.render.job import RenderedJob, spec_text

RETRIES = 3
"""How often in a row a job that ends with 75 (a node or a server is gone) is requeued."""
GRACE = 120
"""Seconds before the end of its time in which a job is told, so that it writes a checkpoint."""
BODY = Path(__file__).with_name("slurm.sh")
END = "RWKVCTL_SPEC"


def render(job: RenderedJob, environment: Path) -> str:
    """The script.

    Args:
        environment: the virtual environment that the nodes see too, with rwkvctl and Ray.
    """
    return "\n".join(["#!/usr/bin/env bash", *header(job), *options(job), "", *values(job, environment), "", body()])


def header(job: RenderedJob) -> list[str]:
    lines = [
        f"Made by: {job.command}",
        "",
        "Submit:  sbatch FILE      (options given there win: sbatch --time=1-0 --account=LAB FILE)",
        "Follow:  tail -F NAME-ID.log, with the job's name and number",
        "Stop:    scancel ID       (with a checkpoint first: scancel --batch --signal=TERM ID, which requeues it)",
        "",
        f"It continues the run {job.name} if there is one. Passwords and keys (MLFLOW_TRACKING_PASSWORD,",
        "AWS_SECRET_ACCESS_KEY ...) come from the environment of sbatch; none is written down here.",
    ]
    return [f"# {line}".rstrip() for line in lines]


def options(job: RenderedJob) -> list[str]:
    fewest, most = job.nodes
    lines = [
        f"--job-name={job.name}",
        *([f"--partition={job.settings.queue}"] if job.settings.queue else []),
        f"--nodes={fewest}" if fewest == most else f"--nodes={fewest}-{most}",
        "--ntasks-per-node=1",
        f"--cpus-per-task={job.cpus_per_node}",
        *([f"--gpus-per-node={job.gpus_per_node}"] if job.gpus_per_node else []),
        f"--mem={job.memory_gb}G",
        "--output=%x-%j.log",
        "--open-mode=append",
        "--requeue",
        f"--signal=B:TERM@{GRACE}",
        *(["--no-kill"] if job.elastic else []),
    ]
    return [f"#SBATCH {line}" for line in lines]


def values(job: RenderedJob, environment: Path) -> list[str]:
    """What the script is told about this job."""
    spec = spec_text(job)
    assert END not in spec.splitlines()
    return [
        "set -u -o pipefail",
        f"ENVIRONMENT={shlex.quote(str(environment))}",
        'ENVIRONMENT="${RWKVCTL_ENVIRONMENT:-$ENVIRONMENT}"',
        f"SHARED={shared_folder(job)}",
        f"JOB={job.spec.job}",
        f"NODES={job.nodes[0]}",
        f"CPUS={job.cpus_per_node}",
        f"GPUS={job.gpus_per_node}",
        f"RETRIES={RETRIES}",
        f"KEEP_ALIVE={'--no-kill' if job.elastic else repr('')}",
        f"read -r -d '' SPEC <<'{END}'",
        spec.rstrip("\n"),
        END,
    ]


def shared_folder(job: RenderedJob) -> str:
    """A folder that all nodes see: where runs are kept, or, where that is a bucket, where sbatch was typed."""
    storage = job.spec.storage or ""
    return '"$SLURM_SUBMIT_DIR"' if "://" in storage else shlex.quote(storage)


def body() -> str:
    return BODY.read_text()
