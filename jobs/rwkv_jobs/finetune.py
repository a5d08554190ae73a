"""Supervised segmentation training: from shards (and, best, a pretrained encoder) to a model folder.

python -m rwkv_jobs.finetune RUN_FOLDER_OR_RECIPE [--set FIELD=VALUE ...]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from rwkv_jobs.case_scores import Gallery
from rwkv_jobs.consistency import Unlabeled
from rwkv_jobs.epochs import advance, checkpoint_is_due, close_epoch, improves, train_loader, validation_is_due
from rwkv_jobs.fit import run_training
from rwkv_jobs.model_summary import describe, model_info
from rwkv_jobs.optimizer import make_optimizer
from rwkv_jobs.recorder import Recorder
from rwkv_jobs.scoring import has_foreground, score_cases, write_cases
from rwkv_jobs.stepper import Stepper, training_form
from rwkv_jobs.worker import Worker, autocast, worker
from rwkvctl.base.files import write_json
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import build as networks
from rwkvctl.models import bundle
from rwkvctl.registry import encoder_weights, references
from rwkvctl.registry.release import SUMMARY
from rwkvctl.runs.journal import say
from rwkvctl.training.checkpoint import TrainState
from rwkvctl.training.losses import segmentation_loss

NO_FOREGROUND = (
    "warning: no validation mask contains foreground, so validation scores mean nothing; the last weights are kept"
)


def check(spec: FinetuneSpec, run_dir: Path) -> None:
    """Whether the model can be built, and its encoder can be found."""
    manifest = Manifest.load(spec.data.path or "")
    networks.check(spec.model, manifest.classes, (manifest.channels, spec.data.image_size, spec.data.image_size))
    if not (run_dir / encoder_weights.FILE_NAME).exists():
        references.check_encoder(spec)


def run(spec: FinetuneSpec, run_dir: Path) -> dict[str, Any]:
    """Prepare the encoder's weights, train on all workers, then register the model."""
    if spec.model.encoder_weights is not None:
        loaded = encoder_weights.prepare_encoder_weights(spec, run_dir)
        if loaded is not None:
            say(run_dir, str(loaded))
    return run_training(train, spec, run_dir)


def train(spec: FinetuneSpec, run_dir: Path) -> None:
    """What every worker runs: continue from the run's latest checkpoint, if there is one, to the last epoch."""
    with worker(spec.cluster) as me, Recorder(me, run_dir) as recorder:
        spec = recorder.settle(spec)
        manifest = Manifest.load(spec.data.path or "")
        loader = train_loader(spec, spec.augment, manifest, me)
        model = make_model(spec, manifest, run_dir).to(me.device).to(memory_format=torch.channels_last)
        state = TrainState(
            model, make_optimizer(model, spec.optimizer), manifest.fingerprint, spec.model_dump(mode="json")
        )
        recorder.restore(state)
        recorder.params(described := describe(model, manifest, spec.data.image_size))
        recorder.event(
            "plan", epochs=spec.train.epochs, steps_per_epoch=loader.steps_per_epoch, step=state.position.step
        )
        parallel = training_form(model, spec, me)
        stepper = Stepper(spec, me, model, state.optimizer, loader.steps_per_epoch)
        unlabeled = Unlabeled(spec, manifest, me, loader.steps_per_epoch) if spec.consistency else None
        position = state.position
        comparable = not spec.train.validate_every or has_foreground(manifest, spec.data, "val", me)
        if not comparable:
            recorder.event("message", text=NO_FOREGROUND)
        while position.epoch < spec.train.epochs:
            model.train()
            for batch in loader.epoch(position.epoch, position.consumed):
                stepper.seed(position.step)
                images, labeled = to_input(batch.images, me.device), len(batch.images)
                views = unlabeled.views(position.step) if unlabeled else None
                if views is not None:
                    images = torch.cat([images, views.images])
                with autocast(spec.train.precision, me.device):
                    logits = parallel(images)
                target = batch.targets.to(me.device, non_blocking=True)
                loss = segmentation_loss(
                    logits[:labeled],
                    target,
                    alpha=spec.loss.alpha,
                    beta=spec.loss.beta,
                    ignore_index=manifest.ignore_index,
                    total=me.sum,
                )
                if unlabeled and views is not None:
                    loss = loss + unlabeled.loss(logits[labeled:], views, position.step)
                recorder.metrics(stepper.step(loss, position.step), position.step + 1)
                last = advance(position, spec.train.batch_size, loader.steps_per_epoch)
                if checkpoint_is_due(spec, position) and not last:
                    stepper.check_finite()
                    recorder.checkpoint(state)
            stepper.check_finite()
            close_epoch(position)
            better = validate(spec, manifest, model, me, state, recorder) or not comparable
            recorder.checkpoint(state, best=better)
            stepper.skip_time()
        finish(spec, manifest, model, me, run_dir, recorder, described)


def make_model(spec: FinetuneSpec, manifest: Manifest, run_dir: Path) -> nn.Module:
    """The network initialised from the seed, with the run's prepared encoder weights if there are any."""
    torch.manual_seed(spec.seed)
    model = networks.segmentation_network(spec.model, manifest.classes)
    if spec.model.encoder_weights is not None:
        encoder_weights.load(model, run_dir)
    return model


def validate(
    spec: FinetuneSpec,
    manifest: Manifest,
    model: nn.Module,
    me: Worker,
    state: TrainState,
    recorder: Recorder,
) -> bool:
    """DSC on the validation part when it is due; True when these weights are to be kept as the best."""
    position = state.position
    if not validation_is_due(spec, position):
        return not spec.train.validate_every
    scores = score_cases(model, manifest, spec.data, "val", me, hd95=False, precision=spec.train.precision)
    recorder.metrics(scores.metrics("val"), position.step)
    value = scores.mean("dsc_strict")
    recorder.event("validation", epoch=position.epoch, step=position.step, dsc=value)
    return improves(position, value)


def finish(
    spec: FinetuneSpec,
    manifest: Manifest,
    model: nn.Module,
    me: Worker,
    run_dir: Path,
    recorder: Recorder,
    described: dict[str, Any],
) -> None:
    """Put the best weights into a model folder, with their DSC and HD95 on the validation part."""
    best = recorder.best()
    model.load_state_dict(load_file(best / "model.safetensors"))
    gallery = Gallery(run_dir / "artifacts" / "val" / "overlays", 4)
    scores = None
    if spec.train.validate_every:
        scores = score_cases(
            model, manifest, spec.data, "val", me, hd95=True, gallery=gallery, precision=spec.train.precision
        )
    if not me.is_main:
        return
    summary = described | {"checkpoint": best.name}
    if scores is not None:
        summary["val"] = scores.summary
        write_cases(run_dir / "artifacts" / "val", scores)
        recorder.metrics(scores.metrics("best_val"), int(best.name.split("-")[1]))
    description = {"name": spec.model.name, "num_classes": networks.outputs(manifest.classes), **spec.model.overrides()}
    split = spec.data.split or manifest.default_split
    info = model_info(spec, manifest, description, {"run": run_dir.name, "split": split, "data": spec.data.path})
    bundle.save(run_dir / "model", model.state_dict(), info)
    write_json(run_dir / SUMMARY, summary)
    recorder.artifact(run_dir / SUMMARY, "")


if __name__ == "__main__":
    from rwkv_jobs.entry import main

    main("finetune")
