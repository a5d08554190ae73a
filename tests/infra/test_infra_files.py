"""What infra/ holds, and what `--render` prints, is taken by the programs that it is for.

Those are used where they are installed: hadolint, shellcheck, docker compose, systemd-analyze. RWKVCTL_KUBERAY_CRDS is
the folder `ray-operator/config/crd/bases` of a checkout of KubeRay. A test that lacks one is skipped and says so.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

import rwkvctl
from rwkvctl.cli import app
from rwkvctl.config.settings import Settings
from rwkvctl.config.specs.jobs import FinetuneSpec
from rwkvctl.config.specs.load import build, merge, read_recipe
from rwkvctl.launch.render import kuberay, places, slurm
from rwkvctl.launch.render.job import RenderedJob, rendered_job

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"
MANIFESTS = sorted((INFRA / "kuberay").glob("*.yaml"))
CRDS = os.environ.get("RWKVCTL_KUBERAY_CRDS", "")


def program(name: str) -> str:
    """A program beside this Python or on PATH."""
    found = shutil.which(name, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


def run(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False, **options)


def example(*, nodes: tuple[int, int], gpus: int, queue: str | None) -> RenderedJob:
    from dataclasses import replace

    fields = {
        "data": {"path": "s3://lab/acdc"}, "storage": "/mnt/rwkvctl/runs", "cluster": {"gpus_per_node": gpus},
        "name": "Some_run.1",
    }  # fmt: skip
    spec = build(FinetuneSpec, merge(read_recipe("acdc"), fields), "test")
    job = rendered_job(spec, ["finetune", "acdc"], Settings(queue=queue), places.Placed)
    return replace(job, nodes=nodes)


RENDERED = {
    "one GPU": lambda: example(nodes=(1, 1), gpus=1, queue=None),
    "elastic in a queue": lambda: example(nodes=(2, 4), gpus=8, queue="team-a"),
    "CPUs": lambda: example(nodes=(3, 3), gpus=0, queue="team-a"),
}
TEXTS = {path.name: path.read_text() for path in MANIFESTS} | {
    name: kuberay.render(make()) for name, make in RENDERED.items()
}
"""Every manifest: the files, and what is rendered."""


def objects(kind: str | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, text in TEXTS.items():
        for found in yaml.safe_load_all(text):
            if kind is None or found["kind"] == kind:
                yield name, found


def clusters() -> Iterator[tuple[str, dict[str, Any]]]:
    yield from ((name, found["spec"]) for name, found in objects("RayCluster"))
    yield from ((name, found["spec"]["rayClusterSpec"]) for name, found in objects("RayJob"))


def templates() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, cluster in clusters():
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield name, group["template"]


# KubeRay and Kubernetes ----------------------------------------------------------------------------------------------


def strict(schema: Any) -> Any:
    """A CRD's schema as one of JSON that refuses every field which it does not name."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items() if not key.startswith("x-kubernetes")}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(made.get("properties"), dict) and not schema.get("x-kubernetes-preserve-unknown-fields"):
        made.setdefault("additionalProperties", False)
    return made


@pytest.fixture(scope="session")
def schemas() -> dict[str, Any]:
    """The strict schemas of KubeRay's kinds."""
    if not CRDS:
        pytest.skip("RWKVCTL_KUBERAY_CRDS is not set")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = {}
    for name in ("rayclusters", "rayjobs"):
        crd = yaml.load((Path(CRDS) / f"ray.io_{name}.yaml").read_text(), Loader=loader)
        [version] = [version for version in crd["spec"]["versions"] if version["name"] == "v1"]
        found[crd["spec"]["names"]["kind"]] = strict(version["schema"]["openAPIV3Schema"])
    for schema in found.values():  # `metadata: {type: object}` in the CRDs stands for Kubernetes' own
        schema["properties"]["metadata"] = {"type": "object"}
    return found


@pytest.mark.parametrize("name", TEXTS)
def test_kuberay_takes_it(schemas: dict[str, Any], name: str):
    for found in yaml.safe_load_all(TEXTS[name]):
        if found["kind"] in schemas:
            jsonschema.validate(found, schemas[found["kind"]])


def test_kuberays_schema_refuses_what_it_does_not_know(schemas: dict[str, Any]):
    [job, *_] = [found for _, found in objects("RayJob")]
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["replica"] = 2
    with pytest.raises(jsonschema.ValidationError, match="'replica' was unexpected"):
        jsonschema.validate(job, schemas["RayJob"])


def test_the_other_way_to_delete_a_finished_job_is_valid(schemas: dict[str, Any]):
    """It stands in a comment; KubeRay takes it only in the place of the two lines above it."""
    text = TEXTS["one GPU"].replace("  shutdownAfterJobFinishes: true\n  ttlSecondsAfterFinished: 300\n", "")
    lines = text.splitlines()
    start = lines.index("  # deletionStrategy:")
    lines[start : start + 6] = [line.replace("  # ", "  ", 1) for line in lines[start : start + 6]]
    _, job = yaml.safe_load_all("\n".join(lines))
    assert len(job["spec"]["deletionStrategy"]["deletionRules"]) == 4
    jsonschema.validate(job, schemas["RayJob"])


@pytest.mark.parametrize("name", TEXTS)
def test_kubernetes_takes_it(name: str):
    """Its own objects as they are, and the pods that KubeRay makes of the templates."""
    kubernetes_validate = pytest.importorskip("kubernetes_validate")
    version = kubernetes_validate.latest_version()
    own = [found for of, found in objects() if of == name and found["apiVersion"] == "v1"]
    pods = [
        {"apiVersion": "v1", "kind": "Pod", "metadata": template.get("metadata", {}), "spec": template["spec"]}
        for of, template in templates()
        if of == name
    ]
    for found in own + pods:
        kubernetes_validate.validate(found, version, strict=True)
    assert own or pods


def test_pods_may_use_what_they_ask_for_and_nothing_as_root():
    for name, template in templates():
        [container] = template["spec"]["containers"]
        assert container["resources"]["requests"] == container["resources"]["limits"], name
        assert {"cpu", "memory"} <= container["resources"]["limits"].keys(), name
        assert template["spec"]["securityContext"]["runAsNonRoot"], name
        assert not container["securityContext"]["allowPrivilegeEscalation"], name
        [shm] = [volume for volume in template["spec"]["volumes"] if volume["name"] == "shm"]
        assert shm["emptyDir"]["medium"] == "Memory", name
        assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"], name


def test_clusters_ask_for_a_token_and_no_worker_runs_on_their_head():
    found = list(clusters())
    assert len(found) >= 5
    for name, cluster in found:
        assert cluster["authOptions"] == {"mode": "token"}, name
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0", name
        scales = [group["minReplicas"] != group["maxReplicas"] for group in cluster["workerGroupSpecs"]]
        assert any(scales) == bool(cluster.get("enableInTreeAutoscaling")), name


def test_what_scales_in_a_queue_says_so_to_kueue():
    for name, found in objects():
        cluster = found["spec"].get("rayClusterSpec", found["spec"]) if "spec" in found else {}
        queued = "kueue.x-k8s.io/queue-name" in found["metadata"].get("labels", {})
        elastic = found["metadata"].get("annotations", {}).get("kueue.x-k8s.io/elastic-job") == "true"
        assert elastic == (queued and bool(cluster.get("enableInTreeAutoscaling"))), name
        if queued and found["kind"] == "RayJob":
            assert found["spec"]["shutdownAfterJobFinishes"], f"{name}: Kueue has to suspend it"


def test_no_secret_is_in_clear():
    for name, template in templates():
        for entry in template["spec"]["containers"][0]["env"]:
            if re.search("PASSWORD|KEY|TOKEN|USERNAME", entry["name"]):
                assert "value" not in entry, name
                assert "secretKeyRef" in entry["valueFrom"], name
    assert not list(objects("Secret"))


def test_images_and_versions_are_those_of_the_repository():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    for name, cluster in clusters():
        assert cluster["rayVersion"] == pinned["ray"], name
    for name, template in templates():
        assert template["spec"]["containers"][0]["image"] in (
            f"rwkvctl:{rwkvctl.__version__}",
            f"rwkvctl:{rwkvctl.__version__}-cpu",
        ), name


# The examples are what is printed ------------------------------------------------------------------------------------


def comparable(text: str) -> str:
    """Without the spec, which grows with every new field, and what depends on it."""
    text = re.sub(r"(?s)(spec\.yaml: \|\n).*?(\n---\n)", r"\1\2", text)
    text = re.sub(rf"(?s)(<<'{slurm.END}'\n).*?(\n{slurm.END}\n)", r"\1\2", text)
    text = re.sub(r"pretrain-imagenet-[0-9a-f]{8}", "NAME", text)
    return re.sub(r"(?m)^ENVIRONMENT=/.*$", "ENVIRONMENT=", text)


@pytest.mark.parametrize(
    "path", [INFRA / "kuberay" / "job.yaml", INFRA / "slurm" / "job.sh"], ids=lambda path: path.name
)
def test_the_example_is_what_its_command_prints(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    text = (INFRA / path).read_text()
    [command] = re.findall(r"^# Made by: rwkvctl (.*)$", text, re.MULTILINE)
    monkeypatch.setenv("RWKVCTL_HOME", str(tmp_path))
    for variable in ("RAY_ADDRESS", "MLFLOW_TRACKING_URI", "RWKVCTL_DATA_ROOT", "RWKVCTL_STORAGE"):
        monkeypatch.delenv(variable, raising=False)
    (tmp_path / "config.yaml").write_text("queue: team-a\n")
    monkeypatch.setattr(sys, "argv", ["rwkvctl", *command.split()])
    with pytest.raises(SystemExit) as end:
        app.app()
    assert not end.value.code
    assert comparable(capsys.readouterr().out) == comparable(text), "write its output there"


# Slurm, containers, bare machines ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["job.sh", *RENDERED])
def test_shellcheck_finds_nothing(name: str, tmp_path: Path):
    script = tmp_path / "job.sh"
    example = INFRA / "slurm" / "job.sh"
    script.write_text(
        example.read_text() if name == "job.sh" else slurm.render(RENDERED[name](), Path('/it\'s a "folder"'))
    )
    done = run(program("shellcheck"), "--severity=style", script)
    assert done.returncode == 0, done.stdout


def test_hadolint_finds_nothing():
    done = run(program("hadolint"), INFRA / "Dockerfile")
    assert done.returncode == 0, done.stdout


def test_the_images_have_neither_root_nor_a_compiler_nor_a_secret():
    text = (INFRA / "Dockerfile").read_text()
    stages = re.split(r"^FROM ", text, flags=re.MULTILINE)[1:]
    named = {re.search(r"AS ([\w-]+)", stage)[1]: stage for stage in stages}  # type: ignore[index]
    assert stages[-1].split() == ["runtime", "AS", "cuda", *stages[-1].split()[3:]], "what is built without --target"
    for final in ("mlflow", "runtime"):
        assert "USER 1000:1000" in named[final]
        assert "g++" not in named[final]
        assert "pip install" not in named[final]
    assert all(
        "-c constraints.txt" in line or "-c /src/constraints.txt" in line
        for line in text.splitlines()
        if "pip install" in line
    )
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().splitlines()
    assert "*" in ignored
    copied = {word for line in re.findall(r"^COPY (?!--)(.*)$", text, re.MULTILINE) for word in line.split()[:-1]}
    assert {f"!{word}" for word in copied} <= set(ignored)
    assert all((ROOT / word).exists() for word in copied)


SECRET_OF = "x" * 16


def compose_variables() -> list[str]:
    """Those without which it does not start."""
    return re.findall(r"\$\{(\w+):\?", (INFRA / "compose" / "compose.yaml").read_text())


def test_compose_takes_its_file(tmp_path: Path):
    folder = shutil.copytree(INFRA / "compose", tmp_path / "compose")
    compose = [program("docker-compose")]
    if shutil.which("docker") and run("docker", "compose", "version").returncode == 0:
        compose = ["docker", "compose"]
    environment = {key: value for key, value in os.environ.items() if key not in compose_variables()}
    done = run(*compose, "config", "--quiet", cwd=folder, env=environment)
    assert "set it in .env" in done.stderr
    filled = dict.fromkeys(compose_variables(), SECRET_OF)
    done = run(*compose, "config", cwd=folder, env=environment | filled)
    assert done.returncode == 0, done.stderr
    services = yaml.safe_load(done.stdout)["services"]
    assert set(services) == {"postgres", "s3", "mlflow"}
    assert all("healthcheck" in service for service in services.values())
    assert [port["host_ip"] for name in ("s3", "mlflow") for port in services[name]["ports"]] == ["127.0.0.1"] * 2
    assert "ports" not in services["postgres"]


def test_the_example_environment_names_every_secret_and_has_none():
    lines = (INFRA / "compose" / ".env.example").read_text().splitlines()
    values = dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))
    assert set(values) == set(compose_variables())
    assert set(values.values()) == {""}


def test_compose_writes_no_secret_and_uses_no_image_that_moves():
    content = yaml.safe_load((INFRA / "compose" / "compose.yaml").read_text())
    for name, service in content["services"].items():
        for key, value in service["environment"].items():
            if re.search("PASSWORD|KEY", key):
                assert value.startswith("${"), f"{name}: {key}"
        image = service["image"]
        assert "build" in service or re.search(r":[0-9]", image), f"{name}: {image} has no version"
    assert "minio" not in str(content).lower(), "archived in 2026"
    assert not re.search("password *=", (INFRA / "compose" / "auth.ini").read_text())


@pytest.mark.parametrize("unit", sorted((INFRA / "bare").glob("*.service")), ids=lambda path: path.name)
def test_systemd_takes_the_units(unit: Path, tmp_path: Path):
    """With a program that is there in the place of Ray."""
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/rwkvctl/bin/ray", "/bin/true"))
    done = run(program("systemd-analyze"), "verify", "--man=no", copy)
    assert (done.returncode, done.stderr) == (0, "")
    text = unit.read_text()
    assert "Restart=always" in text
    assert "StartLimitIntervalSec=0" in text
    options = set(re.findall(r"--[a-z-]+", re.search("^ExecStart=(.*)$", text, re.MULTILINE)[1]))  # type: ignore[index]
    known = set(re.findall(r"--[a-z-]+", run(sys.executable, "-m", "ray.scripts.scripts", "start", "--help").stdout))
    assert options <= known
    named = set(re.findall(r"\$\{(\w+)\}", text))
    assert named <= set(re.findall(r"^(\w+)=", (INFRA / "bare" / "ray.env.example").read_text(), re.MULTILINE))
