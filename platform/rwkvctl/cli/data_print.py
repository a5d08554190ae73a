"""Data sets and downloads as they are printed: what a data set holds, what a rehearsal found, what can be prepared."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rwkvctl.data.convert.formats.base import Dataset
    from rwkvctl.data.convert.rehearsal import Rehearsal
    from rwkvctl.data.store.manifest import Manifest

WIDTH_IN_FILES = 250


def show(manifest: Manifest, as_json: bool) -> None:
    summary = summary_of(manifest)
    if as_json:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    names = ", ".join(manifest.classes[:8]) + (", ..." if len(manifest.classes) > 8 else "")
    print(summary["path"])
    print(f"  data set     {manifest.dataset}, {manifest.task}, {manifest.image_kind}")
    if manifest.channel_names:
        print(f"  channels     {manifest.channels}: {', '.join(manifest.channel_names)}; the first is shown")
    print(f"  classes      {len(manifest.classes)}: {names}")
    print(f"  samples      {summary['samples']} in {summary['shards']} shards, {summary['bytes'] / 1e6:.1f} MB")
    for line in _balance(summary):
        print(line)
    for name in manifest.splits:
        print(f"  split        {split_line(manifest, name)}")
    print(f"  duplicates   {_duplicates_line(manifest)}")
    if manifest.content.excluded:
        print(f"  left out     {_left_out([own.id for own in manifest.content.excluded])}")
    if manifest.quarantined:
        print(f"  quarantine   {samples(manifest.quarantined)} damaged and left out")
    for warning in summary["warnings"]:
        print(f"  warning      {warning}")
    print(f"  fingerprint  {manifest.fingerprint}")


def summary_of(manifest: Manifest) -> dict[str, Any]:
    content = manifest.content
    return {
        "path": manifest.location,
        "dataset": manifest.dataset,
        "format": content.source.format,
        "task": manifest.task,
        "classes": manifest.classes,
        "channels": manifest.channels,
        "channel_names": manifest.channel_names,
        "image_kind": manifest.image_kind,
        "samples": content.counts["samples"],
        "quarantined": manifest.quarantined,
        "bytes": sum(shard.bytes for shard in manifest.shards),
        "shards": len(manifest.shards),
        "fingerprint": manifest.fingerprint,
        "default_split": manifest.default_split,
        "splits": {name: entry.model_dump(exclude={"sha256"}) for name, entry in manifest.splits.items()},
        "duplicates": content.duplicates.model_dump(),
        "excluded": [own.model_dump() for own in content.excluded],
        "warnings": content.warnings,
        "stats": content.stats,
    }


def one_line(summary: dict[str, Any]) -> str:
    return f"{summary['task']}, {summary['samples']} samples, {len(summary['classes'])} classes"


def split_line(manifest: Manifest, name: str) -> str:
    entry = manifest.splits[name]
    order = dict.fromkeys(["train", "val", "test", *entry.counts])  # then unlabeled, if there are such
    counts = ", ".join(f"{part} {entry.counts[part]}" for part in order)
    default = " (default)" if name == manifest.default_split else ""
    leaks = f"; {entry.leak_groups_shared} groups leak" if entry.leak_groups_shared else ""
    return f"{name}{default}: {counts}{leaks}"


def _duplicates_line(manifest: Manifest) -> str:
    found = manifest.content.duplicates
    copies = f"{sum(map(len, found.copies))} copies in {len(found.copies)} clusters"
    if found.near is None:
        return f"{copies}; near-duplicates were not looked for"
    return f"{copies}; {sum(map(len, found.near))} near-duplicates in {len(found.near)} clusters"


def _balance(summary: dict[str, Any]) -> list[str]:
    """Image sizes, and the share of each class in the pixels."""
    sizes = summary["stats"]["size_hist"]
    top = sorted(sizes, key=sizes.__getitem__, reverse=True)[:4]
    more = f", {len(sizes) - len(top)} more" if len(sizes) > len(top) else ""
    lines = ["  sizes        " + ", ".join(f"{size} ({sizes[size]})" for size in top) + more]
    shares = summary["stats"].get("pixel_fraction")
    if shares:
        named = zip(summary["classes"], shares, strict=True)
        lines.append("  pixels       " + ", ".join(f"{name} {100 * share:.2f} %" for name, share in named))
    return lines


def _left_out(ids: Sequence[str]) -> str:
    return f"{len(ids)}: {', '.join(ids[:3])}{', ...' if len(ids) > 3 else ''}; all are listed in the manifest"


def samples(n: int) -> str:
    return f"{n} sample{'' if n == 1 else 's'}"


def rehearsal_lines(found: Rehearsal) -> Iterator[str]:
    yield f"{found.dataset}, form {found.form}"
    yield f"  samples      {', '.join(f'{part} {n}' for part, n in found.counts.items())}"
    for example in found.examples:
        image, *masks = example
        more = f", ... ({len(masks)} in all)" if len(masks) > 3 else ""
        yield f"  pair         {image}  with  {', '.join(masks[:3])}{more}" if masks else f"  sample       {image}"
    total = sum(found.counts.values())
    if found.read < total:
        yield f"  read         {found.read} of {total} samples, of which are:"
    if found.sizes:
        yield from _balance(
            {"stats": {"size_hist": found.sizes, "pixel_fraction": found.shares}, "classes": found.classes}
        )
    yield f"  groups       {found.groups or 'none'}" + (" (patients, sequences) known" if found.groups else " known")
    for number, (name, parts) in enumerate(found.splits.items()):
        counts = ", ".join(f"{part} {n}" for part, n in parts.items())
        yield f"  split        {name}{'' if number else ' (default)'}: {counts}"
    if found.excluded:
        yield f"  left out     {_left_out([own['id'] for own in found.excluded])}"
    for warning in found.warnings:
        yield f"  warning      {warning}"
    for problem in found.problems:
        yield f"  problem      {problem}"


def print_table(datasets: Sequence[Dataset], prepared: set[str | None]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for title in ("data set", "task", "classes", "expected", "forms", "prepared", "licence", "from"):
        table.add_column(title, overflow="fold")
    for dataset in datasets:
        table.add_row(
            dataset.name,
            dataset.task,
            str(len(dataset.classes)) if dataset.classes else "any",
            ", ".join(f"{n} {what}" for what, n in dataset.expected.items()) or "any number",
            ", ".join(dataset.forms),
            "yes" if dataset.name in prepared else "no",
            dataset.licence,
            dataset.access,
        )
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_IN_FILES
    console.print(table)


def print_dataset(dataset: Dataset) -> None:
    """All that is known of one data set, above all the layouts of the downloads that are understood."""
    print(f"{dataset.name}: {dataset.title}")
    for number, name in enumerate(dataset.classes[:20]):
        print(f"  class {number:<4} {name}")
    if len(dataset.classes) > 20:
        print(f"  ... and {len(dataset.classes) - 20} more classes")
    for what, count in dataset.expected.items():
        print(f"  expected   {count} {what}")
    for form, layout in dataset.forms.items():
        print(f"  form       {form}: {layout}")
    print(f"  licence    {dataset.licence}")
    print(f"  from       {dataset.access}")
    if dataset.citation:
        print(f"  cite       {dataset.citation}")
