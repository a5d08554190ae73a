"""One train function, three launchers: this process (also under torchrun), Ray on this machine, a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rwkv_jobs.stopping import passed_on
from rwkvctl.config.specs.jobs import JobSpec
from rwkvctl.runs import mirror


def launch(function: Callable[[Any, Path], None], spec: JobSpec, run_dir: Path) -> None:
    """Run `function(spec, run_dir)` on every worker that the spec asks for.

    Of a run in an object store the workers, wherever they are, find there what was prepared for them, and what they
    leave is fetched.
    """
    mirror.push(run_dir)
    if spec.cluster.launcher == "ray":
        from rwkvctl.launch.workers import run_workers

        with passed_on(spec, run_dir):
            run_workers(function, spec, run_dir)
    else:
        function(spec, run_dir)
    mirror.pull(run_dir)


def torchrun_rank() -> int:
    """Rank of this process under torchrun; 0 outside it."""
    return int(os.environ.get("RANK", "0"))
