"""One spec a job kind. A recipe is a YAML file of one of them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from rwkvctl.config.specs.augment import ClassificationAugment, SegmentationAugment
from rwkvctl.config.specs.base import Address, Spec
from rwkvctl.config.specs.parts import (
    ClusterSpec,
    ConsistencySpec,
    DataSpec,
    EncoderSpec,
    LossSpec,
    ModelSpec,
    OptimizerSpec,
    Positive,
    TrackingSpec,
    TrainSpec,
)
from rwkvctl.config.specs.places import check_storage
from rwkvctl.config.specs.space import SpaceSpec


class JobSpec(Spec):
    """What every job has."""

    job: str
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    """Name of the run; null makes one of the job, the data set and the time."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 42
    storage: Address | None = None
    """Folder, or s3://bucket/prefix, that runs are kept in; null is the machine's setting."""
    _storage = field_validator("storage")(check_storage)
    cluster: ClusterSpec = ClusterSpec()
    tracking: TrackingSpec = TrackingSpec()


class TrainingSpec(JobSpec):
    """What pretraining and fine-tuning share."""

    data: DataSpec
    optimizer: OptimizerSpec
    train: TrainSpec
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Exponential moving average of the weights; null keeps none."""
    ema_warmup: bool = False
    """Let the average's decay grow with the steps, so that short runs are not ruled by the initial weights."""

    @model_validator(mode="after")
    def _batch_fits_workers(self) -> TrainingSpec:
        if (problem := self.batch_problem(self.cluster.workers or 1)) is not None:
            raise ValueError(problem)
        return self

    def batch_problem(self, workers: int) -> str | None:
        """Why a batch can't be shared out to so many workers; None if it can."""
        batch, micro = self.train.batch_size, self.train.micro_batch
        if micro is None and batch % workers:
            nearest = nearest_divisor(batch, workers)
            return (
                f"train.batch_size {batch} is not divisible by cluster.workers {workers}: "
                f"use {nearest} workers or a batch of {(batch // workers + 1) * workers}"
            )
        if micro is not None and batch % micro:
            return (
                f"train.batch_size {batch} is not divisible by train.micro_batch {micro}: "
                f"use train.micro_batch={nearest_divisor(batch, micro)}"
            )
        if micro is not None and batch // micro < workers:
            return (
                f"train.batch_size {batch} has {batch // micro} micro-batches of {micro}, "
                f"fewer than cluster.workers {workers}: "
                f"use train.micro_batch={max(1, batch // workers)} or fewer workers"
            )
        return None

    def micro_batches(self, workers: int) -> int:
        """Forward passes of a step, over all workers."""
        return self.train.batch_size // self.train.micro_batch if self.train.micro_batch else workers

    @model_validator(mode="after")
    def _patience_has_scores(self) -> TrainingSpec:
        if self.train.patience is not None and not self.train.validate_every:
            raise ValueError(
                "train.patience needs validation scores: set train.validate_every to 1, or patience to null"
            )
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> TrainingSpec:
        if self.optimizer.warmup_epochs >= self.train.epochs:
            raise ValueError(
                f"optimizer.warmup_epochs {self.optimizer.warmup_epochs} must be below train.epochs "
                f"{self.train.epochs}: the learning rate would never leave its warm-up"
            )
        return self


class PretrainSpec(TrainingSpec):
    """Classification pretraining of an encoder."""

    job: Literal["pretrain"] = "pretrain"
    model: EncoderSpec = EncoderSpec()
    augment: ClassificationAugment = ClassificationAugment()
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    ema_decay: Annotated[float, Field(gt=0, lt=1)] | None = 0.9998


class FinetuneSpec(TrainingSpec):
    """Supervised segmentation training."""

    job: Literal["finetune"] = "finetune"
    model: ModelSpec = ModelSpec()
    augment: SegmentationAugment = SegmentationAugment()
    loss: LossSpec = LossSpec()
    consistency: ConsistencySpec | None = None
    """Use the data set's unlabeled images too; null trains on the labeled ones alone."""

    deep_supervision: Literal["none", "sum", "mutation"] = "none"
    """Loss at every scale of pvt_cascade or emcad: the sum of the scales' losses (CASCADE), or of those of every
    non-empty subset of the scales, its logits added up (MUTATION, as EMCAD). none: of the logits that are evaluated."""

    freeze_encoder: Annotated[int, Field(ge=0)] = 0
    """First epochs in which the encoder keeps its weights and batch-norm statistics."""

    @model_validator(mode="after")
    def _unlabeled_batch_fits(self) -> FinetuneSpec:
        parts = self.micro_batches(self.cluster.workers or 1)
        if self.consistency is not None and self.consistency.batch_size % parts:
            what = "micro-batches of a step" if self.train.micro_batch else "workers"
            raise ValueError(
                f"consistency.batch_size {self.consistency.batch_size} is not divisible by the {parts} {what}"
            )
        return self

    @model_validator(mode="after")
    def _encoder_thaws(self) -> FinetuneSpec:
        if self.freeze_encoder and self.freeze_encoder >= self.train.epochs:
            raise ValueError(
                f"freeze_encoder {self.freeze_encoder} must be below train.epochs {self.train.epochs}: "
                "the encoder would never be trained"
            )
        return self


def nearest_divisor(number: int, wanted: int) -> int:
    """The divisor of `number` that is nearest to `wanted`."""
    return min((n for n in range(1, number + 1) if number % n == 0), key=lambda n: (abs(n - wanted), n))


class EvaluateSpec(JobSpec):
    """DSC and HD95 of a trained model on one part of a data set."""

    job: Literal["evaluate"] = "evaluate"
    model: str
    """A run, `models:/name@alias`, or a folder with a model."""
    data: Address | None = None
    """Folder with shards; null takes those that the model was trained on."""
    split: str | None = None
    part: Literal["val", "test"] = "test"
    overlays: Annotated[int, Field(ge=0)] = 4
    """How many of the worst cases are drawn."""
    loader_workers: Annotated[int, Field(ge=0)] = 2
    """Processes per worker that read and resize, and as many that compute scores; 0 does all in the worker."""


class PredictSpec(JobSpec):
    """Masks for images."""

    job: Literal["predict"] = "predict"
    model: str
    inputs: Annotated[list[str], Field(min_length=1)]
    """Files, or folders whose images, arrays and scans are all meant."""
    out: str
    overwrite: bool = False
    """Whether masks may replace files that are in `out`; an input is never replaced."""
    range: tuple[float, float] | None = None
    """Black and white of images of more than 8 bits, for a model that was trained on 8-bit ones."""


class TuneSpec(JobSpec):
    """A sweep over a space around one fine-tuning spec."""

    job: Literal["tune"] = "tune"
    space_name: str
    space: SpaceSpec
    base: FinetuneSpec
    trials: Positive
    concurrency: Positive | None = None
    """Trials at once; null is as many as there are CPUs (or GPUs) for."""
    metric: Literal["dsc_strict", "dsc_official"] = "dsc_strict"
    """What is maximised on the validation part."""
    study_storage: Address | None = None
    """Database of the Optuna study; null is SQLite in the run's folder. Its password comes from the environment."""


JOBS: dict[str, type[JobSpec]] = {
    "pretrain": PretrainSpec,
    "finetune": FinetuneSpec,
    "evaluate": EvaluateSpec,
    "predict": PredictSpec,
    "tune": TuneSpec,
}
