"""A run's metrics and spec as a run of Weights & Biases, made from its journal.

Without an account on this machine nothing leaves it: the run is written to `wandb/offline-run-...` in the run's folder,
for `wandb sync`. As `wandb sync` replaces what the server has of a run, such a folder always has all of the journal:
each start of the run makes a new one in place of the last.

W&B refuses a step that is not above the last one. Its step is the number of the journal's line of metrics, so that what
is sent again after a crash is known there and not taken twice; the step of the optimiser is the metric `step`, over
which W&B draws the others.
"""

from __future__ import annotations

import contextlib
import netrc
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from rwkvctl.base.uris import mask_value
from rwkvctl.config.specs.changes import flatten
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs import journal

ANSWERS_WITHIN = 20.0
"""Seconds that a server of W&B has to answer, at the beginning and at the end."""


def mode() -> str:
    """`offline` unless this user is logged in, or WANDB_MODE says so."""
    return os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")


def logged_in() -> bool:
    """Whether `wandb login` was run here, or there is a key in the environment."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai").netloc
    places = [os.environ["NETRC"]] if os.environ.get("NETRC") else ["~/.netrc", "~/_netrc"]
    for place in places:
        with contextlib.suppress(OSError, netrc.NetrcParseError, RuntimeError):
            if netrc.netrc(Path(place).expanduser()).authenticators(host):
                return True
    return False


class WandbRun:
    """The run of W&B that has the journal's uid as its id."""

    def __init__(self, run_dir: Path):
        self.run_dir, self.offset = run_dir, 0
        self._run: Any = None
        self._line = self._taken = 0
        self._failed = False

    def write(self, entries: Sequence[dict[str, Any]], offset: int) -> None:
        """Give W&B the metrics that it does not have."""
        run = self._opened()
        for entry in entries:
            if entry["kind"] == "event" and entry["event"] in ("start", "end"):
                self._failed = entry["event"] == "end" and entry.get("status") != "FINISHED"
            if entry["kind"] != "metrics":
                continue
            if self._line >= self._taken:
                run.log({"step": entry["step"]} | entry["values"], step=self._line)
            self._line += 1
        self.offset = offset

    def close(self) -> None:
        if self._run is not None:
            self._run.finish(exit_code=int(self._failed))

    def _opened(self) -> Any:
        if self._run is None:
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
            import wandb

            uid = journal.run_uid(self.run_dir / journal.JOURNAL_NAME)
            how = mode()
            if how == "offline":
                for old in (self.run_dir / "wandb").glob(f"offline-run-*-{uid}"):
                    shutil.rmtree(old)
            spec = run_folder.read_spec(self.run_dir)
            trials = self.run_dir.parent
            self._run = wandb.init(
                id=uid,
                resume="allow",
                mode=how,  # type: ignore[arg-type]
                dir=str(self.run_dir),
                project=os.environ.get("WANDB_PROJECT") or spec.tracking.experiment,
                name=self.run_dir.name,
                group=trials.parent.name if trials.name == "trials" else None,
                job_type=spec.job,
                config=shown(spec.model_dump(mode="json", by_alias=True)),
                settings=quiet(wandb),
            )
            self._run.define_metric("*", step_metric="step")
            self._taken = self._run.step
        return self._run


def shown(spec: dict[str, Any]) -> dict[str, Any]:
    """A spec as the flat config of a run. Specs hold no secrets; what looks like one is left out all the same."""
    return {
        key: mask_value(key, value) if isinstance(value, str) else value
        for key, value in flatten(spec).items()
        if value is not None
    }


def quiet(wandb: Any) -> Any:
    """W&B sees the metrics and the spec, and nothing else: no code, console, command line or machine."""
    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        finish_timeout=ANSWERS_WITHIN,
        init_timeout=ANSWERS_WITHIN,
        reinit="create_new",  # a sweep's driver has its trials' runs open beside its own
        save_code=False,
        silent=True,
        x_disable_machine_info=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
    )
