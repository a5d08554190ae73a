"""`run.json` beside the masks: which models and options made them, of which files, what is in them, and what failed.

It is begun before the first mask and written again while masks are made, so that a prediction that was killed goes on
where it was (`--resume`): what it lists with the hashes that its files have is whole.
"""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rwkvctl.base.errors import UserError
from rwkvctl.base.files import sha256_file, write_json
from rwkvctl.base.lineage import code_version
from rwkvctl.base.paths import as_text
from rwkvctl.models.sureness import Sureness, ranks

NAME = "run.json"
EVERY = 2.0
"""Seconds between two writes: a kill costs the masks of this time."""


@dataclass
class Made:
    """One mask."""

    input: str
    input_sha256: str
    mask: str
    """Its name in the folder."""
    mask_sha256: str
    voxels: dict[str, int]
    """By class, the background left out."""
    ml: dict[str, float]
    """Volumes by class; empty where the size of a voxel is unknown."""
    seconds: float
    note: str = ""
    predicted_dsc: dict[str, float | None] = field(default_factory=dict)
    """By class, if the model's probabilities were true; null for a class that is not in the mask."""
    entropy: float | None = None
    """The mean over the mask's foreground, in nats."""
    review_rank: int | None = None
    """1 for the file whose mask should be looked at first; filled in when it is written."""


@dataclass
class Record:
    """The content of `run.json`."""

    folder: Path
    models: list[dict[str, Any]]
    """`reference` and `weights_sha256` of each."""
    options: dict[str, Any]
    device: str = ""
    planned: list[str] = field(default_factory=list)
    """Names of all masks: a prediction that goes on may replace these."""
    made: dict[str, Made] = field(default_factory=dict)
    """By the name of the mask."""
    failed: dict[str, str] = field(default_factory=dict)
    """By input, why."""
    skipped: list[str] = field(default_factory=list)
    """What of the inputs was passed over, and why: a line each."""
    written: float = 0.0

    def add(self, made: Made) -> None:
        self.made[made.mask] = made
        self.save()

    def fail(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        self.save()

    def save(self, *, at_once: bool = False) -> None:
        if at_once or time.monotonic() - self.written > EVERY:
            write_json(self.folder / NAME, self.as_fields())
            self.written = time.monotonic()

    def as_fields(self) -> dict[str, Any]:
        places = ranks({mask: sureness_of(made) for mask, made in self.made.items() if made.predicted_dsc})
        files = [asdict(replace(made, review_rank=places.get(mask))) for mask, made in self.made.items()]
        return {
            "schema": "rwkv-prediction/1",
            "program": code_version(),
            "python": platform.python_version(),
            "device": self.device,
            "models": self.models,
            "options": self.options,
            "planned": self.planned,
            "files": files,
            "skipped": self.skipped,
            "failed": [{"input": path, "reason": reason} for path, reason in self.failed.items()],
        }

    def is_whole(self, sources: Sequence[Path], target: Path, *others: Path) -> bool:
        """Whether a mask is there as it was made, of its input's files as they are now, and other files beside it."""
        made = self.made.get(name_of(target))
        return (
            made is not None
            and all(file.is_file() for file in (target, *others))
            and sha256_file(target) == made.mask_sha256
            and sha256_of(*sources) == made.input_sha256
        )

    def go_on(self) -> None:
        """Take over what an earlier prediction into the folder has recorded. UserError where its masks were made
        otherwise, or the file is not ours."""
        if (before := read(self.folder)) is None:
            return
        weights = [[model["weights_sha256"] for model in models] for models in (before["models"], self.models)]
        options = [before["options"], json.loads(json.dumps(self.options))]
        for name, (earlier, now) in (("models", weights), ("options", options)):
            if earlier != now:
                raise UserError(
                    f"--out {self.folder}: has masks made with other {name} ({NAME}); give the same, another folder, "
                    "or --overwrite"
                )
        self.planned = before["planned"]
        self.made = {each["mask"]: Made(**each) for each in before["files"]}


def sureness_of(made: Made) -> Sureness:
    return Sureness([*made.predicted_dsc.values()], made.entropy)


def sha256_of(path: Path, *others: Path) -> str:
    """Of a file; of a folder, or of the files of several channels, over the names and contents of the files."""
    if not path.is_dir() and not others:
        return sha256_file(path)
    total = hashlib.sha256()
    files = (path, *others) if others else sorted(each for each in path.iterdir() if each.is_file())
    for file in files:
        total.update(f"{as_text(file.name)}\0{sha256_file(file)}\0".encode())
    return total.hexdigest()


def name_of(target: Path) -> str:
    """A mask's name as JSON can have it; where it is not UTF-8, a file:// URI."""
    return target.name if as_text(target.name) == target.name else as_text(target)


def read(folder: Path) -> dict[str, Any] | None:
    """The record in a folder; None where there is none. UserError for one that is not ours."""
    path = folder / NAME
    try:
        found = json.loads(path.read_text())
        assert found["schema"] == "rwkv-prediction/1"
        assert isinstance(found["planned"], list)
        assert isinstance(found["options"], dict)
        assert all("weights_sha256" in model for model in found["models"])
        for each in found["files"]:
            Made(**each)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        raise UserError(
            f"--out {folder}: {NAME} is not the record of a prediction; give another folder, or --overwrite"
        ) from None
    return dict(found)


def content(mask: NDArray[np.uint8], classes: list[str], voxel_ml: float | None) -> dict[str, dict[str, Any]]:
    """`voxels` and `ml` of a mask by class."""
    counts = np.zeros(max(256, len(classes)), np.int64)
    for part in mask.T:  # of a volume slice by slice: the numbers are made into eight bytes each
        counts += np.bincount(part.ravel(), minlength=len(counts))
    counts = counts[: max(len(classes), int(counts.nonzero()[0].max()) + 1)]
    names = {number: classes[number] if number < len(classes) else str(number) for number in range(1, len(counts))}
    voxels = {name: int(counts[number]) for number, name in names.items()}
    return {
        "voxels": voxels,
        "ml": {} if voxel_ml is None else {name: round(count * voxel_ml, 4) for name, count in voxels.items()},
    }


def sure(sureness: Sureness | None, classes: list[str]) -> dict[str, Any]:
    """`predicted_dsc` and `entropy` of a mask."""
    if sureness is None:
        return {}
    rounded = [None if value is None else round(value, 4) for value in sureness.predicted_dsc]
    names = [classes[number] if number < len(classes) else str(number) for number in range(1, len(rounded) + 1)]
    entropy = None if sureness.entropy is None else round(sureness.entropy, 4)
    return {"predicted_dsc": dict(zip(names, rounded, strict=True)), "entropy": entropy}
