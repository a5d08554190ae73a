"""`rwkvctl finetune --folds`, `pretrain --folds`: a cross-validation is a sweep whose points are a data set's folds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rwkvctl.base.errors import UserError
from rwkvctl.cli import assemble
from rwkvctl.config.specs import load
from rwkvctl.config.specs.jobs import FinetuneSpec, PretrainSpec, TuneSpec
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.splits import PARTS, folds_name, folds_of

SEED = 41


class Folds(NamedTuple):
    """What the splits are called, and the lists of each; those that the data set lacks are still to be added."""

    name: str
    splits: Mapping[str, Mapping[str, list[str]]]
    groups: Mapping[str, str] | None
    """Of every sample its leak group, where the splits are new."""

    @property
    def are_new(self) -> bool:
        return self.groups is not None


def find(manifest: Manifest, asked: str) -> Folds:
    """The folds that `--folds K` or `--folds NAME` means."""
    name = folds_name(int(asked), SEED) if asked.isdigit() else asked
    there = folds_of(name, manifest.splits)
    if len(there) > 1:
        return Folds(name, {split: manifest.split_ids(split) for split in there}, None)
    if not asked.isdigit():
        known = sorted({split.rpartition("_fold")[0] for split in manifest.splits if "_fold" in split})
        raise UserError(
            f"--folds {asked}: {manifest.dataset} has no splits {asked}_fold0, {asked}_fold1 ...; "
            + (f"it has {', '.join(known)}" if known else "give a number of folds, as --folds 5")
        )
    from rwkvctl.data.convert.resplit import planned_folds

    made, groups = planned_folds(manifest, int(asked), SEED)
    return Folds(name, {split: own.ids for split, own in made.items()}, groups)


def spec_of(base: FinetuneSpec | PretrainSpec, folds: Folds, *, concurrency: int | None, name: str | None) -> TuneSpec:
    """The sweep that trains one model a fold, in the order of their numbers."""
    refuse_nodes(base)
    fields = {
        "name": name,
        "seed": base.seed,
        "storage": base.storage,
        "cluster": base.cluster.model_dump(),
        "tracking": base.tracking.model_dump(),
        "space_name": folds.name,
        "space": {"cover": True, "params": {"data.split": {"choice": list(folds.splits)}}},
        "base": base.model_dump(mode="json", by_alias=True) | {"name": None},
        "trials": len(folds.splits),
        "concurrency": concurrency,
        "folds": folds.name,
    }
    return load.build(TuneSpec, fields, f"--folds {folds.name}")


def refuse_nodes(base: FinetuneSpec | PretrainSpec) -> None:
    """A fold trains on one node, as every trial does."""
    if base.cluster.nodes is not None:
        raise UserError("--nodes: each fold trains on one node; leave it out, and folds go side by side where they fit")
    if base.train.profile_steps:
        raise UserError("--profile: is for one training; profile it without --folds")


def add(path: str, folds: Folds) -> None:
    """Write the splits that the data set lacks."""
    if folds.are_new:
        from rwkvctl.data.convert.resplit import add_folds

        add_folds(path, len(folds.splits), SEED)


def lines(manifest: Manifest, folds: Folds) -> dict[str, str]:
    """What `--dry-run` says of each fold."""
    from rwkvctl.data.store.case_forms import groups_of
    from rwkvctl.data.store.leaks import leak_groups_of

    listed = (key for ids in folds.splits.values() for part in PARTS for key in ids[part])
    groups = groups_of(folds.groups or leak_groups_of(manifest), listed)
    found = {"folds": f"{folds.name}, {'to be added to the data set' if folds.are_new else 'in the data set'}"}
    for number, ids in enumerate(folds.splits.values()):
        of = {part: {groups.get(key, key) for key in ids[part]} for part in PARTS}
        shown = [f"{part} {len(ids[part])} ({counted(len(of[part]))})" for part in PARTS if ids[part]]
        shared = of["train"] & (of["val"] | of["test"])
        leaks = f"{counted(len(shared))} both trained on and held out" if shared else "none is torn apart"
        found[f"fold {number}"] = f"{', '.join(shown)}; {leaks}"
    return found


def refuse(concurrency: int | None) -> None:
    """What is said with `--folds` alone."""
    if concurrency is not None:
        raise UserError("--concurrency: is for --folds; leave it out")


def counted(groups: int) -> str:
    return "1 leak group" if groups == 1 else f"{groups} leak groups"


def start(
    job: str,
    asked: str,
    recipe: str | None,
    data: str | None,
    options: dict[str, Any],
    assignments: list[str],
    *,
    concurrency: int | None,
    resume: str | None,
    dry_run: bool,
    **how: Any,
) -> None:
    """Train one model a fold, in new splits or in those that the data set has."""
    from rwkvctl.cli import execute

    if resume is not None:
        raise UserError(f"--folds: the folds of a run are its own; go on with: rwkvctl run resume {resume}")

    own = dict(options)
    name = own.pop("name", None)
    base = assemble.training_spec(job, recipe, data, own, assignments, None)
    assert isinstance(base, FinetuneSpec | PretrainSpec)
    if base.data.split is not None:
        raise UserError(f"data.split {base.data.split}: --folds chooses the splits; leave it out")
    from rwkvctl.launch import preflight

    manifest = preflight.load_manifest(base)
    folds = find(manifest, asked)
    spec = spec_of(base, folds, concurrency=concurrency, name=name)
    if dry_run:
        plan = lines(manifest, folds)
        execute.start(job, base, resume=None, dry_run=True, more=plan, **how)
        return
    preflight.check(base, networks=False)  # before anything is written
    add(base.data.path or "", folds)
    execute.start("tune", spec, resume=None, dry_run=False, **how)
