"""One train function, three launchers: this process (also under torchrun), Ray on this machine, a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.jobs import JobSpec
from rwkvctl.config.specs.parts import ClusterSpec


def launch(function: Callable[[Any, Path], None], spec: JobSpec, run_dir: Path) -> None:
    """Run `function(spec, run_dir)` on every worker that the spec asks for."""
    if spec.cluster.launcher == "ray":
        from rwkvctl.launch.workers import run_workers

        run_workers(function, spec, run_dir)
        return
    function(spec, run_dir)


def check_launch(cluster: ClusterSpec) -> None:
    """Refuse more workers in process than torchrun has started."""
    wanted, have = cluster.workers or 1, int(os.environ.get("WORLD_SIZE", "1"))
    if cluster.launcher == "process" and wanted not in (1, have):
        raise UserError(
            f"cluster.workers {wanted} with the process launcher needs torchrun --nproc-per-node {wanted} "
            f"(this process is one of {have}), or cluster.launcher=ray"
        )


def torchrun_rank() -> int:
    """Rank of this process under torchrun; 0 outside it."""
    return int(os.environ.get("RANK", "0"))
