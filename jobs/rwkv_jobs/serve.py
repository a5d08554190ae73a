"""A server of one model's masks.

python -m rwkv_jobs.serve RUN_FOLDER
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rwkvctl.config.specs.jobs import ServeSpec
from rwkvctl.models import bundle
from rwkvctl.registry import references
from rwkvctl.serving.token import TOKEN


def check(spec: ServeSpec, run_dir: Path) -> None:
    """Whether the model is there and makes masks, before processes are started for it."""
    folder = references.model_folder(spec.model, spec)
    info = bundle.read_info(folder)
    bundle.require(info, "segmentation", f"model {spec.model}")
    bundle.refuse_ensemble(folder, info)


def run(spec: ServeSpec, run_dir: Path) -> dict[str, Any]:
    """Serve until this process is interrupted. The token is taken out of the environment that all others inherit."""
    from rwkvctl.serving import server

    server.run(spec, os.environ.pop(TOKEN, None), lambda line: print(line, flush=True))
    return {}


if __name__ == "__main__":
    from rwkv_jobs.entry import main

    main("serve")
