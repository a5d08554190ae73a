"""The course of a training run: its samples, and what is due after a step and after an epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.utils import ModelEmaV3
from torch import nn

from rwkv_jobs.worker import Worker
from rwkvctl.config.specs.jobs import FinetuneSpec, TrainingSpec
from rwkvctl.data.feed.loaders import TrainLoader
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.launch.heartbeat import mark
from rwkvctl.training.checkpoint import Position


def train_loader(spec: TrainingSpec, augment: Any, manifest: Manifest, me: Worker) -> TrainLoader:
    """The training part, in an order that depends on the data, the seed and the epoch alone."""
    return TrainLoader(
        manifest,
        split=spec.data.split or manifest.default_split,
        image_size=spec.data.image_size,
        global_batch=spec.train.batch_size,
        rank=me.rank,
        world_size=me.world_size,
        seed=spec.seed,
        workers=spec.data.workers,
        augment=augment,
        tail=spec.train.tail,
        epoch_steps=spec.train.epoch_steps,
        micro_batch=spec.train.micro_batch,
        volumes=spec.volumes if isinstance(spec, FinetuneSpec) else None,
    )


def parts_read(spec: TrainingSpec) -> list[str]:
    """The parts of the data set that a training reads."""
    return ["train", "val"] if spec.train.validate_every else ["train"]


def read_decoded(spec: TrainingSpec, loader: TrainLoader, say: Callable[[str], None]) -> None:
    """Have the samples of segmentation decoded once, if the training passes over them again or is one of several;
    volumes, of which a pass takes several patches each, in any case."""
    steps = spec.train.epochs * loader.steps_per_epoch
    of_volumes = isinstance(spec, FinetuneSpec) and spec.volumes is not None
    if steps > loader.schedule.steps_per_pass or spec.tracking.parent is not None or of_volumes:
        said = loader.keep_decoded(lambda: mark("data"))
        if said:
            say(said)


def advance(position: Position, batch_size: int, steps_per_epoch: int) -> bool:
    """Count one step; True when it was the epoch's last (the epoch itself is closed by `close_epoch`)."""
    position.step += 1
    position.consumed += batch_size
    mark("step", position.step)
    return position.consumed >= steps_per_epoch * batch_size


def close_epoch(position: Position) -> None:
    """Go to the start of the next epoch."""
    position.epoch += 1
    position.consumed = 0


def validation_is_due(spec: TrainingSpec, position: Position) -> bool:
    """Every `train.validate_every` epochs, and after the last."""
    every = spec.train.validate_every
    return every > 0 and (position.epoch % every == 0 or position.epoch == spec.train.epochs)


def improves(position: Position, scores: dict[str, float]) -> bool:
    """Whether a validation score, of the `model` or of its average `ema`, is the best so far; if so it is noted."""
    name = max(scores, key=lambda name: scores[name])
    if position.best is not None and scores[name] <= position.best:
        return False
    position.best, position.best_epoch, position.best_weights = scores[name], position.epoch, name
    return True


def moving_average(spec: TrainingSpec, model: nn.Module) -> ModelEmaV3 | None:
    """The exponential moving average of the weights, if the spec has one."""
    return ModelEmaV3(model, decay=spec.ema_decay, use_warmup=spec.ema_warmup) if spec.ema_decay else None


def goes_on(spec: TrainingSpec, position: Position) -> bool:
    """Whether there is another epoch: not after the last, nor after `train.patience` epochs without a better score."""
    patience, best = spec.train.patience, position.best_epoch
    waits = patience is None or best is None or position.epoch - best < patience
    return position.epoch < spec.train.epochs and waits


def log_is_due(spec: TrainingSpec, position: Position) -> bool:
    """Whether the metrics of the step that was just taken are due."""
    return position.step % spec.train.log_steps == 0


def checkpoint_is_due(spec: TrainingSpec, position: Position) -> bool:
    """Whether a checkpoint inside the epoch is due."""
    every = spec.train.checkpoint_steps
    return every is not None and position.step % every == 0
