"""Supervised segmentation training: from shards (and, best, a pretrained encoder) to a model folder.

python -m rwkv_jobs.finetune RUN_FOLDER_OR_RECIPE [--set FIELD=VALUE ...]
"""

from __future__ import annotations

from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rwkv_jobs.consistency import Unlabeled
from rwkv_jobs.epochs import improves, read_decoded, train_loader, validation_is_due
from rwkv_jobs.fit import run_training
from rwkv_jobs.form import TrainingForm
from rwkv_jobs.gallery import Gallery
from rwkv_jobs.model_summary import model_info
from rwkv_jobs.recorder import Recorder
from rwkv_jobs.scoring import CaseScorer, Probabilities, has_foreground, score_cases, write_cases
from rwkv_jobs.stepper import LossOf, Total
from rwkv_jobs.training_loop import Training
from rwkv_jobs.worker import Worker, autocast, set_arithmetic, worker
from rwkvctl.base.files import write_json
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.data.feed.model_input import to_input
from rwkvctl.data.feed.samples import Batch, micro_batch
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.launch import preflight
from rwkvctl.models import build as networks
from rwkvctl.models import bundle
from rwkvctl.models.calibrate import calibrated
from rwkvctl.models.plan_volumes import planned, volume_input
from rwkvctl.registry import encoder_weights, references
from rwkvctl.registry.cases import TABLE
from rwkvctl.registry.release import SUMMARY
from rwkvctl.runs.journal import say
from rwkvctl.training import deep_supervision
from rwkvctl.training.checkpoint import Position, TrainState
from rwkvctl.training.checkpoint_folder import read_checked
from rwkvctl.training.losses import segmentation_loss
from rwkvctl.training.optimizer import encoder_of, keeps_its_encoder

NO_FOREGROUND = (
    "warning: no validation mask contains foreground, so validation scores mean nothing; the last weights are kept"
)
KEEPS_NOISE = (
    "warning: {name} keeps its encoder's weights, which start at random; give those of SAM with --encoder pretrained "
    "or --encoder FILE"
)


def check(spec: FinetuneSpec, run_dir: Path) -> None:
    """Whether the model can be built, and its encoder can be found."""
    manifest = Manifest.load(spec.data.path or "")
    spec = planned(spec, manifest)
    networks.check(networks.trained(spec), manifest.classes, networks.input_shape(spec, manifest.channels))
    preflight.check_options(spec, manifest)
    if not (run_dir / encoder_weights.FILE_NAME).exists():
        references.check_encoder(spec)


def run(spec: FinetuneSpec, run_dir: Path) -> dict[str, Any]:
    """Prepare the encoder's weights, train on all workers, then register the model."""
    prepare(spec, run_dir)
    return run_training(train, spec, run_dir)


def prepare(spec: FinetuneSpec, run_dir: Path) -> None:
    """Put the weights that the encoder starts from into the run's folder, if the spec names any."""
    if spec.model.encoder_weights is not None:
        loaded = encoder_weights.prepare_encoder_weights(spec, run_dir)
        if loaded is not None:
            say(run_dir, str(loaded))


def train(spec: FinetuneSpec, run_dir: Path) -> None:
    """What every worker runs: continue from the run's latest checkpoint, if there is one, to the last epoch."""
    with worker(spec.cluster) as me, Recorder(me, run_dir) as recorder:
        manifest = Manifest.load(spec.data.path or "")
        spec = recorder.settle(spec, partial(planned, manifest=manifest))
        set_arithmetic(spec.train.deterministic, me.device)
        loader = train_loader(spec, spec.augment, manifest, me)
        read_decoded(spec, loader, recorder.say)
        model = networks.channels_last(make_model(spec, manifest, run_dir).to(me.device))
        if spec.model.encoder_weights is None and keeps_its_encoder(model):
            recorder.say(KEEPS_NOISE.format(name=spec.model.name))
        shape = networks.input_shape(spec, manifest.channels)
        training = Training(spec, manifest, me, recorder, loader, model, shape)
        objective = Objective(spec, manifest, me, training.form, loader.steps_per_epoch)
        comparable = not spec.train.validate_every or has_foreground(manifest, spec.data, "val", me)
        if not comparable:
            recorder.say(NO_FOREGROUND)
        with closing(CaseScorer(manifest, spec.data, "val", me, hd95=False, volumes=volume_input(spec))) as scorer:
            training.run(
                run_dir,
                objective,
                begin_epoch=lambda: prepare_epoch(spec, training.form, training.position),
                validate=lambda: validate(spec, scorer, training.state, recorder) or not comparable,
            )
        finish(spec, manifest, model, me, run_dir, recorder, training.described)


class Objective:
    """The loss of the global batch: equation 10 over the labeled images and, if the spec has it, consistency over the
    unlabeled ones."""

    linear = False

    def __init__(self, spec: FinetuneSpec, manifest: Manifest, me: Worker, form: TrainingForm, steps_per_epoch: int):
        self.spec, self.ignore_index, self.me, self.form = spec, manifest.ignore_index, me, form
        self.unlabeled = Unlabeled(spec, manifest, me, steps_per_epoch) if spec.consistency else None

    def of(self, batch: Batch, step: int, parts: int) -> LossOf:
        """As a function of one of this worker's micro-batches of a step."""
        views = self.unlabeled.batch(step) if self.unlabeled else None

        def loss_of(part: int, total: Total) -> Tensor:
            own = micro_batch(batch, part, parts)
            return self.loss(own, None if views is None else micro_batch(views, part, parts), step, total)

        return loss_of

    def loss(self, batch: Batch, views: Batch | None, step: int, total: Total) -> Tensor:
        """A scalar. Both kinds of images are one forward pass, so that batch norm sees them together."""
        images, labeled = to_input(batch.images, self.me.device), len(batch.images)
        if views is not None:
            pairs = torch.cat(views.images.chunk(2, dim=1))
            images = torch.cat([images, to_input(pairs, self.me.device)])
        with autocast(self.spec.train.precision, self.me.device):
            output = self.form(images)
        maps = [output] if isinstance(output, Tensor) else output
        target = batch.targets.to(self.me.device, non_blocking=True)
        weights = {"alpha": self.spec.loss.alpha, "beta": self.spec.loss.beta}
        how = self.spec.deep_supervision
        if how == "scales":
            supervised = deep_supervision.at_scales(maps, target)
        else:
            supervised = [(x, target, 1.0) for x in deep_supervision.supervised([x[:labeled] for x in maps], how)]
        losses = [
            share * segmentation_loss(x, truth, **weights, ignore_index=self.ignore_index, total=total)
            for x, truth, share in supervised
        ]
        loss = torch.stack(losses).sum()
        if self.unlabeled and views is not None:
            logits = output if isinstance(output, Tensor) else self.form.model.combined(output)  # type: ignore[operator]
            loss = loss + self.unlabeled.loss(logits[labeled:], views.targets, step, total)
        return loss


def prepare_epoch(spec: FinetuneSpec, form: TrainingForm, position: Position) -> None:
    """Training mode; but for the encoder, as long as it is frozen."""
    form.model.train()
    if not spec.freeze_encoder:
        return
    encoder = encoder_of(form.model)
    assert encoder is not None, "checked before the job began"
    frozen = position.epoch < spec.freeze_encoder
    encoder.train(not frozen)
    if frozen == next(encoder.parameters()).requires_grad:
        encoder.requires_grad_(not frozen)
        form.wrap()


def make_model(spec: FinetuneSpec, manifest: Manifest, run_dir: Path) -> nn.Module:
    """The network initialised from the seed, with the run's prepared encoder weights if there are any."""
    torch.manual_seed(spec.seed)
    model = networks.segmentation_network(networks.trained(spec), manifest.classes, manifest.channels)
    if spec.model.encoder_weights is not None:
        encoder_weights.load(model, run_dir)
    return model


def validate(spec: FinetuneSpec, scorer: CaseScorer, state: TrainState, recorder: Recorder) -> bool:
    """DSC on the validation part when it is due, of the weights and of their moving average; True when the better ones
    are to be kept as the best."""
    position = state.position
    if not validation_is_due(spec, position):
        return not spec.train.validate_every
    found: dict[str, float] = {}
    for name, model in state.networks().items():
        scores = scorer.score(model, precision=spec.train.precision)
        recorder.metrics(scores.metrics("val" if name == "model" else f"val_{name}"), position.step)
        found[name] = scores.mean("dsc_strict")
    shown = {"dsc" if name == "model" else f"dsc_{name}": value for name, value in found.items()}
    recorder.event("validation", epoch=position.epoch, step=position.step, **shown)
    return improves(position, found)


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
    chosen = read_checked(best)["position"].get("best_weights") or ("ema" if spec.ema_decay else "model")
    model.load_state_dict(load_file(best / f"{chosen}.safetensors"))
    gallery = Gallery(run_dir / "artifacts" / "val" / "overlays", 4)
    scores = None
    if spec.train.validate_every:
        scores = score_cases(
            model,
            manifest,
            spec.data,
            "val",
            me,
            hd95=True,
            gallery=gallery,
            precision=spec.train.precision,
            probabilities=Probabilities(fit=True),
            volumes=volume_input(spec),
        )
    if not me.is_main:
        return
    summary = described | {"checkpoint": best.name} | ({"weights": chosen} if spec.ema_decay else {})
    if scores is not None:
        summary["val"] = scores.summary
        write_cases(run_dir / "artifacts" / "val", scores)
        recorder.artifact(run_dir / "artifacts" / "val" / TABLE, "val")
        recorder.metrics(scores.metrics("best_val"), int(best.name.split("-")[1]))
    description = networks.described(networks.trained(spec), networks.outputs(manifest.classes), manifest.channels)
    split = spec.data.split or manifest.default_split
    extra: dict[str, Any] = {"run": run_dir.name, "split": split, "data": spec.data.path}
    if source := encoder_weights.source_of(run_dir):
        extra["encoder"] = source
    info = model_info(spec, manifest, description, extra)
    if scores is not None and scores.calibration is not None:
        info = info.model_copy(update={"calibration": calibrated(scores.calibration, manifest, split)})
    bundle.save(run_dir / "model", model.state_dict(), info)
    write_json(run_dir / SUMMARY, summary)
    recorder.artifact(run_dir / SUMMARY, "")


if __name__ == "__main__":
    from rwkv_jobs.entry import main

    main("finetune")
