"""What the workers of these tests run: steps without a network, and one misfortune at a step of the first life."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import JobFailedError, UserError
from rwkvctl.launch.heartbeat import mark

STEPS = 12


def count(spec: Any, run_dir: Path) -> None:
    """Steps to `STEPS`, in step with the other ranks; what rank 0 has written is gone on from."""
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    life = os.environ.get("RWKVCTL_RESTART", "")
    plan = json.loads((run_dir / "plan.json").read_text())
    start = done(run_dir, 0)
    (run_dir / f"pid-{rank}").write_text(str(os.getpid()))
    for step in range(start, plan.get("steps", STEPS)):
        if (run_dir / "last").exists() and step > int((run_dir / "last").read_text()):
            break
        mark("data")
        if rank == plan.get("rank", 0) and step == plan.get("step") and (not life or plan.get("always")):
            suffer(plan["fault"])
        mark("step")
        meet(run_dir, step, rank, world_size, life)
        if rank == 0:
            (run_dir / "steps.jsonl").open("a").write(json.dumps([step, world_size, life]) + "\n")
        mark("step", step + 1)
        time.sleep(plan.get("seconds", 0.02))


def done(run_dir: Path, otherwise: int) -> int:
    path = run_dir / "steps.jsonl"
    return 1 + json.loads(path.read_text().splitlines()[-1])[0] if path.exists() else otherwise


def meet(run_dir: Path, step: int, rank: int, world_size: int, life: str) -> None:
    """Return when all ranks have come to this step of this life: a collective, but for the network."""
    folder = run_dir / f"meet-{abs(hash(life)) if not life else json.loads(life)['since']}-{step}"
    folder.mkdir(exist_ok=True)
    (folder / str(rank)).touch()
    while len(list(folder.iterdir())) < world_size:
        time.sleep(0.005)


def suffer(fault: str) -> None:
    match fault:
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "suspended":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "stuck":
            time.sleep(10_000)
        case "raises":
            raise RuntimeError("an error that may pass")
        case "user error":
            raise UserError("data: not as it should be")
        case "job failed":
            raise JobFailedError("step 3: the loss is not finite")
        case "exits":
            os._exit(7)
