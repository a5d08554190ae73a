"""The tracking stack of infra/compose with the programs that its containers run: PostgreSQL, an S3 server, MLflow with
accounts. A job trains, registers and promotes a model there with a user's password, and leaves the password nowhere."""

from __future__ import annotations

import base64
import json
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from rwkvctl.data.convert.prepare import prepare
from rwkvctl.data.convert.synth import phantom

from ..postgres_server import open_postgres
from ..process_groups import end_group
from .stand_ins import wait_for

pytestmark = pytest.mark.slow
COMPOSE = Path(__file__).parents[2] / "infra" / "compose"
SECRETS = {
    "POSTGRES_PASSWORD": "hunter2-of-postgres",
    "S3_ACCESS_KEY_ID": "AKIAOFTHELAB",
    "S3_SECRET_ACCESS_KEY": "hunter2-of-the-bucket",
    "MLFLOW_ADMIN_PASSWORD": "hunter2-of-the-admin",
    "MLFLOW_SECRET_KEY": "hunter2-of-the-sessions",
}
ANN, WRONG = "hunter2-of-ann-herself", "hunter2-of-somebody-else"
ADMIN = base64.b64encode(f"admin:{SECRETS['MLFLOW_ADMIN_PASSWORD']}".encode()).decode()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(url: str, body: bytes | None = None, **headers: str) -> int | None:
    """The HTTP status; None while nothing listens."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


@pytest.fixture(scope="module")
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """What the stack runs; ended with all their children, the last first."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in reversed(started):
        end_group(process)


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def database() -> Iterator[int]:
    """Port of a PostgreSQL with the database `mlflow`."""
    with open_postgres("mlflow", SECRETS["POSTGRES_PASSWORD"]) as port:
        yield port


@pytest.fixture(scope="module")
def bucket(processes: list[Any], logs: Path) -> Any:
    """The bucket `mlflow` of an S3 server, and the server's address."""
    boto3 = pytest.importorskip("boto3")
    port = free_port()
    with (logs / "s3.log").open("wb") as log:
        command = [sys.executable, "-m", "moto.server", "-p", str(port)]
        processes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))
    endpoint = f"http://127.0.0.1:{port}"
    wait_for(lambda: answers(endpoint) is not None, "S3", said=(logs / "s3.log").read_text)
    resource = boto3.resource(
        "s3",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id=SECRETS["S3_ACCESS_KEY_ID"],
        aws_secret_access_key=SECRETS["S3_SECRET_ACCESS_KEY"],
    )
    resource.create_bucket(Bucket="mlflow")
    return resource.Bucket("mlflow"), endpoint


@pytest.fixture(scope="module")
def server(
    processes: list[Any], logs: Path, database: int, bucket: Any, tmp_path_factory: pytest.TempPathFactory
) -> str:
    """MLflow with the command, the environment and the accounts of compose.yaml; only the hosts are others."""
    pytest.importorskip("flask_wtf")
    port, folder = free_port(), tmp_path_factory.mktemp("server")
    service = yaml.safe_load((COMPOSE / "compose.yaml").read_text())["services"]["mlflow"]
    here = f"mlflow@127.0.0.1:{database}/mlflow"
    auth = (COMPOSE / "auth.ini").read_text().replace("mlflow@postgres/mlflow", here)
    (folder / "auth.ini").write_text(auth)
    values = SECRETS | {"S3_ENDPOINT": bucket[1], "MLFLOW_HOSTS": f"mlflow.lab:{port}"}
    environment = {key: filled(value, values) for key, value in service["environment"].items()}
    assert environment["PGPASSWORD"] == SECRETS["POSTGRES_PASSWORD"]
    environment["MLFLOW_AUTH_CONFIG_PATH"] = str(folder / "auth.ini")
    command = [word.replace("mlflow@postgres/mlflow", here) for word in service["command"]]
    command = [word.replace("0.0.0.0", "127.0.0.1").replace("5000", str(port)) for word in command]
    assert command[:2] == ["mlflow", "server"]
    command.append("--workers=1")
    with (logs / "mlflow.log").open("wb") as log:
        processes.append(
            subprocess.Popen(
                [sys.executable, "-m", *command],
                env=os.environ | environment,
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        )
    url = f"http://127.0.0.1:{port}"
    wait_for(lambda: answers(f"{url}/health") == 200, "MLflow", said=(logs / "mlflow.log").read_text)
    return url


def filled(text: str, values: dict[str, str]) -> str:
    """Compose's `${NAME:?message}` and `${NAME:-default}`."""
    return re.sub(r"\$\{(\w+):([?-])([^}]*)\}", lambda found: values.get(found[1]) or found[3], text)


@pytest.fixture(scope="module")
def ann(server: str) -> dict[str, str]:
    """The environment of a user, whose account the administrator has made."""
    body = json.dumps({"username": "ann", "password": ANN}).encode()
    url = f"{server}/api/2.0/mlflow/users/create"
    assert answers(url, body, Authorization=f"Basic {ADMIN}", **{"Content-Type": "application/json"}) == 200
    return {
        "MLFLOW_TRACKING_URI": server,
        "MLFLOW_TRACKING_USERNAME": "ann",
        "MLFLOW_TRACKING_PASSWORD": ANN,
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "120",  # a busy machine's server is slow, not gone
        "OMP_NUM_THREADS": "1",
    }


@pytest.fixture
def rwkvctl(tmp_path: Path, ann: dict[str, str]) -> Any:
    """Runs a command as ann; all that was printed is kept for the search of secrets."""
    printed = tmp_path / "printed"

    def run(*words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rwkvctl.cli.app", *map(str, words)]
        own = os.environ | {"RWKVCTL_HOME": str(tmp_path / "home")} | ann | environment
        done = subprocess.run(command, env=own, capture_output=True, text=True, check=False)
        with printed.open("a") as file:
            file.write(done.stdout + done.stderr)
        return done

    return run


@pytest.fixture
def job(tmp_path: Path) -> list[str | Path]:
    """The words of a tiny training."""
    prepare("folder", [phantom.write_polyps(tmp_path / "raw", n=16, size=40)], tmp_path / "shards", seeds=[41])
    small = ["data.image_size=32", "data.workers=0", "train.epochs=1", "train.log_steps=1", "cluster.launcher=process"]
    small.append("train.batch_size=4")
    given = [word for field in small for word in ("--set", field)]
    return ["finetune", "binary", "--variant", "xt", "--data", tmp_path / "shards", *given]


def leaks(folder: Path, bucket: Any) -> list[str]:
    """Files and objects that hold a secret, as it is or as it goes over the wire."""
    secrets = [value for key, value in SECRETS.items() if key != "S3_ACCESS_KEY_ID"] + [ANN, WRONG]
    logins = [base64.b64encode(f"ann:{password}".encode()) for password in (ANN, WRONG)]
    sought = [secret.encode() for secret in secrets] + [*logins, ADMIN.encode()]
    contents = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    contents |= {entry.key: entry.get()["Body"].read() for entry in bucket.objects.all()}
    assert len(contents) > 10
    return [name for name, content in contents.items() if any(secret in content for secret in sought)]


def client(uri: str) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(uri, uri)


def test_a_model_is_trained_registered_and_promoted_with_a_password(
    rwkvctl, job, server: str, bucket: Any, logs: Path, tmp_path: Path, ann: dict[str, str], monkeypatch
):
    done = rwkvctl(*job, "--name", "mine", "--set", "tracking.register_as=polyps")
    assert done.returncode == 0, done.stderr
    assert "registered models:/polyps/1" in done.stdout + done.stderr
    done = rwkvctl("model", "promote", "polyps", "1", "--alias", "champion")
    assert done.returncode == 0, done.stderr
    for key, value in ann.items():
        monkeypatch.setenv(key, value)
    version = client(server).get_model_version_by_alias("polyps", "champion")
    assert (int(version.version), version.status) == (1, "READY")
    keys = [entry.key for entry in bucket[0].objects.all()]
    assert any(key.endswith("weights.safetensors") for key in keys), "the server keeps files in the bucket"
    # By the alias it is found again, and read through the server: ann has no key of the bucket.
    done = rwkvctl("evaluate", "models:/polyps@champion", "--part", "test", RWKVCTL_CACHE=str(tmp_path / "cache"))
    assert done.returncode == 0, done.stderr
    assert leaks(tmp_path, bucket[0]) == []
    assert leaks_in_text(logs) == []


def leaks_in_text(logs: Path) -> list[str]:
    secrets = [value for key, value in SECRETS.items() if key != "S3_ACCESS_KEY_ID"] + [ANN, WRONG]
    return [path.name for path in logs.iterdir() if any(secret in path.read_text() for secret in secrets)]


def test_a_wrong_password_is_one_line_and_nothing_is_lost(
    rwkvctl, job, server: str, bucket: Any, tmp_path: Path, ann: dict[str, str], monkeypatch
):
    done = rwkvctl(*job, "--name", "locked-out", "--set", "tracking.register_as=later", MLFLOW_TRACKING_PASSWORD=WRONG)
    assert done.returncode == 0, "the training is done"
    [line] = [line for line in (done.stdout + done.stderr).splitlines() if "not registered yet" in line]
    assert "401, wrong user or password" in line
    assert line.endswith("register it later with: rwkvctl sync locked-out")
    assert "Traceback" not in done.stderr
    done = rwkvctl("sync", "locked-out", MLFLOW_TRACKING_PASSWORD=WRONG)
    assert done.returncode == 1
    [line] = done.stderr.strip().splitlines()
    assert "did not accept it (401, wrong user or password: set MLFLOW_TRACKING_USERNAME" in line
    assert len(line) < 300
    done = rwkvctl("sync", "locked-out")
    assert done.returncode == 0, done.stderr
    for key, value in ann.items():
        monkeypatch.setenv(key, value)
    version = client(server).get_model_version("later", "1")
    run = client(server).get_run(version.run_id)
    assert run.info.status == "FINISHED"
    steps = [metric.step for metric in client(server).get_metric_history(version.run_id, "train/loss")]
    assert steps == [1, 2, 3], "the metrics of the time before are there"
    assert leaks(tmp_path, bucket[0]) == []


def test_who_is_let_in(server: str):
    port = server.rpartition(":")[2]
    search = f"{server}/api/2.0/mlflow/experiments/get-by-name?experiment_name=Default"
    assert answers(search) == 401
    assert answers(search, Authorization=f"Basic {ADMIN}") == 200
    assert answers(search, Authorization=f"Basic {ADMIN}", Host=f"mlflow.lab:{port}") == 200
    assert answers(search, Authorization=f"Basic {ADMIN}", Host="elsewhere.lab") == 403, "MLFLOW_HOSTS does not name it"
