"""Raw files -> shards, index, splits, manifest: all of it or nothing."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl import files
from rwkvctl.data import formats, manifest
from rwkvctl.data.discover import Problems, slug
from rwkvctl.data.formats.base import BadFile, Options, Plan, Sample
from rwkvctl.data.manifest import Manifest
from rwkvctl.data.splits import Split
from rwkvctl.data.writer import ShardWriter
from rwkvctl.errors import UserError

Progress = Callable[[str, int, int], None]
"""Called with (shard part, samples done, samples in the part)."""

MOST_SIZES_SHOWN = 20


def prepare(
    format_name: str,
    sources: Sequence[Path | str],
    out: Path | str,
    *,
    name: str | None = None,
    classes: Sequence[str] | None = None,
    split: str = "8:1:1",
    seeds: Sequence[int] = (41, 1029, 3407),
    allow_partial: bool = False,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Convert `sources` to a data set in the folder `out` and return its manifest.

    Every file is read to its end and checked. All problems are collected into one UserError, and then `out` is not
    made. Two runs over the same files give the same bytes. `split` and `seeds` are for formats without own splits.
    """
    form = formats.get(format_name)
    source_paths = [_existing(Path(source)) for source in sources]
    if not source_paths:
        raise UserError("--source: give the folder that holds the raw files")
    out = Path(out).expanduser().absolute()
    _refuse_bad_out(out, source_paths, overwrite)
    options = Options(
        dataset=_dataset_name(name or out.name),
        classes=tuple(classes) if classes else None,
        split=split,
        seeds=tuple(dict.fromkeys(seeds)),
        allow_partial=allow_partial,
    )
    _check_options(options)
    problems = Problems(str(source_paths[0]))
    plan: Plan = form.plan(source_paths, options, problems)
    with _whole_or_nothing(out, overwrite) as folder:
        records, shards = _write_samples(plan, folder, problems, progress)
        problems.raise_if_any()
        splits = plan.make_splits({part: [r.key for r in rs] for part, rs in records.items()})
        entries = {name: _write_split(folder, name, split, records) for name, split in splits.items()}
        content = _content(plan, options.dataset, list(itertools.chain(*records.values())), shards, entries)
        manifest.write(folder, content)
    return Manifest.load(out)


def _existing(source: Path) -> Path:
    source = source.expanduser().absolute()
    if not source.is_dir():
        raise UserError(f"--source {source}: {'is not a folder' if source.exists() else 'does not exist'}")
    return source


def _dataset_name(text: str) -> str:
    name = slug(text)
    if not name or len(name) > 60:
        raise UserError(f"--name {text!r}: give letters and digits, at most 60, for example clinicdb")
    return name


def _check_options(options: Options) -> None:
    if not options.seeds or any(not 0 <= seed < 2**32 for seed in options.seeds):
        raise UserError(f"--seed {list(options.seeds)}: give whole numbers from 0 to 4294967295")
    names = options.classes or ()
    if len(set(names)) != len(names) or not all(names):
        raise UserError(f"--classes {','.join(names)}: names must be different and not empty")
    if len(names) > 255:
        raise UserError(f"--classes: {len(names)} names; masks hold at most 255 classes")


def _refuse_bad_out(out: Path, sources: list[Path], overwrite: bool) -> None:
    if out.exists() and not overwrite:
        raise UserError(f"--out {out}: exists; give another --out or --overwrite")
    if out.exists() and not (out / manifest.FILE_NAME).exists() and (out.is_file() or any(out.iterdir())):
        raise UserError(f"--out {out}: exists and is not a data set, so it is not overwritten; give another --out")
    for source in sources:
        if out.resolve() == source.resolve() or source.resolve().is_relative_to(out.resolve()):
            raise UserError(f"--out {out}: holds the source; give another --out")


@contextmanager
def _whole_or_nothing(out: Path, overwrite: bool) -> Iterator[Path]:
    """A folder beside `out` that takes its name when the block ends well, and vanishes when it does not."""
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
    except OSError as error:
        raise UserError(f"--out {out}: cannot be made ({error.strerror})") from error
    old = out.with_name(f".{out.name}.{os.getpid()}.old")
    try:
        yield folder
        files.fsync_directory(folder)
        if overwrite and out.exists():
            out.replace(old)
        folder.replace(out)
        files.fsync_directory(out.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


@dataclass
class _Record:
    """What the manifest needs of a sample after its bytes are gone."""

    key: str
    sha256: str
    group: str | None
    size: tuple[int, int]
    sources: dict[str, str]
    pixels: NDArray[np.int64] | None
    note: str = field(default="")


def _write_samples(
    plan: Plan, folder: Path, problems: Problems, progress: Progress | None
) -> tuple[dict[str, list[_Record]], list[dict[str, Any]]]:
    """Read, check and write everything. After the first problem the rest is still checked, but no longer written."""
    records: dict[str, list[_Record]] = {}
    shards: list[dict[str, Any]] = []
    keys: set[str] = set()
    for part, items in plan.parts.items():
        records[part] = []
        with ShardWriter(folder, part, plan.limits) as writer:
            for done, item in enumerate(items, 1):
                try:
                    sample = plan.read(part, item)
                except BadFile as error:
                    problems.add(str(error))
                    continue
                assert sample.key not in keys, sample.key
                keys.add(sample.key)
                records[part].append(_record(sample))
                if not problems.found:
                    writer.add(sample.key, {**sample.members, "json": _json(sample.meta)})
                if progress:
                    progress(part, done, len(items))
        shards += writer.shards
    return records, shards


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _record(sample: Sample) -> _Record:
    meta = sample.meta
    note = meta.get("image_note", "")
    return _Record(
        sample.key, meta["orig_sha256"], meta.get("group_id"), sample.size, sample.sources, sample.pixels, note
    )


def _write_split(folder: Path, name: str, split: Split, records: dict[str, list[_Record]]) -> dict[str, Any]:
    """Write the id lists; return the split's entry in the manifest."""
    content = {"name": name, "rule": split.rule, "seed": split.seed, **split.ids}
    path = folder / "splits" / f"{name}.json"
    files.write_json(path, content)
    group_of = {r.key: r.group for rs in records.values() for r in rs}
    train = {group_of[key] for key in split.ids["train"]}
    held_out = {group_of[key] for part in ("val", "test") for key in split.ids[part]}
    return {
        "rule": split.rule,
        "seed": split.seed,
        "sha256": files.sha256_file(path),
        "counts": {part: len(ids) for part, ids in split.ids.items()},
        "leak_groups_shared": len((train & held_out) - {None}),
    }


def _content(
    plan: Plan, dataset: str, records: list[_Record], shards: list[dict[str, Any]], splits: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    sources = {path: digest for record in records for path, digest in record.sources.items()}
    notes = Counter(record.note for record in records if record.note)
    segmentation = plan.task == "segmentation"
    stats = _stats(records)
    absent = [name for name, share in zip(plan.classes, stats.get("pixel_fraction", []), strict=False) if not share]
    return {
        "dataset": dataset,
        "created_by": f"rwkvctl {version('rwkvctl')}",
        "source": {
            "form": plan.form,
            "files": len(sources),
            "tree_sha256": _hash_lines(sources.items()),
            "expected": plan.expected,
            "licence": plan.licence,
            "citation": plan.citation,
        },
        "task": plan.task,
        "classes": plan.classes,
        "ignore_index": 255 if segmentation else None,
        "channels": plan.channels,
        "image_kind": plan.image_kind,
        "mask_rule": plan.mask_rule,
        "intensity": plan.intensity,
        "orientation": None,
        "counts": {"samples": len(records), "labeled": len(records)},
        "excluded": plan.excluded,
        "warnings": [
            *plan.warnings,
            *(f"{n} images: {note}" for note, n in sorted(notes.items())),
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


def _stats(records: list[_Record]) -> dict[str, Any]:
    """Share of the pixels by class, and the most frequent image sizes."""
    sizes = Counter(f"{height}x{width}" for height, width in (record.size for record in records))
    stats: dict[str, Any] = {"size_hist": dict(sorted(sizes.most_common(MOST_SIZES_SHOWN)))}
    pixels = [record.pixels for record in records if record.pixels is not None]
    if pixels:
        total = np.sum(pixels, axis=0)
        stats["pixel_fraction"] = [round(float(share), 6) for share in total / total.sum()]
    return stats
