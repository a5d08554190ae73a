"""From a resolved spec to a finished job: the run's folder, the submission, what is printed at the end."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rwkvctl.base.errors import UserError
from rwkvctl.base.exit_codes import USER_ERROR
from rwkvctl.cli.render import print_job
from rwkvctl.config import settings
from rwkvctl.config.specs.jobs import (
    EvaluateSpec,
    FinetuneSpec,
    JobSpec,
    PredictSpec,
    PretrainSpec,
    TrainingSpec,
    TuneSpec,
)
from rwkvctl.config.specs.load import dump
from rwkvctl.launch import observe, preflight
from rwkvctl.launch.address import reach
from rwkvctl.launch.cluster_job import useful
from rwkvctl.launch.submit import submit
from rwkvctl.registry import references
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import mirror, stop


def start(
    job: str,
    spec: JobSpec,
    *,
    resume: str | None,
    dry_run: bool,
    as_json: bool,
    first_line: str | None = None,
    render: str | None = None,
    detach: bool = False,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Check, then run a job in a new run or in the one that is continued; leaves with the job's exit code. With
    `render` it is printed instead; with `detach` it is only started. `more` is what else `--dry-run` says.

    Checked here is what takes no torch, whose import takes seconds: the job itself checks all before it begins.
    """
    if render is not None:
        if first_line is not None:
            print(first_line, file=sys.stderr, flush=True)
        print_job(render, spec)
        return
    storage = spec.storage or settings.load().storage
    preflight.check(spec, networks=dry_run)
    continued = run_to_continue(job, spec, resume, storage)
    check_models(spec, continued, networks=dry_run)
    if dry_run:
        show_plan(spec, more or {}, as_json=as_json)
    else:
        if continued is not None:
            refuse_running(continued)
        spec = reached(spec)
    if first_line is not None:
        print(first_line, file=sys.stderr, flush=True)
    if dry_run:
        return
    run_dir = run_folder.create(spec, storage) if continued is None else continued
    if continued is not None:
        run_folder.adopt(continued, spec)
        stop.clear(continued)
    code = submitted(run_dir, new=continued is None, to_stderr=as_json, detach=detach)
    if code:
        sys.exit(code)
    if detach:
        show_started(run_dir, as_json=as_json)
    else:
        mirror.look(run_dir)
        show_result(job, run_dir, as_json=as_json)


def reached(spec: JobSpec) -> JobSpec:
    """The spec with the address by which its cluster is reached; UserError where it cannot be."""
    if spec.cluster.address is None or spec.cluster.launcher != "ray":
        return spec
    cluster = spec.cluster.model_copy(update={"address": reach(spec.cluster.address)})
    return spec.model_copy(update={"cluster": cluster})


def refuse_running(folder: Path) -> None:
    """UserError where a run that is to be continued is still going on."""
    found = observe.one(folder)
    if not found.ended and found.reason != observe.SILENT:
        raise UserError(
            f"run {found.run}: is {found.state}; follow it with: {run_folder.command('logs -f', folder)}, "
            f"or stop it with: {run_folder.command('stop', folder)}"
        )


def submitted(run_dir: Path, *, new: bool, to_stderr: bool, detach: bool) -> int:
    """Start the job; the exit code of what was waited for. A new run that was refused leaves nothing."""
    code = None
    try:
        code = submit(run_folder.read_spec(run_dir), run_dir, to_stderr=to_stderr, detach=detach)
    except UserError:
        code = USER_ERROR
        raise
    finally:
        if code == USER_ERROR and new:
            run_folder.discard_unbegun(run_dir)
    return code


def show_started(run_dir: Path, *, as_json: bool) -> None:
    """How to come back to a run that goes on by itself."""
    if as_json:
        print(json.dumps(observe.one(run_dir).fields(), indent=2))
        return
    print(f"run {run_dir.name} is started")
    print(useful(run_dir))


def check_models(spec: JobSpec, continued: Path | None, *, networks: bool) -> None:
    """The model that a job evaluates or predicts with is there; with `networks` the encoder that it starts from too."""
    base = spec.base if isinstance(spec, TuneSpec) else spec
    if isinstance(base, FinetuneSpec) and networks:
        from rwkvctl.registry import encoder_weights

        if continued is None or not (continued / encoder_weights.FILE_NAME).exists():
            references.check_encoder(base)
    elif isinstance(spec, EvaluateSpec):
        references.model_folder(spec.model, spec)
    elif isinstance(spec, PredictSpec):
        for model in (spec.model, *spec.ensemble):
            references.folder_or_file(model, spec)


def run_to_continue(job: str, spec: JobSpec, resume: str | None, storage: str) -> Path | None:
    """The run that `--resume` means; None where a new one is to be started."""
    if resume is None:
        return None
    found = run_folder.resume(resume, spec, storage)
    if found is not None and (kept := run_folder.read_spec(found)).job != job:
        raise UserError(f"run {found.name}: is a {kept.job} run, not {job}")
    return found


def show_plan(spec: JobSpec, more: Mapping[str, Any], *, as_json: bool) -> None:
    """`--dry-run`: the spec, and for a training what it means in parameters, MACs, steps and samples."""
    training = spec.base if isinstance(spec, TuneSpec) else spec
    plan = plan_of(training) if isinstance(training, TrainingSpec) else {}
    if isinstance(spec, TuneSpec):
        from rwkvctl.sweeps import plan as sweeps

        plan |= preflight.sweep_plan(spec, preflight.load_manifest(spec.base))
        plan |= sweeps.plan(spec, plan["steps_per_epoch"])
    plan |= more
    if as_json:
        print(json.dumps({"spec": spec.model_dump(mode="json", by_alias=True), "plan": plan}, indent=2))
        return
    print(dump(spec), end="")
    for number, trial in enumerate(plan.pop("first trials", [])):
        plan[f"trial {number}"] = sweeps.line(trial)
    for key, value in plan.items():
        print(f"# {key}: {value:,}" if isinstance(value, int) else f"# {key}: {value}")


def plan_of(spec: TrainingSpec) -> dict[str, Any]:
    """Parameters, MACs, batch arithmetic and a check of the data."""
    from rwkv_unet.flops import count_parameters
    from rwkvctl.models import build as networks

    assert isinstance(spec, FinetuneSpec | PretrainSpec)
    manifest = preflight.check_training(spec)
    if isinstance(spec, FinetuneSpec):
        from rwkvctl.models.plan_volumes import planned

        spec = planned(spec, manifest)
    preflight.check_options(spec, manifest)
    split = spec.data.split or manifest.default_split
    samples = preflight.training_samples(spec, manifest)
    model = network(spec, manifest.classes, manifest.channels)
    shape: tuple[int, ...] = (manifest.channels, spec.data.image_size, spec.data.image_size)
    if isinstance(spec, FinetuneSpec):
        shape = networks.input_shape(spec, manifest.channels)
    macs = networks.macs(model, spec.model.name, shape)
    batch = spec.train.batch_size
    steps = spec.train.epoch_steps or (samples // batch if spec.train.tail == "drop" else -(-samples // batch))
    return {
        "data": f"{manifest.location}, split {split}, fingerprint {manifest.fingerprint[:12]}, "
        + (f"{manifest.quarantined} samples in quarantine" if manifest.quarantined else "shards as in the manifest"),
        **(volumes_planned(spec) if isinstance(spec, FinetuneSpec) and spec.volumes else {}),
        "parameters": count_parameters(model),
        "macs_paper": macs.paper,
        "macs_true": macs.true,
        "training_samples": samples,
        **({"unlabeled_samples": len(manifest.unlabeled_ids())} if getattr(spec, "consistency", None) else {}),
        **(
            {"left_out": f"{' and '.join(grey)}, the images are grey"}
            if (grey := preflight.left_out(spec, manifest))
            else {}
        ),
        "batch": batch_arithmetic(spec),
        "steps_per_epoch": steps,
        "steps": steps * spec.train.epochs,
    }


def volumes_planned(spec: FinetuneSpec) -> dict[str, str]:
    """What a training on volumes was settled to."""
    assert spec.volumes is not None
    patch, spacing = spec.volumes.patch, spec.volumes.spacing
    at = "as the volumes are" if isinstance(spacing, str) else f"{' x '.join(f'{mm:g}' for mm in spacing)} mm"
    levels = ", ".join(f"{name} {value}" for name, value in spec.model.options.items())
    return {"patch": f"{' x '.join(map(str, patch))} voxels, {at}", "network": levels or "as it is"}


def batch_arithmetic(spec: TrainingSpec) -> str:
    """How a batch is shared, and over how many images batch norm takes its statistics."""
    batch, workers = spec.train.batch_size, spec.cluster.workers or 1
    parts = spec.micro_batches(workers)
    own = batch // parts
    shared = f"{batch} = {workers} workers x {own}"
    if spec.train.micro_batch:
        shared = f"{batch} = {parts} micro-batches of {own} on {workers} workers"
    together = spec.train.batch_norm == "sync" or (spec.train.batch_norm == "auto" and own < 8)
    return f"{shared}; batch norm over {own * workers if together else own} images"


def network(spec: FinetuneSpec | PretrainSpec, classes: list[str], channels: int) -> Any:
    """The model of a training, with random weights."""
    from rwkvctl.models import build as networks

    if isinstance(spec, FinetuneSpec):
        return networks.segmentation_network(networks.trained(spec), classes, channels)
    return networks.classifier(spec.model, classes)


def show_result(job: str, run_dir: Path, *, as_json: bool) -> None:
    """What a finished job leaves to read."""
    result = run_folder.result(run_dir)
    assert result is not None, "a job that ended well leaves its result"
    if as_json:
        print(json.dumps(result, indent=2))
        return
    from rwkvctl.cli import show

    show.result(job, run_dir, result)


def predict(spec: PredictSpec, *, as_json: bool) -> None:
    """Predictions leave no run behind: their folder is a temporary one."""
    named = (spec.model, *spec.ensemble)
    first, *others = (str(references.folder_or_file(model, spec)) for model in named)
    spec = spec.model_copy(update={"model": first, "ensemble": tuple(others), "named": named})
    with tempfile.TemporaryDirectory(prefix="rwkvctl-") as folder:
        start("predict", spec.model_copy(update={"storage": folder}), resume=None, dry_run=False, as_json=as_json)
