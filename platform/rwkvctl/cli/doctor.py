"""`rwkvctl doctor`: what would break a job, said before one is started."""

from __future__ import annotations

import json
from typing import Annotated

import typer


def doctor(
    address: Annotated[str | None, typer.Option(help="Ray cluster, HOST:PORT or http://HOST:8265.")] = None,
    seconds: Annotated[float, typer.Option(min=1, help="How long each node may take for an answer.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this machine, and every node of the cluster: versions, storage, tracking, data, GPUs, network, and more.

    Exit code 1 if something would break a job, 0 with warnings.
    """
    import sys

    from rwkvctl.base.exit_codes import FAILED
    from rwkvctl.base.uris import mask
    from rwkvctl.config import settings
    from rwkvctl.launch.doctor.examine import examine

    machine = settings.load()
    found = examine(machine if address is None else settings.changed(machine, address=address), seconds)
    if as_json:
        fields = [check.as_fields() for check in found]
        print(mask(json.dumps({"checks": fields}, indent=2)))
    else:
        for check in found:
            print(f"{check.state:<8} {check.name:<14} {mask(check.line)}")
    if any(check.state == "problem" for check in found):
        sys.exit(FAILED)
