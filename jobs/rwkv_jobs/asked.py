"""Which cases an evaluation scores, by which network, and how many of them had a part in the training."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rwkvctl.base.errors import UserError
from rwkvctl.base.lineage import code_version
from rwkvctl.config.specs.jobs import EvaluateSpec
from rwkvctl.data.store import overlap
from rwkvctl.data.store.case_ids import case_of, cases_of
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.models import bundle, members
from rwkvctl.registry import measured


class Asked(NamedTuple):
    """The cases of a part of a split, in their order.

    Of a cross-validation `split` is what the folds are called, and `fold_of` the number of the fold that each case was
    held out in, which is that of the network that scores it.
    """

    split: str
    part: str
    ids: list[str]
    fold_of: dict[str, int] | None = None


def asked(spec: EvaluateSpec, manifest: Manifest, model: Path) -> Asked:
    """What is to be scored: by default the test part of the split that the model was trained on, else its val part.

    Networks over three axes are asked for whole volumes. UserError for a part without samples, and where folds do not
    fit together.
    """
    info = bundle.read_info(model)
    found = samples_asked(spec, manifest, model, info)
    if not members.sees_volumes(model):
        return found
    fold_of = None if found.fold_of is None else {case_of(key): number for key, number in found.fold_of.items()}
    return found._replace(ids=cases_of(found.ids), fold_of=fold_of)


def samples_asked(spec: EvaluateSpec, manifest: Manifest, model: Path, info: bundle.BundleInfo) -> Asked:
    """The same by the ids of the split."""
    own = [measured.split_of(bundle.read_info(member)) for member in members.folders(model)]
    if len(own) == 1 or spec.split is not None or manifest.fingerprint != info.fingerprint:
        split = spec.split or split_for(manifest, info)
        part = part_of(spec, manifest, split)
        return Asked(split, part, manifest.ids(split, part))
    name, part = measured.split_of(info), part_of(spec, manifest, own[0])
    parts = [manifest.ids(split, part) for split in own]
    if part == "test":
        if any(set(ids) != set(parts[0]) for ids in parts):
            raise UserError(f"model {spec.model}: its members have different test parts; name one with --split")
        return Asked(name, part, parts[0])
    fold_of = {key: number for number, ids in enumerate(parts) for key in ids}
    if len(fold_of) < sum(map(len, parts)):
        raise UserError(f"model {spec.model}: val parts of its members have cases in common; name a split with --split")
    return Asked(name, part, list(fold_of), fold_of)


def part_of(spec: EvaluateSpec, manifest: Manifest, split: str) -> str:
    """The part that was asked for, else test where there is one. UserError for one that the split does not have."""
    ids = manifest.split_ids(split)
    if spec.part is not None and not ids[spec.part]:
        raise UserError(
            f"--part {spec.part}: split {split} of {manifest.dataset} has no such part; leave it out to score the other"
        )
    return spec.part or ("test" if ids["test"] else "val")


def split_for(manifest: Manifest, info: bundle.BundleInfo) -> str:
    """The split that the model was trained on; of other data, where there is none of that name, the default."""
    own = measured.split_of(info)
    return (
        own if own and (own in manifest.splits or manifest.fingerprint == info.fingerprint) else manifest.default_split
    )


def measured_on(found: Asked, manifest: Manifest, model: Path) -> measured.Measured:
    """What is scored, and how much of it the network that scores it was trained on."""
    return measured.Measured(
        dataset=manifest.dataset,
        fingerprint=manifest.fingerprint,
        split=found.split,
        part=found.part,
        cases=len(found.ids),
        trained_on=trained_on(found, manifest, model),
        code=code_version(),
    )


def trained_on(found: Asked, manifest: Manifest, model: Path) -> int | None:
    """How many cases a member saw in its training, and scores; None where that is not known of every member."""
    seen: set[str] = set()
    for number, member in enumerate(members.folders(model)):
        trained = training_part(manifest, bundle.read_info(member))
        if trained is None:
            return None
        ids = [key for key in found.ids if found.fold_of is None or found.fold_of[key] == number]
        seen.update(overlap.trained_on(*trained, manifest, ids))
    return len(seen)


def training_part(manifest: Manifest, info: bundle.BundleInfo) -> tuple[Manifest, list[str]] | None:
    """The data set that a model was trained on and the ids that it saw; None where they are no longer available."""
    split, path = measured.split_of(info), info.extra.get("data")
    try:
        own = manifest if manifest.fingerprint == info.fingerprint else Manifest.load(str(path or ""))
        if own.fingerprint != info.fingerprint:
            return None
        return own, own.ids(split or None, "train")
    except UserError:
        return None
