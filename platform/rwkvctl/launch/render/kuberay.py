"""A RayJob for KubeRay: a cluster of its own for one job, which goes away with it.

Submit it with `kubectl apply`. Nothing of the machine that rendered it is needed: the spec travels in a ConfigMap. A
job that fails, or whose cluster is preempted, is tried again on a new cluster and continues the run of its name.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml

import rwkvctl
from rwkvctl.base.errors import UserError
from rwkvctl.launch.render.job import SHARED_MEMORY_GB, RenderedJob, one_line, spec_text
from rwkvctl.launch.render.places import volume_of

SPEC_FOLDER, CACHE = "/etc/rwkvctl", "/cache"
RETRIES = 3
"""New clusters that a failed job is tried on; lost workers and nodes are replaced within a cluster before that."""
KEEP_SECONDS = 300
"""For how long a finished job keeps its cluster, to look into it."""
GRACE = 120
"""Seconds between the announcement of a pod's end and its being killed."""
HEAD = {"cpu": "2", "memory": "8Gi"}
"""The driver's: it trains nothing, but it builds and registers the model."""
AUTOSCALER = {"cpu": "500m", "memory": "512Mi"}
LONGEST_NAME = 47
"""KubeRay's own limit for a RayJob."""
ELASTIC = {"kueue.x-k8s.io/elastic-job": "true"}
"""Without it Kueue refuses a job whose cluster scales."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
DELETION = """\
# To give the workers back at once and keep the head with its logs for an hour, put this in the place of these two lines
# (KubeRay 1.6 takes one or the other; not with Kueue, which needs shutdownAfterJobFinishes, nor while autoscaling):
# deletionStrategy:
#   deletionRules:
#   - {policy: DeleteWorkers, condition: {jobStatus: SUCCEEDED, ttlSeconds: 0}}
#   - {policy: DeleteWorkers, condition: {jobStatus: FAILED, ttlSeconds: 0}}
#   - {policy: DeleteCluster, condition: {jobStatus: SUCCEEDED, ttlSeconds: 3600}}
#   - {policy: DeleteCluster, condition: {jobStatus: FAILED, ttlSeconds: 3600}}"""


def render(job: RenderedJob) -> str:
    """The manifest: a ConfigMap with the spec, and the RayJob."""
    name = object_name(job.name)
    documents = [dumped(config_map(job, name)), with_comments(dumped(ray_job(job, name)), job)]
    return "\n".join([header(job, name), *(f"---\n{document}" for document in documents)])


def header(job: RenderedJob, name: str) -> str:
    secret = job.settings.credentials
    claim, mount = volume_of(job.settings)
    lines = [
        f"Made by: {job.command}",
        "",
        f"Submit:  kubectl apply -f FILE        (KubeRay 1.5 or newer; continues the run {job.name} if there is one)",
        f"State:   kubectl get rayjob {name}",
        "Follow:  kubectl exec -c ray-head "
        f"$(kubectl get pod -o name -l ray.io/node-type=head,ray.io/originated-from-cr-name={name}) -- \\",
        "           bash -c 'tail -n +1 -F /tmp/ray/session_latest/logs/job-driver-*.log'",
        f"Stop:    kubectl delete rayjob {name}",
        "",
        "It needs in its namespace:",
        *needs(job, claim, mount),
        f"  Secret {secret}, whose keys are {', '.join(key for key, _ in secrets(job))}:",
        f"    kubectl create secret generic {secret} --from-env-file=FILE     (FILE: KEY=VALUE lines, mode 600)",
    ]
    return "\n".join(f"# {line}".rstrip() for line in lines)


def needs(job: RenderedJob, claim: str, mount: str) -> list[str]:
    image = job.settings.image or default_image(job)
    own = [f"  Image {image}, from infra/Dockerfile (another: rwkvctl config set image NAME)"]
    if uses_volume(job):
        own.append(f"  PersistentVolumeClaim {claim}, ReadWriteMany, mounted on {mount}")
    own += [f"  {there} on it, a copy of {one_line(here)} on the machine that made this" for here, there in job.copies]
    if job.settings.queue is not None:
        own.append(f"  Kueue's LocalQueue {job.settings.queue}")
    return own


def object_name(run: str) -> str:
    """A run's name as a Kubernetes name: lower case, at most 47 characters, beginning with a letter."""
    name = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    name = name if name[:1].isalpha() else f"run-{name}"
    if len(name) > LONGEST_NAME:
        raise UserError(f"--name {run}: KubeRay takes at most {LONGEST_NAME} characters; give a shorter --name")
    return name


def config_map(job: RenderedJob, name: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "labels": labels(job)},
        "data": {"spec.yaml": spec_text(job)},
    }


def labels(job: RenderedJob) -> dict[str, str]:
    return {"app.kubernetes.io/name": "rwkvctl", "app.kubernetes.io/component": job.spec.job}


def ray_job(job: RenderedJob, name: str) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": name, "labels": labels(job)}
    if job.settings.queue is not None:
        metadata["labels"][QUEUE_LABEL] = queue_name(job.settings.queue)
        if job.elastic:
            metadata["annotations"] = dict(ELASTIC)
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": metadata,
        "spec": {
            "entrypoint": f"{job.entrypoint} {SPEC_FOLDER}/spec.yaml",
            "submissionMode": "HTTPMode",
            "backoffLimit": RETRIES,
            "shutdownAfterJobFinishes": True,
            "ttlSecondsAfterFinished": KEEP_SECONDS,
            "rayClusterSpec": ray_cluster(job, name),
        },
    }


def queue_name(queue: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?", queue):
        raise UserError(
            f"config queue {queue!r}: is no name of a Kueue LocalQueue (lower-case letters, digits, - and .)"
        )
    return queue


def ray_cluster(job: RenderedJob, name: str) -> dict[str, Any]:
    fewest, most = job.nodes
    spec: dict[str, Any] = {"rayVersion": ray_version(), "authOptions": {"mode": "token"}}
    if job.elastic:
        spec["enableInTreeAutoscaling"] = True
        spec["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": 300,
            "resources": {"requests": AUTOSCALER, "limits": AUTOSCALER},
        }
    spec["headGroupSpec"] = {
        "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "dashboard-host": "0.0.0.0"},
        "template": pod(job, "ray-head", HEAD, {"spec": {"configMap": {"name": name}}}, {"spec": SPEC_FOLDER}),
    }
    worker = {"cpu": str(job.cpus_per_node), "memory": f"{job.memory_gb}Gi"}
    if job.gpus_per_node:
        worker["nvidia.com/gpu"] = str(job.gpus_per_node)
    spec["workerGroupSpecs"] = [
        {
            "groupName": "workers",
            "replicas": fewest,
            "minReplicas": fewest,
            "maxReplicas": most,
            "rayStartParams": {},
            "template": pod(job, "ray-worker", worker, {}, {}),
        }
    ]
    return spec


def pod(
    job: RenderedJob, container: str, resources: dict[str, str], volumes: dict[str, Any], mounts: dict[str, str]
) -> dict[str, Any]:
    """A pod template. What a container may use is what it asks for, so that no pod is put out for another's memory."""
    shared = f"{SHARED_MEMORY_GB * (job.workers_per_node if container == 'ray-worker' else 1)}Gi"
    volumes = {
        **volumes,
        "shm": {"emptyDir": {"medium": "Memory", "sizeLimit": shared}},
        "cache": {"emptyDir": {}},
    }
    mounts = {**mounts, "shm": "/dev/shm", "cache": CACHE}
    if uses_volume(job):
        claim, mount = volume_of(job.settings)
        volumes["home"] = {"persistentVolumeClaim": {"claimName": claim}}
        mounts["home"] = mount
    ports = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
    body: dict[str, Any] = {
        "name": container,
        "image": job.settings.image or default_image(job),
        "imagePullPolicy": "IfNotPresent",
        "env": environment(job),
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "volumeMounts": [
            {"name": name, "mountPath": path} | ({"readOnly": True} if name == "spec" else {})
            for name, path in mounts.items()
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if container == "ray-head":
        body["ports"] = [{"name": port, "containerPort": number} for port, number in ports.items()]
    spec: dict[str, Any] = {
        "containers": [body],
        "volumes": [{"name": name, **source} for name, source in volumes.items()],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 1000,
            "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": GRACE,
    }
    if "nvidia.com/gpu" in resources:
        spec["tolerations"] = [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    return {"metadata": {"labels": labels(job)}, "spec": spec}


def environment(job: RenderedJob) -> list[dict[str, Any]]:
    """Plain where it is no secret, by reference where it is."""
    _, mount = volume_of(job.settings)
    plain = {
        "RWKVCTL_HOME": mount if uses_volume(job) else f"{CACHE}/home",
        "RWKVCTL_CACHE": f"{CACHE}/shards",
        "RAY_USAGE_STATS_ENABLED": "0",
        # Kubernetes takes a pod away with SIGTERM: Ray tells the job that the node is leaving, and waits so long.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": str(GRACE - 20),
    }
    return [
        *({"name": key, "value": value} for key, value in plain.items()),
        *(
            {
                "name": key,
                "valueFrom": {
                    "secretKeyRef": {"name": job.settings.credentials, "key": key}
                    | ({} if required else {"optional": True})
                },
            }
            for key, required in secrets(job)
        ),
    ]


def secrets(job: RenderedJob) -> list[tuple[str, bool]]:
    """The keys of the Secret, and whether the job cannot start without them."""
    found = [(f"MLFLOW_TRACKING_{key}", False) for key in ("USERNAME", "PASSWORD", "TOKEN")]
    if job.spec.tracking.uri is None:
        found.insert(0, ("MLFLOW_TRACKING_URI", True))
    texts = job.texts()
    if any(text.startswith("s3://") for text in texts):
        found += [(key, False) for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL")]
    if any(text.startswith(("postgresql:", "postgresql+", "postgres:")) for text in texts):
        found.append(("PGPASSWORD", True))
    return found


def uses_volume(job: RenderedJob) -> bool:
    """Whether anything of the job lies in a folder; not where all is in buckets."""
    _, mount = volume_of(job.settings)
    return any(text.startswith(f"{mount}/") for text in job.texts())


def default_image(job: RenderedJob) -> str:
    """As the comment at the top of infra/Dockerfile names what it builds."""
    return f"rwkvctl:{rwkvctl.__version__}" + ("" if job.gpus_per_node else "-cpu")


def ray_version() -> str:
    """Of the Ray that is installed, found without importing it: the image has the same, by the constraints file."""
    try:
        return version("ray")
    except PackageNotFoundError:
        raise UserError("ray is not installed; run: pip install 'rwkvctl[platform]'") from None


class Dumper(yaml.SafeDumper):
    """Texts of several lines are written as such, and no node refers to another."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def dumped(document: dict[str, Any]) -> str:
    return yaml.dump(document, Dumper=Dumper, sort_keys=False, width=1000)


def with_comments(text: str, job: RenderedJob) -> str:
    """The RayJob with what is to be known where it is read."""
    notes = {
        "  submissionMode:": "KubeRay submits it itself: no pod whose end could be taken for the job's.",
        "  backoffLimit:": "Each retry is a new cluster; it continues the run.",
    }
    if job.settings.queue is None:
        notes["  labels:"] = f"With Kueue: {QUEUE_LABEL}: LOCAL-QUEUE (rwkvctl config set queue LOCAL-QUEUE)"
    lines = []
    for line in text.splitlines():
        start = next((start for start in notes if line.startswith(start)), None)
        if start is not None:
            indent = " " * (len(start) - len(start.lstrip()))
            lines.append(f"{indent}# {notes.pop(start)}")
        lines.append(line)
        if line.startswith("  ttlSecondsAfterFinished:"):
            lines += [f"  {comment}" for comment in DELETION.splitlines()]
    return "\n".join(lines) + "\n"
