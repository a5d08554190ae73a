"""A training state onto the disk: whole or absent, with hashes, without pickle, in a thread of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rwkvctl.base.errors import JobFailedError, explain
from rwkvctl.base.files import fsync_directory, write_json
from rwkvctl.data.feed.order import ORDER_VERSION
from rwkvctl.training.checkpoint import Copier, StateCopy, TrainState
from rwkvctl.training.checkpoint_folder import SCHEMA, all_pointed_at, checksum, damage_of, name_of, point, prune

DTYPES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
}
"""Names of safetensors, in its order: the widest come first in a file."""


def nothing(**_: object) -> None:
    pass


class CheckpointWriter:
    """Writes checkpoints in the background, one at a time, from one copy of the state.

    Args:
        folder: the run's `checkpoints`.
        before: called in the background when all is on the disk, before anything points at it; may refuse by raising.
        after: called in the background with the step and the seconds that writing took.
    """

    def __init__(self, folder: Path, before: Callable[[], None] = nothing, after: Callable[..., None] = nothing):
        self.folder, self.before, self.after = folder, before, after
        self.copier = Copier()
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self.writing: Future[None] | None = None

    def begin(self, state: TrainState, *, best: bool = False) -> None:
        """Copy the state, once the former copy is written, and leave the rest to the background."""
        self.finish()
        self.writing = self.thread.submit(self.write, self.copier.copy(state), best)

    def write(self, copy: StateCopy, best: bool) -> None:
        begun = time.monotonic()
        step = copy.position["step"]
        try:
            write_checkpoint(self.folder, copy, best=best, before=self.before)
        except OSError as error:
            raise JobFailedError(f"step {step}: cannot write a checkpoint: {explain(error, self.folder)}") from error
        self.after(step=step, best=best, seconds=round(time.monotonic() - begun, 3))

    def failure(self) -> BaseException | None:
        """What writing failed with, if it has failed by now; told once."""
        return self.outcome() if self.writing is not None and self.writing.done() else None

    def finish(self) -> None:
        """Return when nothing is being written; raises, once, what writing failed with.

        Raises:
            JobFailedError: a tensor holds NaN or infinity, or the disk did not take it. Nothing points at it.
        """
        if (problem := self.outcome()) is not None:
            raise problem

    def outcome(self) -> BaseException | None:
        """What `finish` raises."""
        if self.writing is None:
            return None
        wait([self.writing])
        writing, self.writing = self.writing, None
        return writing.exception()

    def close(self) -> BaseException | None:
        """End the thread when nothing is being written any more; what writing failed with, if nobody was told yet."""
        self.thread.shutdown()
        return self.outcome()


def save_checkpoint(folder: Path, state: TrainState, *, best: bool = False) -> Path:
    """Copy and write a state here and now; as `write_checkpoint`."""
    return write_checkpoint(folder, Copier().copy(state), best=best)


def write_checkpoint(
    folder: Path, copy: StateCopy, *, best: bool = False, before: Callable[[], None] = nothing
) -> Path:
    """Write a checkpoint, point `latest` (and `best`) at it, and delete those that nothing needs.

    Raises:
        JobFailedError: a tensor holds NaN or infinity; nothing is written.
    """
    copy.wait()
    step = copy.position["step"]
    if (tensor := not_finite(copy)) is not None:
        raise JobFailedError(
            f"step {step}: {tensor} is not finite, and no checkpoint is written; start a new run with a lower "
            "optimizer.lr"
        )
    target = folder / name_of(step)
    there = target in all_pointed_at(folder).values() and damage_of(target) is None
    temporary = folder / f".{target.name}.{os.getpid()}.tmp"
    if not there:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        write_files(temporary, copy)
        fsync_directory(temporary)
    before()
    if not there:
        shutil.rmtree(target, ignore_errors=True)  # damaged, or a killed writer's, who may have had other workers
        temporary.replace(target)
        fsync_directory(folder)
    if best:
        point(folder, "best", target)
    point(folder, "latest", target)
    prune(folder)
    return target


def not_finite(copy: StateCopy) -> str | None:
    """Name of the first tensor that holds NaN or infinity, None if all are finite."""
    named = ((f"{file} {name}", tensor) for file, tensors in copy.files.items() for name, tensor in tensors.items())
    return next((name for name, x in named if x.is_floating_point() and not bool(x.isfinite().all())), None)


def write_files(folder: Path, copy: StateCopy) -> None:
    """The files of one checkpoint; the one with the hashes last."""
    names = {name: f"{name}.safetensors" for name in copy.files}
    hashes = {names[name]: write_tensors(folder / names[name], tensors) for name, tensors in copy.files.items()}
    content = {
        "schema": SCHEMA,
        "sha256": hashes,
        "position": copy.position,
        "fingerprint": copy.fingerprint,
        "sample_order": ORDER_VERSION,
        "spec": copy.spec,
        "param_groups": copy.param_groups,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    write_json(folder / "state.json", content | {"checksum": checksum(content)})


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> str:
    """Write the very file that `safetensors.torch.save` makes, one tensor after the other; returns its SHA-256.

    That function needs a second and a third copy of all tensors, and holds up every other thread meanwhile.
    """
    ranks = {dtype: rank for rank, dtype in enumerate(DTYPES)}
    names = sorted(tensors, key=lambda name: (-ranks[tensors[name].dtype], name))
    header, end = {}, 0
    for name in names:
        begin, end = end, end + tensors[name].nbytes
        shape = list(tensors[name].shape)
        header[name] = {"dtype": DTYPES[tensors[name].dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for data in chain([len(text).to_bytes(8, "little"), text], (as_bytes(tensors[name]) for name in names)):
            file.write(data)
            digest.update(data)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def as_bytes(tensor: Tensor) -> Any:
    """A buffer of the numbers of a tensor in the order of its indices; without a copy where they lie so."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
