"""torch's profiler over a few steps: where a step's time goes, operator by operator."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from rwkv_jobs.recorder import Recorder
from rwkvctl.base.files import write_bytes

SKIPPED = 3
"""First steps, which load kernels and fill caches."""
ROWS = 10


class Profiler:
    """Profiles `steps` steps of rank 0; 0 does nothing. Leaves a trace (Perfetto opens it) and a table."""

    def __init__(self, recorder: Recorder, device: torch.device, steps: int):
        self.recorder, self.device = recorder, device
        self.running: Any = None
        if not steps or not recorder.active:
            return
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # of its lines about a machine without a GPU
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
        when = schedule(skip_first=SKIPPED - 1, wait=0, warmup=1, active=steps, repeat=1)
        self.running = profile(activities=activities, schedule=when, on_trace_ready=self.write)
        self.running.start()

    def step(self) -> None:
        """A step is over."""
        if self.running is not None:
            self.running.step()

    def write(self, done: Any) -> None:
        """Into the run's artifacts, once."""
        folder = self.recorder.run_dir / "artifacts" / "profile"
        folder.mkdir(parents=True, exist_ok=True)
        done.export_chrome_trace(str(folder / "trace.json.gz"))
        table = dearest(done, self.device)
        write_bytes(folder / "operators.txt", table.encode())
        self.recorder.say(f"profile in {folder}; the dearest operators:\n{table}")

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *error: object) -> None:
        """Of fewer steps than asked for, those that there were are written."""
        if self.running is not None:
            self.running.stop()


def dearest(done: Any, device: torch.device) -> str:
    """The operators that take most time by themselves, a row each."""
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    table: str = done.key_averages().table(sort_by=key, row_limit=ROWS, max_name_column_width=40)
    return table
