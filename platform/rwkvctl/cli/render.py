"""`--render kuberay | slurm`: print a job for somebody else to start. Nothing is started, no cluster is asked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvctl.base.errors import UserError
from rwkvctl.base.suggestions import did_you_mean
from rwkvctl.config import settings
from rwkvctl.config.specs import load
from rwkvctl.config.specs.jobs import FinetuneSpec, JobSpec, PretrainSpec, TuneSpec
from rwkvctl.config.specs.sweep import check_space, trial_spec
from rwkvctl.launch import preflight

if TYPE_CHECKING:
    from rwkvctl.data.store.manifest import Manifest

TARGETS = ("kuberay", "slurm")


def check_options(target: str, *, address: str | None, resume: str | None, dry_run: bool, as_json: bool) -> None:
    """Refuse another target, and options that say what a started job does."""
    if target not in TARGETS:
        raise UserError(f"--render {target!r}: must be kuberay or slurm ({did_you_mean(target, TARGETS)})")
    if resume is not None:
        raise UserError(
            "--render with --resume: leave out --resume; a rendered job continues the run of its --name by itself"
        )
    if address is not None:
        raise UserError("--render with --address: leave out --address; a rendered job has a cluster of its own")
    if dry_run or as_json:
        raise UserError(f"--render with {'--dry-run' if dry_run else '--json'}: give one of the two")


def recipe_unseen(job: str, recipe: str | None, data: str | None, assignments: list[str]) -> str | None:
    """The recipe of data that only the cluster sees: it cannot be asked for it here. None lets the data decide."""
    if data is None or seen(data):
        return recipe
    if recipe is None and job == "pretrain":
        note(f"recipe imagenet: the default for pretraining; data {data} is not readable from here")
        recipe = "imagenet"
    if recipe is None:
        raise UserError(
            f"data {data}: is not readable from here, so name its recipe, for example: rwkvctl {job} acdc --data {data}"
        )
    data_fields = load.merge(load.read_recipe(recipe), load.parse_assignments(assignments)).get("data") or {}
    if data_fields.get("dataset") is None:
        raise UserError(
            f"recipe {recipe}: is for any data set, and data {data} is not readable from here; "
            "say what it is called with --set data.dataset=NAME"
        )
    return recipe


def seen(data: str) -> Manifest | None:
    """The manifest of a data set, if it lies in a folder of this machine; a bucket is left to the job."""
    from rwkvctl.data.store.manifest import Manifest

    if "://" in data:
        return None
    try:
        return Manifest.load(data)
    except (UserError, OSError):
        return None


def readable(data: str | None) -> str | None:
    """The data, if they can be read from this machine."""
    return data if data is not None and seen(data) else None


def checked(spec: JobSpec) -> JobSpec:
    """The spec itself, after what `--dry-run` checks without networks, as far as the data's manifest can be read."""
    if isinstance(spec, TuneSpec):
        preflight.check_trial_workers(spec)
        check_space(spec)
    training = trial_spec(spec.base, {}) if isinstance(spec, TuneSpec) else spec
    if not isinstance(training, PretrainSpec | FinetuneSpec):
        return spec
    assert training.data.path is not None, "the data path is resolved before a job is rendered"
    if seen(training.data.path) is None:
        note(f"data {training.data.path}: not readable from here; the job checks it when it starts")
    else:
        preflight.check_training(training, shards=False)
    return spec


def print_job(target: str, spec: JobSpec) -> None:
    """The manifest or the script of a job, on standard output."""
    from rwkvctl.launch.render import job, kuberay, places, slurm

    machine = settings.load()
    arguments = sys.argv[1:]
    if target == "kuberay":
        rendered = job.rendered_job(spec, arguments, machine, lambda found: places.in_pods(checked(found), machine))
        text = kuberay.render(rendered)
    else:
        rendered = job.rendered_job(spec, arguments, machine, lambda found: places.Placed(checked(found)))
        text = slurm.render(rendered, environment=Path(sys.executable).parents[1])
    if spec.cluster.gpus_per_node is None and spec.cluster.workers is None and rendered.gpus_per_node:
        note("1 GPU per node; another number: --gpus-per-node (0 trains on CPUs)")
    for here, there in rendered.copies:
        note(f"copy {here} to {there} on the volume before you submit it")
    print(text, end="")


def note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr, flush=True)
