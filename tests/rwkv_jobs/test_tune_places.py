"""Where Ray puts trials: two that share a GPU, one a GPU, one of several workers.

The GPUs are numbers that Ray was told of; nothing here computes on one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from rwkv_jobs.driver import drive
from rwkvctl.cli import assemble
from rwkvctl.config.specs.jobs import TuneSpec
from rwkvctl.runs import folder as run_folder
from rwkvctl.runs.samples_seen import VARIABLE

from .conftest import COMMON, events

pytestmark = [
    pytest.mark.slow,
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # Ray's, where it is started again
]
TINY = [*COMMON, "train.batch_size=4", "train.epochs=1", "train.epoch_steps=4"]
CPUS, GPUS = 4, 2


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Ray with four CPUs and two GPUs, whatever there is; where workers note the samples that they train on."""
    from rwkvctl.config.specs.parts import ClusterSpec
    from rwkvctl.launch import session

    folder = tmp_path_factory.mktemp("seen")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, str(folder))
        patch.setattr(session, "start_here", partial(session.start_here, num_gpus=GPUS))
        with session.ray_session(ClusterSpec(), cpus=CPUS):
            yield folder


def sweep(data: Path, trials: int, *assignments: str, **fields: Any) -> TuneSpec:
    own = {"variant": "xt"}
    spec = assemble.tune_spec(
        "ccm_hidden", None, str(data), own, [*TINY, *assignments], None, trials, None, None, "sweep"
    )
    return TuneSpec.model_validate(spec.model_dump(mode="json", by_alias=True) | fields)


def visible(runner: Any) -> str:
    """The GPUs that a runner's process sees."""
    import ray

    return ray.get(runner.__ray_call__.remote(lambda _: os.environ["CUDA_VISIBLE_DEVICES"]))


@pytest.mark.parametrize(
    ("share", "shown"), [(0.5, ["0", "0", "1", "1"]), (None, ["0", "1"])], ids=["a half", "one each"]
)
def test_what_each_trial_sees(share: float | None, shown: list[str], seen: Path, shards: Path):
    """With a share of one half, two trials see the same GPU, and no fifth one has a place."""
    import ray

    from rwkv_jobs.trial_runner import Pool

    pool = Pool(sweep(shards / "polyps", 8, gpus_per_trial=share))
    runners = [pool.take() for _ in shown]
    assert pool.take() is None
    assert sorted(map(visible, runners)) == shown
    assert ray.available_resources().get("GPU", 0) == 0
    kept = runners.pop()
    pool.give_back(kept, keep=True)
    assert pool.take() is kept, "the process of a trial that has ended is the next one's, with its GPU"
    for runner in [*runners, kept]:
        pool.give_back(runner, keep=False)


def test_trials_of_two_workers_train_on_both(seen: Path, shards: Path, tmp_path: Path, monkeypatch: Any):
    """Each step's batch is shared out to two processes; the sweep's other trial waits for its place."""
    monkeypatch.setattr("rwkvctl.launch.session.ray_session", lambda cluster: nullcontext())
    spec = sweep(shards / "polyps", 2, "cluster.workers=2", sampler="grid")
    run_dir = run_folder.create(spec, str(tmp_path))
    rows = drive(spec, run_dir)["trials"]
    assert sorted(row["model.ccm_hidden_rate"] for row in rows) == [1, 2]
    ends = []
    for number in range(2):
        trial = run_dir / "trials" / f"sweep-000{number}"
        assert run_folder.read_spec(trial).cluster.workers == 2
        assert [event["status"] for event in events(trial, "end")] == ["FINISHED"]
        ends.append((events(trial, "start")[0]["t"], events(trial, "end")[0]["t"]))
    assert ends[0][1] <= ends[1][0], "two workers take both GPUs"
    sizes: dict[str, list[int]] = {}
    for path in seen.iterdir():
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        sizes.setdefault(path.name.partition(".")[0], []).extend(len(line["ids"]) for line in lines)
    assert sizes == {"rank-0": [2] * 8, "rank-1": [2] * 8}
