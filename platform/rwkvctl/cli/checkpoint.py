"""`rwkvctl checkpoint`: what a run can go on from, whether it is sound, and what can go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(no_args_is_help=True)
Run = Annotated[str, typer.Argument(help="Name, path or MLflow id of a run.")]
ADVICE = "stop that job first, or delete lease.json if it died on another machine"
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command(name="list")
def list_(run: Run, as_json: Json = False) -> None:
    """List a run's checkpoints, newest first; their hashes are not compared."""
    from rwkvctl.training import checkpoint_folder as kept

    folder = folder_of(run)
    rows = [row(path, kept.all_pointed_at(folder)) for path in kept.checkpoints(folder)]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    for found in rows:
        if "damage" in found:
            print(f"damaged: {found['damage']}")
            continue
        size, pointers = f"{found['bytes'] / 1e6:.1f} MB", ", ".join(found["pointers"])
        print(f"{found['checkpoint']}  epoch {found['epoch']}  {size}  {found['written']}  {pointers}".rstrip())
    if not rows:
        print(f"no checkpoints in {folder}")


@app.command()
def verify(run: Run, as_json: Json = False) -> None:
    """Compare every checkpoint with its hashes; exit code 1 when one is damaged."""
    from rwkvctl.base.errors import UserError
    from rwkvctl.training import checkpoint_folder as kept

    folder = folder_of(run)
    found = {path.name: kept.damage_of(path) for path in kept.checkpoints(folder)}
    for pointer in kept.POINTERS:
        found |= {f"{pointer}.json": problem for problem in [pointer_damage(folder, pointer)] if problem}
    if not found:
        raise UserError(f"run {folder.parent.name}: has no checkpoint yet")
    sound = not any(found.values())
    if as_json:
        print(json.dumps({"ok": sound, "damage": found}, indent=2))
    else:
        for name, problem in found.items():
            print(f"{name}: sound" if problem is None else f"damaged: {problem}")
    if not sound:
        raise typer.Exit(1)


@app.command()
def gc(
    run: Run,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    as_json: Json = False,
) -> None:
    """Delete what a killed run left, and all but the latest, the best and the two newest sound checkpoints."""
    from contextlib import nullcontext

    from rwkvctl.base.errors import UserError
    from rwkvctl.runs import mirror
    from rwkvctl.runs.lease import RunLease
    from rwkvctl.training import checkpoint_folder as kept

    folder = folder_of(run)
    if mirror.of(folder.parent) is not None and not dry_run:
        raise UserError(f"run {folder.parent.name}: is in an object store, where training deletes spare checkpoints")
    lease = nullcontext() if dry_run else RunLease(folder.parent, wait=0.0, advice=ADVICE)
    with lease:
        spare = {path: size_of(path) for path in kept.unneeded(folder)}
        for path in [] if dry_run else spare:
            kept.delete(path)
    names = [path.name for path in spare]
    if as_json:
        remaining = [path.name for path in kept.checkpoints(folder) if path not in spare]
        print(
            json.dumps(
                {"deleted": names, "bytes": sum(spare.values()), "kept": remaining, "dry_run": dry_run}, indent=2
            )
        )
        return
    verb = "would delete" if dry_run else "deleted"
    for path, size in spare.items():
        print(f"{verb} {path.name}  {size / 1e6:.1f} MB")
    if not names:
        print(f"nothing to delete in {folder}")


def folder_of(run: str) -> Path:
    """Where a run's checkpoints are; those of an object store are fetched."""
    from rwkvctl.config import settings
    from rwkvctl.runs import folder as run_folder
    from rwkvctl.runs import mirror
    from rwkvctl.runs.stored_checkpoints import StoredCheckpoints

    run_dir = run_folder.find(run, settings.load().storage)
    if (store := mirror.of(run_dir)) is not None:
        StoredCheckpoints(store).pull()
    return run_dir / "checkpoints"


def row(checkpoint: Path, pointed: dict[str, Path]) -> dict[str, Any]:
    """What `list` tells of a checkpoint."""
    from rwkvctl.training import checkpoint_folder as kept

    pointers = [name for name, path in pointed.items() if path == checkpoint]
    found = {"checkpoint": checkpoint.name, "step": kept.step_of(checkpoint), "pointers": pointers}
    try:
        content = kept.read_state(checkpoint)
    except kept.DamagedCheckpoint as error:
        return found | {"damage": str(error)}
    written = kept.written_at(checkpoint, content)
    return found | {"epoch": content["position"]["epoch"], "bytes": size_of(checkpoint), "written": written}


def pointer_damage(folder: Path, pointer: str) -> str | None:
    """What is wrong with a pointer; None if it is sound, or absent beside no checkpoint."""
    from rwkvctl.training import checkpoint_folder as kept

    try:
        target = kept.pointed_at(folder, pointer)
    except kept.DamagedCheckpoint as error:
        return str(error)
    if target is None:
        missing = pointer == "latest" and kept.checkpoints(folder)
        return f"{pointer}.json is missing" if missing else None
    return None if target.is_dir() else f"{pointer}.json names {target.name}, which is missing"


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob("*")) if file.is_file())
