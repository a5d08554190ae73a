"""A checkpoint back into a training state, where it belongs to the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors.torch import load_file

from rwkvctl.base.errors import UserError
from rwkvctl.config.specs import changes
from rwkvctl.config.specs.jobs import JOBS
from rwkvctl.data.feed.order import ORDER_VERSION
from rwkvctl.training.checkpoint import Position, TrainState, load_optimizer
from rwkvctl.training.checkpoint_folder import (
    DamagedCheckpoint,
    checkpoints,
    damage_of,
    point,
    pointed_at,
    read_checked,
    read_state,
)


def load_checkpoint(checkpoint: Path, state: TrainState, content: dict[str, Any] | None = None) -> None:
    """Continue from a checkpoint, in place: all of it or, with an error, nothing.

    Args:
        content: what `read_checked` has said of it already.

    Raises:
        UserError: it was trained on other data, with the samples in another order, or with another spec.
        DamagedCheckpoint: it is not sound.
    """
    content = read_checked(checkpoint) if content is None else content
    refuse_another_run(checkpoint, content, state)
    names = ["model", "optimizer"] if state.ema is None else ["model", "optimizer", "ema"]
    files = {name: load_file(checkpoint / f"{name}.safetensors") for name in names}
    state.model.load_state_dict(files["model"])
    if state.ema is not None:
        state.ema.load_state_dict(files["ema"])
    load_optimizer(state.optimizer, files["optimizer"], content["param_groups"])
    state.position = Position(**content["position"])


def refuse_another_run(checkpoint: Path, content: dict[str, Any], state: TrainState) -> None:
    """UserError if going on from a checkpoint would compute something else than was begun."""
    if content["fingerprint"] != state.fingerprint:
        raise UserError(
            f"{checkpoint}: was trained on data {content['fingerprint'][:12]}, but the data is now "
            f"{state.fingerprint[:12]}; restore the data or start a new run"
        )
    order = content.get("sample_order", 1)  # the first version was not noted
    if order != ORDER_VERSION:
        raise UserError(
            f"{checkpoint}: was trained with the samples in an order of version {order}, and this rwkvctl has version "
            f"{ORDER_VERSION}; continue with the rwkvctl that began the run, or start a new run"
        )
    if changed := changes.differences(with_defaults(content["spec"]), state.spec):
        raise UserError(
            f"{checkpoint}: was trained with another spec ({changes.few(changed)}); set it back in the run's "
            "spec.yaml, or start a new run"
        )


def with_defaults(spec: dict[str, Any]) -> dict[str, Any]:
    """A stored spec with the fields that it did not have yet."""
    kind = JOBS.get(str(spec.get("job")))
    try:
        return spec if kind is None else kind.model_validate(changes.with_absent(spec)).model_dump(mode="json")
    except ValidationError:  # of a version with other fields, which are named as differences
        return spec


def keep_best(folder: Path, position: Position) -> str | None:
    """Make `best` point at the checkpoint of a position's best epoch again, if it does not.

    Returns what is wrong, when that checkpoint is lost; the position then knows of no best one.
    """
    if position.best is None:
        return None
    try:
        best = pointed_at(folder, "best")
        damage = "best.json is missing" if best is None else damage_of(best)
    except DamagedCheckpoint as error:
        damage = str(error)
    if damage is None:
        return None
    for path in checkpoints(folder):
        if damage_of(path) is None and is_end_of(path, position.best_epoch):
            point(folder, "best", path)
            return None
    position.best = position.best_epoch = position.best_weights = None
    return damage


def is_end_of(checkpoint: Path, epoch: int | None) -> bool:
    """Whether a checkpoint was written at the end of an epoch (counted from 1)."""
    position = read_state(checkpoint)["position"]
    return position["epoch"] == epoch and position["consumed"] == 0
