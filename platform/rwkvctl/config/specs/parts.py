"""The parts that job specs are made of: model, data, optimiser, loss, training, cluster, tracking."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BeforeValidator, Field, field_validator

from rwkvctl.base.names import model_name_problem
from rwkvctl.config.specs.base import Address, Spec
from rwkvctl.config.specs.places import check_address, check_mirrors

Positive = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
NodeRange = Annotated[str, Field(pattern=r"^[1-9]\d*(:[1-9]\d*)?$")]


def node_range(nodes: int | str | None) -> tuple[int, int]:
    """Fewest and most of `4` or `2:4`; one node where nothing is said."""
    least, _, most = str(nodes or 1).partition(":")
    return int(least), int(most or least)


def check_nodes(nodes: int | str | None) -> int | str | None:
    """`4` is a number, `2:4` a range that begins with its smaller end; ValueError for anything else."""
    if isinstance(nodes, str) and nodes.isdigit():
        return int(nodes)
    if isinstance(nodes, str) and node_range(nodes)[0] > node_range(nodes)[1]:
        raise ValueError("must be MIN:MAX, the smaller number first")
    return nodes


def check_image_size(value: int) -> int:
    if value % 16:
        below, above = value // 16 * 16, (value // 16 + 1) * 16
        raise ValueError(f"must be divisible by 16 (use {below or 16} or {above})")
    return value


VOLUMETRIC = "rwkv_unet_3d_"
"""How the names of our networks over three axes begin; those of MONAI are told to be by `options.spatial_dims`."""


class ModelSpec(Spec):
    """A segmentation model by its name, with the ablations of the paper; null or default leaves it as published."""

    name: str = "rwkv_unet_b"
    decoder_kernel_size: Positive = 9
    """Depthwise kernel of the decoder blocks, odd (Table IX)."""
    ccm: bool = True
    ccm_hidden_rate: Positive = Field(
        2,
        validation_alias=AliasChoices("ccm_hidden_rate", "ccm_hidden"),
        serialization_alias="ccm_hidden_rate",
    )
    """Hidden width of the Cross-Channel Mix over its input width (Table XIII)."""
    num_skips: Annotated[int, Field(ge=0, le=3)] = 3
    """Skip connections kept, shallow ones first (Table XII)."""
    attention: Literal["spatial_mix", "spatial_mix_2d", "mhsa", "focused_linear", "bi_mamba", "none"] = "spatial_mix"
    """Token mixer of the encoder (Table II); spatial_mix_2d decays by rows and columns apart."""
    shift: Literal["q", "omni", "deformable", "none"] = "q"
    """What the spatial mix sees beside a token: its four neighbours, depthwise convolutions, places that it chooses, or
    nothing."""
    scan: Literal["raster", "quad", "zigzag", "separable"] = "raster"
    """Order of the tokens in the spatial mix: by rows, in four directions, every other row backwards, or rows then
    columns."""
    shallow_attention: bool = False
    """Attention in stages I and II too (Table X)."""
    glsp_channel_mix: bool = False
    """Channel mix after the attention (Table XI)."""
    encoder: str | None = None
    """Another encoder by its timm name (Table VII); null is the model's own."""
    drop_path: Share | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    """Other arguments of the model's class, as `dims` of unet, `img_size` of monai:UNETR."""
    encoder_weights: Address | None = None
    """Where the encoder starts: a pretraining run, `models:/name@alias`, or a folder with a model; null is random."""

    @field_validator("decoder_kernel_size")
    @classmethod
    def _odd(cls, value: int) -> int:
        if value % 2 == 0:
            raise ValueError("must be odd")
        return value

    @property
    def takes_volumes(self) -> bool:
        """Whether it is a network over three axes."""
        return takes_volumes({"name": self.name, "options": self.options})

    def overrides(self) -> dict[str, Any]:
        """What `rwkv_unet.create_model` is given beside the name: only what differs from the default."""
        return self.model_dump(exclude={"name", "encoder_weights", "options"}, exclude_defaults=True) | self.options


def takes_volumes(model: Any) -> bool:
    """Whether a model's fields, which need not be valid, name a network over three axes."""
    if isinstance(model, ModelSpec):
        return model.takes_volumes
    if not isinstance(model, dict):
        return False
    options = model.get("options")
    return str(model.get("name")).startswith(VOLUMETRIC) or (
        isinstance(options, dict) and options.get("spatial_dims") == 3
    )


class EncoderSpec(Spec):
    """A classifier by its timm name; ours are rwkv_unet_enc_xt, _t, _s and _b."""

    name: str = "rwkv_unet_enc_b"
    drop_path: Share | None = None
    encoder_weights: Address | None = None
    """Where all but the head starts: a run, `models:/name@alias`, a model folder or a file; `pretrained` is timm's
    weights of a timm model; null is random."""

    def overrides(self) -> dict[str, Any]:
        """What `timm.create_model` is given beside the name."""
        return {} if self.drop_path is None else {"drop_path_rate": self.drop_path}


class DataSpec(Spec):
    """Which shards, which split of them, at which size."""

    dataset: str | None = None
    """Name of the data set, also its place under the data root when `path` is null; null takes the manifest's."""
    path: Address | None = None
    split: str | None = None
    """Name of a split in the manifest; null takes the manifest's default."""
    image_size: Positive = 224
    workers: Annotated[int, Field(ge=0)] = 2
    """Loader processes per training worker; 0 loads in the training process."""

    _size = field_validator("image_size")(check_image_size)


class OptimizerSpec(Spec):
    """The optimiser and its learning rate over time."""

    name: str = "adamw"
    """By its timm name (timm.optim.list_optimizers), as lamb, sgd, lion."""
    lr: Annotated[float, Field(gt=0)]
    lr_reference_batch: Positive | None = None
    """When set, the rate is scaled linearly: lr * batch_size / lr_reference_batch."""
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    schedule: Literal["cosine", "poly", "constant", "synapse_as_coded", "acdc_as_coded"] = "cosine"
    update: Literal["epoch", "step"] = "epoch"
    """Whether the rate changes after every epoch or after every step."""
    poly_power: Annotated[float, Field(gt=0)] = 0.9
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    warmup_lr: Annotated[float, Field(ge=0)] = 5e-7
    clip_grad: Annotated[float, Field(gt=0)] | None = None
    """Largest norm of the gradient; null does not clip."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Each layer of the encoder learns at this share of the rate of the layer after it; null gives all one rate."""


class LossSpec(Spec):
    """Equation 10 of the paper: alpha * CE + beta * Dice."""

    alpha: Annotated[float, Field(ge=0)] = 0.5
    beta: Annotated[float, Field(ge=0)] = 1.0


class ConsistencySpec(Spec):
    """Semi-supervised training: two augmented views of an unlabeled image must get the same prediction."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Of the mean squared error between the views' probabilities, beside the loss of the labeled images."""
    batch_size: Positive = 8
    """Unlabeled images per optimiser step, over all workers."""
    ramp_epochs: Annotated[int, Field(ge=0)] = 0
    """Epochs in which the weight rises to its value as exp(-5 (1 - t)^2) (Laine and Aila, ICLR 2017)."""


class TrainSpec(Spec):
    """How long, how much at once, and what is kept."""

    epochs: Positive
    batch_size: Positive
    """Images per optimiser step, over all workers."""
    micro_batch: Positive | None = None
    """Images of a worker's forward pass; a step adds up the gradients of all micro-batches of its batch. null: a
    worker's whole share at once."""
    batch_norm: Literal["auto", "local", "sync"] = "auto"
    """Images that batch norm takes its statistics from: those of a worker's forward pass (local), or of all workers'
    (sync). auto: sync where a worker has fewer than 8."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """auto: bf16 autocast on a GPU, fp16 with a loss scaler on one without bf16 (V100, T4), fp32 on a CPU."""
    deterministic: bool = False
    """Only operators that repeat bit for bit, on a GPU too; slower there."""
    activation_checkpointing: bool = False
    """Compute blocks again in the backward pass instead of keeping their activations: less memory, more time."""
    on_nan: Literal["stop", "skip"] = "stop"
    """At a loss or a gradient that is not finite: stop, or leave out that step's update."""
    compile: bool = False
    """Train through torch.compile: minutes at the start and at every restart, faster steps after it (not on a CPU)."""
    tail: Literal["drop", "wrap"] = "drop"
    """What happens to the last, incomplete batch of an epoch: left out, or filled from the next epoch's order."""
    epoch_steps: Positive | None = None
    """Optimiser steps that count as an epoch; null is one pass over the training part."""
    checkpoint_steps: Positive | None = None
    """A checkpoint after every so many steps, beside the one at each epoch's end."""
    validate_every: Annotated[int, Field(ge=0)] = 1
    """Epochs between validations; 0 validates never and keeps the last weights."""
    patience: Positive | None = None
    """Epochs without a better validation score after which training ends; null trains all epochs."""
    log_steps: Positive = 10
    profile_steps: Annotated[int, Field(ge=0)] = 0
    """Steps of torch's profiler, after 3 others: a trace and a table of the dearest operators among the artifacts."""


RESOLVED_AT_START = ("precision", "batch_norm")
"""Fields of `train` whose `auto` the first worker resolves, by its device and the number of workers; they stay so."""


class ClusterSpec(Spec):
    """Where it runs."""

    launcher: Literal["ray", "process"] = "ray"
    """ray: in processes of their own, on the nodes of a Ray cluster or on this machine; process: in the calling process
    (also under torchrun), which needs neither Ray nor MLflow."""
    address: Address | None = None
    """Ray cluster, HOST:PORT or the URL of its job server; null is this machine alone."""
    workers: Positive | None = None
    """Training workers over all nodes; null is one (on a cluster: nodes x GPUs per node)."""
    nodes: Annotated[Positive | NodeRange | None, AfterValidator(check_nodes)] = None
    """So many nodes, each with the same number of workers; MIN:MAX goes on with fewer when nodes are lost, and grows
    when they come back."""
    gpus_per_node: Annotated[int, Field(ge=0)] | None = None
    """Workers on each node; null asks the cluster."""
    cpus_per_worker: Positive = 1
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often in a row, without a new step between, workers are started again before the job gives up."""
    wait: Positive = 600
    """Seconds to wait for nodes that are busy or gone; then the job ends with exit code 75."""
    hang_timeout: Positive = 600
    """Seconds without any progress on any worker after which they are started again, and the stacks of all kept."""

    _address = field_validator("address")(check_address)

    @property
    def least_nodes(self) -> int:
        """The fewest nodes that the job runs on."""
        return node_range(self.nodes)[0]

    @property
    def most_nodes(self) -> int:
        """The most nodes that it makes use of."""
        return node_range(self.nodes)[1]


class TrackingSpec(Spec):
    """Where metrics and models go."""

    uri: Address | None = None
    """MLflow server; null is SQLite under the home. Credentials come from the environment, never from here."""
    experiment: Annotated[str, Field(min_length=1, max_length=500)] = "rwkvctl"
    parent: str | None = None
    """MLflow run id of the run that this one belongs to."""
    mirrors: Annotated[tuple[Literal["tensorboard", "wandb"], ...] | None, BeforeValidator(check_mirrors)] = None
    """Where the run is shown beside MLflow: tensorboard (event files in its folder), wandb; null takes the setting."""
    register_as: str | None = None
    """Name of the registered model; null derives it from the data set or the encoder, empty registers nothing."""

    @field_validator("register_as")
    @classmethod
    def _model_name(cls, value: str | None) -> str | None:
        if value and (problem := model_name_problem(value)) is not None:
            raise ValueError(problem)
        return value
