"""The loop of a training run on one worker: from the state that the run has come to, to its last epoch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from torch import nn

from rwkv_jobs.epochs import advance, checkpoint_is_due, close_epoch, goes_on, log_is_due, moving_average, parts_read
from rwkv_jobs.failed_step import kept_for_replay
from rwkv_jobs.form import TrainingForm
from rwkv_jobs.meter import Meter
from rwkv_jobs.model_summary import describe
from rwkv_jobs.profiler import Profiler
from rwkv_jobs.recorder import Recorder
from rwkv_jobs.stepper import LossOf, Stepper
from rwkv_jobs.stopping import Stopping
from rwkv_jobs.worker import Worker, named_if_not_deterministic
from rwkvctl.config.specs.jobs import TrainingSpec
from rwkvctl.data.feed.ahead import ahead
from rwkvctl.data.feed.loaders import TrainLoader
from rwkvctl.data.feed.samples import Batch
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.runs.samples_seen import SamplesSeen
from rwkvctl.training.checkpoint import TrainState
from rwkvctl.training.optimizer import make_optimizer


class Objective(Protocol):
    """What is minimised."""

    linear: bool
    """Whether the loss of a batch is a sum over its images, so that a part of it can be computed without the others."""

    def of(self, batch: Batch, step: int, parts: int) -> LossOf:
        """As a function of one of this worker's micro-batches of a step, of which there are `parts`."""
        ...


class Training:
    """A network in training.

    Args:
        recorder: gives the state of the run's latest checkpoint, if there is one, and gets all that is to be told.
        model: on this worker's device, as it is initialised.
        input_shape: of one sample, (C, H, W) or (C, D, H, W), at which MACs are counted.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        manifest: Manifest,
        me: Worker,
        recorder: Recorder,
        loader: TrainLoader,
        model: nn.Module,
        input_shape: tuple[int, ...],
    ):
        self.spec, self.me, self.recorder, self.loader, self.model = spec, me, recorder, loader, model
        self.ema = moving_average(spec, model)
        self.state = TrainState(
            model,
            make_optimizer(model, spec.optimizer),
            manifest.fingerprint,
            spec.model_dump(mode="json"),
            self.ema.module if self.ema else None,
        )
        recorder.restore(self.state)
        self.position = self.state.position
        recorder.reads(manifest, spec.data.split, *parts_read(spec))
        recorder.params(described := describe(model, manifest, input_shape))
        self.described = described
        """Parameters and MACs of the network, for its summary."""
        steps = loader.steps_per_epoch
        recorder.event("plan", epochs=spec.train.epochs, steps_per_epoch=steps, step=self.position.step)
        self.form = TrainingForm(model, spec, me)
        recorder.batch_norm_over(self.form.normalised_over)
        self.stepper = Stepper(
            spec, me, self.form, self.state.optimizer, steps, self.position, recorder.say, recorder.failure
        )
        self.seen = SamplesSeen(me.rank)
        self.meter = Meter(me, spec.train.batch_size, described["macs_true"])

    def run(
        self,
        run_dir: Path,
        objective: Objective,
        *,
        begin_epoch: Callable[[], object],
        validate: Callable[[], bool],
    ) -> None:
        """Train to the last epoch, with a checkpoint whenever one is due.

        Args:
            begin_epoch: called before each; sets the network's mode.
            validate: called after each; True for weights that are to be kept as the best.
        """
        spec, position, recorder = self.spec, self.position, self.recorder
        with (
            named_if_not_deterministic(),
            kept_for_replay(recorder, spec, self.model, self.loader, position),
            Profiler(recorder, self.me.device, spec.train.profile_steps) as profiler,
            Stopping(self.me, run_dir) as stopping,
        ):
            while goes_on(spec, position):
                begin_epoch()
                batches = ahead(self.loader.epoch(position.epoch, position.consumed), self.me.device)
                for batch in self.meter.batches(batches):
                    last = self.step(batch, objective)
                    profiler.step()
                    due = log_is_due(spec, position)
                    recorder.metrics(self.stepper.metrics() | self.meter.metrics() if due else None, position.step)
                    if (stopping.look() or checkpoint_is_due(spec, position)) and not last:
                        self.stepper.check_finite()
                        recorder.checkpoint(self.state)
                        stopping.leave()
                self.stepper.check_finite()
                close_epoch(position)
                recorder.checkpoint(self.state, best=validate())
                stopping.leave()
                self.meter.start()

    def step(self, batch: Batch, objective: Objective) -> bool:
        """Take a step; True when it was the epoch's last."""
        position, parts = self.position, self.stepper.parts
        self.seen.note(position.step + 1, batch.keys)
        self.stepper.step(objective.of(batch, position.step, parts), position.step, linear=objective.linear)
        if self.ema is not None:
            self.ema.update(self.model, step=position.step)
        return advance(position, self.spec.train.batch_size, self.loader.steps_per_epoch)
