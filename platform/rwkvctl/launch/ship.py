"""What a job on a cluster is sent: this project's own code, the run's spec, and the tokens that it needs.

The cluster's environment needs Ray, torch and the other libraries, and need not have rwkvctl, or may have another
version of it: the code that is sent comes before what is installed there.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import shlex
from pathlib import Path

from rwkvctl.base import lineage
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import JobSpec
from rwkvctl.config.specs.load import dump
from rwkvctl.runs import job_record, mirror

SECRETS = re.compile(
    r"RAY_AUTH_TOKEN|MLFLOW_TRACKING_(TOKEN|USERNAME|PASSWORD|INSECURE_TLS)|MLFLOW_S3_ENDPOINT_URL|PGPASSWORD|HF_TOKEN"
    r"|RWKVCTL_SERVE_TOKEN"
    r"|WANDB_(API_KEY|BASE_URL|ENTITY|MODE|PROJECT)"
    r"|AWS_(?!PROFILE$|CONFIG_FILE$|SHARED_CREDENTIALS_FILE$|WEB_IDENTITY_TOKEN_FILE$)\w+"
)
"""Variables that go along with a job where they are set here; those that name a file of this machine do not."""
EXPANDED = re.compile(r"\$(\w|\{)")
"""What Ray takes for the name of a variable in the value of another one."""
STOP_SECONDS = 40
"""That Ray's job server gives a driver between SIGTERM and SIGKILL; a training writes a checkpoint in them."""
PYTHON = (
    r"""P=$(sed -n 's|^.* \(/.*\)/lib[^/]*/python3[^/]*/.*/ray/_raylet\.so$|\1/bin|p' /proc/$PPID/maps | head -n 1); """
    r"""export PATH="${P:+$P:}$PATH"; exec python -P"""
)
"""The shell's way to the interpreter that Ray itself runs in on the head: that of the library which the process above
has loaded. The PATH of `ray start` need not have it, or has another one first."""


def entrypoint(job: str, run_dir: Path) -> str:
    """The command that the job server runs."""
    return f"{PYTHON} -m rwkv_jobs.{job} {shlex.quote(mirror.address(run_dir))}"


def runtime_env(spec: JobSpec, submission_id: str) -> dict[str, object]:
    """Ray's description of the job's environment. Its packages are uploaded once for each content."""
    variables = {
        job_record.SPEC_VARIABLE: base64.b64encode(dump(spec).encode()).decode(),
        job_record.SUBMISSION: submission_id,
        lineage.COMMIT_VARIABLE: lineage.git_commit(),
        lineage.COMMAND_VARIABLE: os.environ.get(lineage.COMMAND_VARIABLE, ""),
        "PYTHONSAFEPATH": "1",
        "RWKVCTL_STORAGE": spec.storage or "",  # so that runs have the same names there
        "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS),
    }
    return {"py_modules": packages(), "excludes": ["__pycache__"], "env_vars": secrets() | variables}


def packages() -> list[str]:
    """The folders of our packages, with the compiled operator, wherever and however they are installed here."""
    found = {name: lineage.package_folders(name) for name in lineage.PACKAGES}
    if missing := [name for name, folders in found.items() if len(folders) != 1]:
        raise UserError(f"cluster.address: the packages {', '.join(missing)} are not installed here and cannot be sent")
    return [str(folders[0]) for folders in found.values()]


def secrets() -> dict[str, str]:
    """The variables of this process that the job needs to be let in elsewhere."""
    found = {name: value for name, value in os.environ.items() if value and SECRETS.fullmatch(name)}
    if changed := [name for name, value in found.items() if EXPANDED.search(value)]:
        raise UserError(
            f"{', '.join(changed)}: Ray would replace what follows the $ in the value; use one without $, or set it on "
            "the cluster's nodes and unset it here"
        )
    return found


def metadata(spec: JobSpec, run: str) -> dict[str, str]:
    """What the job server shows of a job: which run, of which code and spec."""
    return {
        "rwkvctl_run": run,
        "rwkvctl_job": spec.job,
        "git_commit": lineage.git_commit(),
        "git_dirty": str(lineage.git_dirty()).lower(),
        "code_sha256": lineage.code_identity(),
        "spec_sha256": hashlib.sha256(dump(spec).encode()).hexdigest(),
    }
