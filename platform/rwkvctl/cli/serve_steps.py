"""From the options of `rwkvctl serve` to a server that runs until it is stopped."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.base.exit_codes import INTERRUPTED
from rwkvctl.base.processes import run_group
from rwkvctl.cli.assemble import absolute_model
from rwkvctl.cli.execute import reached, submitted
from rwkvctl.config import settings
from rwkvctl.config.specs import load
from rwkvctl.config.specs.jobs import ServeSpec
from rwkvctl.launch.address import is_job_server
from rwkvctl.launch.complete_spec import on_machine
from rwkvctl.launch.submit import driver
from rwkvctl.models import bundle
from rwkvctl.registry import references
from rwkvctl.runs import folder as run_folder
from rwkvctl.serving.token import TOKEN, check_token, read_token

NEEDED = ("starlette", "uvicorn", "python_multipart", "watchfiles", "grpc_reflection")
"""Modules of the extra `serve`."""


def serve_spec(
    model: str, options: dict[str, Any], limits: dict[str, Any], address: str | None, assignments: list[str]
) -> ServeSpec:
    """Which model, where, and what is taken from callers."""
    fields = {
        "model": absolute_model(model),
        "cluster": {"address": address},
        "limits": {name: value for name, value in limits.items() if value is not None},
        **options,
    }
    spec = load.build(ServeSpec, load.merge(fields, load.parse_assignments(assignments)), "serve")
    return on_machine(spec, settings.load())


def run(spec: ServeSpec, token_file: str | None) -> None:
    """Serve until Ctrl-C, here or on the nodes of a cluster that this machine is one of; elsewhere the server is a job
    of the cluster's, which is followed."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"serve: {missing[0]} is not installed; run: pip install 'rwkvctl[serve]'")
    token = read_token(token_file)
    check_token(token, spec.host)
    if token is not None:
        os.environ[TOKEN] = token  # for the server's own process, which takes it out again
    model = references.model_folder(spec.model, spec)
    info = bundle.read_info(model)
    bundle.require(info, "segmentation", f"model {spec.model}")
    bundle.refuse_ensemble(model, info)
    placed = reached(spec)
    assert isinstance(placed, ServeSpec)
    if is_job_server(placed.cluster.address):
        run_dir = run_folder.create(placed, str(placed.storage))
        if code := submitted(run_dir, new=True, to_stderr=False, detach=False):
            sys.exit(code)
        return
    with tempfile.TemporaryDirectory(prefix="rwkvctl-") as folder:
        run_dir = run_folder.create(placed, folder)
        code = run_group(driver("serve", run_dir), leader_first=True)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    if code:
        sys.exit(code)
