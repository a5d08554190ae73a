"""Classification pretraining of an encoder, with the recipe of the paper's ImageNet-1K runs.

python -m rwkv_jobs.pretrain RUN_FOLDER_OR_RECIPE [--set FIELD=VALUE ...]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from timm.utils import ModelEmaV3
from torch import nn

from rwkv_jobs.epochs import advance, checkpoint_is_due, close_epoch, improves, train_loader, validation_is_due
from rwkv_jobs.fit import run_training
from rwkv_jobs.model_summary import describe, model_info
from rwkv_jobs.optimizer import make_optimizer
from rwkv_jobs.recorder import Recorder
from rwkv_jobs.scoring import count_accuracy, named
from rwkv_jobs.stepper import Stepper, training_form
from rwkv_jobs.worker import Worker, autocast, worker
from rwkvctl.base.files import write_json
from rwkvctl.config.specs.jobs import PretrainSpec
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import build as networks
from rwkvctl.models import bundle
from rwkvctl.registry.release import SUMMARY
from rwkvctl.training.checkpoint import TrainState


def check(spec: PretrainSpec, run_dir: Path) -> None:
    """Whether the model can be built."""
    manifest = Manifest.load(spec.data.path or "")
    networks.check(spec.model, manifest.classes, (manifest.channels, spec.data.image_size, spec.data.image_size))


def run(spec: PretrainSpec, run_dir: Path) -> dict[str, Any]:
    """Train on all workers, then register the encoder."""
    return run_training(train, spec, run_dir)


def train(spec: PretrainSpec, run_dir: Path) -> None:
    """What every worker runs: continue from the run's latest checkpoint, if there is one, to the last epoch."""
    with worker(spec.cluster) as me, Recorder(me, run_dir) as recorder:
        spec = recorder.settle(spec)
        manifest = Manifest.load(spec.data.path or "")
        loader = train_loader(spec, spec.augment, manifest, me)
        model = make_model(spec, manifest).to(me.device).to(memory_format=torch.channels_last)
        ema = ModelEmaV3(model, decay=spec.ema_decay, use_warmup=spec.ema_warmup) if spec.ema_decay else None
        optimizer = make_optimizer(model, spec.optimizer)
        state = TrainState(
            model, optimizer, manifest.fingerprint, spec.model_dump(mode="json"), ema.module if ema else None
        )
        recorder.restore(state)
        recorder.params(described := describe(model, manifest, spec.data.image_size))
        recorder.event(
            "plan", epochs=spec.train.epochs, steps_per_epoch=loader.steps_per_epoch, step=state.position.step
        )
        parallel = training_form(model, spec, me)
        stepper = Stepper(spec, me, model, optimizer, loader.steps_per_epoch)
        position = state.position
        while position.epoch < spec.train.epochs:
            model.train()
            for batch in loader.epoch(position.epoch, position.consumed):
                stepper.seed(position.step)
                with autocast(spec.train.precision, me.device):
                    logits = parallel(to_input(batch.images, me.device))
                target = batch.targets.to(me.device, non_blocking=True)
                loss = F.cross_entropy(logits.float(), target, label_smoothing=spec.label_smoothing)
                recorder.metrics(stepper.step(loss, position.step), position.step + 1)
                if ema is not None:
                    ema.update(model, step=position.step)
                last = advance(position, spec.train.batch_size, loader.steps_per_epoch)
                if checkpoint_is_due(spec, position) and not last:
                    stepper.check_finite()
                    recorder.checkpoint(state)
            stepper.check_finite()
            close_epoch(position)
            better = validate(spec, manifest, me, state, recorder)
            recorder.checkpoint(state, best=better)
            stepper.skip_time()
        finish(spec, manifest, model, me, run_dir, recorder, described)


def make_model(spec: PretrainSpec, manifest: Manifest) -> nn.Module:
    """The classifier, initialised from the seed."""
    torch.manual_seed(spec.seed)
    return networks.classifier(spec.model, manifest.classes)


def validate(spec: PretrainSpec, manifest: Manifest, me: Worker, state: TrainState, recorder: Recorder) -> bool:
    """Top-1 and top-5 of the weights and of their moving average; True when the better one is the best so far."""
    position = state.position
    if not validation_is_due(spec, position):
        return not spec.train.validate_every
    values = named(accuracy(spec, manifest, me, state.model), "val")
    if state.ema is not None:
        values |= named(accuracy(spec, manifest, me, state.ema), "val_ema")
    top1 = max(value for name, value in values.items() if name.endswith("/top1"))
    recorder.metrics(values, position.step)
    recorder.event("validation", epoch=position.epoch, step=position.step, **values)
    return improves(position, top1)


def accuracy(spec: PretrainSpec, manifest: Manifest, me: Worker, model: nn.Module) -> dict[str, float]:
    """Top-1 and top-5 over the validation part."""
    batch = max(1, spec.train.batch_size // me.world_size)
    return count_accuracy(model, manifest, spec.data, "val", me, batch=batch, precision=spec.train.precision)


def finish(
    spec: PretrainSpec,
    manifest: Manifest,
    model: nn.Module,
    me: Worker,
    run_dir: Path,
    recorder: Recorder,
    described: dict[str, Any],
) -> None:
    """Put the best weights (of the network or of its moving average, whichever scored higher) into a model folder."""
    best = recorder.best()
    scores: dict[str, dict[str, float]] = {}
    for name in ["model", "ema"] if spec.ema_decay else ["model"]:
        model.load_state_dict(load_file(best / f"{name}.safetensors"))
        scores[name] = accuracy(spec, manifest, me, model)
    if not me.is_main:
        return
    chosen = max(scores, key=lambda name: scores[name]["top1"])
    weights = load_file(best / f"{chosen}.safetensors")
    recorder.metrics(named(scores[chosen], "best_val"), int(best.name.split("-")[1]))
    description = {"name": spec.model.name, "num_classes": len(manifest.classes), **spec.model.overrides()}
    own = {"split": spec.data.split or manifest.default_split, "data": spec.data.path}
    info = model_info(spec, manifest, description, {"run": run_dir.name, "weights": chosen, **own})
    bundle.save(run_dir / "model", weights, info)
    summary = described | {"checkpoint": best.name, "weights": chosen}
    write_json(run_dir / SUMMARY, summary | scores[chosen])
    recorder.artifact(run_dir / SUMMARY, "")


if __name__ == "__main__":
    from rwkv_jobs.entry import main

    main("pretrain")
