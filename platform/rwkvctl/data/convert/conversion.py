"""A plan's samples -> shards, on all cores, able to go on after it was killed.

Shards are laid out before anything is read, so that each is a job of its own whose bytes depend on nothing else. A
finished shard leaves its records beside it; a later run of the same job finds them and does nothing.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rwkvctl.base import files
from rwkvctl.base.errors import BadFile, UserError
from rwkvctl.base.processes import available_cpus, end_with_parent
from rwkvctl.data.convert.formats.base import Item, Options, Plan, Read, Sample
from rwkvctl.data.convert.raw_files import RawFile, total_bytes
from rwkvctl.data.store.schema import PREP_VERSION
from rwkvctl.data.store.writer import Limits, adopt_shard, write_shard

Progress = Callable[[str, int, int], None]
"""Called with (what is being done, samples done, samples in all)."""

RECORDS = "records"
SMALL = 64 << 20
"""Sources below this size are converted here: starting other processes would take longer."""


@dataclass(frozen=True, slots=True)
class Record:
    """What the manifest needs of a sample after its bytes are gone."""

    key: str
    part: str
    sha256: str
    group: str | None
    size: tuple[int, int]
    sources: dict[str, str]
    pixels: list[int] | None
    note: str
    labeled: bool
    phash: str | None
    case: str | None = None
    volume: str | None = None
    """SHA-256 of the voxels of the volume that it is, or is a slice of."""
    look: str | None = None
    """Of the first sample of a volume, see `store.same_volume`."""

    def saved(self) -> dict[str, Any]:
        """Its fields, not copied as `asdict` does."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True)
class Job:
    """One shard: the items that become its samples."""

    folder: Path
    stem: str
    part: str
    items: Sequence[Item]
    read: Read
    fingerprint: str
    lenient: bool = False
    """Samples that cannot be read are left out."""
    adopt: RawFile | None = None

    @property
    def records(self) -> Path:
        return self.folder / RECORDS / f"{self.stem}.json"


def layout(plan: Plan, options: Options, folder: Path) -> list[Job]:
    """The shards of a plan. Their limits are held against the raw files' sizes, which are known without reading."""
    jobs = []
    for part, items in plan.parts.items():
        for number, group in enumerate(_grouped(items, plan.limits.get(part, Limits()))):
            settled = plan.intensity, plan.orientation  # from all files, so that one more can change them
            made_of = repr((PREP_VERSION, plan.form, options, tuple(plan.classes), settled, part, group))
            fingerprint = hashlib.sha256(made_of.encode()).hexdigest()
            jobs.append(Job(folder, f"{part}-{number:06d}", part, group, plan.read, fingerprint, options.allow_partial))
    for part, shards in plan.adopted.items():
        for shard, items in shards:
            fingerprint = hashlib.sha256(repr((PREP_VERSION, options, part, shard, items)).encode()).hexdigest()
            jobs.append(Job(folder, shard.stem, part, items, plan.read, fingerprint, adopt=shard))
    keys = [item.key for job in jobs for item in job.items]
    assert len(set(keys)) == len(keys), "sample keys must be unique"
    return jobs


def _grouped(items: Sequence[Item], limits: Limits) -> Iterator[list[Item]]:
    group: list[Item] = []
    size = 0
    for item in items:
        own = total_bytes(item.files)
        if group and (len(group) >= limits.samples or size + own > limits.bytes):
            yield group
            group, size = [], 0
        group.append(item)
        size += own
    if group:
        yield group


@dataclass
class Converted:
    """What the jobs gave: records of all samples and of the shards, in order, what was left out, and problems."""

    records: list[Record] = field(default_factory=list)
    shards: list[dict[str, Any]] = field(default_factory=list)
    excluded: list[dict[str, str]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def convert(jobs: Sequence[Job], workers: int | None = None, progress: Progress | None = None) -> Converted:
    """Run the jobs. With problems, the shards that have none are finished nevertheless, so that a later run need not
    repeat them; then there are no records."""
    total = sum(len(job.items) for job in jobs)
    if workers is None:
        workers = 1 if is_small(jobs) else available_cpus()
    workers = min(workers, len(jobs))
    problems: dict[str, list[str]] = {}
    done = 0
    for job, found in _run_here(jobs) if workers <= 1 else _run_in_pool(jobs, workers):
        problems[job.stem] = found
        done += len(job.items)
        if progress:
            progress("samples", done, total)
    in_order = [problem for job in jobs for problem in problems[job.stem]]
    if in_order:
        return Converted(problems=in_order)
    saved = [json.loads(job.records.read_bytes()) for job in jobs]
    return Converted(
        records=[Record(**{**own, "size": tuple(own["size"])}) for file in saved for own in file["samples"]],
        shards=[file["shard"] for file in saved if file["shard"]],
        excluded=_once([own for file in saved for own in file["excluded"]]),
    )


def _once(excluded: list[dict[str, str]]) -> list[dict[str, str]]:
    return [dict(own) for own in dict.fromkeys(tuple(sorted(own.items())) for own in excluded)]


def is_small(jobs: Sequence[Job]) -> bool:
    return sum(total_bytes(item.files) for job in jobs for item in job.items) < SMALL


def _run_here(jobs: Sequence[Job]) -> Iterator[tuple[Job, list[str]]]:
    for job in jobs:
        yield job, run(job)


def _run_in_pool(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, list[str]]]:
    """As the jobs end. Only a few wait in the pool at a time: a job holds all its items."""
    context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
    left = iter(jobs)
    with ProcessPoolExecutor(workers, context, initializer=end_with_parent) as pool:
        running: dict[Future[list[str]], Job] = {}
        try:
            while True:
                for job in left:
                    running[pool.submit(run, job)] = job
                    if len(running) >= 2 * workers:
                        break
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool as error:
            raise UserError("a converting process was killed, out of memory perhaps; give fewer --workers") from error
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def run(job: Job) -> list[str]:
    """Write the job's shard unless it is there already; what is wrong with its items, one line each.

    After a problem the rest is still read and checked, and then nothing of the shard is kept. A lenient job leaves out
    what cannot be read; if that is everything, there is no shard.
    """
    if _is_finished(job):
        return []
    records: list[Record] = []
    problems: list[str] = []
    excluded: list[dict[str, str]] = []

    def samples() -> Iterator[tuple[str, dict[str, bytes]]]:
        for item in job.items:
            try:
                sample = job.read(job.part, item)
            except BadFile as error:
                if job.lenient:  # of a volume that trains by slices, the case
                    name = getattr(item, "case", item).key
                    excluded.append({"id": name, "why": _within_source(str(error), item)})
                else:
                    problems.append(str(error))
                continue
            assert sample.key == item.key, (sample.key, item.key)
            records.append(_record(job.part, sample))
            yield sample.key, {**sample.members, "json": _json(sample.meta)}
        if problems or not records:
            raise _ShardGivenUp

    shard: dict[str, Any] | None
    try:
        if job.adopt:
            shard = adopt_shard(job.folder, job.stem, Path(job.adopt.data), samples())
        else:
            shard = write_shard(job.folder, job.stem, samples())
    except _ShardGivenUp:
        if problems:
            return problems
        shard = None
    saved = {
        "fingerprint": job.fingerprint,
        "shard": shard,
        "samples": [record.saved() for record in records],
        "excluded": excluded,
    }
    files.write_bytes(job.records, _json(saved))
    return []


def _within_source(text: str, item: Item) -> str:
    """A message without the place of the source on this machine, which is nothing of the data set's."""
    for file in item.files:
        text = text.replace(str(file), file.path)
    return text


class _ShardGivenUp(Exception):
    pass


def _is_finished(job: Job) -> bool:
    try:
        saved = json.loads(job.records.read_bytes())
        shard = saved["shard"]
        if saved["fingerprint"] != job.fingerprint or shard is None:
            return False
        return bool(
            files.sha256_file(job.folder / shard["name"]) == shard["sha256"]
            and files.sha256_file(job.folder / "index" / f"{job.stem}.idx") == shard["index_sha256"]
        )
    except (OSError, ValueError, KeyError):
        return False


def _json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode()


def _record(part: str, sample: Sample) -> Record:
    meta = sample.meta
    return Record(
        key=sample.key,
        part=part,
        sha256=meta["orig_sha256"],
        group=meta.get("group_id"),
        size=sample.size,
        sources=sample.sources,
        pixels=None if sample.pixels is None else [int(n) for n in sample.pixels],
        note=meta.get("image_note", ""),
        labeled=meta["labeled"],
        phash=meta.get("phash"),
        case=meta.get("case_id"),
        volume=meta.get("volume_sha256"),
        look=sample.look,
    )
