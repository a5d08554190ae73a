"""What a training or evaluation job leaves on the disk while it runs: journal and checkpoints."""

from __future__ import annotations

from pathlib import Path

from rwkv_jobs.worker import Worker
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.lease import RunLease
from rwkvctl.training.checkpoint import TrainState, save_checkpoint


class Recorder:
    """What rank 0 writes: journal and checkpoints, under a lease on the run's folder. On other ranks it does nothing.

    Made before anything is read from the run: all ranks wait until rank 0 holds the lease, so that no orphan of an
    earlier start can still write what they are about to read. Closed however the job ends.
    """

    def __init__(self, worker: Worker, run_dir: Path):
        self.worker, self.run_dir, self.active = worker, run_dir, worker.is_main
        if self.active:
            self.lease = RunLease(run_dir)
        worker.barrier()
        if self.active:
            self.journal = Journal(run_dir / "journal.jsonl", lease=self.lease)

    def metrics(self, values: dict[str, float] | None, step: int) -> None:
        if self.active and values:
            self.journal.metrics(values, step)

    def params(self, values: dict[str, object]) -> None:
        if self.active:
            self.journal.params(values)

    def artifact(self, path: Path, artifact_path: str) -> None:
        if self.active:
            self.journal.artifact(path, artifact_path)

    def event(self, kind: str, **fields: object) -> None:
        if self.active:
            self.journal.event(kind, **fields)

    def checkpoint(self, state: TrainState, *, best: bool = False) -> None:
        """Write a checkpoint; what the journal says of its steps is on disk before it. All ranks see it afterwards."""
        if self.active:
            self.journal.flush()
            save_checkpoint(self.run_dir / "checkpoints", state, best=best)
        self.worker.barrier()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        if self.active:
            self.journal.close()
            self.lease.release()
