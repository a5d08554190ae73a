"""What a training or evaluation job leaves on the disk while it runs: journal and checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from rwkv_jobs.worker import Worker, resolved_precision
from rwkvctl.base.errors import JobFailedError, explain
from rwkvctl.config.specs.jobs import TrainingSpec
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.lease import RunLease
from rwkvctl.training.checkpoint import TrainState, save_checkpoint

AnyTraining = TypeVar("AnyTraining", bound=TrainingSpec)


def with_precision(spec: AnyTraining, precision: str) -> AnyTraining:
    return spec.model_copy(update={"train": spec.train.model_copy(update={"precision": precision})})


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
        """Write a checkpoint; what the journal says of its steps is on disk before it. All ranks see it afterwards.

        Raises:
            JobFailedError: on all ranks, if the weights are not finite or the disk does not take them.
        """
        problem = None
        if self.active:
            try:
                self.journal.flush()
                save_checkpoint(self.run_dir / "checkpoints", state, best=best)
            except JobFailedError as error:
                problem = str(error)
            except OSError as error:
                problem = f"step {state.position.step}: cannot write a checkpoint: {explain(error, self.run_dir)}"
        [problem, *_] = self.worker.gather(problem)
        if problem is not None:
            raise JobFailedError(problem)

    def settle(self, spec: AnyTraining) -> AnyTraining:
        """The spec with `train.precision: auto` resolved by rank 0's device, at the first start, and kept in the run:
        a run that goes on elsewhere must not change its arithmetic. All ranks get the same."""
        precision = None
        if self.active:
            stored = run_folder.read_spec(self.run_dir)
            assert isinstance(stored, TrainingSpec)
            precision = resolved_precision(stored.train.precision, self.worker.device)
            if precision != stored.train.precision:
                run_folder.write_spec(self.run_dir, with_precision(stored, precision))
                self.journal.artifact(self.run_dir / run_folder.SPEC)
            self.journal.params({"train.precision": precision})
        return with_precision(spec, self.worker.gather(precision)[0])

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *error: object) -> None:
        if self.active:
            self.journal.close()
            self.lease.release()
