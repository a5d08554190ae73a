"""`--render`: a job is printed, nothing is started or written, and what makes no sense is refused in one line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml


def spec_of(text: str) -> dict:
    config_map, _ = yaml.safe_load_all(text)
    return yaml.safe_load(config_map["data"]["spec.yaml"])


def test_a_job_for_a_cluster_that_is_not_there(rwkvctl, home: Path):
    done = rwkvctl("pretrain --nodes 4 --gpus-per-node 8 --render kuberay")
    assert done.code == 0, done.err
    assert done.err.splitlines() == [
        "recipe imagenet: the default for pretraining",
        f"note: data {home}/data/imagenet: not readable from here; the job checks it when it starts",
    ]
    assert done.out.startswith("# Made by: rwkvctl pretrain --nodes 4 --gpus-per-node 8 --render kuberay\n")
    assert spec_of(done.out)["data"]["path"] == "/mnt/rwkvctl/data/imagenet"
    assert not home.exists()


def test_no_gpus_is_a_number_too(rwkvctl):
    rwkvctl("config set gpus_per_node 8")
    spec = spec_of(rwkvctl("pretrain --nodes 4 --gpus-per-node 0 --render kuberay").out)
    assert (spec["cluster"]["gpus_per_node"], spec["cluster"]["workers"]) == (0, 4)
    spec = spec_of(rwkvctl("pretrain --nodes 4 --render kuberay").out)
    assert (spec["cluster"]["gpus_per_node"], spec["cluster"]["workers"]) == (8, 32)


def test_a_range_of_nodes(rwkvctl):
    given = "pretrain --nodes 2:4 --gpus-per-node 8 --render"
    text = rwkvctl(f"{given} kuberay").out
    assert spec_of(text)["cluster"]["nodes"] == "2:4"
    cluster = list(yaml.safe_load_all(text))[1]["spec"]["rayClusterSpec"]
    [group] = cluster["workerGroupSpecs"]
    assert (group["minReplicas"], group["maxReplicas"], cluster["enableInTreeAutoscaling"]) == (2, 4, True)
    assert "#SBATCH --nodes=2-4\n" in rwkvctl(f"{given} slurm").out


@pytest.mark.parametrize("target", ["kuberay", "slurm"])
@pytest.mark.parametrize(
    "line",
    [
        "pretrain --data s3://nowhere-at-all/imagenet --nodes 2",
        "finetune acdc --data /mnt/rwkvctl/acdc",
        "finetune binary --data /mnt/rwkvctl/polyps --set data.dataset=polyps",
        "tune --space ccm_hidden --recipe acdc --data /mnt/rwkvctl/acdc --set cluster.nodes=2",
        "evaluate models:/rwkv_unet_acdc@champion --workers 2",
        "evaluate some-run --part val",
    ],
)
def test_data_and_models_that_only_the_cluster_sees(rwkvctl, home: Path, line: str, target: str):
    done = rwkvctl(f"{line} --render {target}")
    assert done.code == 0, done.err
    assert f"rwkv_jobs.{line.split()[0]}" in done.out or f"\nJOB={line.split()[0]}\n" in done.out
    assert not home.exists()


def test_data_that_are_seen_are_checked(rwkvctl, binary, home: Path):
    done = rwkvctl(f"pretrain imagefolder --data {binary.root} --render slurm")
    assert done.code == 2
    assert "is for segmentation, and pretrain needs classification" in done.err
    done = rwkvctl(f"finetune --data {binary.root} --render slurm")
    assert done.code == 0
    assert done.err.startswith(f"recipe binary: {binary.root} was prepared from folder")
    done = rwkvctl(f"finetune --data {binary.root} --render kuberay")
    assert f"note: copy {binary.root} to /mnt/rwkvctl/data/binary on the volume before you submit it" in done.err
    assert spec_of(done.out)["data"]["path"] == "/mnt/rwkvctl/data/binary"
    assert not home.exists()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("pretrain --render kubernetes", "--render 'kubernetes': must be kuberay or slurm"),
        ("pretrain --render slurm --dry-run", "--render with --dry-run: give one of the two"),
        ("pretrain --render slurm --json", "--render with --json: give one of the two"),
        ("pretrain --render slurm --address head:6379", "--render with --address: leave out --address"),
        ("pretrain --render slurm --set cluster.launcher=process", "cluster.launcher process: is for one process"),
        ("pretrain --render slurm --resume auto", "--render with --resume: leave out --resume"),
        ("finetune --data /mnt/x --render slurm", "data /mnt/x: is not readable from here, so name its recipe"),
        ("finetune binary --data /mnt/x --render slurm", "say what it is called with --set data.dataset=NAME"),
        ("pretrain --nodes 3 --gpus-per-node 7 --render slurm", "--render: train.batch_size 1024 is not divisible"),
        (
            "tune --space ccm_hidden --recipe acdc --data /mnt/rwkvctl/x --set cluster.workers=2 --render slurm",
            "cluster.workers: a trial runs on one worker",
        ),
    ],
)
def test_what_makes_no_sense(rwkvctl, home: Path, line: str, said: str):
    done = rwkvctl(line)
    assert done.code == 2, done.out
    error = done.err.splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error
    assert len(error) < 300
    assert done.out == ""
    assert not home.exists()


def test_rendering_imports_no_ray(tmp_path: Path):
    code = """
import sys
from rwkvctl.cli import app
for target in ("kuberay", "slurm"):
    sys.argv = ["rwkvctl", "pretrain", "--nodes", "2", "--render", target]
    try:
        app.app()
    except SystemExit as end:
        assert not end.code
print([name for name in ("torch", "timm", "ray", "mlflow", "optuna") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
