"""Rendered jobs: what is printed for KubeRay and for Slurm, byte by byte, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import rwkvctl
from rwkvctl.base.errors import UserError
from rwkvctl.config.settings import Settings
from rwkvctl.config.specs.jobs import EvaluateSpec, FinetuneSpec, PretrainSpec, TuneSpec
from rwkvctl.config.specs.load import build, merge, read_recipe, read_space
from rwkvctl.launch.render import kuberay, places, slurm
from rwkvctl.launch.render.job import RenderedJob, rendered_job, spec_text

GOLDENS = Path(__file__).parents[2] / "goldens" / "render"
ENVIRONMENT = Path("/shared/rwkvctl")


def pretraining(**cluster: Any) -> PretrainSpec:
    fields = {
        "data": {"path": "/mnt/rwkvctl/data/imagenet"},
        "storage": "/mnt/rwkvctl/runs",
        "tracking": {"uri": "https://mlflow.lab"},
        "cluster": cluster,
    }
    return build(PretrainSpec, merge(read_recipe("imagenet"), fields), "test")


def finetuning(**fields: Any) -> FinetuneSpec:
    own = {"data": {"path": "s3://lab/acdc"}, "storage": "/mnt/rwkvctl/runs"}
    return build(FinetuneSpec, merge(merge(read_recipe("acdc"), own), fields), "test")


def rendered(spec: Any, machine: Settings | None = None) -> RenderedJob:
    machine = machine or Settings()
    return rendered_job(spec, ["pretrain", "--render", "..."], machine, lambda found: places.in_pods(found, machine))


def elastic() -> RenderedJob:
    """Of 2 to 4 nodes without GPUs, in a queue, with its data in a bucket and its tracking server from the Secret."""
    machine = Settings(queue="team-a", image="registry.lab/rwkvctl:1", volume="claim:/lab/home", credentials="lab")
    fields = {
        "name": "two-to-four",
        "cluster": {"gpus_per_node": 0},
        "storage": "/lab/home/runs",
        "data": {"workers": 3},
    }
    return replace(rendered(finetuning(**fields), machine), nodes=(2, 4))


CASES = {
    "four_nodes.yaml": lambda: (j := rendered(pretraining(nodes=4, gpus_per_node=8)), kuberay.render(j)),
    "elastic.yaml": lambda: (j := elastic(), kuberay.render(j)),
    "four_nodes.sh": lambda: (j := rendered(pretraining(nodes=4, gpus_per_node=8)), slurm.render(j, ENVIRONMENT)),
    "elastic.sh": lambda: (j := elastic(), slurm.render(j, ENVIRONMENT)),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_rendered(case: str):
    """The spec, which grows with every new field, and the versions are left out of what is compared."""
    job, text = CASES[case]()
    assert text == CASES[case]()[1], "the same command prints the same"
    spec = spec_text(job)
    indented = "".join(f"    {line}\n" for line in spec.splitlines())
    assert (indented if case.endswith("yaml") else spec) in text
    text = text.replace(indented, "    SPEC\n").replace(spec, "SPEC\n").replace(job.name, "NAME")
    text = text.replace(rwkvctl.__version__, "VERSION").replace(kuberay.ray_version(), "RAY")
    text = text.replace(slurm.body(), "BODY\n")
    golden = GOLDENS / case
    assert text == golden.read_text(), f"if this is what is meant, write it to {golden}"


def manifest(job: RenderedJob) -> tuple[dict[str, Any], dict[str, Any]]:
    config_map, ray_job = yaml.safe_load_all(kuberay.render(job))
    return config_map, ray_job


# The shape of the cluster --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cluster", "nodes", "gpus", "workers", "cpus"),
    [
        ({}, 1, "1", 1, 10),  # a worker, its 8 loader processes, Ray
        ({"nodes": 4, "gpus_per_node": 8}, 4, "8", 32, 73),
        ({"nodes": 2, "workers": 4}, 2, "2", 4, 19),
        ({"nodes": 2, "workers": 4, "gpus_per_node": 0, "cpus_per_worker": 3}, 2, None, 4, 23),
        ({"nodes": 2, "gpus_per_node": 0}, 2, None, 2, 10),
    ],
)
def test_what_a_node_has(cluster: dict[str, Any], nodes: int, gpus: str | None, workers: int, cpus: int):
    config_map, job = manifest(rendered(pretraining(**cluster)))
    [group] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    resources = group["template"]["spec"]["containers"][0]["resources"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (nodes, nodes, nodes)
    assert (resources["limits"].get("nvidia.com/gpu"), resources["limits"]["cpu"]) == (gpus, str(cpus))
    assert resources["requests"] == resources["limits"]
    spec = yaml.safe_load(config_map["data"]["spec.yaml"])
    assert (spec["cluster"]["workers"], spec["cluster"]["address"]) == (workers, "auto")


@pytest.mark.parametrize(
    ("cluster", "said"),
    [
        ({"nodes": 2, "workers": 8, "gpus_per_node": 8}, "cluster.workers 8 on 2 nodes is 4 for each"),
        ({"nodes": 3, "workers": 4}, "cluster.workers 4: does not spread evenly over 3 nodes"),
        ({"nodes": 3, "gpus_per_node": 7}, "train.batch_size 1024 is not divisible by cluster.workers 21"),
    ],
)
def test_numbers_that_do_not_go_together(cluster: dict[str, Any], said: str):
    with pytest.raises(UserError, match=re.escape(said)):
        rendered(pretraining(**cluster))


def test_a_sweep_has_as_many_trials_at_once_as_workers():
    space = read_space("ccm_hidden")
    base = finetuning(cluster={"nodes": 2, "gpus_per_node": 4})
    fields = {"space_name": "ccm_hidden", "space": space.model_dump(mode="json"), "trials": 9}
    fields |= {"base": base.model_dump(mode="json", by_alias=True), "cluster": base.cluster.model_dump()}
    job = rendered(build(TuneSpec, fields | {"storage": "/mnt/rwkvctl/runs"}, "test"))
    spec = yaml.safe_load(manifest(job)[0]["data"]["spec.yaml"])
    assert (spec["concurrency"], spec["cluster"]["workers"], spec["base"]["cluster"]["address"]) == (8, None, "auto")
    assert manifest(job)[1]["spec"]["entrypoint"] == "python -P -m rwkv_jobs.tune --resume /etc/rwkvctl/spec.yaml"


def test_an_evaluation_runs_on_workers_of_the_cluster():
    fields = {"model": "models:/net@champion", "cluster": {"launcher": "process", "workers": 1}, "name": "scores"}
    config_map, job = manifest(rendered(build(EvaluateSpec, fields, "test")))
    spec = yaml.safe_load(config_map["data"]["spec.yaml"])
    assert (spec["cluster"]["launcher"], spec["cluster"]["workers"]) == ("ray", 1)
    assert spec["model"] == "models:/net@champion"
    assert job["metadata"]["name"] == "scores"


# Names ---------------------------------------------------------------------------------------------------------------


def test_the_same_spec_is_the_same_run():
    one, again, other = (rendered(pretraining(nodes=nodes)).name for nodes in (2, 2, 4))
    assert re.fullmatch("pretrain-imagenet-[0-9a-f]{8}", one)
    assert one == again != other


@pytest.mark.parametrize(("run", "name"), [("My_run.2", "my-run-2"), ("3rd", "run-3rd"), ("a" * 47, "a" * 47)])
def test_names_that_kubernetes_takes(run: str, name: str):
    assert kuberay.object_name(run) == name


def test_a_name_that_kuberay_does_not_take():
    with pytest.raises(UserError, match="KubeRay takes at most 47 characters"):
        kuberay.object_name("a" * 48)


def test_a_queue_that_kueue_does_not_take():
    job = replace(elastic(), settings=Settings(queue="GPU_long", volume="claim:/lab/home"))
    with pytest.raises(UserError, match="is no name of a Kueue LocalQueue"):
        kuberay.render(job)
    assert "#SBATCH --partition=GPU_long\n" in slurm.render(job, ENVIRONMENT)


@pytest.mark.parametrize("render", [kuberay.render, lambda job: slurm.render(job, ENVIRONMENT)])
def test_an_argument_cannot_leave_the_comment(render: Any):
    machine = Settings()
    arguments = ["pretrain", "--name", "x\nrm -rf /", "--set", "tracking.uri=https://ann:hunter2@lab"]
    job = rendered_job(pretraining(nodes=2), arguments, machine, places.Placed)
    text = render(job)
    assert "hunter2" not in text
    assert [line[0] for line in text.splitlines() if "rm -rf" in line] == ["#"]


# Places --------------------------------------------------------------------------------------------------------------


def test_what_lies_below_the_home_lies_below_the_volume(home: Path):
    spec = finetuning(
        storage=str(home / "runs"),
        data={"path": str(home / "data" / "acdc")},
        model={"encoder_weights": str(home / "enc.pth")},
        tracking={"uri": f"sqlite:///{home}/mlflow.db"},
    )
    (home / "data" / "acdc").mkdir(parents=True)
    placed = places.in_pods(spec, Settings(volume="claim:/lab"))
    found = placed.spec
    assert placed.copies == ((str(home / "data" / "acdc"), "/lab/data/acdc"),)
    assert (found.storage, found.data.path, found.model.encoder_weights, found.tracking.uri) == (  # type: ignore[attr-defined]
        "/lab/runs", "/lab/data/acdc", "/lab/enc.pth", None,
    )  # fmt: skip


def test_what_lies_elsewhere_gets_a_place_on_the_volume(tmp_path: Path):
    for name in ("acdc", "enc.pth"):
        (tmp_path / name).mkdir()
    spec = finetuning(
        storage="/scratch",
        data={"path": str(tmp_path / "acdc")},
        model={"encoder_weights": str(tmp_path / "enc.pth")},
        tracking={"uri": "sqlite:////tmp/x.db"},
    )
    job = rendered(spec)
    found = job.spec
    assert (found.storage, found.data.path, found.model.encoder_weights, found.tracking.uri) == (  # type: ignore[attr-defined]
        "/mnt/rwkvctl/runs", "/mnt/rwkvctl/data/acdc", "/mnt/rwkvctl/weights/enc.pth", None,
    )  # fmt: skip
    copies = [(str(tmp_path / "acdc"), found.data.path), (str(tmp_path / "enc.pth"), found.model.encoder_weights)]  # type: ignore[attr-defined]
    assert list(job.copies) == copies
    text = kuberay.render(job)
    assert all(f"#   {there} on it, a copy of {here} on the machine" in text for here, there in copies)
    _, ray_job = yaml.safe_load_all(text)
    [container] = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert {"name": "home", "mountPath": "/mnt/rwkvctl"} in container["volumeMounts"]


# Secrets -------------------------------------------------------------------------------------------------------------


def test_secrets_are_named_and_never_shown(monkeypatch: pytest.MonkeyPatch):
    for variable in ("MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD"):
        monkeypatch.setenv(variable, "hunter2")
    text = kuberay.render(elastic())
    assert "hunter2" not in text
    _, job = yaml.safe_load_all(text)
    cluster = job["spec"]["rayClusterSpec"]
    for template in (cluster["headGroupSpec"]["template"], cluster["workerGroupSpecs"][0]["template"]):
        [container] = template["spec"]["containers"]
        by_reference = {
            entry["name"]: entry["valueFrom"]["secretKeyRef"] for entry in container["env"] if "value" not in entry
        }
        assert {ref["name"] for ref in by_reference.values()} == {"lab"}
        assert by_reference["MLFLOW_TRACKING_URI"].get("optional") is None, "without a server nothing would be kept"
        assert {"MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY"} < by_reference.keys()
