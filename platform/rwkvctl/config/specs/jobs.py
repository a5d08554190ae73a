"""One spec a job kind. A recipe is a YAML file of one of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from rwkvctl.config.specs.augment import ClassificationAugment, SegmentationAugment
from rwkvctl.config.specs.base import Address, Spec
from rwkvctl.config.specs.objectives import LATENCY, SIZES, TOP1, Bound, Objective
from rwkvctl.config.specs.parts import (
    VOLUMETRIC,
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
    takes_volumes,
)
from rwkvctl.config.specs.places import check_storage
from rwkvctl.config.specs.segments import SegmentCode
from rwkvctl.config.specs.space import SpaceSpec
from rwkvctl.config.specs.volumes import VolumesSpec


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

    volumes: VolumesSpec | None = None
    """Train on patches of volumes; null trains on images and slices. Left out, it is what the network takes."""

    deep_supervision: Literal["none", "sum", "mutation", "scales"] = "none"
    """Loss at every scale of pvt_cascade, trans_cascade or emcad: the sum of the scales' losses (CASCADE), or of those
    of every non-empty subset of the scales, its logits added up (MUTATION, as EMCAD). scales: of networks over three
    axes, every scale beside the mask at its size, half as much as the one above it (nnU-Net). none: of the logits that
    are evaluated."""

    freeze_encoder: Annotated[int, Field(ge=0)] = 0
    """First epochs in which the encoder keeps its weights and batch-norm statistics."""

    @model_validator(mode="before")
    @classmethod
    def _network_takes_volumes(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and "volumes" not in fields and takes_volumes(fields.get("model")):
            return fields | {"volumes": {}}
        return fields

    @model_validator(mode="after")
    def _network_fits_data(self) -> FinetuneSpec:
        if self.volumes is None:
            if self.model.takes_volumes:
                raise ValueError(f"model.name {self.model.name}: takes volumes, and volumes is null: leave it out")
            if self.deep_supervision == "scales":
                raise ValueError("deep_supervision scales is for networks over three axes: set it to sum or mutation")
            return self
        if not self.model.takes_volumes:
            raise ValueError(
                f"volumes: {self.model.name} takes images: set it to null, or model.name to one over three axes, as "
                f"{VOLUMETRIC}t or monai:DynUNet with model.options.spatial_dims=3"
            )
        if self.deep_supervision not in ("none", "scales"):
            raise ValueError("deep_supervision: of networks over three axes it is none or scales")
        if self.consistency is not None:
            raise ValueError("consistency: is for images and slices: set it to null")
        return self

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
    """Scores of a trained model on one part of a data set."""

    job: Literal["evaluate"] = "evaluate"
    model: str
    """A run, `models:/name@alias`, or a folder with a model."""
    data: Address | None = None
    """Folder with shards; null takes those that the model was trained on."""
    split: str | None = None
    part: Literal["val", "test"] | None = None
    """null is test where the split has such a part, else val. Of folds, val is the cross-validation: every case by the
    model that has not seen it."""
    overlays: Annotated[int, Field(ge=0)] = 4
    """How many of the worst cases are drawn, and half as many around the median."""
    nsd_tolerance_mm: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """Distance up to which a contour counts as right in NSD, where the spacing is known."""
    nsd_tolerance_vox: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 2.0
    """The same in voxels (pixels), for all cases."""
    lesions: bool | None = None
    """Whether single lesions are counted and matched; null does so for data sets of lesions and polyps."""
    loader_workers: Annotated[int, Field(ge=0)] = 2
    """Processes per worker that read and resize, and as many that compute scores; 0 does all in the worker."""


class PredictSpec(JobSpec):
    """Masks for images."""

    job: Literal["predict"] = "predict"
    model: str
    ensemble: tuple[str, ...] = ()
    """More models; the mean of all probabilities decides."""
    named: tuple[str, ...] = ()
    """How the models were named where they have been looked up since."""
    backend: Literal["auto", "torch", "onnxruntime"] = "auto"
    """What runs the networks; auto is onnxruntime for exported files (`.onnx`), torch for all others."""
    inputs: Annotated[list[str], Field(min_length=1)]
    """Files, or folders whose images, arrays and scans are all meant."""
    out: str
    overwrite: bool = False
    """Whether masks may replace files that are in `out`; an input is never replaced."""
    resume: bool = False
    """Go on with a prediction into `out` that was ended: masks that are whole by its `run.json` are kept."""
    tta: Literal["none", "flips", "rotations"] = "none"
    """Test-time augmentation: the mean over four flips or four rotations of every image."""
    tile: bool = False
    """Whether images larger than those of the training are seen through a window of that size, instead of resized."""
    tile_overlap: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """Share of its side by which one window overlaps the next."""
    thresholds: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(default_factory=dict)
    """By class name: the probability below which a pixel is not of the class."""
    probabilities: bool = False
    """Whether to keep them, in `.npz` files beside the masks."""
    largest_component: bool = False
    """Whether of each class the largest connected part alone is kept."""
    fill_holes: bool = False
    """Whether holes inside a class are filled."""
    preview: bool = False
    """Whether to draw each image with its mask's outline, into the folder `previews` of `out`."""
    range: tuple[float, float] | None = None
    """Black and white of images of more than 8 bits, for a model that was trained on 8-bit ones."""
    format: Literal["auto", "dicom-seg", "dicom-labelmap"] = "auto"
    """`auto`: a mask is a file of its input's kind, of a DICOM series NIfTI. `dicom-seg`: DICOM series get DICOM
    segmentations, bits by class; `dicom-labelmap`: ids, which few viewers read."""
    keep_empty_frames: bool = False
    """Whether DICOM segmentations have frames without a pixel of their class."""
    segment_codes: dict[str, SegmentCode] = Field(default_factory=dict)
    """Codes and colours of classes in DICOM segmentations; ours for the rest."""

    @model_validator(mode="after")
    def _codes_are_of_dicom(self) -> PredictSpec:
        if self.format == "auto" and (self.keep_empty_frames or self.segment_codes):
            raise ValueError(
                "--keep-empty-frames and --segment-codes are for DICOM segmentations; add --format dicom-seg"
            )
        return self


class LimitsSpec(Spec):
    """What a server takes from those who ask it; more is refused before memory is taken for it."""

    upload_mb: Annotated[int, Field(ge=1, le=16384)] = 512
    """Megabytes of one upload."""
    pixels: Annotated[int, Field(ge=1, le=2**27)] = 2**25
    """Of an image, when it is decoded."""
    voxels: Annotated[int, Field(ge=1, le=2**31)] = 2**28
    """Of a scan, when it is decoded; also the sum over all that a replica works on at once."""
    files: Annotated[int, Field(ge=1, le=100_000)] = 4096
    """In the zip of a DICOM series."""
    seconds: Annotated[float, Field(gt=0, le=86400)] = 300.0
    """From the first byte of a request to its answer."""
    waiting: Annotated[int, Field(ge=0, le=100_000)] = 32
    """Requests that wait while all replicas are busy."""


class ServeSpec(JobSpec):
    """A server of one model's masks."""

    job: Literal["serve"] = "serve"
    model: str
    """A run, a folder, or models:/NAME@ALIAS, whose alias is followed."""
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """0 is any that is free."""
    replicas: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes that each hold the model."""
    at_once: Annotated[int, Field(ge=1, le=256)] = 8
    """Requests that a replica reads, segments and writes at once."""
    batch: Annotated[int, Field(ge=1, le=256)] = 8
    """Slices of all of them that the network is given together; 1 gives each request's own alone."""
    same_bits: bool = True
    """Whether slices are put together only to batches of sizes that change no bit of a mask. That, and which sizes pay,
    is measured when the model is loaded."""
    poll: Annotated[float, Field(ge=0.1, le=3600)] = 10.0
    """Seconds between two looks at where the alias points."""
    limits: LimitsSpec = LimitsSpec()


Sampler = Literal["tpe", "random", "grid", "gp", "cmaes", "nsga2", "nsga3"]
Pruner = Literal["asha", "median", "hyperband", "none"]


def _kind_of_base(base: Any) -> str:
    """A sweep's base is a fine-tuning unless it says that it is a pretraining."""
    job = base.get("job") if isinstance(base, dict) else getattr(base, "job", None)
    return "pretrain" if job == "pretrain" else "finetune"


class TuneSpec(JobSpec):
    """A sweep over a space around one fine-tuning spec; the folds of a cross-validation may be of classifiers too."""

    job: Literal["tune"] = "tune"
    space_name: str
    space: SpaceSpec
    base: Annotated[
        Annotated[FinetuneSpec, Tag("finetune")] | Annotated[PretrainSpec, Tag("pretrain")],
        Discriminator(_kind_of_base),
    ]
    trials: Positive
    concurrency: Positive | None = None
    """Trials at once; null is as many as there are CPUs (or GPUs) for."""
    metric: Literal["dsc_strict", "dsc_official"] = "dsc_strict"
    """What is maximised on the validation part, where there are no `objectives`."""
    objectives: tuple[Objective, ...] = ()
    """What is made better; several give the trials that no other beats in all of them."""
    sampler: Sampler | None = None
    """How points are chosen; null is grid for a space with `cover`, else tpe."""
    pruner: Pruner = "none"
    """How trials that fall behind at validation are stopped. asha with several objectives stops those that enough
    others beat in all of them."""
    constraints: tuple[Bound, ...] = ()
    """What the networks may cost; a point over it is not trained."""
    warm_start: str | None = None
    """A sweep whose trials the sampler is to know of."""
    gpus_per_trial: Annotated[float, Field(gt=0)] | None = None
    """Of each worker of a trial: a fraction lets several trials share a GPU; null is one where there are GPUs."""
    folds: str | None = None
    """What the splits are called, without `_foldN`, where the trials are the folds of a cross-validation; null for a
    sweep."""
    study_storage: Address | None = None
    """Database of the Optuna study, or a journal file (.log); null is SQLite in the run's folder. Its password comes
    from the environment."""

    @property
    def goals(self) -> tuple[Objective, ...]:
        """The objectives, the default one included; of classifiers it is top-1."""
        metric = self.metric if isinstance(self.base, FinetuneSpec) else TOP1
        return self.objectives or (Objective(metric=metric, direction="maximize"),)

    @property
    def chosen_by(self) -> Sampler:
        """The sampler, the default one included."""
        return self.sampler or ("grid" if self.space.cover else "tpe")

    @model_validator(mode="after")
    def _sweeps_train_masks(self) -> TuneSpec:
        if self.folds is None and not isinstance(self.base, FinetuneSpec):
            raise ValueError("base: a sweep varies a fine-tuning; of classifiers there are folds alone")
        return self

    @model_validator(mode="after")
    def _gpus_can_be_given(self) -> TuneSpec:
        share = self.gpus_per_trial
        if share is None or share == 1:
            return self
        if share > 1:
            raise ValueError(f"gpus_per_trial {share:g}: a worker uses one GPU; set cluster.workers for more")
        if (self.base.cluster.workers or 1) > 1:
            raise ValueError(f"gpus_per_trial {share:g}: a share of a GPU is for trials of one worker")
        return self

    @model_validator(mode="after")
    def _grid_ends(self) -> TuneSpec:
        if self.sampler == "grid" and (endless := self.space.endless()) is not None:
            raise ValueError(
                f"sampler grid: is for finite spaces, and params.{endless} is a range of floats; give it a step"
            )
        return self

    @model_validator(mode="after")
    def _objectives_fit(self) -> TuneSpec:
        names = [goal.metric for goal in self.goals]
        if len(set(names)) < len(names):
            raise ValueError(f"objectives: {next(n for n in names if names.count(n) > 1)} appears twice")
        if len(names) > 1 and self.sampler == "cmaes":
            raise ValueError("sampler cmaes: is for one objective; use tpe, nsga2, nsga3 or gp")
        if len(names) == 1 and self.sampler == "nsga3":
            raise ValueError("sampler nsga3: is for several objectives; use tpe, gp or cmaes")
        if len(names) > 1 and self.pruner in ("median", "hyperband"):
            raise ValueError(f"pruner {self.pruner}: is for one objective; with several use asha")
        return self

    @model_validator(mode="after")
    def _pruned_on_what_is_validated(self) -> TuneSpec:
        if self.pruner == "none":
            return self
        train, known = self.base.train, [g for g in self.goals if g.validation_metric or g.metric in (*SIZES, LATENCY)]
        if late := [goal.metric for goal in self.goals if goal not in known]:
            raise ValueError(
                f"pruner {self.pruner}: {late[0]} is not known before a trial ends; use dsc_strict, or pruner none"
            )
        if not any(goal.validation_metric for goal in self.goals):
            raise ValueError(f"pruner {self.pruner}: no objective changes while a trial trains; use pruner none")
        every = self.space.params.get("train.validate_every")
        if every is None and (train.validate_every == 0 or train.validate_every >= train.epochs):
            when = "never validates" if train.validate_every == 0 else "validates only after the last epoch"
            raise ValueError(f"pruner {self.pruner}: the recipe {when}; set train.validate_every=1, or use pruner none")
        return self


JOBS: dict[str, type[JobSpec]] = {
    "pretrain": PretrainSpec,
    "finetune": FinetuneSpec,
    "evaluate": EvaluateSpec,
    "predict": PredictSpec,
    "tune": TuneSpec,
    "serve": ServeSpec,
}
