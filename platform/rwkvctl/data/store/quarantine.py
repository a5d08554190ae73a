"""Samples that are damaged on this disk and are left out: `quarantine.json` beside the manifest.

Written by `rwkvctl data verify --quarantine`, never by training, so that every run over the folder leaves out the same
samples. The data set's fingerprint changes with it: what is trained without them says so in checkpoints, models and
MLflow runs, and is not resumed on other data.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from rwkvctl.base import files
from rwkvctl.base.errors import UserError
from rwkvctl.config.specs.base import Spec, problems

FILE_NAME = "quarantine.json"

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Damaged(Spec):
    """A shard file as it was when its samples were looked at one by one."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Quarantine(Spec):
    """What is left out of the data set with this fingerprint: samples, each with its reason; and the shards that are
    used although they are not those of the manifest."""

    fingerprint: Sha256
    samples: dict[str, str]
    shards: dict[str, Damaged]

    def fingerprint_without(self) -> str:
        """The fingerprint of what is left."""
        if not self.samples:
            return self.fingerprint
        return hashlib.sha256(" ".join([self.fingerprint, *sorted(self.samples)]).encode()).hexdigest()


def load(root: Path, fingerprint: str) -> Quarantine | None:
    """The quarantine of the data set in `root`, None when nothing is left out."""
    path = root / FILE_NAME
    advice = "run again: rwkvctl data verify --quarantine"
    try:
        found = Quarantine.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise UserError(f"{path}: {problems(error, Quarantine)}; {advice} {root}") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read ({error}); {advice} {root}") from error
    if found.fingerprint != fingerprint:
        raise UserError(f"{path}: is that of other data; {advice} {root}")
    return found


def store(root: Path, quarantine: Quarantine | None) -> None:
    """Write it, or remove the one that is there."""
    if quarantine is None:
        (root / FILE_NAME).unlink(missing_ok=True)
    else:
        files.write_json(root / FILE_NAME, quarantine.model_dump())
