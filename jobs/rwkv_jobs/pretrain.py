"""Classification pretraining of an encoder, with the recipe of the paper's ImageNet-1K runs.

python -m rwkv_jobs.pretrain RUN_FOLDER_OR_RECIPE [--set FIELD=VALUE ...]
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from rwkv_jobs.epochs import improves, train_loader, validation_is_due
from rwkv_jobs.fit import run_training
from rwkv_jobs.form import TrainingForm
from rwkv_jobs.model_summary import model_info
from rwkv_jobs.recorder import Recorder
from rwkv_jobs.scoring import count_accuracy, named
from rwkv_jobs.stepper import LossOf, Total
from rwkv_jobs.training_loop import Training
from rwkv_jobs.worker import Worker, autocast, set_arithmetic, worker
from rwkvctl.base.files import write_json
from rwkvctl.config.specs.jobs import PretrainSpec
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.feed.samples import Batch, micro_batch
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.launch import preflight
from rwkvctl.models import build as networks
from rwkvctl.models import bundle
from rwkvctl.registry import classifier_start, encoder_weights
from rwkvctl.registry.release import SUMMARY
from rwkvctl.runs.journal import say
from rwkvctl.training.checkpoint import TrainState


def check(spec: PretrainSpec, run_dir: Path) -> None:
    """Whether the model can be built."""
    manifest = Manifest.load(spec.data.path or "")
    networks.check(spec.model, manifest.classes, (manifest.channels, spec.data.image_size, spec.data.image_size))
    preflight.check_options(spec, manifest)
    if not (run_dir / encoder_weights.FILE_NAME).exists():
        classifier_start.check(spec)


def run(spec: PretrainSpec, run_dir: Path) -> dict[str, Any]:
    """Prepare the weights that it starts from, train on all workers, then register the encoder."""
    prepare(spec, run_dir)
    return run_training(train, spec, run_dir)


def prepare(spec: PretrainSpec, run_dir: Path) -> None:
    """Leave the weights that the classifier starts from in the run's folder, where some are asked for."""
    loaded = classifier_start.prepare(spec, Manifest.load(spec.data.path or "").classes, run_dir)
    if loaded is not None:
        say(run_dir, str(loaded))


def train(spec: PretrainSpec, run_dir: Path) -> None:
    """What every worker runs: continue from the run's latest checkpoint, if there is one, to the last epoch."""
    with worker(spec.cluster) as me, Recorder(me, run_dir) as recorder:
        spec = recorder.settle(spec)
        set_arithmetic(spec.train.deterministic, me.device)
        manifest = Manifest.load(spec.data.path or "")
        loader = train_loader(spec, spec.augment, manifest, me)
        model = make_model(spec, manifest, run_dir).to(me.device).to(memory_format=torch.channels_last)
        shape = (manifest.channels, spec.data.image_size, spec.data.image_size)
        training = Training(spec, manifest, me, recorder, loader, model, shape)
        training.run(
            run_dir,
            Objective(spec, me, training.form),
            begin_epoch=model.train,
            validate=lambda: validate(spec, manifest, me, training.state, recorder),
        )
        finish(spec, manifest, model, me, run_dir, recorder, training.described)


class Objective:
    """Cross entropy with label smoothing over the global batch: a sum over its images."""

    linear = True

    def __init__(self, spec: PretrainSpec, me: Worker, form: TrainingForm):
        self.spec, self.me, self.form = spec, me, form

    def of(self, batch: Batch, step: int, parts: int) -> LossOf:
        """As a function of one of this worker's micro-batches of a step."""
        return lambda part, total: self.loss(micro_batch(batch, part, parts), total)

    def loss(self, batch: Batch, total: Total) -> Tensor:
        """A scalar."""
        with autocast(self.spec.train.precision, self.me.device):
            logits = self.form(to_input(batch.images, self.me.device))
        target = batch.targets.to(self.me.device, non_blocking=True)
        logits = logits if logits.dtype == torch.float64 else logits.float()
        losses = F.cross_entropy(logits, target, label_smoothing=self.spec.label_smoothing, reduction="sum")
        return total(losses) / self.spec.train.batch_size


def make_model(spec: PretrainSpec, manifest: Manifest, run_dir: Path) -> nn.Module:
    """The classifier, initialised from the seed, with the run's prepared weights if there are any."""
    torch.manual_seed(spec.seed)
    model = networks.classifier(spec.model, manifest.classes)
    if spec.model.encoder_weights is not None:
        classifier_start.load(model, run_dir)
    return model


def validate(spec: PretrainSpec, manifest: Manifest, me: Worker, state: TrainState, recorder: Recorder) -> bool:
    """Top-1 and top-5 of the weights and of their moving average; True when the better one is the best so far."""
    position = state.position
    if not validation_is_due(spec, position):
        return not spec.train.validate_every
    found = {name: accuracy(spec, manifest, me, model) for name, model in state.networks().items()}
    values = named(found["model"], "val") | (named(found["ema"], "val_ema") if "ema" in found else {})
    recorder.metrics(values, position.step)
    recorder.event("validation", epoch=position.epoch, step=position.step, **values)
    return improves(position, {name: scores["top1"] for name, scores in found.items()})


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
    own: dict[str, Any] = {"split": spec.data.split or manifest.default_split, "data": spec.data.path}
    if source := encoder_weights.source_of(run_dir):
        own["encoder"] = source
    info = model_info(spec, manifest, description, {"run": run_dir.name, "weights": chosen, **own})
    bundle.save(run_dir / "model", weights, info)
    summary = described | {"checkpoint": best.name, "weights": chosen}
    write_json(run_dir / SUMMARY, summary | scores[chosen])
    recorder.artifact(run_dir / SUMMARY, "")


if __name__ == "__main__":
    from rwkv_jobs.entry import main

    main("pretrain")
