"""Whether a data set is what its manifest says: every shard, sample and split, without the source."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.data.images import files as image_files
from rwkvctl.data.images import looks
from rwkvctl.data.store import bucket, index, quarantine
from rwkvctl.data.store.case_forms import groups_of
from rwkvctl.data.store.leaks import with_duplicates
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.quarantine import Damaged, Quarantine
from rwkvctl.data.store.reader import Reader
from rwkvctl.data.store.schema import FILE_NAME, Shard
from rwkvctl.data.store.shard_check import shard_problem
from rwkvctl.data.store.splits import PARTS

ADOPTED_FORM = "timm"

Progress = Callable[[str, int, int], None]


@dataclass
class Report:
    """The result of `verify`. `problems` is empty for a sound data set; each is one line."""

    root: str
    dataset: str = ""
    fingerprint: str = ""
    shards: int = 0
    samples: int = 0
    decoded: bool = False
    splits: dict[str, dict[str, int]] = field(default_factory=dict)
    quarantined: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.problems


def verify(root: Path | str, deep: bool = False, progress: Progress | None = None, set_apart: bool = False) -> Report:
    """Check everything that can be checked without the source.

    Shard hashes; tar headers against the index; json, masks and labels of every sample (with `deep` also the pixels
    of every image); splits: known ids, disjoint parts, counts, shared groups. UserError when `root` is no data set.

    With `set_apart`, samples whose bytes are damaged are no problem but go into quarantine (`store.quarantine`):
    whatever reads the folder from then on leaves them out. A folder that is sound again comes out of it.
    """
    folder = bucket.local_path(root)
    if set_apart and folder is None:
        raise UserError(f"--quarantine: is for a data set on a disk; upload the damaged files of {root} again")
    report = Report(str(folder or root), decoded=deep)
    try:
        manifest = Manifest.load(root, whole=True)
        report.dataset, report.fingerprint = manifest.dataset, manifest.fingerprint
        report.shards, report.samples = len(manifest.shards), len(manifest.read_index())
    except UserError as error:
        if folder is None or not (folder / FILE_NAME).exists():
            raise
        report.problems.append(str(error))
        return report
    damaged: dict[str, Damaged] | None = {} if set_apart else None
    for number, shard in enumerate(manifest.shards):
        try:
            manifest.shard_files.path(number)  # fetched from an object store, where it can be absent or damaged
            _check_shard(manifest, shard, report, damaged)
        except UserError as error:
            report.problems.append(str(error))
        if progress:
            progress("shards", number + 1, len(manifest.shards))
    if report.ok:  # samples of a damaged shard would only repeat what is known
        own_groups = _check_samples(manifest, deep, report, progress, set_apart)
        _check_splits(manifest, with_duplicates(manifest, own_groups), report)
    if damaged is not None and report.ok:
        found = Quarantine(fingerprint=manifest.fingerprint, samples=report.quarantined, shards=damaged)
        quarantine.store(manifest.root, found if damaged or report.quarantined else None)
    return report


def _check_shard(manifest: Manifest, shard: Shard, report: Report, damaged: dict[str, Damaged] | None) -> None:
    """`damaged` takes a shard file that is there but is not that of the manifest; None: that is a problem."""
    path = manifest.root / shard.name
    problem = shard_problem(manifest.root, shard, remembered=False)
    if problem and damaged is not None and path.is_file():
        damaged[shard.name] = Damaged(bytes=path.stat().st_size, sha256=files.sha256_file(path))
        return
    if problem:
        report.problems.append(problem + (_which_samples(manifest, shard) if path.is_file() else ""))
        return
    try:
        entries = list(index.entries_of_tar(path))
    except (ValueError, OSError, tarfile.TarError) as error:
        report.problems.append(f"{path}: {error}")
        return
    if index.encode(entries) != (manifest.root / shard.index_name).read_bytes():
        report.problems.append(f"{manifest.root / shard.index_name}: does not describe {shard.name}")
    keys = [key for key, _ in entries]
    if (len(keys), keys[:1], keys[-1:]) != (shard.n, [shard.first], [shard.last]):
        report.problems.append(f"{path}: holds {len(keys)} samples, the manifest says {shard.n}")


def _which_samples(manifest: Manifest, shard: Shard) -> str:
    """Which samples of a damaged shard it is that are not as they were written."""
    rows = np.flatnonzero(manifest.index.shard == manifest.shards.index(shard))
    reader, bad = Reader(manifest, rows), list[str]()
    for row in range(len(reader)):
        try:
            reader.check(row)
        except UserError:
            bad.append(reader.key(row))
    more = f" and {len(bad) - 1} more" if len(bad) > 1 else ""
    return f": {bad[0]}{more}; --quarantine lists them and goes on without" if bad else ""


def _check_samples(
    manifest: Manifest, deep: bool, report: Report, progress: Progress | None, set_apart: bool
) -> dict[str, str | None]:
    """Read every sample; returns the leak group of each."""
    reader = Reader(manifest)
    groups: dict[str, str | None] = {}
    few_levels = 0
    for row in range(len(reader)):
        key = reader.key(row)
        try:
            groups[key] = _check_sample(manifest, reader, row, deep)
            few_levels += _has_few_levels(manifest, reader, row, deep)
            if set_apart:  # also what the checks above do not look at
                reader.check(row)
        except UserError as error:
            if set_apart:
                report.quarantined[key], groups[key] = str(error), None
            else:
                report.problems.append(str(error))
        except ValueError as error:
            report.problems.append(f"{key}: {error}")
        if progress:
            progress("samples", row + 1, len(reader))
    if few_levels:
        report.warnings.append(
            f"{few_levels} of {len(reader)} images have {looks.FEW_LEVELS}: look at them with data show --sheet"
        )
    if report.samples != manifest.content.counts.get("samples"):
        report.problems.append(f"{report.samples} samples, the manifest counts {manifest.content.counts['samples']}")
    return groups


def _check_sample(manifest: Manifest, reader: Reader, row: int, deep: bool) -> str | None:
    """The sample's group; ValueError or UserError for what is wrong with it."""
    meta = reader.meta(row)
    adopted = manifest.content.source.form == ADOPTED_FORM  # somebody else wrote these samples
    if not adopted and (meta.get("id") != reader.key(row) or meta.get("dataset") != manifest.dataset):
        raise ValueError(f"its json belongs to {meta.get('dataset')}/{meta.get('id')}")
    size = reader.image(row).shape[:2] if adopted else tuple(meta["orig_size"])
    if manifest.task == "classification":
        label = reader.label(row)
        if label >= len(manifest.classes):
            raise ValueError(f"label {label}, there are {len(manifest.classes)} classes")
    elif meta.get("labeled", True):
        mask = reader.mask(row)
        values = np.unique(mask)
        unknown = values[(values >= len(manifest.classes)) & (values != manifest.ignore_index)]
        if len(unknown):
            raise ValueError(f"mask value {unknown[0]}, there are {len(manifest.classes)} classes")
        if mask.shape[-2:] != size:
            raise ValueError(f"mask of {mask.shape}, its json says {size}")
    if deep:
        image = reader.image(row)
        if manifest.channels > 1 and image.shape[-1] != manifest.channels:
            raise ValueError(f"image of {image.shape}, the manifest says {manifest.channels} channels")
        shape = image.shape[:-1] if manifest.channels > 1 else image.shape
        if shape[-2:] != size:
            raise ValueError(f"image of {image.shape}, its json says {size}")
        if image.dtype != (np.uint8 if manifest.image_kind == "rgb8" else np.float32):
            raise ValueError(f"image of type {image.dtype}")
    return meta.get("group_id")


def _has_few_levels(manifest: Manifest, reader: Reader, row: int, deep: bool) -> bool:
    """Whether an image shows next to nothing; without `deep` as `prepare` noted it."""
    if manifest.image_kind != "rgb8":
        return False
    if not deep:
        return looks.FEW_LEVELS in str(reader.meta(row).get("image_note", ""))
    return looks.has_few_levels(image_files.grey_copy(reader.read(row, "jpg" if reader.has(row, "jpg") else "png")))


def _check_splits(manifest: Manifest, groups: dict[str, str], report: Report) -> None:
    for name, entry in manifest.splits.items():
        try:
            ids = manifest.split_ids(name)
        except UserError as error:
            report.problems.append(str(error))
            continue
        report.splits[name] = {part: len(ids[part]) for part in PARTS}
        if report.splits[name] != entry.counts:
            report.problems.append(f"split {name}: {report.splits[name]}, the manifest says {entry.counts}")
        if manifest.has_volumes:
            groups = groups_of(groups, (key for part in PARTS for key in ids[part]))
        unknown = [key for part in PARTS for key in ids[part] if key not in groups]
        if unknown:
            report.problems.append(f"split {name}: {len(unknown)} ids are in no shard, first {unknown[0]}")
        _check_disjoint(name, ids, groups, report)


def _check_disjoint(name: str, ids: dict[str, list[str]], groups: dict[str, str], report: Report) -> None:
    for part in PARTS:
        if len(set(ids[part])) != len(ids[part]):
            report.problems.append(f"split {name}: {part} names a sample twice")
    held_out = set(ids["val"]) | set(ids["test"])
    both = set(ids["train"]) & held_out
    if both:
        report.problems.append(f"split {name}: {len(both)} samples are in train and held out, first {min(both)}")
    if ids["val"] and ids["val"] == ids["test"]:
        report.warnings.append(f"split {name}: val and test are the same samples")
    elif set(ids["val"]) & set(ids["test"]):
        report.problems.append(f"split {name}: val and test share {len(set(ids['val']) & set(ids['test']))} samples")
    train = {groups.get(key) for key in ids["train"]} - {None}
    leaks = {part: sum(groups.get(key) in train for key in ids[part]) for part in PARTS[1:]}
    if any(leaks.values()):
        counts = " and ".join(f"{n} of {len(ids[part])} {part} samples" for part, n in leaks.items() if n)
        report.warnings.append(
            f"split {name}: {counts} are of groups (patients, sequences, duplicates) that train has too"
        )
