"""The sbatch script with exit codes and signals: stand-ins of Slurm, Ray and the job that are real processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rwkvctl.config.settings import Settings
from rwkvctl.config.specs.jobs import PretrainSpec
from rwkvctl.config.specs.load import build, merge, read_recipe
from rwkvctl.launch.render import places, slurm
from rwkvctl.launch.render.job import rendered_job

from .stand_ins import Slurm, wait_for

RAY = """#!/bin/sh
echo "ray $*" >>{folder}/ray-calls
exec sleep 600
"""
PYTHON = """#!/bin/bash
# What the head runs: it waits for nodes, then it is the job, whose exit codes stand in a file, one for each start.
case "$*" in
*await_nodes*) exit 0 ;;
esac
echo "$*" >>{folder}/jobs
code=$(sed -n "$(wc -l <{folder}/jobs)p" {folder}/job-codes)
case "$code" in
wait*)
    trap 'sleep 0.2; exit 130' TERM
    touch {folder}/waiting
    while :; do sleep 0.05; done ;;
esac
exit "$code"
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """For two nodes, in an environment with stand-ins of ray and python; polls are short."""
    fields = {"data": {"path": "/data"}, "storage": str(tmp_path / "runs"), "cluster": {"nodes": 2}, "name": "mine"}
    spec = build(PretrainSpec, merge(read_recipe("imagenet"), fields), "test")
    job = rendered_job(spec, ["pretrain"], Settings(), places.Placed)
    path = tmp_path / "job.sh"
    path.write_text(slurm.render(job, tmp_path / "environment").replace("sleep 1\n", "sleep 0.05\n"))
    (tmp_path / "environment" / "bin").mkdir(parents=True)
    for name, text in {"ray": RAY, "python": PYTHON}.items():
        program = tmp_path / "environment" / "bin" / name
        program.write_text(text.format(folder=tmp_path))
        program.chmod(0o755)
    return path


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Slurm]:
    made = Slurm(tmp_path / "slurm", ["127.0.0.1", "127.0.0.2"])
    yield made
    made.end()


@pytest.mark.parametrize(
    ("job_codes", "codes"),
    [
        ([0], [0]),
        ([1], [1]),
        ([2], [2]),
        ([75, 75, 0], [75, 75, 0]),  # tried again until it succeeds
        ([75, 75, 75, 75, 0], [75, 75, 75, 75]),  # but not for ever
    ],
)
def test_the_exit_code_of_the_job_is_that_of_all(
    script: Path, cluster: Slurm, tmp_path: Path, job_codes: list[int], codes: list[int]
):
    (tmp_path / "job-codes").write_text("".join(f"{code}\n" for code in job_codes))
    cluster.submit(script)
    assert cluster.wait() == codes
    assert cluster.tasks() == [[code, code] for code in codes]
    folder = tmp_path / "runs" / ".slurm" / "4321"
    assert (tmp_path / "jobs").read_text().splitlines()[0] == f"-P -m rwkv_jobs.pretrain --resume {folder}/spec.yaml"
    assert "name: mine\n" in (folder / "spec.yaml").read_text()
    assert not (folder / "token").exists()
    assert folder.stat().st_mode & 0o077 == 0
    calls = (tmp_path / "ray-calls").read_text()
    assert "--head --port=16200" in calls  # 10000 + 4321 % 110 * 200
    assert "--address=" in calls
    assert "--min-worker-port=16220 --max-worker-port=16399" in calls


def test_before_its_time_is_over_the_job_is_told_and_requeued(script: Path, cluster: Slurm, tmp_path: Path):
    (tmp_path / "job-codes").write_text("wait\n0\n")
    cluster.submit(script)
    wait_for((tmp_path / "waiting").exists, "start of the job", said=cluster.log)
    cluster.signal()
    assert cluster.wait() == [130, 0]
    assert cluster.tasks() == [[130, 130], [0, 0]]
    assert "told to end: writing a checkpoint" in cluster.log()
    assert "requeued: its time was over" in cluster.log()


def test_a_job_that_was_cancelled_is_not_requeued(script: Path, cluster: Slurm, tmp_path: Path):
    (tmp_path / "job-codes").write_text("wait\n0\n")
    cluster.submit(script)
    wait_for((tmp_path / "waiting").exists, "start of the job", said=cluster.log)
    cluster.set_state("CANCELLED")
    cluster.signal()
    assert cluster.wait() == [130]
    assert "not requeued: the job is CANCELLED" in cluster.log()


def test_a_part_of_ray_that_ends_is_started_again(script: Path, cluster: Slurm, tmp_path: Path):
    """As a raylet does that was cut off for too long."""
    ray = tmp_path / "environment" / "bin" / "ray"
    ends = 'case "$*" in *--address*) sleep 0.2 ;; *) exec sleep 600 ;; esac'
    ray.write_text(ray.read_text().replace("exec sleep 600", ends))
    (tmp_path / "job-codes").write_text("wait\n")
    cluster.submit(script, starts=1)
    wait_for(lambda: cluster.log().count("started again") >= 2, "second start of Ray", said=cluster.log)
    cluster.signal()
    assert cluster.wait() == [130]
    joined = [line for line in (tmp_path / "ray-calls").read_text().splitlines() if "--address=" in line]
    assert len(joined) >= 3


def test_a_head_that_does_not_start_is_tried_again(script: Path, cluster: Slurm, tmp_path: Path):
    """Its port is taken, say; nothing waits for it for ten minutes."""
    ray = tmp_path / "environment" / "bin" / "ray"
    ray.write_text("#!/bin/sh\necho 'the port is taken'\nexit 1\n")
    (tmp_path / "job-codes").write_text("wait\n")
    cluster.submit(script, starts=2)
    assert cluster.wait() == [75, 75]
    assert "Ray has ended on the head; its last lines:\nthe port is taken" in cluster.log()


def test_an_environment_without_ray_is_told_in_one_line(script: Path, cluster: Slurm, tmp_path: Path):
    (tmp_path / "environment" / "bin" / "ray").unlink()
    cluster.submit(script, PATH=f"{cluster.bin}:/usr/bin:/bin:/usr/sbin:/sbin")
    assert cluster.wait() == [2]
    assert f"error: no ray in {tmp_path}/environment/bin" in cluster.log()
