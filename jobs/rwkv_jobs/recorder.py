"""What a training or evaluation job leaves on the disk while it runs: journal and checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from rwkv_jobs.worker import Worker, resolved_batch_norm, resolved_precision
from rwkvctl.base.errors import JobFailedError, TransientError, UserError, explain
from rwkvctl.base.object_store import StoreError
from rwkvctl.config.specs.changes import few
from rwkvctl.config.specs.jobs import TrainingSpec
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.launch.workers import RESTART
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import mirror
from rwkvctl.runs.data_inputs import DataInput
from rwkvctl.runs.journal import Journal
from rwkvctl.runs.lease import LeaseLost, RunLease
from rwkvctl.runs.reconcile import reconcile
from rwkvctl.runs.stored_checkpoints import StoredCheckpoints
from rwkvctl.runs.uploader import Uploader
from rwkvctl.training.checkpoint import TrainState
from rwkvctl.training.checkpoint_folder import find_checkpoint, read_checked, settle_on
from rwkvctl.training.checkpoint_read import keep_best, load_checkpoint
from rwkvctl.training.checkpoint_write import CheckpointWriter

T = TypeVar("T")
AnyTraining = TypeVar("AnyTraining", bound=TrainingSpec)
LONG_WAIT = 1.0
"""Seconds that training may wait for the disk before it says so."""
BATCH_NORM_IMAGES = "batch_norm_images"
RESTART_TAG = "rwkvctl.restart."
"""On the MLflow run, with a number behind it: why its workers were started again, and what it cost."""
DAMAGE_TAG = "rwkvctl.damaged_checkpoint"
"""On the MLflow run: which checkpoint could not be read, and what was taken instead."""


def with_train(spec: AnyTraining, fields: dict[str, str]) -> AnyTraining:
    return spec.model_copy(update={"train": spec.train.model_copy(update=fields)})


class Recorder:
    """What rank 0 writes: journal and checkpoints, under a lease on the run's folder. On other ranks it does nothing.

    Made before anything is read from the run: all ranks wait until rank 0 holds the lease, so that no orphan of an
    earlier start can still write what they are about to read. Closed however the job ends, when the last checkpoint is
    on the disk. Of a run in an object store, rank 0 brings there what it writes, and the others fetch from there.
    """

    def __init__(self, worker: Worker, run_dir: Path):
        self.worker, self.run_dir, self.active = worker, run_dir, worker.is_main
        self.folder = run_dir / "checkpoints"
        self.has_waited = False
        store = mirror.of(run_dir)
        self.stored = StoredCheckpoints(store) if store is not None else None
        self.uploader: Uploader | None = None
        set_aside: str | None = None
        if self.active:
            self.lease = RunLease(run_dir)
            try:
                set_aside = reconcile(run_dir)
            except BaseException:
                self.lease.release()
                raise
        worker.barrier()
        if not self.active:
            mirror.pull(run_dir)
            return
        self.journal = Journal(run_dir / "journal.jsonl", lease=self.lease, send=False)
        self.writer = CheckpointWriter(self.folder, before=self.journal.flush, after=self.written)
        if store is not None:
            self.uploader = Uploader(store, self.lease, self.say)
        if set_aside is not None:
            self.say(set_aside)

    def metrics(self, values: dict[str, float] | None, step: int) -> None:
        """Called after every step: on the only worker it also raises what writing a checkpoint has failed with."""
        if self.active and values:
            self.journal.metrics(values, step)
        if self.worker.world_size == 1 and (problem := self.failure()) is not None:
            raise problem

    def failure(self) -> BaseException | None:
        """What writing a checkpoint has failed with by now; told once, on the worker that writes."""
        return self.writer.failure() if self.active else None

    def params(self, values: dict[str, object]) -> None:
        if self.active:
            self.journal.params(values)

    def batch_norm_over(self, images: int | None) -> None:
        """Log over how many images batch norm takes its statistics; say so where a run goes on with another number."""
        if not self.active or images is None:
            return
        before = self.journal.param(BATCH_NORM_IMAGES)
        if before not in (None, images):
            self.say(
                f"warning: batch norm takes its statistics over {images} images from here on, and did over {before}: "
                "with another number of workers, train.batch_norm=local computes something else"
            )
        self.journal.params({BATCH_NORM_IMAGES: images})

    def reads(self, manifest: Manifest, split: str | None, *parts: str) -> None:
        """Name parts of a data set as what the run reads."""
        split = split or manifest.default_split
        for part in parts:
            self.reads_ids(manifest, split, part, manifest.ids(split, part))

    def reads_ids(self, manifest: Manifest, split: str, part: str, ids: list[str]) -> None:
        """The same of a part that is made of those of several splits."""
        if self.active:
            self.journal.data(
                DataInput(manifest.dataset, manifest.fingerprint, split, part, str(manifest.location), len(ids))
            )

    def artifact(self, path: Path, artifact_path: str) -> None:
        if self.active:
            self.journal.artifact(path, artifact_path)

    def event(self, kind: str, **fields: object) -> None:
        if self.active:
            self.journal.event(kind, **fields)

    def say(self, text: str) -> None:
        """A line in the run's log."""
        self.event("message", text=text)

    def restore(self, state: TrainState) -> None:
        """Continue from the newest sound checkpoint, in place, on all ranks from the same; where none was ever
        written, nothing happens. A damaged one that is passed over is told in one line and in MLflow.

        Raises:
            UserError: on all ranks, if every checkpoint is damaged, or it belongs to other data or another spec.
        """
        find = partial(find_checkpoint, self.folder) if self.stored is None else self.stored.find
        found = self.everywhere(lambda: find() if self.active else None)
        [name, *_] = self.worker.gather(found and found.path.name)
        if name is None:
            self.tell_restart(0)
            return
        self.everywhere(lambda: self.fetch(name))
        content = None if found is None else found.content
        self.everywhere(lambda: load_checkpoint(self.folder / name, state, content))
        if found is not None and found.damage:
            self.tell_damage(f"{few(found.damage)}; going on from {name}")
            settle_on(self.folder, found)
        position = state.position
        lost = self.everywhere(lambda: keep_best(self.folder, position) if self.active else None)
        if lost is not None:
            self.tell_damage(f"{lost}; the best of the epochs from here on is kept")
        best = position.best, position.best_epoch, position.best_weights
        [(position.best, position.best_epoch, position.best_weights), *_] = self.worker.gather(best)
        self.tell_restart(position.step)

    def tell_restart(self, step: int) -> None:
        """In the log and on the MLflow run, if the workers were started again: why, where they go on, what it cost."""
        if not self.active:
            return
        note = os.environ.get(RESTART)
        if note is None:
            return
        restart = json.loads(note)
        again = max(0, restart["step"] - step)
        took = time.time() - restart["since"]
        number = self.journal.tagged(RESTART_TAG) + 1
        text = (
            f"restart {number} on {self.worker.world_size} workers ({restart['cause']}): going on from step "
            f"{step} after {took:.1f} s, {again} steps are repeated"
        )
        self.journal.event("restart", cause=restart["cause"], step=step, repeated=again, seconds=round(took, 3))
        self.journal.tags({f"{RESTART_TAG}{number}": text})
        self.say(text)

    def fetch(self, name: str) -> None:
        """Have a checkpoint that rank 0 has found on this machine too."""
        if self.stored is not None and not self.active:
            self.stored.pull(name)

    def checkpoint(self, state: TrainState, *, best: bool = False) -> None:
        """Copy the state, and write it in the background; what the journal says of its steps is on disk before it.

        Raises:
            JobFailedError: on all ranks, if the weights of the former checkpoint were not finite or the disk did not
                take it.
        """
        waited = self.finish_writing()
        if self.active:
            self.writer.begin(state, best=best)
        if waited > LONG_WAIT and not self.has_waited:
            self.has_waited = True
            text = f"step {state.position.step}: waited {waited:.1f} s for the former checkpoint to be written"
            self.event("message", text=f"{text}; write them less often, or to a faster disk")

    def written(self, **fields: object) -> None:
        """Called in the background when a checkpoint is on the disk: it is sent to the store, where there is one."""
        if self.uploader is not None:
            begun = time.monotonic()
            sent = self.uploader.checkpoint()
            fields |= {"sent_bytes": sent, "sent_seconds": round(time.monotonic() - begun, 3)}
        self.journal.event("checkpoint", **fields)

    def hurrying(self) -> AbstractContextManager[None]:
        """While somebody waits for a checkpoint, a store that fails is not tried again: the next one is sent."""
        return nullcontext() if self.uploader is None else self.uploader.hurry()

    def finish_writing(self) -> float:
        """Return when nothing is being written, on all ranks; the seconds that it took here. Raises what `checkpoint`
        does."""

        def finish() -> float:
            begun = time.monotonic()
            if self.active:
                with self.hurrying():
                    self.writer.finish()
            return time.monotonic() - begun

        return self.everywhere(finish)

    def best(self) -> Path:
        """The best checkpoint, on all ranks, when all are written; where it is damaged, the newest sound one, which is
        told in one line and in MLflow."""
        self.finish_writing()
        self.everywhere(lambda: self.uploader.send_owed() if self.uploader is not None else None)
        found = self.everywhere(lambda: find_checkpoint(self.folder, "best") if self.active else None)
        [name, *_] = self.worker.gather(found and found.path.name)
        assert name is not None, "training ended without a checkpoint"
        if found is not None and found.damage:
            self.tell_damage(f"{few(found.damage)}; the model is that of {name}, the newest sound one, not the best")
        self.everywhere(lambda: self.fetch(name))
        self.everywhere(lambda: None if self.active else read_checked(self.folder / name))
        return self.folder / name

    def tell_damage(self, text: str) -> None:
        """In the log, and on the MLflow run."""
        self.journal.event("message", text=f"damaged checkpoint: {text}")
        self.journal.tags({DAMAGE_TAG: text})

    def everywhere(self, action: Callable[[], T]) -> T:
        """What `action` returns on this rank; if it fails on any rank, all raise that rank's error."""
        result: T | None = None
        problem: UserError | JobFailedError | None = None
        try:
            result = action()
        except StoreError as error:
            problem = TransientError(str(error)) if error.may_pass else error
        except (UserError, JobFailedError) as error:
            problem = error
        except OSError as error:
            problem = JobFailedError(explain(error, self.run_dir))
        problems = [other for other in self.worker.gather(problem) if other is not None]
        if problems:
            raise problems[0]
        return result  # type: ignore[return-value]

    def settle(self, spec: AnyTraining, plan: Callable[[AnyTraining], AnyTraining] = lambda spec: spec) -> AnyTraining:
        """The spec with `auto` of `train.precision` and `train.batch_norm` resolved at the first start, by rank 0's
        device and the number of workers, and what `plan` settles; kept in the run: one that goes on elsewhere must not
        change its arithmetic. All ranks get the same."""
        resolved: dict[str, str] = {}
        if self.active:
            stored = run_folder.read_spec(self.run_dir)
            assert isinstance(stored, TrainingSpec)
            resolved = {
                "precision": resolved_precision(stored.train.precision, self.worker.device),
                "batch_norm": resolved_batch_norm(stored.train, self.worker.world_size),
            }
            if (settled := plan(with_train(stored, resolved))) != stored:  # type: ignore[arg-type]
                run_folder.write_spec(self.run_dir, settled)
                self.journal.artifact(self.run_dir / run_folder.SPEC)
            self.journal.params({f"train.{name}": value for name, value in resolved.items()})
        return plan(with_train(spec, self.worker.gather(resolved)[0]))

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.active:
            return
        with self.hurrying():
            problem = self.writer.close()
        try:
            if problem is not None and (error is None or isinstance(error, JobFailedError)):
                raise problem  # which came before what it has led to
            if problem is not None:
                with contextlib.suppress(OSError, LeaseLost):
                    self.event("message", text=str(problem))
        finally:
            try:
                if self.uploader is not None:
                    self.uploader.close(done=error is None and problem is None)
            finally:
                self.journal.close()
                self.lease.release()
