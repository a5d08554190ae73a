"""Raw files -> shards, index, splits, manifest: all of it or nothing."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import shutil
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.data.convert import formats, pixel_range, volume_copies
from rwkvctl.data.convert.class_table import ClassTable
from rwkvctl.data.convert.conversion import RECORDS, Converted, Job, Progress, Record, convert, is_small, layout
from rwkvctl.data.convert.discover import EXAMPLES, Problems, kind_of, slug
from rwkvctl.data.convert.formats.base import Dataset, Options, Plan
from rwkvctl.data.convert.sources import Source, open_sources
from rwkvctl.data.images.masks import OUTLINE
from rwkvctl.data.store import duplicates, manifest, schema
from rwkvctl.data.store.case_forms import groups_of
from rwkvctl.data.store.index import Index
from rwkvctl.data.store.index import load as load_index
from rwkvctl.data.store.manifest import Manifest
from rwkvctl.data.store.same_picture import LEAST, Thumbnail, same_picture, thumbnail
from rwkvctl.data.store.splits import PARTS, Split

MOST_SIZES_SHOWN = 20
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


def options_of(
    dataset: Dataset,
    out: Path | str,
    *,
    name: str | None = None,
    ratio: str | None = None,
    split: str | None = None,
    seeds: Sequence[int] | None = None,
    classes: Sequence[str] | ClassTable | None = None,
    **others: Any,
) -> Options:
    """The choices of `prepare`, checked; `others` are further fields of `Options`."""
    if split is not None and "split" not in dataset.options:
        ratio, split = _only_one(ratio, split), None
    table = classes if isinstance(classes, ClassTable) else None
    names = classes.names if isinstance(classes, ClassTable) else classes
    options = Options(
        dataset=_dataset_name(name, Path(out), dataset),
        ratio=ratio,
        split=split,
        seeds=None if seeds is None else tuple(dict.fromkeys(seeds)),
        classes=tuple(names) if names else None,
        class_table=table,
        **others,
    )
    _check_options(options, dataset)
    return options


def _only_one(ratio: str | None, split: str) -> str:
    if ratio not in (None, split):
        raise UserError(f"--ratio {ratio} and --split {split}: give one ratio, with --ratio")
    return split


def planned_splits(plan: Plan) -> dict[str, Split]:
    """The splits as names tell them, without duplicates. Whatever makes one impossible (too few samples for the ratio)
    is said before anything is converted."""
    items = {part: list(own) for part, own in plan.parts.items()}
    for part, shards in plan.adopted.items():
        items.setdefault(part, []).extend(item for _, own in shards for item in own)
    groups = {item.key: getattr(item, "group", None) for own in items.values() for item in own}
    ids = {part: [item.key for item in own] for part, own in items.items()}
    return plan.make_splits(ids, duplicates.leak_groups(groups, []))


def _dataset_name(given: str | None, out: Path, dataset: Dataset) -> str:
    """What the data set calls itself: the name given, else that of what is prepared (synapse, wherever it lies); a
    generic format has none of its own, so there the folder's counts."""
    text = given or (dataset.name if dataset.expected else out.name)
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()  # part of registry names
    name = slug(plain)
    if not name or len(name) > 60:
        what = f"--name {text!r}" if given else f"--name: the folder's name {text!r} makes none"
        raise UserError(f"{what}; give letters a-z and digits, at most 60, for example --name clinicdb")
    return name


def _check_options(options: Options, dataset: Dataset) -> None:
    for field in (own.name for own in dataclasses.fields(Options) if own.name not in ("dataset", "allow_partial")):
        if getattr(options, field) is not None and field not in dataset.options:
            flag = "--" + field.replace("seeds", "seed").removeprefix("more_").replace("_", "-")
            again = (
                " a second time" if field.startswith("more_") and field.removeprefix("more_") in dataset.options else ""
            )
            raise UserError(f"{flag}{again}: {dataset.name} has no such choice; leave it out")
    if options.seeds is not None and (not options.seeds or any(not 0 <= seed < 2**32 for seed in options.seeds)):
        raise UserError(f"--seed {list(options.seeds)}: give whole numbers from 0 to 4294967295")
    names = options.classes or ()
    if len(set(names)) != len(names) or not all(names):
        raise UserError(f"--classes {','.join(names)}: names must be different and not empty")
    if len(names) > 255:
        raise UserError(f"--classes: {len(names)} names; masks hold at most 255 classes")
    if options.max_side is not None and options.max_side < 64:
        raise UserError(f"--max-side {options.max_side}: give at least 64 pixels")


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
    found, notes = _duplicates(plan, done, folder)
    plan.warnings[:0] = notes
    groups = duplicates.leak_groups({r.key: r.group for r in records}, [*found.copies, *(found.near or [])])
    ids: dict[str, list[str]] = {part: [] for part in plan.parts}
    for record in records:
        ids[record.part].append(record.key)
    splits = plan.make_splits(ids, groups)
    if plan.image_kind == "float":  # splits may name slices of stored volumes, and volumes of stored slices
        groups = groups_of(groups, (key for split in splits.values() for part in PARTS for key in split.ids[part]))
    entries = {name: write_split(folder, name, split, groups) for name, split in splits.items()}
    manifest.write(folder, _content(plan, dataset, options, records, done.shards, entries, found))


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


def _duplicates(plan: Plan, done: Converted, folder: Path) -> tuple[schema.Duplicates, list[str]]:
    """Among images by their bytes and looks; among volumes, whose slices are one patient anyway, by their voxels and
    looks. And notes."""
    records = done.records
    if plan.image_kind == "float":
        return volume_copies.found(records)
    found = schema.Duplicates(
        copies=duplicates.clusters_of_copies({r.key: r.sha256 for r in records}),
        near=duplicates.clusters_of_near({r.key: r.phash for r in records if r.phash}, _Pictures(folder, done).same),
        rule=f"copies: equal bytes; near: pHash, at most {duplicates.MOST_BITS} of 64 bits differ, and the fine "
        f"structure correlates by {LEAST}",
    )
    return found, []


class _Pictures:
    """The images in the finished shards, by key, for those that may be near-duplicates."""

    def __init__(self, folder: Path, done: Converted):
        self._folder, self._shards = folder, done.shards
        self._thumbnail = functools.lru_cache(maxsize=4096)(self._read)

    def same(self, first: str, second: str) -> bool:
        return same_picture(self._thumbnail(first), self._thumbnail(second))

    @functools.cached_property
    def _index(self) -> tuple[Index, dict[str, int]]:
        names = [(shard["name"].removesuffix(".tar"), shard["bytes"]) for shard in self._shards]
        files = [(stem, (self._folder / "index" / f"{stem}.idx").read_bytes(), size) for stem, size in names]
        index = load_index(files)
        return index, {key.decode(): row for row, key in enumerate(index.keys)}

    def _read(self, key: str) -> Thumbnail:
        index, rows = self._index
        row = rows[key]
        offset, size, _ = next(
            map(int, index.members[kind][row])
            for kind in ("jpg", "png")
            if kind in index.members and index.members[kind][row, 0] >= 0
        )
        with (self._folder / self._shards[int(index.shard[row])]["name"]).open("rb") as shard:
            shard.seek(offset)
            return thumbnail(shard.read(size))


def _duplicate_warnings(found: schema.Duplicates) -> list[str]:
    clusters = {"copies of one another": found.copies, "near-duplicates of one another": found.near or []}
    return [f"{sum(map(len, own))} images in {len(own)} clusters are {what}" for what, own in clusters.items() if own]


def _excluded_warnings(excluded: list[dict[str, str]]) -> list[str]:
    kinds = Counter(kind_of(own["why"] if ": " in own["why"] else f"{own['id']}: {own['why']}") for own in excluded)
    return [f"{n} left out: {kind}" for kind, n in kinds.items()]


def told_notes(notes: Sequence[tuple[str, str]]) -> list[str]:
    """How many images have each note, with the keys of three outlines. notes: key and notes of each image."""
    by_note: dict[str, list[str]] = {}
    for key, text in notes:
        for note in filter(None, text.split("; ")):
            by_note.setdefault(note, []).append(key)
    shown = {note: ": " + ", ".join(keys[:EXAMPLES]) if note == OUTLINE else "" for note, keys in by_note.items()}
    return [f"{len(by_note[note])} of {len(notes)} images: {note}{shown[note]}" for note in sorted(by_note)]


def _content(
    plan: Plan,
    dataset: Dataset,
    options: Options,
    records: list[Record],
    shards: list[dict[str, Any]],
    splits: dict[str, dict[str, Any]],
    found: schema.Duplicates,
) -> dict[str, Any]:
    sources = {path: digest for record in records for path, digest in record.sources.items()}
    segmentation = plan.task == "segmentation"
    stats = _stats(records)
    absent = [name for name, share in zip(plan.classes, stats.get("pixel_fraction", []), strict=False) if not share]
    return {
        "dataset": options.dataset,
        "created_by": f"rwkvctl {version('rwkvctl')}",
        "source": {
            "format": dataset.name,
            "form": plan.form,
            "files": len(sources),
            "tree_sha256": _hash_lines(sources.items()),
            "expected": dict(dataset.expected),
            "licence": dataset.licence,
            "access": dataset.access,
            "citation": dataset.citation or None,
        },
        "task": plan.task,
        "classes": list(plan.classes),
        "ignore_index": 255 if segmentation else None,
        "channels": plan.channels,
        "image_kind": plan.image_kind,
        "mask_rule": plan.mask_rule,
        "intensity": plan.intensity,
        "orientation": plan.orientation,
        **({"channel_names": list(plan.channel_names)} if plan.channel_names else {}),
        **({"channel_files": list(plan.channel_files)} if plan.channel_files else {}),
        **({"regions": [dict(region) for region in plan.regions]} if plan.regions else {}),
        "counts": {"samples": len(records), "labeled": sum(record.labeled for record in records)},
        "excluded": plan.excluded,
        "duplicates": found.model_dump(),
        "warnings": [
            *plan.warnings,
            *told_notes([(record.key, record.note) for record in records]),
            *_excluded_warnings(plan.excluded),
            *_duplicate_warnings(found),
            *(f"no mask has a pixel of class {name!r}" for name in absent),
        ],
        "shards": shards,
        "samples_sha256": _hash_lines((record.key, record.sha256) for record in records),
        "splits": splits,
        "default_split": next(iter(splits)),
        "stats": stats,
    }


def _hash_lines(pairs: Any) -> str:
    """SHA-256 of the sorted lines `name TAB hash`."""
    digest = hashlib.sha256()
    for name, value in sorted(pairs):
        digest.update(f"{name}\t{value}\n".encode())
    return digest.hexdigest()


def _stats(records: list[Record]) -> dict[str, Any]:
    """Share of the pixels by class, and the most frequent image sizes."""
    sizes = Counter(f"{height}x{width}" for height, width in (record.size for record in records))
    stats: dict[str, Any] = {"size_hist": dict(sorted(sizes.most_common(MOST_SIZES_SHOWN)))}
    pixels = [record.pixels for record in records if record.pixels is not None]
    if pixels:
        total = np.sum(pixels, axis=0)
        stats["pixel_fraction"] = [round(float(share), 6) for share in total / total.sum()]
    return stats
