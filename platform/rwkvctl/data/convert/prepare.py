"""Raw files -> shards, index, splits, manifest: all of it or nothing."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import formats, picture_copies, pixel_range, volume_copies
from rwkvctl.data.convert.choices import options_of
from rwkvctl.data.convert.class_table import ClassTable
from rwkvctl.data.convert.conversion import RECORDS, Converted, Job, Progress, convert, is_small, layout
from rwkvctl.data.convert.discover import Problems
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.manifest_content import content
from rwkvctl.data.convert.sources import Source, open_sources
from rwkvctl.data.store import duplicates, manifest, schema
from rwkvctl.data.store.case_forms import groups_of
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.splits import PARTS, Split

LOCK = "prepare"


def prepare(
    format_name: str,
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    name: str | None = None,
    classes: Sequence[str] | ClassTable | None = None,
    ratio: str | None = None,
    split: str | None = None,
    seeds: Sequence[int] | None = None,
    groups: str | None = None,
    orientation: str | None = None,
    busi_masks: str | None = None,
    max_side: int | None = None,
    range: tuple[float, float] | None = None,
    images: str | None = None,
    more_images: tuple[str, ...] | None = None,
    masks: str | None = None,
    annotator: str | None = None,
    split_from: str | None = None,
    intensity: str | None = None,
    csv: str | None = None,
    more_csv: tuple[str, ...] | None = None,
    labels: str | None = None,
    inside: str | None = None,
    axes: str | None = None,
    allow_partial: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Manifest:
    """Convert `sources`, folders or archives, to a data set in the folder `out` and return its manifest.

    Every file is read to its end and checked. All problems are collected into one UserError, and then `out` is not
    made. Two runs over the same files give the same bytes, with any number of `workers` (default: all cores, or none
    for small sources), interrupted or not: finished shards wait in `.<name>.partial` beside `out` for the next run.
    Options that a format does not know are refused; `ratio` and `seeds` are for formats with random splits, `split` for
    those with several published ones; elsewhere it is the ratio, which was called so once. `images`, `masks` and what
    they are told apart by are for the format `pairs`, `labels` for `imagetable`.
    """
    form = formats.get(format_name)
    out = Path(out).expanduser().absolute()
    options = options_of(
        form.DATASET,
        out,
        name=name,
        allow_partial=allow_partial,
        ratio=ratio,
        groups=groups,
        split=split,
        seeds=seeds,
        classes=classes,
        orientation=orientation,
        busi_masks=busi_masks,
        max_side=max_side,
        range=range,
        images=images,
        more_images=more_images,
        masks=masks,
        annotator=annotator,
        split_from=split_from,
        intensity=intensity,
        csv=csv,
        more_csv=more_csv,
        labels=labels,
        inside=inside,
        axes=axes,
    )
    with open_sources(sources) as source:
        _refuse_bad_out(out, source.paths, overwrite)
        problems = Problems(str(source), lenient=allow_partial)
        plan = form.plan(source, options, problems)
        problems.raise_if_any()  # what names alone tell is not said after minutes of reading
        planned_splits(plan)
        plan = pixel_range.settled(plan, form.DATASET, options)
        plan = plan.settle(plan) if plan.settle else plan
        with _whole_or_nothing(out, overwrite) as folder:
            jobs = layout(plan, options, folder)
            _remove_other_files(folder, jobs)
            done = convert(jobs, workers, progress)
            problems.found += done.problems
            if problems.found and is_small(jobs):  # soon done again: leave nothing behind
                shutil.rmtree(folder / RECORDS)
            problems.raise_if_any()
            plan.excluded += problems.excluded + done.excluded
            try:
                _finish(plan, form.DATASET, options, source, folder, done)
            except UserError:  # the shards are of no use to a run with other options
                shutil.rmtree(folder / RECORDS)
                raise
    return Manifest.load(out)


def planned_splits(plan: Plan) -> dict[str, Split]:
    """The splits as names tell them, without duplicates. Whatever makes one impossible (too few samples for the ratio)
    is said before anything is converted."""
    items = {part: list(own) for part, own in plan.parts.items()}
    for part, shards in plan.adopted.items():
        items.setdefault(part, []).extend(item for _, own in shards for item in own)
    groups = {item.key: getattr(item, "group", None) for own in items.values() for item in own}
    ids = {part: [item.key for item in own] for part, own in items.items()}
    return plan.make_splits(ids, duplicates.leak_groups(groups, []))


def _refuse_bad_out(out: Path, sources: list[Path], overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise UserError(f"--out {out}: exists; give another --out or --overwrite")
    if out.exists() and not (out / schema.FILE_NAME).exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is not a data set, so it is not overwritten; give another --out")
    for source in sources:
        if out.resolve() == source.resolve() or source.resolve().is_relative_to(out.resolve()):
            raise UserError(f"--out {out}: holds the source; give another --out")


@contextmanager
def _whole_or_nothing(out: Path, overwrite: bool) -> Iterator[Path]:
    """The folder `.<out>.partial`, which takes its name when the block ends well.

    When it does not, finished shards stay there for the next run; without any the folder vanishes.
    """
    folder = out.with_name(f".{out.name}.partial")
    try:
        (folder / RECORDS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror})") from error
    old = out.with_name(f".{out.name}.old")
    with _alone_in(folder, out):
        if old.exists() and not out.exists():  # killed between the two renames below
            old.replace(out)
        try:
            yield folder
            shutil.rmtree(folder / RECORDS)
            for lock in folder.glob(f".{LOCK}.lock*"):
                lock.unlink()
            files.fsync_directory(folder)
            if overwrite and out.exists():
                out.replace(old)
            folder.replace(out)
            files.fsync_directory(out.parent)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException as error:
            finished = list((folder / RECORDS).glob("*.json"))
            if not finished:
                shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, UserError | OSError):
                text = (
                    str(error) if isinstance(error, UserError) else f"--out {out}: cannot be written ({error.strerror})"
                )
                kept = f"\n  {len(finished)} finished shards are kept in {folder}: run the same command again"
                raise UserError(text + (kept if finished else "")) from error
            raise


@contextmanager
def _alone_in(folder: Path, out: Path) -> Iterator[None]:
    """Two runs into one folder would mix their shards. The lock goes with the process that holds it."""
    with files.locked_or_refused(folder / LOCK) as alone:
        if not alone:
            raise UserError(f"--out {out}: is being prepared by another process; wait for it")
        yield


def _remove_other_files(folder: Path, jobs: Sequence[Job]) -> None:
    """What an earlier run with other choices left, and the half-written files of a killed one."""
    names = {name for job in jobs for name in (f"{job.stem}.tar", f"{job.stem}.idx", f"{job.stem}.json")}
    patterns = ("[!.]*", ".*.tmp", "index/*", f"{RECORDS}/*")  # not the lock
    for path in [path for pattern in patterns for path in folder.glob(pattern)]:
        if path.is_file() and path.name not in names:
            path.unlink()
    shutil.rmtree(folder / "splits", ignore_errors=True)


def _finish(
    plan: Plan,
    dataset: Dataset,
    options: Options,
    source: Source,
    folder: Path,
    done: Converted,
) -> None:
    """Splits and manifest, the last files of a data set."""
    records = done.records
    if not records:
        first = f"; the first: {plan.excluded[0]['why']}" if plan.excluded else ""
        raise UserError(f"{source}: no sample can be used{first}")
    if plan.image_kind == "float":  # slices of a volume are one patient anyway
        found, notes = volume_copies.found(records)
        plan.warnings[:0] = notes
    else:
        found = picture_copies.found(done, folder)
    groups = duplicates.leak_groups({r.key: r.group for r in records}, [*found.copies, *(found.near or [])])
    ids: dict[str, list[str]] = {part: [] for part in plan.parts}
    for record in records:
        ids[record.part].append(record.key)
    splits = plan.make_splits(ids, groups)
    if plan.image_kind == "float":  # splits may name slices of stored volumes, and volumes of stored slices
        groups = groups_of(groups, (key for split in splits.values() for part in PARTS for key in split.ids[part]))
    entries = {name: write_split(folder, name, split, groups) for name, split in splits.items()}
    manifest.write(folder, content(plan, dataset, options, done, entries, found))


def write_split(folder: Path, name: str, split: Split, groups: dict[str, str]) -> dict[str, Any]:
    """Write the id lists; return the split's entry in the manifest."""
    path = folder / "splits" / f"{name}.json"
    files.write_json(path, {"name": name, "rule": split.rule, "seed": split.seed, **split.ids})
    train = {groups.get(key) for key in split.ids["train"]}
    held_out = {groups.get(key) for part in PARTS[1:] for key in split.ids[part]}
    return {
        "rule": split.rule,
        "seed": split.seed,
        "sha256": files.sha256_file(path),
        "counts": {part: len(ids) for part, ids in split.ids.items()},
        "leak_groups_shared": len((train & held_out) - {None}),
    }
