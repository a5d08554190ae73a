"""What can be found to be wrong before anything is started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvctl.base.errors import UserError
from rwkvctl.base.names import model_name_problem
from rwkvctl.base.processes import available_cpus
from rwkvctl.config.specs.augment import COLOUR
from rwkvctl.config.specs.jobs import FinetuneSpec, JobSpec, PredictSpec, PretrainSpec, TrainingSpec, TuneSpec
from rwkvctl.config.specs.parts import ClusterSpec
from rwkvctl.config.specs.sweep import Trial, check_space, trial_spec
from rwkvctl.data.store.case_ids import cases_of
from rwkvctl.data.store.splits import folds_of
from rwkvctl.registry.release import registered_name
from rwkvctl.runs import journal_mirrors

if TYPE_CHECKING:
    from torch import nn

    from rwkvctl.data.store.manifest import Manifest

TASKS = {"pretrain": "classification", "finetune": "segmentation"}


def check_cluster(cluster: ClusterSpec) -> None:
    """Refuse workers that this machine cannot run; a cluster's resources are checked once it is connected."""
    if cluster.address is None and cluster.least_nodes > 1:
        raise UserError(
            f"cluster.nodes {cluster.nodes} needs a cluster: give --address HOST:PORT, "
            "or set it once with: rwkvctl config set address HOST:PORT"
        )
    if cluster.launcher == "process":
        check_process(cluster)
    if cluster.address is not None or cluster.launcher == "process":
        return
    cpus = available_cpus()
    needed = (cluster.workers or 1) * cluster.cpus_per_worker
    if needed > cpus:
        raise UserError(
            f"cluster.workers {cluster.workers or 1} x cluster.cpus_per_worker {cluster.cpus_per_worker} needs "
            f"{needed} CPUs, this machine has {cpus}: use --workers {max(1, cpus // cluster.cpus_per_worker)}"
        )


def check_process(cluster: ClusterSpec) -> None:
    """Refuse more workers in process than torchrun has started."""
    wanted, have = cluster.workers or 1, int(os.environ.get("WORLD_SIZE", "1"))
    if wanted not in (1, have):
        raise UserError(
            f"cluster.workers {wanted} with the process launcher needs torchrun --nproc-per-node {wanted} "
            f"(this process is one of {have}), or cluster.launcher=ray"
        )


def check_training(spec: TrainingSpec, *, shards: bool = True) -> Manifest:
    """The data of a training job: present, undamaged, for the right task, with samples in every part that is needed.

    A shard is hashed the first time that this machine meets it; afterwards its size and time are enough. Without
    `shards` the manifest alone is read.
    """
    from rwkvctl.data.store.shard_check import check_shards

    manifest = load_manifest(spec)
    task = TASKS[spec.job]
    if manifest.task != task:
        raise UserError(f"data {manifest.location}: is for {manifest.task}, and {spec.job} needs {task}")
    split = spec.data.split or manifest.default_split
    if isinstance(spec, FinetuneSpec) and spec.volumes is not None:
        from rwkvctl.models.plan_volumes import planned

        spec = planned(spec, manifest)
    samples = training_samples(spec, manifest)
    if spec.train.tail == "drop" and samples < spec.train.batch_size:
        raise UserError(
            f"train.batch_size {spec.train.batch_size} is more than the {samples} training samples of split {split}: "
            "use a smaller batch, or train.tail=wrap"
        )
    scored = spec.train.validate_every > 0 or spec.job == "pretrain"  # which says its top-1 at the end in any case
    parts = ["train", "val"] if scored else ["train"]
    used = [key for part in parts for key in manifest.ids(split, part)]
    if isinstance(spec, FinetuneSpec) and spec.consistency is not None:
        unlabeled = manifest.unlabeled_ids()
        if not unlabeled:
            raise UserError(f"consistency: data {manifest.location} has no unlabeled images; set it to null")
        used += unlabeled
    if shards:
        check_shards(manifest, used)
    check_name(spec)
    check_augment(spec, manifest)
    check_batch(spec, manifest)
    return manifest


def training_samples(spec: TrainingSpec, manifest: Manifest) -> int:
    """Images and slices in a pass over the training part, or patches of volumes."""
    ids = manifest.ids(spec.data.split, "train")
    if isinstance(spec, FinetuneSpec) and spec.volumes is not None:
        return len(cases_of(ids)) * spec.volumes.patches_per_case
    return len(ids)


def check_augment(spec: TrainingSpec, manifest: Manifest) -> None:
    """Refuse changes of colour, asked for by name, of images that have none; a preset leaves them out."""
    if not isinstance(spec, FinetuneSpec):
        return
    asked = [f"augment.{name}" for name in left_out(spec, manifest) if name in spec.augment.own()]
    if asked:
        raise UserError(
            f"{', '.join(asked)}: the images of {manifest.location} are grey and have no colours; set it to 0"
        )


def left_out(spec: TrainingSpec, manifest: Manifest) -> list[str]:
    """The steps of augmentation that grey images go without."""
    if not isinstance(spec, FinetuneSpec) or manifest.image_kind == "rgb8":
        return []
    return [name for name in COLOUR if getattr(spec.augment, name)]


def check_name(spec: TrainingSpec) -> None:
    """Refuse a name that the model cannot be registered under, given or derived."""
    name = registered_name(spec)
    if name and (problem := model_name_problem(name)) is not None:
        raise UserError(f"{problem}; set tracking.register_as to another name, or to '' to register nothing")


def check_batch(spec: TrainingSpec, manifest: Manifest) -> None:
    """Refuse one image per worker whose deepest feature map is a single pixel: batch norm has no statistics then."""
    workers = spec.cluster.workers or 1
    each = spec.train.micro_batch or spec.train.batch_size // workers
    if spec.train.batch_norm != "local":  # auto is sync for so few
        each *= workers
    unlabeled = isinstance(spec, FinetuneSpec) and spec.consistency is not None
    if each > 1 or unlabeled:
        return
    if isinstance(spec, FinetuneSpec) and spec.volumes is not None:
        check_patches(spec, manifest, each)
        return
    size, channels = spec.data.image_size, manifest.channels
    if trains(spec, manifest, (each, channels, size, size)):
        return
    larger = next((s for s in (32, 64, 128) if s > size and trains(spec, manifest, (each, channels, s, s))), None)
    raise UserError(
        f"train.batch_size {spec.train.batch_size}: one image of {size} px at a time gives batch norm "
        f"one value per channel; use train.batch_size={2 * workers}"
        + (f" or data.image_size={larger}" if larger else "")
    )


def check_patches(spec: FinetuneSpec, manifest: Manifest, each: int) -> None:
    """The same of patches."""
    from rwkvctl.models import build

    shape = build.input_shape(spec, manifest.channels)
    if not trains(spec, manifest, (each, *shape)):
        raise UserError(
            f"train.batch_size {spec.train.batch_size}: one patch of {build.sides(shape[1:])} voxels at a time gives "
            f"batch norm one value per channel; use train.batch_size={2 * (spec.cluster.workers or 1)} or a larger "
            "volumes.patch"
        )


def check_options(spec: TrainingSpec, manifest: Manifest) -> None:
    """Refuse what the network or the optimiser does not have."""
    from rwkv_unet.decoder import UpBlock
    from rwkv_unet.rwkv_unet_enc import GLSP
    from rwkvctl.training import optimizer

    model = weightless(spec, manifest)
    optimizer.check(model, spec.optimizer)
    if isinstance(spec, FinetuneSpec) and spec.freeze_encoder and optimizer.encoder_of(model) is None:
        raise UserError(f"freeze_encoder: {spec.model.name} has no encoder; set it to 0")
    if isinstance(spec, FinetuneSpec) and spec.freeze_encoder and optimizer.keeps_its_encoder(model):
        raise UserError(f"freeze_encoder: {spec.model.name} keeps its encoder's weights in every epoch; set it to 0")
    if isinstance(spec, FinetuneSpec) and spec.volumes is not None and spec.model.encoder_weights is not None:
        raise UserError(
            f"model.encoder_weights: {spec.model.name} has no encoder that can be initialised from weights; "
            "leave it out"
        )
    if spec.train.activation_checkpointing and not any(isinstance(x, GLSP | UpBlock) for x in model.modules()):
        raise UserError("train.activation_checkpointing: only blocks of RWKV-UNet have it; set it to false")


def weightless(spec: TrainingSpec, manifest: Manifest) -> nn.Module:
    """The network of a training on the meta device."""
    import torch

    from rwkvctl.models import build

    assert isinstance(spec, PretrainSpec | FinetuneSpec)
    with torch.device("meta"):
        if isinstance(spec, FinetuneSpec):
            return build.segmentation_network(build.trained(spec), manifest.classes, manifest.channels)
        return build.classifier(spec.model, manifest.classes)


def trains(spec: TrainingSpec, manifest: Manifest, shape: tuple[int, ...]) -> bool:
    """Whether the network takes a batch (B, C, [D,] H, W) in training mode; run on the meta device."""
    import torch

    model = weightless(spec, manifest)
    with torch.device("meta"):
        try:
            model.train()(torch.empty(shape))
        except ValueError as error:
            if "more than 1 value per channel" in str(error):
                return False
            raise
    return True


def load_manifest(spec: TrainingSpec) -> Manifest:
    """The manifest of a job's data; when there is none, the error names the command that makes it."""
    from rwkvctl.data.convert import formats
    from rwkvctl.data.store.manifest import Manifest

    assert spec.data.path is not None, "the data path is resolved before a job is submitted"
    if "://" not in spec.data.path and not (Path(spec.data.path) / "manifest.json").exists():
        known = spec.data.dataset in formats.NAMES
        form = spec.data.dataset if known else "folder" if isinstance(spec, FinetuneSpec) else "imagefolder"
        raise UserError(
            f"data {spec.data.path}: no prepared data set here; make it with: "
            f"rwkvctl data prepare {form} --source DOWNLOAD --out {spec.data.path}"
        )
    return Manifest.load(spec.data.path)


def check_storage(spec: JobSpec) -> None:
    """What cannot be kept in an object store yet."""
    if "://" not in (spec.storage or ""):
        return
    if isinstance(spec, TuneSpec):
        raise UserError(f"storage {spec.storage}: a sweep cannot be kept in an object store; give --set storage=FOLDER")


def check_mirrors(spec: JobSpec) -> None:
    """What the run is to be shown in is installed; masks are not shown anywhere."""
    if not isinstance(spec, PredictSpec):
        journal_mirrors.check(spec.tracking.mirrors or ())


def check(spec: JobSpec, *, networks: bool = True) -> None:
    """Everything above, for any job; without `networks` those of a sweep are not built."""
    check_cluster(spec.cluster)
    check_storage(spec)
    if not (spec.cluster.address or "").startswith(("http://", "https://")):  # whose driver looks for itself
        check_mirrors(spec)
    if isinstance(spec, PretrainSpec | FinetuneSpec):
        check_training(spec)
    if isinstance(spec, TuneSpec):
        check_sweep(spec, networks=networks)


def check_sweep(spec: TuneSpec, *, networks: bool = True) -> None:
    """The fields of the space, the data that its trials are scored on, and every network that they would train."""
    trials = check_space(spec)
    manifest = check_training(trial_spec(spec.base, {}))
    by_data = {trial.model_dump_json(include={"data", "train", "augment", "consistency"}): trial for trial in trials}
    for trial in by_data.values():
        try:
            check_training(trial)
        except UserError as error:
            raise UserError(f"space {spec.space_name}: {error}") from None
    if networks:
        check_networks(spec, trials, manifest)


def check_trial_workers(spec: TuneSpec) -> None:
    """Refuse several workers for a trial in a rendered job, whose workers are trials."""
    if (spec.base.cluster.workers or 1) > 1:
        raise UserError("cluster.workers: a trial runs on one worker; leave it out and set --concurrency")


def check_networks(spec: TuneSpec, trials: Sequence[Trial], manifest: Manifest) -> None:
    """Every network of a sweep can be built, and takes the images."""
    from rwkvctl.models import build
    from rwkvctl.models.plan_volumes import planned

    by_network = {
        (trial.model.model_dump_json(), trial.deep_supervision, trial.data.image_size, trial.volumes): trial
        for trial in trials
        if isinstance(trial, FinetuneSpec)  # classifiers of folds are all alike
    }
    for trial in by_network.values():
        try:
            trial = planned(trial, manifest)
            build.check(build.trained(trial), manifest.classes, build.input_shape(trial, manifest.channels))
        except UserError as error:
            raise UserError(f"space {spec.space_name}: {error}") from None


def sweep_plan(spec: TuneSpec, manifest: Manifest) -> dict[str, str]:
    """How many trials there will be, and on what they are compared; of folds, what each holds out."""
    if spec.folds is not None:
        held_out = [len(manifest.ids(split, "val")) for split in folds_of(spec.folds, manifest.splits)]
        return {"folds": f"{spec.folds}, one model each; cases held out: {', '.join(map(str, held_out))}"}
    size, split = spec.space.size(), spec.base.data.split or manifest.default_split
    trials = f"{spec.trials}" if size is None else f"{min(spec.trials, size)} of the space's {size} points"
    when = "as often as the recipe validates"
    if spec.base.train.validate_every == 0:
        when = "once, the last weights, since train.validate_every is 0"
    val, test = (manifest.split_ids(split)[part] for part in ("val", "test"))
    shared = len(set(val) & set(test))
    scored = f"on the {len(val)} val cases of split {split}, {when}"
    if shared:
        apart = [name for name in manifest.splits if has_own_val(manifest, name)]
        scored += f"; {shared} of them are also test cases" + (f" (none with data.split={apart[0]})" if apart else "")
    return {"trials": trials, "scored": scored}


def has_own_val(manifest: Manifest, split: str) -> bool:
    """Whether a split has validation cases, and none of them is a test case."""
    parts = manifest.split_ids(split)
    return bool(parts["val"]) and not set(parts["val"]) & set(parts["test"])
